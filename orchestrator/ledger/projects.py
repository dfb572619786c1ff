"""What is known of a project besides its plans: its limiter, what was learned, and what ails its cloud."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.decide import Reason
from orchestrator.ledger.sql import sql, to_json
from orchestrator.ledger.transitions import NewEvent, append_events, lock_plans


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
