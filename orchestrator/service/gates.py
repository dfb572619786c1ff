"""A person's word at a plan's gates: before its start and between two waves.

Saying again what was said changes nothing and is no error, so that a request whose answer was lost can be repeated.
"""

from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.decide import Reason
from orchestrator.domain.lifecycle import PlanEvent
from orchestrator.domain.states import PlanStatus
from orchestrator.errors import Conflict, NotAllowed
from orchestrator.ledger.begin import begin, reject_held
from orchestrator.ledger.engine import transaction
from orchestrator.ledger.events import last_move_from
from orchestrator.ledger.plans import PlanRecord
from orchestrator.ledger.transitions import PlanMove, move_plan
from orchestrator.ledger.waves import approve_wave, end_bake
from orchestrator.service.actions import allowed, approval_settings, lock_plan, move, reason_of, view
from orchestrator.service.deps import Deps
from orchestrator.service.roles import Principal, Right, Role
from orchestrator.service.views import PlanView

GOING = frozenset(
    {PlanStatus.RUNNING, PlanStatus.SCHEDULED, PlanStatus.BAKING, PlanStatus.SUCCEEDED, PlanStatus.FAILED}
)
"""Where a plan may be by the time that an approval or a promotion is said again."""
STOPPED = (PlanStatus.HALTED, PlanStatus.REJECTED)


async def approve(deps: Deps, principal: Principal, plan_id: UUID, *, reason: str | None = None) -> PlanView:
    """Lets a plan pass its gate: the next wave begins, or the plan itself does, as far as it can.

    Where other plans hold servers of a plan that was to start, it is rejected, itemised. Raises `NotAllowed` for one's
    own plan (an admin's too where the cloud's settings say so), and `Conflict`: `approval_expired`, and where the plan
    waits for no approval.
    """
    async with transaction(deps.engine) as conn:
        plan = await lock_plan(conn, principal, plan_id)
        principal.need(Right.APPROVE)
        settings = await approval_settings(deps, plan.cloud)
        _somebody_elses(principal, plan, by_other=settings.by_other)
        if plan.status != PlanStatus.AWAITING_APPROVAL:
            await _said_before(conn, plan, PlanStatus.AWAITING_APPROVAL, "approved")
        else:
            if plan.expires_at is not None and plan.expires_at <= datetime.now(UTC):
                raise Conflict("Nobody approved it in time; it is too late now.", code="approval_expired")
            await _approve(conn, principal, plan, reason)
    await deps.hints.drive()
    return await view(deps, plan_id)


async def reject(deps: Deps, principal: Principal, plan_id: UUID, *, reason: str | None = None) -> PlanView:
    """Stops a plan at its gate: rejected where it had not started, halted between two waves; resume asks again."""
    async with transaction(deps.engine) as conn:
        plan = await lock_plan(conn, principal, plan_id)
        principal.need(Right.APPROVE)
        _somebody_elses(principal, plan, by_other=False)
        if not (plan.status in STOPPED and plan.reason_code == "approval_rejected"):
            _waiting(plan, PlanEvent.REJECT, "be rejected")
            said = f"{principal.name} rejected it" + (f": {reason}" if reason else ".")
            rejection = PlanMove(
                plan_id=plan.id, expected=PlanStatus(plan.status), actor=principal.name, stop_sending=True,
                status=PlanStatus.REJECTED if plan.started_at is None else PlanStatus.HALTED,
                reason=Reason(code="approval_rejected", message=said),
            )  # fmt: skip
            await move_plan(conn, rejection)
    await deps.hints.drive()
    return await view(deps, plan_id)


async def promote(deps: Deps, principal: Principal, plan_id: UUID, *, reason: str | None = None) -> PlanView:
    """Ends the bake of the current wave now; an approval that is to follow is still asked for."""
    async with transaction(deps.engine) as conn:
        plan = await lock_plan(conn, principal, plan_id)
        principal.need(Right.OPERATE)
        if plan.status != PlanStatus.BAKING:
            await _said_before(conn, plan, PlanStatus.BAKING, "promoted")
        else:
            (status,) = allowed(plan, PlanEvent.PROMOTE, "be promoted", "only a plan whose wave bakes is")
            await end_bake(conn, plan.id)
            await move(conn, principal, plan, status, code="promoted", reason=reason, data={"said": "promoted"})
    await deps.hints.drive()
    return await view(deps, plan_id)


async def _approve(conn: AsyncConnection, principal: Principal, plan: PlanRecord, reason: str | None) -> None:
    if plan.started_at is not None:
        await approve_wave(conn, plan.id, principal.name)
        await move(conn, principal, plan, PlanStatus.RUNNING, code="approved", reason=reason, data={"said": "approved"})
        return
    begun = await begin(conn, plan.id, actor=principal.name, reason=reason_of("approved", reason),
                        approved_by=principal.name, data={"said": "approved"})  # fmt: skip
    if begun.held:
        await reject_held(conn, plan.id, PlanStatus.AWAITING_APPROVAL, begun.held, actor=principal.name)


async def _said_before(conn: AsyncConnection, plan: PlanRecord, gate: PlanStatus, said: str) -> None:
    """Raises `Conflict` unless the plan has left this gate by just this word, and goes on."""
    last = await last_move_from(conn, plan.id, gate)
    waits = plan.status == PlanStatus.AWAITING_APPROVAL and gate is PlanStatus.BAKING
    if not (last and (last.data or {}).get("said") == said and (plan.status in GOING or waits)):
        event = PlanEvent.APPROVE if gate is PlanStatus.AWAITING_APPROVAL else PlanEvent.PROMOTE
        _waiting(plan, event, f"be {said}")


def _waiting(plan: PlanRecord, event: PlanEvent, verb: str) -> None:
    why = "no wave of it bakes" if event is PlanEvent.PROMOTE else "it waits for no approval"
    if plan.status == PlanStatus.PAUSED:
        why = "resume it first"
    if event is PlanEvent.REJECT and plan.status != PlanStatus.AWAITING_APPROVAL:
        raise Conflict(f"The plan is {plan.status} and can't {verb} now: {why}.")
    allowed(plan, event, verb, why)


def _somebody_elses(principal: Principal, plan: PlanRecord, *, by_other: bool) -> None:
    """An approver decides about other people's plans only; an admin too, where the cloud's settings want that."""
    if plan.created_by == principal.name and (principal.role is not Role.ADMIN or by_other):
        raise NotAllowed("Its own plan is for somebody else to decide about: two people stand behind a gated plan.")
