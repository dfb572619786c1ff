"""What becomes of a job when something happens to it."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.causes import Cause
from orchestrator.domain.decide import PASSING_CAUSES, Decision, FailurePolicy, Happened, Reason, Tried, decide
from orchestrator.domain.lifecycle import JobEvent
from orchestrator.domain.states import FINAL_JOB_STATES, JobState

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
POLICY = FailurePolicy(attempts=3, backoff_initial=10.0, backoff_max=25.0, timeout=1800.0)
WHY = Reason(code="server_error", message="500")


def _decide(state: JobState, event: JobEvent, refusals: int = 0, **more: object) -> Decision:
    return decide(state, Happened(event=event, reason=WHY, **more), NOW, Tried(refusals=refusals, policy=POLICY))


def _wait(decision: Decision) -> float:
    assert decision.due_at is not None
    return (decision.due_at - NOW).total_seconds()


@pytest.mark.parametrize("state", [JobState.SENDING, JobState.RESOLVING])
def test_a_call_that_had_no_effect_is_tried_again_with_doubled_waits_until_attempts_are_used_up(
    state: JobState,
) -> None:
    first = _decide(state, JobEvent.NOT_APPLIED, 0, cause=Cause.SERVER_ERROR)
    second = _decide(state, JobEvent.NOT_APPLIED, 1, cause=Cause.SERVER_ERROR)
    third = _decide(state, JobEvent.NOT_APPLIED, 2, cause=Cause.SERVER_ERROR, fingerprint="500")
    assert (first.state, first.refusals, _wait(first)) == (JobState.PENDING, 1, 10.0)
    assert (second.state, second.refusals, _wait(second)) == (JobState.PENDING, 2, 20.0)
    assert (third.state, third.refusals, third.due_at, third.fingerprint) == (JobState.FAILED, 3, None, "500")
    assert third.reason == WHY


@pytest.mark.parametrize("cause", [c for c in Cause if c not in PASSING_CAUSES])
def test_a_refusal_that_cannot_pass_fails_at_once(cause: Cause) -> None:
    decision = _decide(JobState.SENDING, JobEvent.NOT_APPLIED, 0, cause=cause, fingerprint=f"refused:{cause}")
    assert (decision.state, decision.fingerprint) == (JobState.FAILED, f"refused:{cause}")


def test_the_clouds_own_wait_counts_where_it_is_longer() -> None:
    longer = _decide(JobState.SENDING, JobEvent.NOT_APPLIED, cause=Cause.SERVER_ERROR, retry_after=60.0)
    shorter = _decide(JobState.SENDING, JobEvent.NOT_APPLIED, cause=Cause.SERVER_ERROR, retry_after=1.0)
    assert (_wait(longer), _wait(shorter)) == (60.0, 10.0)


@pytest.mark.parametrize(
    ("cause", "wait", "busy"),
    [
        (Cause.TOKEN, 0.0, False),
        (Cause.NEVER_SENT, 1.0, False),
        (Cause.THROTTLED, 1.0, False),
        (Cause.BUSY, 10.0, True),
    ],
)
def test_being_turned_away_is_no_try(cause: Cause, wait: float, busy: bool) -> None:
    decision = _decide(JobState.SENDING, JobEvent.TURNED_AWAY, 2, cause=cause)
    assert (decision.state, decision.refusals, _wait(decision), decision.busy) == (JobState.PENDING, None, wait, busy)


def test_a_busy_server_is_postponed_by_the_first_backoff_and_a_handover_not_at_all() -> None:
    busy = _decide(JobState.CHECKING, JobEvent.POSTPONE, cause=Cause.BUSY)
    handover = _decide(JobState.CHECKING, JobEvent.POSTPONE)
    assert (busy.state, _wait(busy), busy.busy) == (JobState.PENDING, 10.0, True)
    assert (handover.state, _wait(handover), handover.busy) == (JobState.PENDING, 0.0, False)


@pytest.mark.parametrize(
    ("state", "event"),
    [
        (JobState.SENDING, JobEvent.ACCEPTED),
        (JobState.RESOLVING, JobEvent.FOUND_APPLIED),
        (JobState.UNRESOLVED, JobEvent.FOUND_APPLIED),
    ],
)
def test_an_accepted_rebuild_gets_the_plans_time(state: JobState, event: JobEvent) -> None:
    decision = _decide(state, event)
    assert (decision.state, decision.deadline_at) == (JobState.REBUILDING, NOW + timedelta(seconds=1800))


def test_an_unresolved_call_that_a_person_calls_not_applied_goes_back_without_a_counted_try() -> None:
    decision = _decide(JobState.UNRESOLVED, JobEvent.NOT_APPLIED, 2)
    assert (decision.state, decision.refusals) == (JobState.PENDING, None)


@pytest.mark.parametrize(("final", "consent", "before"), [(True, 0, 0), (False, 2, 0), (True, 1, 1), (True, 2, 2)])
def test_a_failed_rebuild_is_final_without_consent_or_without_its_actions_end_or_when_consent_is_used_up(
    final: bool, consent: int, before: int
) -> None:
    policy = FailurePolicy(rebuild_again=consent)
    happened = Happened(event=JobEvent.REBUILD_FAILED, reason=WHY, final=final, fingerprint="x")
    decision = decide(JobState.REBUILDING, happened, NOW, Tried(rebuilt_again=before, policy=policy))
    assert (decision.state, decision.rebuilt_again, decision.fingerprint) == (JobState.FAILED, None, "x")


def test_with_consent_a_failed_rebuild_whose_action_has_ended_is_pending_again_after_a_wait() -> None:
    policy = FailurePolicy(rebuild_again=2, backoff_initial=10.0)
    happened = Happened(event=JobEvent.REBUILD_FAILED, reason=WHY, final=True)
    for before, wait in ((0, 10.0), (1, 20.0)):
        decision = decide(JobState.REBUILDING, happened, NOW, Tried(rebuilt_again=before, policy=policy))
        assert (decision.state, decision.rebuilt_again, _wait(decision)) == (JobState.PENDING, before + 1, wait)


def test_a_stuck_rebuild_that_fails_after_all_is_never_sent_again_by_itself() -> None:
    happened = Happened(event=JobEvent.REBUILD_FAILED, final=True)
    assert decide(JobState.STUCK, happened, NOW, Tried(policy=FailurePolicy(rebuild_again=2))).state is JobState.FAILED


def test_a_call_found_later_has_its_deadline_from_when_it_was_sent() -> None:
    sent = NOW - timedelta(minutes=20)
    decision = _decide(JobState.RESOLVING, JobEvent.FOUND_APPLIED, sent_at=sent)
    assert decision.deadline_at == sent + timedelta(seconds=1800)


@pytest.mark.parametrize("state", JobState)
def test_a_hold_goes_with_a_terminal_transition_only(state: JobState) -> None:
    assert Decision(state=state).drops_hold is (state in FINAL_JOB_STATES)


@given(
    tries=st.integers(min_value=0, max_value=60),
    initial=st.floats(min_value=0.1, max_value=600),
    longest=st.floats(min_value=0.1, max_value=3600),
)
def test_a_backoff_never_shrinks_and_never_passes_the_maximum(tries: int, initial: float, longest: float) -> None:
    policy = FailurePolicy(backoff_initial=initial, backoff_max=longest)
    assert 0 < policy.backoff(tries) <= policy.backoff(tries + 1) <= longest
