"""What becomes of a job when something happens to it: pure, and the only place that says so."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from orchestrator.domain.causes import Cause
from orchestrator.domain.lifecycle import JobEvent, job_moves
from orchestrator.domain.states import FINAL_JOB_STATES, JobState

PASSING_CAUSES = frozenset({Cause.SERVER_ERROR, Cause.NO_ANSWER, Cause.UNREADABLE})
"""Causes of a call proved not applied that can pass by themselves; a 400, 403, 404 or a lock won't."""

TURN_AWAY_SECONDS = {Cause.TOKEN: 0.0, Cause.NEVER_SENT: 1.0, Cause.THROTTLED: 1.0, Cause.MOVED: 2.0}
"""How long a job waits that was turned away without its own fault; the limiter and the sign-in do the real waiting."""


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Why: a stable code, and a sentence for a person."""

    code: str
    message: str


@dataclass(frozen=True, kw_only=True)
class FailurePolicy:
    """The part of a plan's `failure` that one job's fate hangs on. Times in seconds."""

    attempts: int = 3
    backoff_initial: float = 10.0
    backoff_max: float = 300.0
    timeout: float = 1800.0
    rebuild_again: int = 0
    """How often a server whose accepted rebuild failed is wiped once more by itself."""

    def backoff(self, tries: int) -> float:
        """Seconds to wait after the `tries`-th counted try: doubled each time, up to the maximum."""
        return float(min(self.backoff_max, self.backoff_initial * 2 ** max(0, tries - 1)))


@dataclass(frozen=True, kw_only=True)
class Happened:
    """Something that happened to a job."""

    event: JobEvent
    reason: Reason | None = None
    cause: Cause | None = None
    retry_after: float | None = None
    """Seconds, where the cloud said so."""
    fingerprint: str | None = None
    """Equal for equal causes of failure: a class and a code, never free text."""
    final: bool = False
    """The attempt's own action has ended: nothing of it is still to come. Without that no second wipe by itself."""
    sent_at: datetime | None = None
    """When the call was made, where that is not now: the deadline counts from there."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The job's new state and what goes with it. None leaves a column as it is, but for `reason`, which is replaced."""

    state: JobState
    reason: Reason | None = None
    due_at: datetime | None = None
    deadline_at: datetime | None = None
    refusals: int | None = None
    rebuilt_again: int | None = None
    fingerprint: str | None = None
    busy: bool = False
    """The server was at something else; the ledger notes since when."""
    gone: bool = False
    """The server was deleted, so it takes no place in any disruption budget."""

    @property
    def drops_hold(self) -> bool:
        """A hold goes with the job's terminal transition, and never before."""
        return self.state in FINAL_JOB_STATES


@dataclass(frozen=True, kw_only=True)
class NotForThisState(Exception):
    """The event has no line in the table for the job's state."""

    state: JobState
    event: JobEvent


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What a job has behind it."""

    refusals: int = 0
    rebuilt_again: int = 0
    policy: FailurePolicy = field(default_factory=FailurePolicy)


def decide(state: JobState, happened: Happened, now: datetime, tried: Tried) -> Decision:
    """The new state of a job in `state` when `happened`, at `now` (the database's clock).

    Raises `NotForThisState` where the table has no such line.
    """
    moves = job_moves(state, happened.event)
    if not moves:
        raise NotForThisState(state=state, event=happened.event)
    reason, policy = happened.reason, tried.policy
    match happened.event:
        case JobEvent.NOT_APPLIED if state in (JobState.SENDING, JobState.RESOLVING):
            refusals = tried.refusals + 1
            if happened.cause in PASSING_CAUSES and refusals < policy.attempts:
                wait = max(policy.backoff(refusals), happened.retry_after or 0.0)
                return Decision(
                    state=JobState.PENDING, reason=reason, due_at=now + timedelta(seconds=wait), refusals=refusals
                )
            return Decision(state=JobState.FAILED, reason=reason, refusals=refusals, fingerprint=happened.fingerprint)
        case JobEvent.NOT_SENT | JobEvent.TURNED_AWAY:
            cause = happened.cause or Cause.NEVER_SENT
            wait = max(TURN_AWAY_SECONDS.get(cause, policy.backoff_initial), happened.retry_after or 0.0)
            return Decision(
                state=JobState.PENDING, reason=reason, due_at=now + timedelta(seconds=wait), busy=cause is Cause.BUSY
            )
        case JobEvent.POSTPONE:
            busy = happened.cause is Cause.BUSY
            wait = policy.backoff_initial if busy else happened.retry_after or 0.0
            return Decision(state=JobState.PENDING, reason=reason, due_at=now + timedelta(seconds=wait), busy=busy)
        case JobEvent.ACCEPTED | JobEvent.FOUND_APPLIED:
            sent_at = happened.sent_at or now
            return Decision(state=moves[0], reason=reason, deadline_at=sent_at + timedelta(seconds=policy.timeout))
        case JobEvent.REBUILD_FAILED if state is JobState.REBUILDING:
            again = tried.rebuilt_again + 1
            if happened.final and again <= policy.rebuild_again:
                due = now + timedelta(seconds=policy.backoff(again))
                return Decision(state=JobState.PENDING, reason=reason, due_at=due, rebuilt_again=again)
            return Decision(state=JobState.FAILED, reason=reason, fingerprint=happened.fingerprint)
        case _:
            gone = happened.event is JobEvent.GONE
            return Decision(state=moves[0], reason=reason, fingerprint=happened.fingerprint, gone=gone)
