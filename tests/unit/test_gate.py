"""The rollout gate: never too many, never past a threshold, and always on its way to an end."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.gate import (
    PLACES,
    Finish,
    Halt,
    NextWave,
    PlanFigures,
    Replenish,
    Start,
    WaveFigures,
    gate,
    halts,
    outcome,
)
from orchestrator.domain.states import FINISHED_JOB_STATES, JobState, PlanStatus

S = JobState
NOW = datetime(2026, 11, 25, 3, tzinfo=UTC)
ENDS = sorted(FINISHED_JOB_STATES)


def wave(index: int = 0, counts: Mapping[JobState, int] | None = None, **more: object) -> WaveFigures:
    counts = counts or {}
    return WaveFigures(index=index, name=f"w{index}", size=sum(counts.values()), counts=counts, **more)


def plan(*waves: WaveFigures, **more: object) -> PlanFigures:
    fields: dict[str, object] = {"status": PlanStatus.RUNNING, "current_wave": 0, "max_in_flight": 5}
    return PlanFigures(waves=waves, **fields | more)


some_counts = st.dictionaries(st.sampled_from(JobState), st.integers(min_value=0, max_value=20))
limits = st.none() | st.integers(min_value=0, max_value=30)


@st.composite
def plans(draw: st.DrawFn) -> PlanFigures:
    counts = draw(st.lists(some_counts, min_size=1, max_size=4))
    waves = [
        wave(i, c, max_errors=draw(limits), halt_on_unresolved=draw(st.booleans()), resumed=draw(st.booleans()))
        for i, c in enumerate(counts)
    ]
    return plan(
        *waves,
        status=draw(st.sampled_from([PlanStatus.RUNNING, PlanStatus.CANCELLING])),
        current_wave=draw(st.integers(min_value=0, max_value=len(waves) - 1)),
        max_in_flight=draw(st.integers(min_value=1, max_value=40)),
        max_errors=draw(limits),
        acknowledged_failures=draw(st.integers(min_value=0, max_value=10)),
        same_cause=draw(st.none() | st.integers(min_value=1, max_value=10)),
        causes=draw(st.dictionaries(st.sampled_from(["a", "b"]), st.integers(min_value=1, max_value=20))),
    )


@given(plans())
def test_the_gate_never_gives_more_places_than_are_left_and_never_past_a_threshold(figures: PlanFigures) -> None:
    answer = gate(figures, NOW)
    if isinstance(answer, Start):
        assert answer.places >= 0
        assert answer.places == 0 or figures.in_flight + answer.places <= figures.max_in_flight
        assert answer.wave == figures.current_wave
        if figures.status is PlanStatus.RUNNING:
            assert halts(figures) is None
            failures = sum(w.failures for w in figures.waves) - figures.acknowledged_failures
            assert figures.max_errors is None or failures <= figures.max_errors


@given(plans())
def test_a_pending_job_of_the_current_wave_gets_a_place_when_none_is_in_flight(figures: PlanFigures) -> None:
    idle = replace(
        figures,
        status=PlanStatus.RUNNING,
        waves=[replace(w, counts={s: n for s, n in w.counts.items() if s not in PLACES}) for w in figures.waves],
    )
    pending = sum(w.count(S.PENDING) for w in idle.waves if w.index <= idle.current_wave)
    answer = gate(idle, NOW)
    if pending:
        assert isinstance(answer, Halt) or (isinstance(answer, Start) and answer.places > 0)
    else:
        assert not isinstance(answer, Start)


@given(plans())
def test_a_plan_that_is_being_cancelled_starts_nothing_and_ends_once_all_has_finished(figures: PlanFigures) -> None:
    answer = gate(replace(figures, status=PlanStatus.CANCELLING), NOW)
    unfinished = sum(n for w in figures.waves for s, n in w.counts.items() if s not in FINISHED_JOB_STATES)
    if unfinished:
        assert answer == Start(wave=figures.current_wave, places=0)
    else:
        assert answer == Finish(status=PlanStatus.CANCELLED)


@settings(max_examples=200)
@given(
    sizes=st.lists(st.integers(min_value=1, max_value=8), min_size=1, max_size=4),
    places=st.integers(min_value=1, max_value=10),
    max_errors=limits,
    ends=st.lists(st.sampled_from([*ENDS, S.SUCCEEDED, S.SUCCEEDED]), min_size=32, max_size=32),
    at_once=st.integers(min_value=1, max_value=5),
)
def test_a_driven_plan_always_comes_to_an_end(
    sizes: list[int], places: int, max_errors: int | None, ends: list[JobState], at_once: int
) -> None:
    """A small driver: it carries out each answer, and ends a few jobs in between."""
    counts = [Counter({S.PENDING: n}) for n in sizes]
    current, done, total = 0, iter(ends), sum(sizes)
    for _ in range(10 * total + 10 * len(sizes)):
        waves = [wave(i, dict(c), max_errors=None) for i, c in enumerate(counts)]
        figures = plan(*waves, current_wave=current, max_in_flight=places, max_errors=max_errors)
        assert figures.in_flight <= places
        match gate(figures, NOW):
            case Finish(status=status):
                assert figures.count(*ENDS) == total
                assert status is outcome(figures)
                return
            case Halt():
                bad = figures.count(S.FAILED, S.STUCK, S.UNRESOLVED)
                assert bad > 0
                return
            case NextWave(wave=n):
                assert n == current + 1
                current = n
            case Replenish(wave=n, places=wanted):
                came = 0
                for later in counts[n + 1 :]:
                    take = min(wanted - came, later[S.PENDING])
                    later[S.PENDING] -= take
                    came += take
                counts[n][S.PENDING] += came
                if not came:
                    current += 1
            case Start(wave=n, places=free):
                for c in counts[: n + 1]:
                    take = min(free, c[S.PENDING])
                    c[S.PENDING] -= take
                    c[S.REBUILDING] += take
                    free -= take
                for c in counts:
                    for _ in range(min(at_once, c[S.REBUILDING])):
                        c[S.REBUILDING] -= 1
                        c[next(done)] += 1
    pytest.fail("the plan did not come to an end")


@pytest.mark.parametrize("state", [S.FAILED, S.STUCK])
def test_a_plan_halts_at_more_than_max_errors(state: JobState) -> None:
    at = plan(wave(0, {S.SUCCEEDED: 1, state: 3, S.PENDING: 5}), max_errors=3)
    over = plan(wave(0, {S.SUCCEEDED: 1, state: 4, S.PENDING: 4}), max_errors=3, causes={"boot": 3, "net": 1})
    assert isinstance(gate(at, NOW), Start)
    answer = gate(over, NOW)
    assert isinstance(answer, Halt)
    assert answer.reason.code == "max_errors"
    assert answer.reason.message == "4 of 9 failed, 3 allowed. Commonest: boot (3), net (1)."
    assert isinstance(gate(replace(over, acknowledged_failures=1), NOW), Start)


def test_refused_and_skipped_jobs_are_no_failures() -> None:
    assert isinstance(gate(plan(wave(0, {S.REFUSED: 5, S.SKIPPED: 5, S.PENDING: 1}), max_errors=0), NOW), Start)


def test_a_wave_halts_at_more_than_its_own_limit_and_no_more_once_resumed() -> None:
    first = wave(0, {S.SUCCEEDED: 1, S.FAILED: 2, S.PENDING: 1}, max_errors=1)
    answer = gate(plan(first), NOW)
    assert isinstance(answer, Halt)
    assert answer.reason.code == "wave_max_errors"
    assert isinstance(gate(plan(replace(first, max_errors=2)), NOW), Start)
    assert isinstance(gate(plan(replace(first, resumed=True)), NOW), Start)


def test_the_limit_of_a_wave_that_has_ended_is_not_asked_again() -> None:
    first = wave(0, {S.SUCCEEDED: 1, S.FAILED: 2}, max_errors=1)
    assert isinstance(gate(plan(first, wave(1, {S.PENDING: 3}), current_wave=1), NOW), Start)


def test_so_many_failures_of_one_cause_halt() -> None:
    figures = plan(wave(0, {S.SUCCEEDED: 1, S.FAILED: 5, S.PENDING: 1}), same_cause=3)
    assert isinstance(gate(replace(figures, causes={"a": 2, "b": 2}), NOW), Start)
    answer = gate(replace(figures, causes={"a": 1, "b": 3}), NOW)
    assert isinstance(answer, Halt)
    assert answer.reason.code == "same_cause"
    assert isinstance(gate(replace(figures, causes={"b": 3}, acknowledged_failures=5), NOW), Start)


def test_an_unresolved_job_halts_where_the_wave_says_so() -> None:
    counts = {S.UNRESOLVED: 1, S.PENDING: 3}
    answer = gate(plan(wave(0, counts, halt_on_unresolved=True)), NOW)
    assert isinstance(answer, Halt)
    assert answer.reason.code == "unresolved"
    assert isinstance(gate(plan(wave(0, counts, halt_on_unresolved=True), acknowledged_unresolved=1), NOW), Start)
    assert isinstance(gate(plan(wave(0, counts)), NOW), Start)


def test_a_wave_ends_when_all_its_jobs_have_finished_and_not_before() -> None:
    later = wave(1, {S.PENDING: 3})
    for state in set(JobState) - FINISHED_JOB_STATES:
        answer = gate(plan(wave(0, {S.SUCCEEDED: 2, state: 1}), later), NOW)
        assert isinstance(answer, Start), state
    assert gate(plan(wave(0, {S.SUCCEEDED: 2, S.SKIPPED: 1}), later), NOW) == NextWave(wave=1)


def test_a_wave_without_a_success_halts_the_plan_unless_it_was_resumed() -> None:
    first, later = wave(0, {S.FAILED: 1, S.SKIPPED: 1}), wave(1, {S.PENDING: 3})
    answer = gate(plan(first, later), NOW)
    assert isinstance(answer, Halt)
    assert answer.reason.code == "wave_without_success"
    assert gate(plan(replace(first, resumed=True), later), NOW) == NextWave(wave=1)


def test_a_wave_that_had_nothing_to_rebuild_is_filled_up_again() -> None:
    first = wave(0, {S.SKIPPED: 2, S.REFUSED: 1})
    assert gate(plan(first, wave(1, {S.PENDING: 3})), NOW) == Replenish(wave=0, places=3)
    assert gate(plan(first), NOW) == Finish(status=PlanStatus.FAILED)


def test_a_retried_job_of_an_earlier_wave_starts_along_with_the_current_one() -> None:
    answer = gate(plan(wave(0, {S.PENDING: 1, S.SUCCEEDED: 2}), wave(1, {S.SUCCEEDED: 3}), current_wave=1), NOW)
    assert answer == Start(wave=1, places=5)


@pytest.mark.parametrize(
    ("counts", "outside", "status"),
    [
        ({S.SUCCEEDED: 3}, 0, PlanStatus.SUCCEEDED),
        ({S.SUCCEEDED: 1, S.SKIPPED: 2}, 0, PlanStatus.SUCCEEDED),
        ({S.SUCCEEDED: 3}, 1, PlanStatus.FAILED),
        ({S.SUCCEEDED: 3, S.FAILED: 1}, 0, PlanStatus.FAILED),
        ({S.SUCCEEDED: 3, S.REFUSED: 1}, 0, PlanStatus.FAILED),
        ({S.SUCCEEDED: 3, S.STUCK: 1}, 0, PlanStatus.FAILED),
        ({S.SUCCEEDED: 3, S.UNRESOLVED: 1}, 0, PlanStatus.FAILED),
    ],
)
def test_a_plan_succeeds_only_where_every_job_succeeded_or_was_skipped(
    counts: dict[JobState, int], outside: int, status: PlanStatus
) -> None:
    assert gate(plan(wave(0, counts), outside_failures=outside), NOW) == Finish(status=status)


def test_a_plan_without_waves_is_finished() -> None:
    assert gate(plan(), NOW) == Finish(status=PlanStatus.SUCCEEDED)
