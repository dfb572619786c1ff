"""The tick: what time moves, and who should look. Any process may run it; a lock keeps it to one at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from orchestrator.failpoints import failpoint
from orchestrator.ledger import drive, prepare, tick


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
        await tick.expire_held_plans(conn)
        to_prepare = await prepare.plans_to_prepare(conn)
        failpoint("tick.before_commit")
        undriven = any(not p.driven for p in await drive.due_projects(conn))
    return Found(to_prepare=to_prepare, undriven=undriven)
