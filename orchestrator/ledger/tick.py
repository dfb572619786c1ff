"""What the tick moves: time has come, a lease has run out, somebody should look."""

from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.decide import Reason
from orchestrator.domain.states import PlanStatus
from orchestrator.ledger.begin import begin, reject_held
from orchestrator.ledger.reconcile import SCHEDULED_BEFORE, restored
from orchestrator.ledger.transitions import PlanMove, lock_plans, move_plan

TICK_LOCK = 0x7265_6275  # any fixed number: one advisory lock for the whole service

HOLD_EXPIRED = Reason(code="hold_expired", message="Nobody started this saved preview in time; submit it again.")
APPROVAL_EXPIRED = Reason(code="approval_expired", message="Nobody approved this plan in time; submit it again.")
BETWEEN_WAVES_EXPIRED = Reason(
    code="approval_expired", message="Nobody approved the next wave in time; resume asks for the approval again."
)


async def try_tick_lock(conn: AsyncConnection) -> bool:
    """One tick at a time in the whole service; the lock goes with the transaction."""
    row = await conn.execute(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": TICK_LOCK})
    return bool(row.scalar_one())


async def expire_plans(conn: AsyncConnection) -> int:
    """Held plans that nobody started in time, and gates that nobody passed: `expired` where nothing had been started,
    `halted` between two waves. How many."""
    rows = await conn.execute(
        text("""
        SELECT id, status, started_at FROM plans
        WHERE status IN ('ready', 'awaiting_approval') AND expires_at <= now()
        ORDER BY id LIMIT 100 FOR NO KEY UPDATE SKIP LOCKED""")
    )
    expired = 0
    for row in rows.all():
        before, after, reason = PlanStatus(row.status), PlanStatus.EXPIRED, HOLD_EXPIRED
        if before is PlanStatus.AWAITING_APPROVAL and row.started_at is None:
            reason = APPROVAL_EXPIRED
        elif before is PlanStatus.AWAITING_APPROVAL:
            after, reason = PlanStatus.HALTED, BETWEEN_WAVES_EXPIRED
        move = PlanMove(plan_id=row.id, expected=before, status=after, actor="tick", reason=reason,
                        stop_sending=after is PlanStatus.HALTED)  # fmt: skip
        expired += await move_plan(conn, move)
    return expired


async def begin_scheduled(conn: AsyncConnection, plan_id: UUID) -> PlanStatus | None:
    """Begins a plan whose time has come, in a transaction of its own: where it stands then. None: it was no longer
    scheduled. Where others hold servers of it that it neither queues for nor skips it is rejected, itemised."""
    plan = (await lock_plans(conn, [plan_id])).get(plan_id)
    if plan is None or plan.status is not PlanStatus.SCHEDULED:
        return None
    project = (await conn.execute(text("SELECT project FROM plans WHERE id = :id"), {"id": plan_id})).scalar_one()
    if await restored(conn, project):
        await move_plan(conn, PlanMove(plan_id=plan_id, expected=PlanStatus.SCHEDULED, status=PlanStatus.REJECTED,
                                       actor="tick", reason=SCHEDULED_BEFORE))  # fmt: skip
        return PlanStatus.REJECTED
    begun = await begin(conn, plan_id, actor="tick")
    if begun.held:
        await reject_held(conn, plan_id, PlanStatus.SCHEDULED, begun.held, actor="tick")
        return PlanStatus.REJECTED
    return begun.status


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
