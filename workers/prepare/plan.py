"""Preparing a plan: read in bulk, every job given its verdict and wave, all published in one commit."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from orchestrator.clouds.config import CloudSettings, load_cloud
from orchestrator.clouds.sign_in import TokenCache
from orchestrator.domain.decide import Reason
from orchestrator.domain.spec import PlanSpec
from orchestrator.domain.states import PlanStatus
from orchestrator.errors import CloudConfigInvalid, CloudError, CloudSignInRefused, Fault
from orchestrator.failpoints import failpoint
from orchestrator.ledger import leases, prepare
from orchestrator.ledger.begin import begin, reject_held
from orchestrator.ledger.prepare import Prepared, PreparingPlan
from orchestrator.ledger.reconcile import restored
from orchestrator.ledger.transitions import PlanMove, lock_plans, move_plan
from orchestrator.log import get_logger
from workers.cloud import signed_in
from workers.prepare.lookup import Rejected
from workers.prepare.verdicts import resolve

log = get_logger(__name__)

LEASE_SECONDS = 30.0
PATIENCE = timedelta(minutes=5)
"""How long the cloud may be out of reach before the plan fails."""


RESTORED = Reason(
    code="database_restored",
    message="The database was restored from a backup, so the plan doesn't start by itself: it may have run already.",
)


async def prepare_plan(engine: AsyncEngine, redis: Any, tokens: TokenCache, plan_id: UUID, holder: str) -> None:
    """Prepares a plan under a lease of its own; does nothing where another is at it or it is prepared already."""
    name = leases.prepare_lease(plan_id)
    async with engine.begin() as conn:
        fence = await leases.acquire(conn, name, holder, LEASE_SECONDS)
        plan = await prepare.plan_to_prepare(conn, plan_id) if fence else None
    if fence is None:
        return
    renewing = asyncio.create_task(_renew(engine, name, fence))
    try:
        if plan:
            await _prepare(engine, redis, tokens, plan, name, fence)
    finally:
        renewing.cancel()
        async with engine.begin() as conn:
            await leases.release(conn, name, fence)


async def _renew(engine: AsyncEngine, name: str, fence: int) -> None:
    while True:
        await asyncio.sleep(LEASE_SECONDS / 4)
        async with engine.begin() as conn:
            await leases.renew(conn, name, fence, LEASE_SECONDS)


async def _prepare(
    engine: AsyncEngine, redis: Any, tokens: TokenCache, plan: PreparingPlan, lease: str, fence: int
) -> None:
    try:
        spec = PlanSpec.read_stored(plan.spec, plan.user_data)
        config = load_cloud(plan.cloud)
        async with engine.connect() as conn:
            targets = await prepare.explicit_targets(conn, plan.id)
        async with signed_in(engine, redis, config, tokens) as (cloud, project):
            prepared = await resolve(engine, cloud, project, config, spec, plan, targets)
        await _publish(engine, plan, prepared, config.settings, lease, fence)
    except Rejected as e:
        await _reject(engine, plan, lease, fence, Reason(code="rejected", message=_said(e.faults)), e.faults)
    except (CloudSignInRefused, CloudConfigInvalid) as e:
        faults = e.errors or [Fault(path="cloud", code=e.reason_code, message=e.message)]
        await _reject(engine, plan, lease, fence, Reason(code=e.reason_code, message=e.message), faults)
    except CloudError as e:
        await _try_later(engine, plan, e)


def _said(faults: Sequence[Fault]) -> str:
    first = f"{faults[0].path}: {faults[0].message}"
    return first if len(faults) == 1 else f"{len(faults)} faults; the first: {first}"


async def _try_later(engine: AsyncEngine, plan: PreparingPlan, error: CloudError) -> None:
    """The cloud is out of reach: again after a while, and a failed plan in the end."""
    log.warning("prepare_postponed", plan=str(plan.id), error=error.message)
    reason = Reason(code=error.reason_code, message=f"The plan could not be prepared yet: {error.message}")
    async with engine.begin() as conn:
        if plan.now - plan.created_at < PATIENCE:
            await prepare.postpone_preparing(conn, plan.id, min(30.0, 2.0 * 2**plan.tries), reason)
            return
        await lock_plans(conn, [plan.id])
        gave_up = replace(reason, message=f"The cloud was out of reach for too long: {error.message}")
        await move_plan(conn, PlanMove(plan_id=plan.id, expected=PlanStatus.PREPARING, status=PlanStatus.FAILED,
                                       actor="prepare", reason=gave_up))  # fmt: skip


async def _reject(
    engine: AsyncEngine, plan: PreparingPlan, lease: str, fence: int, reason: Reason, faults: Sequence[Fault]
) -> None:
    async with engine.begin() as conn:
        await leases.guard(conn, lease, fence)
        await lock_plans(conn, [plan.id])
        itemised = [{"path": f.path, "code": f.code, "message": f.message} for f in faults]
        await move_plan(conn, PlanMove(plan_id=plan.id, expected=PlanStatus.PREPARING, status=PlanStatus.REJECTED,
                                       actor="prepare", reason=reason, faults=itemised))  # fmt: skip
    log.info("plan_rejected", plan=str(plan.id), reason=reason.code)


async def _publish(
    engine: AsyncEngine, plan: PreparingPlan, prepared: Prepared, settings: CloudSettings, lease: str, fence: int
) -> None:
    """One commit: verdicts, waves, and the plan ready, rejected or as far begun as it can be."""
    async with engine.begin() as conn:
        await leases.guard(conn, lease, fence)
        locked = (await lock_plans(conn, [plan.id])).get(plan.id)
        if locked is None or locked.status is not PlanStatus.PREPARING:
            return
        await prepare.publish(conn, plan.id, prepared)
        failpoint("prepare.before_publish")
        move = PlanMove(plan_id=plan.id, expected=PlanStatus.PREPARING, status=PlanStatus.READY, actor="prepare",
                        data={"digest": prepared.digest})  # fmt: skip
        if not plan.hold and await restored(conn, prepared.project):
            move = replace(move, reason=RESTORED)
        if plan.hold or move.reason:
            await move_plan(conn, move)
            status = move.status
        else:
            begun = await begin(conn, plan.id, actor="prepare", data={"digest": prepared.digest},
                                approval_seconds=settings.approval.expires)  # fmt: skip
            status = PlanStatus.REJECTED if begun.held else begun.status
            if begun.held:
                await reject_held(conn, plan.id, PlanStatus.PREPARING, begun.held, actor="prepare")
    failpoint("prepare.after_publish")
    log.info("plan_prepared", plan=str(plan.id), status=status.value, jobs=len(prepared.jobs),
             waves=len(prepared.waves))  # fmt: skip
