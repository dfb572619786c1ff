"""What a plan that is made of another one reads of it: its targets, its user data, and what it changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.states import FINAL_JOB_STATES
from orchestrator.ledger.sql import sql
from orchestrator.ledger.submit import TargetRow


@dataclass(frozen=True, kw_only=True)
class Source:
    """A plan as it is stored, to be copied."""

    id: UUID
    name: str
    cloud: str
    spec: Mapping[str, Any]
    user_data: bytes | None
    labels: Mapping[str, str]
    rollback_of: UUID | None
    started: bool


async def source_plan(conn: AsyncConnection, plan_id: UUID) -> Source | None:
    """The plan, without its targets."""
    row = (
        await conn.execute(
            sql("""
            SELECT id, name, cloud, spec, user_data, labels, rollback_of, started_at IS NOT NULL AS started
            FROM plans WHERE id = :plan"""),
            {"plan": plan_id},
        )
    ).first()
    return None if row is None else Source(**row._mapping)  # noqa: SLF001  SQLAlchemy's public name for it


async def target_rows(conn: AsyncConnection, plan_id: UUID) -> list[TargetRow]:
    """The targets that were named one by one, as they were submitted: by name where they were named so."""
    rows = await conn.execute(
        sql("""
        SELECT CASE WHEN j.find IS NULL THEN j.server_id END AS server_id, j.find,
               CAST(j.overrides AS text) AS overrides
        FROM jobs j JOIN plans p ON p.id = j.plan_id WHERE j.plan_id = :plan AND j.ord < p.explicit ORDER BY j.ord"""),
        {"plan": plan_id},
    )
    return [(r.server_id, r.find, r.overrides) for r in rows]


@dataclass(frozen=True, kw_only=True)
class ChangedServer:
    """A server that a plan has rebuilt, or half; `image` is the one that it had right before its first such call."""

    server_id: str
    image: str | None


async def changed_servers(
    conn: AsyncConnection, plan_id: UUID, server_ids: Sequence[str] | None = None
) -> list[ChangedServer]:
    """Servers (all, or of these) whose job has ended and had a call that took effect, in the plan's order."""
    which = "" if server_ids is None else "AND j.server_id = ANY(CAST(:ids AS text[]))"
    rows = await conn.execute(
        sql(f"""
        SELECT j.server_id, coalesce(a.image, j.previous_image) AS image
        FROM jobs j JOIN LATERAL (
          SELECT a.baseline->>'image' AS image FROM attempts a
          WHERE a.plan_id = j.plan_id AND a.ord = j.ord AND a.effect = 'applied' ORDER BY a.number LIMIT 1) a ON true
        WHERE j.plan_id = :plan AND j.attempts > 0 AND j.server_id IS NOT NULL
          AND j.state = ANY(CAST(:final AS text[])) {which} ORDER BY j.ord"""),  # noqa: S608
        {"plan": plan_id, "final": sorted(s.value for s in FINAL_JOB_STATES)}
        | ({} if server_ids is None else {"ids": list(server_ids)}),
    )
    return [ChangedServer(server_id=r.server_id, image=r.image) for r in rows]
