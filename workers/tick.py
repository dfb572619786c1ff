"""The tick: what time moves, and who should look. Any process may run it; a lock keeps it to one at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from orchestrator.domain.states import PlanStatus
from orchestrator.failpoints import failpoint
from orchestrator.ledger import drive, prepare, tick
from orchestrator.ledger.begin import due_to_begin
from orchestrator.log import get_logger

log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What should be hinted at."""

    to_prepare: Sequence[UUID] = ()
    undriven: bool = False
    """Some due project has no driver."""


async def tick_once(engine: AsyncEngine) -> Found:
    """Moves what is due; nothing where another tick is at it."""
    async with engine.begin() as conn:
        if not await tick.try_tick_lock(conn):
            return Found()
        await tick.expire_plans(conn)
        to_prepare = await prepare.plans_to_prepare(conn)
        due = await due_to_begin(conn)
        failpoint("tick.before_commit")
        undriven = any(not p.driven for p in await drive.due_projects(conn))
    begun = [await _begin(engine, plan_id) for plan_id in due]
    return Found(to_prepare=to_prepare, undriven=undriven or PlanStatus.RUNNING in begun)


async def _begin(engine: AsyncEngine, plan_id: UUID) -> PlanStatus | None:
    """Each plan in a transaction of its own, so that a hold that is waited for keeps no other plan back."""
    try:
        async with engine.begin() as conn:
            if not await tick.try_tick_lock(conn):
                return None  # another tick is at it by now
            status = await tick.begin_scheduled(conn, plan_id)
    except DBAPIError as e:  # the next tick tries again
        log.warning("plan_not_begun", plan=str(plan_id), error=str(e)[:200])
        return None
    if status in (PlanStatus.RUNNING, PlanStatus.REJECTED):
        log.info("scheduled_plan_begun", plan=str(plan_id), status=status.value)
    return status
