"""The gate at the end of a wave and at a window's edge: bakes, approvals, windows, budgets, drift."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.gate import Ask, Bake, Finish, Halt, NextWave, Start, Wait, gate
from orchestrator.domain.spec import Window
from orchestrator.domain.states import JobState, PlanStatus
from tests.unit.test_gate import plan, plans, wave

S = JobState
NOW = datetime(2026, 11, 28, 2, 30, tzinfo=UTC)  # a Saturday
LATER = wave(1, {S.PENDING: 3})
DONE = wave(0, {S.SUCCEEDED: 2})
NIGHTS = [Window.model_validate({"days": ["sat"], "from": "02:00", "to": "03:00", "tz": "UTC"})]


def test_a_wave_bakes_once_it_has_ended_and_not_before() -> None:
    baking = replace(DONE, bake_seconds=300.0)
    assert isinstance(gate(plan(replace(baking, counts={S.SUCCEEDED: 1, S.REBUILDING: 1}), LATER), NOW), Start)
    assert gate(plan(baking, LATER), NOW) == Bake(wave=0, until=NOW + timedelta(seconds=300))


def test_a_bake_lasts_until_its_time_whatever_the_plan_is_called_meanwhile() -> None:
    baking = replace(DONE, bake_seconds=300.0, bake_until=NOW)
    for status in (PlanStatus.RUNNING, PlanStatus.BAKING):
        figures = plan(baking, LATER, status=status)
        assert gate(figures, NOW - timedelta(seconds=1)) == Bake(wave=0, until=NOW)
        assert gate(figures, NOW) == NextWave(wave=1)


def test_failures_that_show_while_a_wave_bakes_halt_the_plan() -> None:
    baking = wave(0, {S.SUCCEEDED: 2, S.FAILED: 1}, bake_seconds=300.0, bake_until=NOW, max_errors=0)
    assert isinstance(gate(plan(baking, LATER, status=PlanStatus.BAKING), NOW), Halt)


def test_the_last_wave_bakes_too() -> None:
    baking = replace(DONE, bake_seconds=300.0)
    assert isinstance(gate(plan(baking), NOW), Bake)
    assert gate(plan(replace(baking, bake_until=NOW)), NOW) == Finish(status=PlanStatus.SUCCEEDED)


def test_a_wave_that_rebuilt_nothing_has_nothing_to_bake() -> None:
    assert gate(plan(wave(0, {S.SKIPPED: 2}, bake_seconds=300.0)), NOW) == Finish(status=PlanStatus.SUCCEEDED)


def test_a_person_is_asked_after_the_bake_and_only_where_a_wave_follows() -> None:
    asking = replace(DONE, approval=True)
    assert gate(plan(asking, LATER), NOW) == Ask(wave=0)
    assert gate(plan(replace(asking, approved=True), LATER), NOW) == NextWave(wave=1)
    assert gate(plan(asking), NOW) == Finish(status=PlanStatus.SUCCEEDED)
    assert isinstance(gate(plan(replace(asking, bake_seconds=60.0), LATER), NOW), Bake)
    assert gate(plan(replace(asking, bake_seconds=60.0, bake_until=NOW), LATER), NOW) == Ask(wave=0)


def test_a_failed_canary_is_neither_baked_nor_asked_about() -> None:
    canary = wave(0, {S.FAILED: 1}, max_errors=0, bake_seconds=60.0, approval=True)
    assert isinstance(gate(plan(canary, LATER), NOW), Halt)


def test_nothing_starts_outside_the_windows() -> None:
    figures = plan(LATER, current_wave=1, windows=NIGHTS)
    inside = gate(figures, NOW)
    assert isinstance(inside, Start)
    assert inside.until == datetime(2026, 11, 28, 3, tzinfo=UTC)
    outside = gate(figures, NOW + timedelta(hours=1))
    assert isinstance(outside, Wait)
    assert (outside.until, outside.reason.code) == (datetime(2026, 12, 5, 2, tzinfo=UTC), "window_closed")
    assert "2026-12-05 02:00 UTC" in outside.reason.message


def test_what_is_in_flight_may_end_and_a_plan_finish_outside_the_windows() -> None:
    assert isinstance(gate(plan(DONE, windows=NIGHTS), NOW + timedelta(hours=1)), Finish)


def test_a_wave_that_does_not_fit_waits_and_one_that_has_begun_goes_on() -> None:
    long = replace(LATER, likely_seconds=2400.0)
    waiting = gate(plan(long, current_wave=1, windows=NIGHTS), NOW)
    assert isinstance(waiting, Wait)
    assert (waiting.until, waiting.reason.code) == (datetime(2026, 12, 5, 2, tzinfo=UTC), "wave_does_not_fit")
    begun = replace(long, counts={S.PENDING: 2, S.REBUILDING: 1})
    assert isinstance(gate(plan(begun, current_wave=1, windows=NIGHTS), NOW), Start)
    endless = replace(LATER, likely_seconds=86400.0)
    assert isinstance(gate(plan(endless, current_wave=1, windows=NIGHTS), NOW), Start)


@pytest.mark.parametrize(("limit", "halts"), [(None, False), (2, False), (1, True), (0, True)])
def test_a_plan_with_more_drift_than_its_limit_halts_before_its_first_send(limit: int | None, halts: bool) -> None:
    answer = gate(plan(wave(0, {S.PENDING: 5}), drifted=2, drift_limit=limit), NOW)
    assert isinstance(answer, Halt) is halts
    if isinstance(answer, Halt):
        assert answer.reason.code == "drift"
        assert answer.reason.message.startswith(f"2 of 5 servers changed since they were prepared, {limit} allowed")


def test_a_budget_goes_with_the_places() -> None:
    answer = gate(plan(LATER, current_wave=1, rooms={"az1": 2}), NOW)
    assert answer == Start(wave=1, places=5, rooms={"az1": 2})


@given(plans(), st.booleans(), st.integers(0, 300), st.booleans(), st.booleans())
def test_no_wave_begins_before_the_one_before_it_was_baked_and_approved(
    figures: object, bakes: bool, seconds: int, approval: bool, approved: bool
) -> None:
    waves = [
        replace(w, bake_seconds=60.0 if bakes else 0.0, bake_until=NOW + timedelta(seconds=seconds) if bakes else None,
                approval=approval, approved=approved)
        for w in figures.waves  # type: ignore[attr-defined]
    ]  # fmt: skip
    answer = gate(replace(figures, status=PlanStatus.RUNNING, waves=waves), NOW)  # type: ignore[type-var]
    if isinstance(answer, NextWave):
        assert not bakes or seconds == 0
        assert not approval or approved
