"""Beginning a prepared plan: approval, start time and holds, in this order; it goes as far as it can.

Holds are all or nothing, so that no two plans ever wait for each other: a queued plan holds nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.decide import Decision, Reason
from orchestrator.domain.states import JobState, PlanStatus
from orchestrator.ledger.drift import foresee
from orchestrator.ledger.holds import CONFLICTS_SHOWN, HeldElsewhere, take_holds
from orchestrator.ledger.plans import expire_at
from orchestrator.ledger.sql import sql
from orchestrator.ledger.transitions import JobChange, PlanMove, move_jobs, move_plan
from orchestrator.ledger.waves import enter_wave


@dataclass(frozen=True, kw_only=True)
class Begun:
    """How far a plan has come; `held`: who has the servers that kept it from starting (nothing was done then)."""

    status: PlanStatus
    held: Sequence[HeldElsewhere] = ()


async def begin(
    conn: AsyncConnection, plan_id: UUID, *, actor: str, reason: Reason | None = None, approved_by: str | None = None,
    approval_seconds: float = 86400.0, data: dict[str, str] | None = None,
) -> Begun:  # fmt: skip
    """Takes a prepared plan to `awaiting_approval`, `scheduled` or `running`; its row must be locked.

    Where other plans hold some of its servers, `on_conflict` decides: `skip` leaves those out, `queue` waits until all
    are free, and `reject` does nothing and returns who has them: it is the caller's to refuse.
    """
    plan = (
        await conn.execute(
            sql("""
            SELECT pl.status, pl.start_at, pl.approve_first, pl.current_wave, pl.queued_for,
                   pl.spec->>'on_conflict' AS on_conflict, p.deployment, clock_timestamp() AS now
            FROM plans pl JOIN projects p ON p.id = pl.project WHERE pl.id = :id"""),
            {"id": plan_id},
        )
    ).one()
    status = PlanStatus(plan.status)

    def move(to: PlanStatus, why: Reason | None) -> PlanMove:
        return PlanMove(plan_id=plan_id, expected=status, status=to, actor=actor, reason=why, data=data)

    if plan.approve_first and approved_by is None:
        await expire_at(conn, plan_id, approval_seconds)
        message = "Its cloud wants an approval before a plan starts."
        await move_plan(conn, move(PlanStatus.AWAITING_APPROVAL, Reason(code="approval_needed", message=message)))
        return Begun(status=PlanStatus.AWAITING_APPROVAL)
    if approved_by is not None:
        await conn.execute(sql("UPDATE plans SET approve_first = false WHERE id = :id"), {"id": plan_id})
    if plan.start_at is not None and plan.start_at > plan.now:
        if status is not PlanStatus.SCHEDULED:
            message = f"It starts at {_time(plan.start_at)}."
            await _schedule(conn, plan_id, None)
            await move_plan(conn, move(PlanStatus.SCHEDULED, Reason(code="scheduled", message=message)))
        return Begun(status=PlanStatus.SCHEDULED)
    held = await _take(conn, plan.deployment, plan_id, plan.on_conflict, actor)
    if held and plan.on_conflict == "queue":
        first = held[0]
        if status is not PlanStatus.SCHEDULED or plan.queued_for is None:
            await _schedule(conn, plan_id, first.server_id)
            await move_plan(conn, move(PlanStatus.SCHEDULED, _queued(held)))
        elif plan.queued_for != first.server_id:
            await _schedule(conn, plan_id, first.server_id, _queued(held))
        return Begun(status=PlanStatus.SCHEDULED)
    if held:
        return Begun(status=status, held=held)
    if plan.on_conflict == "queue":
        await foresee(conn, plan.deployment, plan_id)
    await _schedule(conn, plan_id, None)
    await enter_wave(conn, plan_id, plan.current_wave)
    await move_plan(conn, move(PlanStatus.RUNNING, reason))
    return Begun(status=PlanStatus.RUNNING)


async def reject_held(
    conn: AsyncConnection, plan_id: UUID, status: PlanStatus, held: Sequence[HeldElsewhere], *, actor: str
) -> None:
    """The plan will not start, since other plans hold servers of it: it says which, and who. Its row is locked."""
    faults = [
        {"path": "targets", "code": "held", "message": f"{h.server_id} is held by plan {h.plan_id} ({h.plan_name})"}
        for h in held
    ]
    more = " or more" if len(held) == CONFLICTS_SHOWN else ""
    reason = Reason(code="servers_held", message=f"Other plans hold {len(held)}{more} of these servers.")
    await move_plan(conn, PlanMove(plan_id=plan_id, expected=status, status=PlanStatus.REJECTED, actor=actor,
                                   reason=reason, faults=faults))  # fmt: skip


async def _take(
    conn: AsyncConnection, deployment: str, plan_id: UUID, on_conflict: str, actor: str
) -> tuple[HeldElsewhere, ...]:
    saved = await conn.begin_nested()
    held = await take_holds(conn, deployment, plan_id)
    if held and on_conflict != "skip":
        await saved.rollback()
        return held
    await saved.commit()
    while held:
        changes = [
            JobChange(plan_id=plan_id, ord=h.ord, server_id=h.server_id, expected=JobState.PENDING, actor=actor,
                      decision=Decision(state=JobState.SKIPPED, reason=Reason(code="held", message=h.says)))
            for h in held
        ]  # fmt: skip
        await move_jobs(conn, deployment, changes)
        held = await take_holds(conn, deployment, plan_id)
    return ()


async def _schedule(conn: AsyncConnection, plan_id: UUID, queued_for: str | None, why: Reason | None = None) -> None:
    await conn.execute(
        sql("""
        UPDATE plans SET queued_for = :server, expires_at = NULL, reason_code = coalesce(:code, reason_code),
          reason_message = coalesce(:message, reason_message) WHERE id = :id"""),
        {"id": plan_id, "server": queued_for, "code": why.code if why else None,
         "message": why.message if why else None},
    )  # fmt: skip


def _queued(held: Sequence[HeldElsewhere]) -> Reason:
    first = held[0]
    message = f"Queued behind plan {first.plan_id} ({first.plan_name}), which holds {first.server_id}"
    return Reason(code="queued", message=message + (f" and {len(held) - 1} more." if len(held) > 1 else "."))


async def due_to_begin(conn: AsyncConnection, limit: int = 20) -> list[UUID]:
    """Scheduled plans whose time has come, and queued ones whose blocking server is free; by priority, then age."""
    rows = await conn.execute(
        sql("""
        SELECT pl.id FROM plans pl JOIN projects p ON p.id = pl.project
        WHERE pl.status = 'scheduled' AND (pl.start_at IS NULL OR pl.start_at <= clock_timestamp())
          AND NOT EXISTS (SELECT 1 FROM holds h WHERE h.deployment = p.deployment AND h.server_id = pl.queued_for)
        ORDER BY CAST(pl.spec->>'priority' AS int) DESC NULLS LAST, pl.id LIMIT :limit"""),
        {"limit": limit},
    )
    return [r.id for r in rows]


def _time(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M UTC")
