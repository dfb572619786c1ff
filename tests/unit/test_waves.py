"""Every job has one wave."""

import time
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.spec import Failure, Wave
from orchestrator.domain.spec.rollout import DEFAULT_WAVES
from orchestrator.domain.units import Size
from orchestrator.domain.waves import allowed_errors, assign, places


def ids(*numbers: int) -> list[str]:
    return [f"00000000-0000-0000-0000-{n:012d}" for n in numbers]


def jobs(n: int) -> list[tuple[int, str]]:
    return list(enumerate(ids(*range(n))))


def wave(size: int | str | None = None, *own: int, **fields: object) -> Wave:
    return Wave.model_validate({"servers": ids(*own), **({} if size is None else {"size": size}), **fields})


def shape(*waves: Wave, n: int) -> list[tuple[str, list[int]]]:
    return [(w.name, list(w.ordinals)) for w in assign(waves, jobs(n))]


@pytest.mark.parametrize(
    ("n", "sizes"),
    [(0, []), (1, [1]), (2, [1, 1]), (10, [1, 2, 7]), (100, [1, 4, 20, 75]), (1000, [1, 49, 200, 750])],
)
def test_the_default_waves_drop_what_a_small_fleet_leaves_empty(n: int, sizes: list[int]) -> None:
    assigned = assign(DEFAULT_WAVES, jobs(n))
    assert [w.size for w in assigned] == sizes
    assert [w.index for w in assigned] == list(range(len(sizes)))


def test_waves_are_named_by_the_plan_or_by_their_place() -> None:
    assert [name for name, _ in shape(*DEFAULT_WAVES, n=1000)] == ["canary", "wave-2", "wave-3", "wave-4"]
    assert [name for name, _ in shape(wave(1), wave("50%", name="half"), wave("100%"), n=9)] == [
        "canary",
        "half",
        "wave-3",
    ]
    assert [name for name, _ in shape(wave("100%"), n=9)] == ["wave-1"]


def test_sizes_are_cumulative_and_round_up() -> None:
    assert shape(wave("25%"), wave("50%"), wave("100%"), n=5) == [
        ("canary", [0, 1]), ("wave-2", [2]), ("wave-3", [3, 4])
    ]  # fmt: skip


def test_sizes_that_stop_short_get_a_last_wave_for_the_rest() -> None:
    assert shape(wave(1), wave(2), n=4) == [("canary", [0]), ("wave-2", [1]), ("rest", [2, 3])]
    assert [name for name, _ in shape(wave(1, name="rest"), n=4)] == ["rest", "rest-2"]


def test_a_wave_begins_with_its_own_servers_and_fills_up_with_those_that_no_wave_names() -> None:
    assert shape(wave(2, 4), wave("100%", 0), n=5) == [("canary", [4, 1]), ("wave-2", [0, 2, 3])]


def test_a_wave_without_a_size_has_its_own_servers_only() -> None:
    assert shape(wave(None, 3, 2), wave(3), n=5) == [("canary", [2, 3]), ("wave-2", [0]), ("rest", [1, 4])]


def test_own_servers_beyond_a_waves_size_count_for_the_later_ones() -> None:
    assert shape(wave(1, 0, 1, 2), wave(3), wave(4), n=5) == [("canary", [0, 1, 2]), ("wave-3", [3]), ("rest", [4])]


def test_own_servers_that_are_not_rebuilt_are_passed_over() -> None:
    assert shape(wave(1, 99), wave("100%"), n=2) == [("canary", [0]), ("wave-2", [1])]
    assert shape(wave(None, 99), wave("100%"), n=2) == [("wave-2", [0, 1])]


def test_ordinals_need_not_be_dense() -> None:
    (first, second) = assign([wave(1), wave("100%")], [(7, ids(7)[0]), (40, ids(40)[0]), (41, ids(41)[0])])
    assert (first.ordinals, second.ordinals) == ((7,), (40, 41))


def test_only_the_first_wave_is_strict_by_itself() -> None:
    assigned = assign(DEFAULT_WAVES, jobs(1000), failure=Failure())
    assert [w.max_errors for w in assigned] == [0, None, None, None]
    assert [w.on_unresolved for w in assigned] == ["halt", "continue", "continue", "continue"]


def test_the_first_wave_with_jobs_is_the_strict_one() -> None:
    (only,) = assign([wave(None, 99), wave("100%")], jobs(3))
    assert (only.index, only.max_errors, only.on_unresolved) == (0, 0, "halt")


def test_what_the_plan_says_goes_for_the_first_wave_too() -> None:
    assigned = assign(
        [wave(10, max_errors=2), wave("100%", max_errors="5%")], jobs(100), failure=Failure(on_unresolved="continue")
    )
    assert [w.max_errors for w in assigned] == [2, 4]
    assert {w.on_unresolved for w in assigned} == {"continue"}
    assert {w.on_unresolved for w in assign(DEFAULT_WAVES, jobs(9), failure=Failure(on_unresolved="halt"))} == {"halt"}


@pytest.mark.parametrize(
    ("limit", "total", "allowed"), [(0, 100, 0), ("5%", 19, 0), ("5%", 20, 1), ("5%", 39, 1), (3, 100, 3)]
)
def test_error_limits_round_down(limit: int | str, total: int, allowed: int) -> None:
    assert allowed_errors(Size.parse_limit(limit), total) == allowed


@pytest.mark.parametrize(
    ("given_", "total", "cloud", "expected"),
    [(None, 1, None, 10), (None, 500, None, 10), (None, 501, None, 11), (None, 100_000, None, 2000),
     (None, 100_000, 500, 500), (50, 10, None, 50), (600, 10, 500, 500), (None, 10, 4, 4)],
)  # fmt: skip
def test_places_are_the_larger_of_ten_and_two_percent_within_the_clouds_limit(
    given_: int | None, total: int, cloud: int | None, expected: int
) -> None:
    assert places(given_, total, cloud) == expected


@st.composite
def rollouts(draw: st.DrawFn) -> tuple[list[Wave], int]:
    n = draw(st.integers(0, 60))
    owners = draw(st.lists(st.integers(0, 4), min_size=80, max_size=80))
    counts = sorted(draw(st.lists(st.integers(1, 70), min_size=4, max_size=4)))
    percents = sorted(draw(st.lists(st.integers(1, 100), min_size=4, max_size=4)))
    waves = []
    for i in range(4):
        own = [s for s in range(80) if owners[s] == i and s % 3 == 0]
        sizes: list[int | str | None] = [counts[i], f"{percents[i]}%"]
        waves.append(wave(draw(st.sampled_from([*sizes, None] if own else sizes)), *own))
    return waves, n


@given(rollouts())
def test_any_rollout_gives_each_job_one_wave(rollout: tuple[list[Wave], int]) -> None:
    waves, n = rollout
    assigned = assign(waves, jobs(n))
    everyone = [ordinal for w in assigned for ordinal in w.ordinals]
    assert sorted(everyone) == list(range(n))
    assert all(w.size for w in assigned)
    assert [w.index for w in assigned] == list(range(len(assigned)))
    assert len({w.name for w in assigned}) == len(assigned)


@given(rollouts())
def test_any_rollout_keeps_named_servers_in_their_wave_and_the_plans_order(rollout: tuple[list[Wave], int]) -> None:
    waves, n = rollout
    owner = {
        server: w.name or ("canary" if i == 0 else f"wave-{i + 1}") for i, w in enumerate(waves) for server in w.servers
    }
    names = ids(*range(n))
    unnamed: list[int] = []
    for w in assign(waves, jobs(n)):
        mine = [o for o in w.ordinals if names[o] in owner]
        assert {owner[names[o]] for o in mine} <= {w.name}
        assert list(w.ordinals[: len(mine)]) == sorted(mine)
        unnamed += w.ordinals[len(mine) :]
    assert unnamed == sorted(unnamed)


@given(st.integers(0, 3000), st.lists(st.integers(1, 100), min_size=1, max_size=6).map(sorted))
def test_after_each_wave_as_many_had_their_turn_as_its_size_says(n: int, percents: list[int]) -> None:
    sums, so_far = set(), 0
    for w in assign([wave(f"{p}%") for p in percents], jobs(n)):
        so_far += w.size
        sums.add(so_far)
    assert sums == {ceil(n * p / 100) for p in [*percents, 100] if n}


def test_a_hundred_thousand_jobs_are_assigned_within_a_second() -> None:
    many = jobs(100_000)
    begun = time.process_time()
    assigned = assign(DEFAULT_WAVES, many)
    assert time.process_time() - begun < 1
    assert [w.size for w in assigned] == [1, 4999, 20_000, 75_000]
