"""What is known of a project besides its plans: its limiter, what was learned, and what ails its cloud."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.decide import Reason
from orchestrator.ledger.events import NewEvent, append_events
from orchestrator.ledger.sql import sql, to_json
from orchestrator.ledger.transitions import lock_plans


async def note_trouble(conn: AsyncConnection, project: int, reason: Reason | None) -> None:
    """Why nothing is sent to the project's cloud just now; None: it is well again. Its running plans' events tell."""
    row = await conn.execute(sql("SELECT trouble_code, trouble_message FROM projects WHERE id = :id"), {"id": project})
    code, message = row.one()
    if (reason and reason.code) == code:
        if reason and reason.message != message:  # of the same trouble another word, which is no event
            await conn.execute(
                sql("UPDATE projects SET trouble_message = :message WHERE id = :id"),
                {"message": reason.message, "id": project},
            )
        return
    running = await conn.execute(
        sql("SELECT id FROM plans WHERE project = :id AND due AND status IN ('running', 'cancelling')"), {"id": project}
    )
    plans = await lock_plans(conn, [r.id for r in running])
    await conn.execute(
        sql("UPDATE projects SET trouble_code = :code, trouble_message = :message WHERE id = :id"),
        {"code": reason.code if reason else None, "message": reason.message if reason else None, "id": project},
    )
    told, why = (
        ("plan.cloud_trouble", reason) if reason else ("plan.cloud_recovered", Reason(code=code, message=message))
    )
    await append_events(conn, [NewEvent(plan_id=p, type=told, actor="driver", reason=why) for p in sorted(plans)])


async def stop_project(conn: AsyncConnection, project: int, *, by: str, why: str | None) -> None:
    """The emergency stop: no plan of the project sends anything from now on. Who was first, and why, stays."""
    plans = await _lock_driven(conn, project)
    row = await conn.execute(
        sql("""
        UPDATE projects SET paused = true, paused_by = :by, paused_reason = :why, paused_at = clock_timestamp()
        WHERE id = :id AND NOT paused"""),
        {"id": project, "by": by, "why": why},
    )
    if row.rowcount:
        await _tell_all(conn, plans, "plan.cloud_paused", by, Reason(code="cloud_paused", message=why or ""))


async def release_project(conn: AsyncConnection, project: int, *, by: str, why: str | None) -> None:
    """Takes the emergency stop back."""
    plans = await _lock_driven(conn, project)
    row = await conn.execute(
        sql("""
        UPDATE projects SET paused = false, paused_by = NULL, paused_reason = NULL, paused_at = NULL
        WHERE id = :id AND paused"""),
        {"id": project},
    )
    if row.rowcount:
        await _tell_all(conn, plans, "plan.cloud_resumed", by, Reason(code="cloud_resumed", message=why or ""))


async def _lock_driven(conn: AsyncConnection, project: int) -> list[UUID]:
    """Locks the project's plans that are driven and unfinished."""
    rows = await conn.execute(
        sql("SELECT id FROM plans WHERE project = :id AND due AND finished_at IS NULL"), {"id": project}
    )
    return sorted(await lock_plans(conn, [r.id for r in rows]))


async def _tell_all(conn: AsyncConnection, plans: Sequence[UUID], told: str, by: str, why: Reason) -> None:
    reason = why if why.message else None
    await append_events(conn, [NewEvent(plan_id=p, type=told, actor=by, reason=reason) for p in plans])


async def publish_limiter(
    conn: AsyncConnection, project: int, state: Mapping[str, Any], learned_rate: float, learned_seconds: float | None
) -> None:
    """The limiter's state for the dashboard, and what the next driver should start from."""
    await conn.execute(
        sql("UPDATE clouds SET limiter = CAST(:state AS jsonb) WHERE project = :project"),
        {"state": to_json(dict(state)), "project": project},
    )
    await conn.execute(
        sql("""
        UPDATE projects SET learned_write_rate = :rate,
          learned_rebuild_seconds = coalesce(:seconds, learned_rebuild_seconds) WHERE id = :id"""),
        {"rate": learned_rate, "seconds": learned_seconds, "id": project},
    )


async def project_learned(conn: AsyncConnection, project: int) -> tuple[float | None, float | None]:
    """The write rate (calls per second) and the median rebuild duration (seconds) that earlier drivers learned."""
    row = (
        await conn.execute(
            sql("SELECT learned_write_rate, learned_rebuild_seconds FROM projects WHERE id = :id"), {"id": project}
        )
    ).one()
    return row[0], row[1]
