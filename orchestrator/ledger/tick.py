"""What the tick moves: time has come, a lease has run out, somebody should look."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.decide import Reason
from orchestrator.domain.states import PlanStatus
from orchestrator.ledger.transitions import PlanMove, lock_plans, move_plan

TICK_LOCK = 0x7265_6275  # any fixed number: one advisory lock for the whole service


async def try_tick_lock(conn: AsyncConnection) -> bool:
    """One tick at a time in the whole service; the lock goes with the transaction."""
    row = await conn.execute(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": TICK_LOCK})
    return bool(row.scalar_one())


async def expire_held_plans(conn: AsyncConnection) -> int:
    """Held plans that nobody started in time."""
    rows = await conn.execute(text("SELECT id FROM plans WHERE status = 'ready' AND expires_at <= now() LIMIT 100"))
    plans = await lock_plans(conn, [r.id for r in rows])
    expired = 0
    for plan in plans.values():
        reason = Reason(code="hold_expired", message="Nobody started this saved preview in time; submit it again.")
        expired += await move_plan(
            conn,
            PlanMove(plan_id=plan.id, expected=PlanStatus.READY, status=PlanStatus.EXPIRED, actor="tick",
                     reason=reason),
        )  # fmt: skip
    return expired


async def seen(conn: AsyncConnection, process: str, kind: str) -> None:
    """A process says that it lives."""
    await conn.execute(
        text("""
        INSERT INTO processes (id, kind, seen_at) VALUES (:id, :kind, clock_timestamp())
        ON CONFLICT (id) DO UPDATE SET seen_at = excluded.seen_at"""),
        {"id": process, "kind": kind},
    )


async def gone(conn: AsyncConnection, process: str) -> None:
    """A process says that it leaves; those that died without a word are forgotten after a minute."""
    await conn.execute(
        text("DELETE FROM processes WHERE id = :id OR seen_at < clock_timestamp() - interval '1 minute'"),
        {"id": process},
    )


async def living(conn: AsyncConnection, kind: str) -> int:
    """Processes of a kind that were heard of within the last ten seconds."""
    row = await conn.execute(
        text("SELECT count(*) FROM processes WHERE kind = :kind AND seen_at > clock_timestamp() - interval '10 s'"),
        {"kind": kind},
    )
    return int(row.scalar_one())
