"""The two life cycles as tables: one line a transition, each under one plain sentence.

The diagrams of docs/explanation/life-cycles.md are generated from here. `decide` (jobs) and the use cases (plans)
move nothing that these tables don't allow.
"""

from enum import StrEnum

from orchestrator.domain.states import JobState as J
from orchestrator.domain.states import PlanStatus as P


class JobEvent(StrEnum):
    """What can happen to a job."""

    CLAIM = "claim"
    SKIP = "skip"
    REFUSE = "refuse"
    POSTPONE = "postpone"
    CALL_DRAIN = "call_drain"
    DRAINED = "drained"
    DRAIN_FAILED = "drain_failed"
    INTEND = "intend"
    ACCEPTED = "accepted"
    NOT_SENT = "not_sent"
    TURNED_AWAY = "turned_away"
    NOT_APPLIED = "not_applied"
    UNKNOWN = "unknown"
    FOUND_APPLIED = "found_applied"
    UNSETTLED = "unsettled"
    REBUILT = "rebuilt"
    REBUILD_FAILED = "rebuild_failed"
    DEADLINE = "deadline"
    VERIFIED = "verified"
    CONFIGURE = "configure"
    CHECK_FAILED = "check_failed"
    GONE = "gone"
    GIVE_UP = "give_up"
    RETRY = "retry"
    CANCEL = "cancel"


JOB_TRANSITIONS: dict[tuple[J, JobEvent], tuple[J, ...]] = {
    # The driver claims a job as permits and places allow.
    (J.PENDING, JobEvent.CLAIM): (J.CHECKING,),
    # Preparing or checking found the server as the plan wants it, or a person took it out.
    (J.PENDING, JobEvent.SKIP): (J.SKIPPED,),
    (J.CHECKING, JobEvent.SKIP): (J.SKIPPED,),
    # The server can't or must not be rebuilt.
    (J.PENDING, JobEvent.REFUSE): (J.REFUSED,),
    (J.CHECKING, JobEvent.REFUSE): (J.REFUSED,),
    # The server is busy, the driver hands over or the plan was stopped: later, with a new check.
    (J.CHECKING, JobEvent.POSTPONE): (J.PENDING,),
    (J.DRAINING, JobEvent.POSTPONE): (J.PENDING,),
    # Its `before` hook is called, and when it is drained it is checked again.
    (J.CHECKING, JobEvent.CALL_DRAIN): (J.DRAINING,),
    (J.DRAINING, JobEvent.DRAINED): (J.CHECKING,),
    (J.DRAINING, JobEvent.DRAIN_FAILED): (J.FAILED,),
    # The second gate commits the intent.
    (J.CHECKING, JobEvent.INTEND): (J.SENDING,),
    # 202.
    (J.SENDING, JobEvent.ACCEPTED): (J.REBUILDING,),
    # The call never left, or was turned away for now (401, 429, busy): none of this is a try.
    (J.SENDING, JobEvent.NOT_SENT): (J.PENDING,),
    (J.SENDING, JobEvent.TURNED_AWAY): (J.PENDING,),
    # A refusal that proves the call not applied: tried again where its cause can pass, while attempts are left.
    (J.SENDING, JobEvent.NOT_APPLIED): (J.FAILED, J.PENDING),
    # Anything may have happened: evidence decides, never a second call.
    (J.SENDING, JobEvent.UNKNOWN): (J.RESOLVING,),
    (J.RESOLVING, JobEvent.FOUND_APPLIED): (J.REBUILDING,),
    (J.RESOLVING, JobEvent.NOT_APPLIED): (J.PENDING, J.FAILED),
    # A 409 that no earlier copy of the call explains: the server was busy, which is no try.
    (J.RESOLVING, JobEvent.TURNED_AWAY): (J.PENDING,),
    # Looking did not settle it: a person decides, unless its effect shows after all.
    (J.RESOLVING, JobEvent.UNSETTLED): (J.UNRESOLVED,),
    (J.UNRESOLVED, JobEvent.FOUND_APPLIED): (J.REBUILDING,),
    (J.UNRESOLVED, JobEvent.NOT_APPLIED): (J.PENDING, J.CANCELLED),
    (J.UNRESOLVED, JobEvent.GIVE_UP): (J.FAILED,),
    # The end of the rebuild was attested by image and boot, or its failure by the action.
    (J.REBUILDING, JobEvent.REBUILT): (J.VERIFYING,),
    (J.REBUILDING, JobEvent.REBUILD_FAILED): (J.FAILED, J.PENDING),
    # No end within the plan's timeout: still watched, never sent again by itself.
    (J.REBUILDING, JobEvent.DEADLINE): (J.STUCK,),
    (J.STUCK, JobEvent.REBUILT): (J.VERIFYING,),
    (J.STUCK, JobEvent.REBUILD_FAILED): (J.FAILED,),
    (J.STUCK, JobEvent.GIVE_UP): (J.FAILED,),
    # The plan's probes and its `after` hook.
    (J.VERIFYING, JobEvent.CONFIGURE): (J.CONFIGURING,),
    (J.VERIFYING, JobEvent.VERIFIED): (J.SUCCEEDED,),
    (J.CONFIGURING, JobEvent.VERIFIED): (J.SUCCEEDED,),
    (J.VERIFYING, JobEvent.CHECK_FAILED): (J.FAILED,),
    (J.CONFIGURING, JobEvent.CHECK_FAILED): (J.FAILED,),
    # The server was deleted under our hands.
    (J.SENDING, JobEvent.GONE): (J.FAILED,),
    (J.RESOLVING, JobEvent.GONE): (J.FAILED,),
    (J.REBUILDING, JobEvent.GONE): (J.FAILED,),
    (J.VERIFYING, JobEvent.GONE): (J.FAILED,),
    (J.CONFIGURING, JobEvent.GONE): (J.FAILED,),
    (J.STUCK, JobEvent.GONE): (J.FAILED,),
    (J.UNRESOLVED, JobEvent.GONE): (J.FAILED,),
    # After a failover of the database: the cloud has carried out a call that the ledger lost.
    (J.PENDING, JobEvent.FOUND_APPLIED): (J.REBUILDING,),
    (J.CHECKING, JobEvent.FOUND_APPLIED): (J.REBUILDING,),
    (J.SUCCEEDED, JobEvent.FOUND_APPLIED): (J.REBUILDING,),
    (J.FAILED, JobEvent.FOUND_APPLIED): (J.REBUILDING,),
    (J.REFUSED, JobEvent.FOUND_APPLIED): (J.REBUILDING,),
    (J.CANCELLED, JobEvent.FOUND_APPLIED): (J.REBUILDING,),
    # A person asks for another try: a new attempt, recorded.
    (J.FAILED, JobEvent.RETRY): (J.PENDING,),
    (J.REFUSED, JobEvent.RETRY): (J.PENDING,),
    # The plan is cancelled before anything was sent.
    (J.PENDING, JobEvent.CANCEL): (J.CANCELLED,),
    (J.CHECKING, JobEvent.CANCEL): (J.CANCELLED,),
    (J.DRAINING, JobEvent.CANCEL): (J.CANCELLED,),
}


class PlanEvent(StrEnum):
    """What can happen to a plan."""

    REJECT = "reject"
    GIVE_UP = "give_up"
    PREPARED = "prepared"
    START = "start"
    SCHEDULE = "schedule"
    ASK = "ask"
    EXPIRE = "expire"
    PAUSE = "pause"
    RESUME = "resume"
    BAKE = "bake"
    NEXT_WAVE = "next_wave"
    REOPEN = "reopen"
    PROMOTE = "promote"
    APPROVE = "approve"
    HALT = "halt"
    CANCEL = "cancel"
    CANCELLED = "cancelled"
    SUCCEED = "succeed"
    FAIL = "fail"
    RETRY = "retry"


PLAN_TRANSITIONS: dict[tuple[P, PlanEvent], tuple[P, ...]] = {
    # Preparing found faults; they are itemised.
    (P.PREPARING, PlanEvent.REJECT): (P.REJECTED,),
    # The cloud was out of reach for too long.
    (P.PREPARING, PlanEvent.GIVE_UP): (P.FAILED,),
    # Prepared: held as a saved preview, started at once, or waiting for its time or approval.
    (P.PREPARING, PlanEvent.PREPARED): (P.READY,),
    (P.PREPARING, PlanEvent.START): (P.RUNNING,),
    (P.PREPARING, PlanEvent.SCHEDULE): (P.SCHEDULED,),
    (P.PREPARING, PlanEvent.ASK): (P.AWAITING_APPROVAL,),
    # A saved preview is started, or nobody started it in time.
    (P.READY, PlanEvent.START): (P.RUNNING,),
    (P.READY, PlanEvent.SCHEDULE): (P.SCHEDULED,),
    (P.READY, PlanEvent.ASK): (P.AWAITING_APPROVAL,),
    (P.READY, PlanEvent.EXPIRE): (P.EXPIRED,),
    # Its time has come, or the servers that it queued for are free; or other plans hold some of its servers.
    (P.SCHEDULED, PlanEvent.START): (P.RUNNING,),
    (P.SCHEDULED, PlanEvent.SCHEDULE): (P.SCHEDULED,),
    (P.SCHEDULED, PlanEvent.REJECT): (P.REJECTED,),
    # An approver decides, before the start or between two waves; or nobody does in time.
    (P.AWAITING_APPROVAL, PlanEvent.APPROVE): (P.RUNNING, P.SCHEDULED),
    (P.AWAITING_APPROVAL, PlanEvent.REJECT): (P.REJECTED, P.HALTED),
    (P.AWAITING_APPROVAL, PlanEvent.EXPIRE): (P.EXPIRED, P.HALTED),
    # An operator pauses it; it returns where it was.
    (P.RUNNING, PlanEvent.PAUSE): (P.PAUSED,),
    (P.BAKING, PlanEvent.PAUSE): (P.PAUSED,),
    (P.AWAITING_APPROVAL, PlanEvent.PAUSE): (P.PAUSED,),
    (P.PAUSED, PlanEvent.RESUME): (P.RUNNING, P.BAKING, P.AWAITING_APPROVAL),
    # A wave has ended.
    (P.RUNNING, PlanEvent.NEXT_WAVE): (P.RUNNING,),
    (P.RUNNING, PlanEvent.BAKE): (P.BAKING,),
    (P.RUNNING, PlanEvent.ASK): (P.AWAITING_APPROVAL,),
    (P.BAKING, PlanEvent.NEXT_WAVE): (P.RUNNING,),
    # A person ends the bake before its time, or a server of the wave is to be sent after all.
    (P.BAKING, PlanEvent.PROMOTE): (P.RUNNING,),
    (P.BAKING, PlanEvent.REOPEN): (P.RUNNING,),
    (P.BAKING, PlanEvent.ASK): (P.AWAITING_APPROVAL,),
    # The failure policy stops it; resuming acknowledges the failures so far.
    (P.RUNNING, PlanEvent.HALT): (P.HALTED,),
    (P.BAKING, PlanEvent.HALT): (P.HALTED,),
    (P.HALTED, PlanEvent.RESUME): (P.RUNNING,),
    # Cancelling stops new work and lets what is in flight finish; where nothing was started it is over at once.
    (P.PREPARING, PlanEvent.CANCEL): (P.CANCELLING,),
    (P.READY, PlanEvent.CANCEL): (P.CANCELLED,),
    (P.SCHEDULED, PlanEvent.CANCEL): (P.CANCELLING,),
    (P.AWAITING_APPROVAL, PlanEvent.CANCEL): (P.CANCELLING,),
    (P.RUNNING, PlanEvent.CANCEL): (P.CANCELLING,),
    (P.PAUSED, PlanEvent.CANCEL): (P.CANCELLING,),
    (P.HALTED, PlanEvent.CANCEL): (P.CANCELLING,),
    (P.BAKING, PlanEvent.CANCEL): (P.CANCELLING,),
    (P.CANCELLING, PlanEvent.CANCELLED): (P.CANCELLED,),
    # Every job has finished.
    (P.RUNNING, PlanEvent.SUCCEED): (P.SUCCEEDED,),
    (P.RUNNING, PlanEvent.FAIL): (P.FAILED,),
    # A person retries what failed; the others are running already, or stay as they are.
    (P.FAILED, PlanEvent.RETRY): (P.RUNNING,),
    (P.HALTED, PlanEvent.RETRY): (P.RUNNING,),
    (P.RUNNING, PlanEvent.RETRY): (P.RUNNING,),
    (P.BAKING, PlanEvent.RETRY): (P.RUNNING,),
    (P.AWAITING_APPROVAL, PlanEvent.RETRY): (P.RUNNING,),
    (P.PAUSED, PlanEvent.RETRY): (P.PAUSED,),
    # Late evidence turns a stuck or unresolved job, or a failover one that had succeeded.
    (P.FAILED, PlanEvent.SUCCEED): (P.SUCCEEDED,),
    (P.SUCCEEDED, PlanEvent.FAIL): (P.FAILED,),
}


def job_moves(state: J, event: JobEvent) -> tuple[J, ...]:
    """Where a job in `state` can go on `event`; empty: it is not for this state."""
    return JOB_TRANSITIONS.get((state, event), ())


def plan_moves(status: P, event: PlanEvent) -> tuple[P, ...]:
    """Where a plan in `status` can go on `event`; empty: it is not for this status."""
    return PLAN_TRANSITIONS.get((status, event), ())
