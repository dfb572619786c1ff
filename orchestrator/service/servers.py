"""A person's word on single servers of a plan: leave it out, or say that somebody looks after it."""

from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.decide import Happened, Reason, Tried, decide
from orchestrator.domain.lifecycle import JobEvent
from orchestrator.domain.states import JobState, PlanStatus
from orchestrator.errors import Conflict
from orchestrator.ledger.drive import ClaimedJob
from orchestrator.ledger.engine import transaction
from orchestrator.ledger.events import NewEvent, append_events
from orchestrator.ledger.outages import acknowledge_outage, is_acknowledged
from orchestrator.ledger.plans import PlanRecord, plan_now
from orchestrator.ledger.settle import reason_code_of
from orchestrator.ledger.transitions import JobChange, lock_plans, move_jobs
from orchestrator.service.deps import Deps
from orchestrator.service.reads import get_job
from orchestrator.service.roles import Principal, Right
from orchestrator.service.settle import find_job
from orchestrator.service.views import JobDetailView

SKIPPED_BY = "skipped_by"
CAN_SKIP = frozenset(
    {
        PlanStatus.READY,
        PlanStatus.SCHEDULED,
        PlanStatus.AWAITING_APPROVAL,
        PlanStatus.RUNNING,
        PlanStatus.BAKING,
        PlanStatus.PAUSED,
        PlanStatus.HALTED,
    }
)
"""Plans that are prepared and may still come to the server."""
OUT = (JobState.FAILED, JobState.STUCK, JobState.UNRESOLVED)
"""Jobs whose servers keep their places in disruption budgets."""


async def skip(
    deps: Deps, principal: Principal, plan_id: UUID, server_id: str, *, reason: str | None = None
) -> JobDetailView:
    """Leaves a server out of a plan that has not sent it. Raises `Conflict` (`wrong_state`) once it is too late.

    A job that is being checked can be skipped too: the second gate lets nothing through that is not `checking`.
    """
    principal.need(Right.OPERATE)
    async with transaction(deps.engine) as conn:
        await lock_plans(conn, [plan_id])
        plan, job = await find_job(conn, principal, plan_id, server_id)
        if job.state is not JobState.SKIPPED or await reason_code_of(conn, job.key) != SKIPPED_BY:
            await _skip(conn, principal, plan, job, reason)
    await deps.hints.drive()
    return await get_job(deps, principal, plan_id, server_id)


async def acknowledge(
    deps: Deps, principal: Principal, plan_id: UUID, server_id: str, *, reason: str | None = None
) -> JobDetailView:
    """Frees the place that a failed, stuck or unresolved server keeps in every disruption budget: somebody looks after
    it. No count and no threshold changes. Raises `Conflict` (`wrong_state`) for one that keeps none."""
    principal.need(Right.OPERATE)
    async with transaction(deps.engine) as conn:
        await lock_plans(conn, [plan_id])
        plan, job = await find_job(conn, principal, plan_id, server_id)
        await _acknowledge(conn, principal, plan, job, reason)
    await deps.hints.drive()
    return await get_job(deps, principal, plan_id, server_id)


async def _skip(
    conn: AsyncConnection, principal: Principal, plan: PlanRecord, job: ClaimedJob, reason: str | None
) -> None:
    if plan.status not in CAN_SKIP:
        raise Conflict(f"The plan is {plan.status}: there is nothing to leave out now.", code="wrong_state")
    if job.state not in (JobState.PENDING, JobState.CHECKING):
        raise Conflict(
            f"The job is {job.state}; only one that was not sent (pending, checking) is skipped.", code="wrong_state"
        )
    said = f"{principal.name} left it out" + (f": {reason}" if reason else ".")
    happened = Happened(event=JobEvent.SKIP, reason=Reason(code=SKIPPED_BY, message=said))
    decision = decide(job.state, happened, await plan_now(conn), Tried())
    moved = await move_jobs(
        conn, plan.deployment or "",
        [JobChange(plan_id=job.plan_id, ord=job.ord, server_id=job.server_id, expected=job.state, decision=decision,
                   actor=principal.name)],
    )  # fmt: skip
    if not moved:
        raise Conflict("The job has just moved on; look at it again.", code="wrong_state")


async def _acknowledge(
    conn: AsyncConnection, principal: Principal, plan: PlanRecord, job: ClaimedJob, reason: str | None
) -> None:
    if job.state not in OUT:
        raise Conflict(
            f"The job is {job.state}; only a failed, stuck or unresolved one keeps a place.", code="wrong_state"
        )
    known = await is_acknowledged(conn, plan.deployment or "", job.server_id)
    if known is None:
        raise Conflict(
            "The server keeps no place: it is well again by a later rebuild, or it was deleted.", code="wrong_state"
        )
    if known:
        return
    await acknowledge_outage(conn, plan.deployment or "", job.server_id, principal.name)
    why = Reason(code="acknowledged", message=reason or f"{principal.name} looks after it.")
    event = NewEvent(plan_id=job.plan_id, type="job.acknowledged", actor=principal.name, server_id=job.server_id,
                     from_state=job.state.value, to_state=job.state.value, reason=why)  # fmt: skip
    await append_events(conn, [event])
