"""How a claim's room is shared out among plans."""

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.gate import Start
from orchestrator.domain.states import PlanStatus
from orchestrator.ledger.drive import DrivenPlan
from workers.driver.claim import allot


def plan(number: int) -> DrivenPlan:
    return DrivenPlan(
        id=UUID(int=number), cloud="alpha", name=f"p{number}", status=PlanStatus.RUNNING, spec={}, user_data=None,
        image_id="new", max_in_flight=100, rate=None, max_errors=None, current_wave=0, go_epoch=0,
        acknowledged_failures=0, acknowledged_unresolved=0,
    )  # fmt: skip


def given_out(wanted: list[tuple[int, int]], room: int) -> list[int]:
    """What each plan got; `wanted` has (priority, places) of each."""
    shares = [(plan(i), Start(wave=0, places=places)) for i, (_, places) in enumerate(wanted)]
    priorities: dict[object, int] = {UUID(int=i): priority for i, (priority, _) in enumerate(wanted)}
    got = {p.id: n for p, _, n in allot(shares, priorities, room)}
    return [got.get(UUID(int=i), 0) for i in range(len(wanted))]


wishes = st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 50)), max_size=8)


@given(wishes, st.integers(0, 200))
def test_never_more_than_the_room_or_than_wanted_and_nothing_is_left_lying(
    wanted: list[tuple[int, int]], room: int
) -> None:
    got = given_out(wanted, room)
    assert all(0 <= n <= places for n, (_, places) in zip(got, wanted, strict=True))
    assert sum(got) == min(room, sum(places for _, places in wanted))


@given(wishes, st.integers(0, 200))
def test_a_higher_priority_is_served_in_full_before_a_lower_one_gets_anything(
    wanted: list[tuple[int, int]], room: int
) -> None:
    got = given_out(wanted, room)
    for n, (priority, _) in zip(got, wanted, strict=True):
        if n:
            assert all(m == w for m, (p, w) in zip(got, wanted, strict=True) if p > priority)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(0, 200))
def test_equals_get_equal_parts_but_for_those_who_want_less(places: list[int], room: int) -> None:
    got = given_out([(0, n) for n in places], room)
    most = max(got)
    assert all(n == wanted or n >= most - 1 for n, wanted in zip(got, places, strict=True))


def test_ten_places_for_three_plans() -> None:
    assert sorted(given_out([(0, 2), (0, 50), (0, 50)], 10)) == [2, 4, 4]
    assert given_out([(0, 50), (1, 7)], 10) == [3, 7]
