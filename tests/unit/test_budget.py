"""The disruption budget: never more of a group out than its limit, and nobody held up without need."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.budget import Candidate, choose, group_of, key_of, places, rooms
from orchestrator.domain.units import Size

GROUPS = ("az1", "az2", "az3")


def candidates(groups: list[str]) -> list[Candidate]:
    return [Candidate(ord=i, wave=i // 4, server_id=f"s{i}", group=g) for i, g in enumerate(groups)]


some = st.lists(st.sampled_from(GROUPS), max_size=30).map(candidates)
limits = st.dictionaries(st.sampled_from(GROUPS), st.integers(1, 6), min_size=1)
outside = st.lists(st.tuples(st.sampled_from([f"s{i}" for i in range(40)]), st.sampled_from(GROUPS)), max_size=12)


def test_a_server_counts_once_however_often_it_is_out() -> None:
    assert rooms({"az1": 3, "az2": 1}, [("a", "az1"), ("a", "az1"), ("b", "az2"), ("c", "az9")]) == {"az1": 2, "az2": 0}


@given(some, limits, outside, st.integers(0, 20))
def test_no_group_gets_more_servers_out_than_its_limit(
    pending: list[Candidate], limits: dict[str, int], out: list[tuple[str, str]], places: int
) -> None:
    groups = {c.server_id: c.group or "" for c in pending}
    out = [(s, groups.get(s, g)) for s, g in out]
    before = {g: {s for s, h in out if h == g} for g in GROUPS}
    chosen = choose(pending, places, rooms(limits, out), {s for s, _ in out})
    assert len(chosen) <= places
    assert len({c.ord for c in chosen}) == len(chosen)
    for group in GROUPS:
        after = before[group] | {c.server_id for c in chosen if c.group == group}
        assert after == before[group] or len(after) <= limits.get(group, 0)


@given(some, limits, outside, st.integers(0, 20))
def test_who_may_go_is_not_left_behind(
    pending: list[Candidate], limits: dict[str, int], out: list[tuple[str, str]], places: int
) -> None:
    ids = {s for s, _ in out}
    free = rooms(limits, out)
    chosen = choose(pending, places, free, ids)
    used = Counter(c.group for c in chosen if c.server_id not in ids)
    left = [c for c in pending if c not in chosen]
    if len(chosen) < places:
        assert all(c.server_id not in ids and used[c.group] >= free.get(c.group or "", 0) for c in left)


@given(some, st.integers(0, 20))
def test_without_a_budget_the_first_ones_go(pending: list[Candidate], places: int) -> None:
    assert choose(pending, places, None, set()) == pending[:places]


def test_a_group_is_the_zone_the_host_or_a_metadata_value_or_none() -> None:
    def of(per: str) -> str:
        return group_of(per, zone="az1", host="h7", metadata={"role": "web"})

    assert [of(p) for p in ("availability_zone", "host", "metadata.role", "metadata.no")] == ["az1", "h7", "web", ""]
    assert [key_of(p) for p in ("availability_zone", "host", "metadata.role")] == [None, None, "role"]


def test_places_are_a_count_as_given_or_a_percentage_rounded_down_but_at_least_one() -> None:
    assert [places(Size.parse("20%"), n) for n in (3, 5, 9, 10)] == [1, 1, 1, 2]
    assert [places(Size.parse(3), n) for n in (1, 100)] == [3, 3]
