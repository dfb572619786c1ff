"""The life cycles' tables: every pair of state and event, and what can be reached."""

from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

import pytest

from orchestrator.domain.causes import Cause
from orchestrator.domain.decide import FailurePolicy, Happened, NotForThisState, Tried, decide
from orchestrator.domain.diagram import mermaid, page
from orchestrator.domain.lifecycle import (
    JOB_TRANSITIONS,
    PLAN_TRANSITIONS,
    JobEvent,
    PlanEvent,
    job_moves,
    plan_moves,
)
from orchestrator.domain.states import (
    FINAL_JOB_STATES,
    FINAL_PLAN_STATUSES,
    FINISHED_JOB_STATES,
    HOLDING_JOB_STATES,
    IN_FLIGHT_JOB_STATES,
    JobState,
    PlanStatus,
)

NOW = datetime(2026, 11, 24, tzinfo=UTC)
PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "life-cycles.md"
WIPED = {JobState.SENDING, JobState.RESOLVING, JobState.REBUILDING, JobState.VERIFYING, JobState.CONFIGURING,
         JobState.STUCK, JobState.UNRESOLVED}  # fmt: skip


@pytest.mark.parametrize("event", JobEvent)
@pytest.mark.parametrize("state", JobState)
def test_decide_does_what_the_table_says_and_nothing_else(state: JobState, event: JobEvent) -> None:
    allowed = JOB_TRANSITIONS.get((state, event))
    for cause in (None, *Cause):
        for refusals in (0, 1, 99):
            happened = Happened(event=event, cause=cause)
            tried = Tried(refusals=refusals, policy=FailurePolicy(attempts=3))
            if allowed is None:
                with pytest.raises(NotForThisState) as caught:
                    decide(state, happened, NOW, tried)
                assert (caught.value.state, caught.value.event) == (state, event)
            else:
                assert decide(state, happened, NOW, tried).state in allowed


@pytest.mark.parametrize("event", PlanEvent)
@pytest.mark.parametrize("status", PlanStatus)
def test_a_plans_moves_are_those_of_its_table(status: PlanStatus, event: PlanEvent) -> None:
    assert plan_moves(status, event) == PLAN_TRANSITIONS.get((status, event), ())


def _reached(table: dict[tuple[StrEnum, StrEnum], tuple[StrEnum, ...]], first: StrEnum) -> set[StrEnum]:
    reached: set[StrEnum] = set()
    new = {first}
    while new:
        reached |= new
        new = {t for (s, _), targets in table.items() if s in reached for t in targets} - reached
    return reached


def test_every_state_can_be_reached() -> None:
    assert _reached(JOB_TRANSITIONS, JobState.PENDING) == set(JobState)
    assert _reached(PLAN_TRANSITIONS, PlanStatus.PREPARING) == set(PlanStatus)


def test_every_event_is_for_some_state() -> None:
    assert {event for _, event in JOB_TRANSITIONS} == set(JobEvent)
    assert {event for _, event in PLAN_TRANSITIONS} == set(PlanEvent)


def test_a_final_job_moves_only_by_a_persons_retry_or_a_lost_call_and_every_other_state_has_a_way_on() -> None:
    for state in JobState:
        events = {event for (s, event) in JOB_TRANSITIONS if s is state}
        if state in FINAL_JOB_STATES:
            assert events <= {JobEvent.RETRY, JobEvent.FOUND_APPLIED}
        else:
            assert events
            assert _reached(JOB_TRANSITIONS, state) & FINAL_JOB_STATES


def test_a_final_plan_moves_only_by_a_retry_or_late_evidence() -> None:
    for status in PlanStatus:
        events = {event for (s, event) in PLAN_TRANSITIONS if s is status}
        if status in FINAL_PLAN_STATUSES:
            assert events <= {PlanEvent.RETRY, PlanEvent.SUCCEED, PlanEvent.FAIL}
        else:
            assert events
            assert _reached(PLAN_TRANSITIONS, status) & FINAL_PLAN_STATUSES


def test_only_the_second_gate_leads_to_sending() -> None:
    into = {(state, event) for (state, event), targets in JOB_TRANSITIONS.items() if JobState.SENDING in targets}
    assert into == {(JobState.CHECKING, JobEvent.INTEND)}


def test_what_may_have_been_sent_returns_to_pending_only_when_proved_not_to_have_had_effect() -> None:
    proofs = {JobEvent.NOT_SENT, JobEvent.TURNED_AWAY, JobEvent.NOT_APPLIED}
    for (state, event), targets in JOB_TRANSITIONS.items():
        if state in WIPED and JobState.PENDING in targets:
            assert event in proofs or (state, event) == (JobState.REBUILDING, JobEvent.REBUILD_FAILED)


def test_a_plans_cancellation_cancels_nothing_that_may_have_been_sent() -> None:
    assert not [state for state in WIPED if job_moves(state, JobEvent.CANCEL)]


def test_the_sets_of_states_fit_together() -> None:
    assert FINAL_JOB_STATES < FINISHED_JOB_STATES
    assert not FINAL_JOB_STATES & HOLDING_JOB_STATES
    assert set(JobState) == FINAL_JOB_STATES | HOLDING_JOB_STATES
    assert not IN_FLIGHT_JOB_STATES & FINISHED_JOB_STATES
    assert set(JobState) - FINISHED_JOB_STATES - IN_FLIGHT_JOB_STATES == {JobState.PENDING, JobState.CHECKING}


def test_each_transition_is_in_the_diagram() -> None:
    job, plan = mermaid("job"), mermaid("plan")
    for diagram, table in ((job, JOB_TRANSITIONS), (plan, PLAN_TRANSITIONS)):
        lines = diagram.splitlines()
        for (state, event), targets in table.items():
            for target in targets:
                (line,) = [x for x in lines if x.startswith(f"    {state} --> {target}: ")]
                assert event.value in line.partition(": ")[2].split(", ")
    assert "    refused --> [*]" in job
    assert "    stuck --> [*]" not in job


def test_the_committed_page_is_the_generated_one() -> None:
    """Run `python -m orchestrator.domain.diagram > docs/explanation/life-cycles.md` after a change of the tables."""
    assert PAGE.read_text(encoding="utf-8") == page()
