"""The names of all states. They import nothing, so that everything may import them."""

from enum import StrEnum


class JobState(StrEnum):
    """Where one server of one plan stands."""

    PENDING = "pending"
    """Waits for its turn, or for its next attempt's due time."""
    CHECKING = "checking"
    """Claimed; looked at once more before its disk is wiped."""
    DRAINING = "draining"
    """Its `before` hook was called; waits until it is drained."""
    SENDING = "sending"
    """The intent is committed; the call may leave, or may have left."""
    RESOLVING = "resolving"
    """The call's effect is unknown; evidence is being gathered."""
    REBUILDING = "rebuilding"
    """The cloud accepted the call."""
    VERIFYING = "verifying"
    """Rebuilt, by image and boot; the plan's probes run."""
    CONFIGURING = "configuring"
    """Its `after` hook was called."""
    SUCCEEDED = "succeeded"
    """Rebuilt, and everything that the plan asks for holds."""
    SKIPPED = "skipped"
    """Already as the plan wants it; nothing was sent."""
    REFUSED = "refused"
    """Can't or must not be rebuilt; the reason says why. Nothing was sent."""
    FAILED = "failed"
    """Its rebuild failed; the reason says how."""
    STUCK = "stuck"
    """No end was seen within the plan's timeout; still watched, never sent again by itself."""
    UNRESOLVED = "unresolved"
    """Whether the call took effect can't be known; a person decides."""
    CANCELLED = "cancelled"
    """The plan was cancelled before anything was sent for it."""


class PlanStatus(StrEnum):
    """Where a plan stands."""

    PREPARING = "preparing"
    """Being resolved against the cloud."""
    REJECTED = "rejected"
    """Preparing found faults; they are itemised. Nothing was sent."""
    READY = "ready"
    """Prepared and held: a saved preview. `start` runs exactly it."""
    EXPIRED = "expired"
    """Held for longer than `hold_expires`."""
    SCHEDULED = "scheduled"
    """Waits for its start time."""
    AWAITING_APPROVAL = "awaiting_approval"
    """A gate waits for an approver."""
    RUNNING = "running"
    """Jobs are being claimed and driven."""
    BAKING = "baking"
    """A wave has ended; its bake time runs."""
    PAUSED = "paused"
    """Stopped by an operator; what is in flight goes on."""
    HALTED = "halted"
    """Stopped by its own failure policy; the reason says which threshold."""
    CANCELLING = "cancelling"
    """No new work; what is in flight finishes."""
    CANCELLED = "cancelled"
    """Cancelled, and nothing is in flight."""
    SUCCEEDED = "succeeded"
    """Finished; every job succeeded or was skipped."""
    FAILED = "failed"
    """Finished with failed, refused, stuck or unresolved jobs, or never prepared."""


class Verdict(StrEnum):
    """What preparing or checking found for a server."""

    REBUILD = "rebuild"
    """It will be rebuilt."""
    SKIP = "skip"
    """It is already as the plan wants it."""
    REFUSE = "refuse"
    """It can't or must not be rebuilt."""


FINAL_JOB_STATES = frozenset(
    {JobState.SUCCEEDED, JobState.SKIPPED, JobState.REFUSED, JobState.FAILED, JobState.CANCELLED}
)
"""A job here moves only by a person's retry, or where a failed-over database had lost its call."""

FINISHED_JOB_STATES = FINAL_JOB_STATES | {JobState.STUCK, JobState.UNRESOLVED}
"""A wave, a plan or a cancellation doesn't wait for a job here."""

IN_FLIGHT_JOB_STATES = frozenset(
    {
        JobState.DRAINING,
        JobState.SENDING,
        JobState.RESOLVING,
        JobState.REBUILDING,
        JobState.VERIFYING,
        JobState.CONFIGURING,
    }
)
"""Servers that count against `max_in_flight`; `checking` is a claim that has wiped nothing yet but counts too."""

HOLDING_JOB_STATES = frozenset(JobState) - FINAL_JOB_STATES
"""A started plan keeps its hold on the server of a job here."""

FINAL_PLAN_STATUSES = frozenset(
    {PlanStatus.REJECTED, PlanStatus.EXPIRED, PlanStatus.CANCELLED, PlanStatus.SUCCEEDED, PlanStatus.FAILED}
)
"""A plan here moves only by retry, or by late evidence for a job of it."""
