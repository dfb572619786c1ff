"""Outages: servers that keep their place in every disruption budget though nothing is under way for them."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.ledger.sql import columns_of, sql, unnest


async def note_outages(
    conn: AsyncConnection, deployment: str, *, out: Sequence[tuple[str, UUID]], back: Sequence[str]
) -> None:
    """Servers (id, plan) that failed, got stuck or stayed unresolved, and servers that are well, deleted or untouched.

    An acknowledgement stands as long as the same plan says the same thing again of the server.
    """
    if out:
        columns = {"server_id": "text", "plan_id": "uuid"}
        await conn.execute(
            sql(f"""
            INSERT INTO outages AS o (deployment, server_id, plan_id)
            SELECT DISTINCT ON (server_id) :deployment, server_id, plan_id FROM {unnest("i", columns)}
            ORDER BY server_id
            ON CONFLICT (deployment, server_id) DO UPDATE SET plan_id = excluded.plan_id,
              acknowledged_at = CASE WHEN o.plan_id = excluded.plan_id THEN o.acknowledged_at END,
              acknowledged_by = CASE WHEN o.plan_id = excluded.plan_id THEN o.acknowledged_by END"""),  # noqa: S608
            {"deployment": deployment} | columns_of(columns, out),
        )
    if back:
        await conn.execute(
            sql("DELETE FROM outages WHERE deployment = :deployment AND server_id = ANY(CAST(:ids AS text[]))"),
            {"deployment": deployment, "ids": sorted(back)},
        )


async def acknowledge_outage(conn: AsyncConnection, deployment: str, server_id: str, by: str) -> bool:
    """Frees the server's place in the budgets; False: it takes none."""
    row = await conn.execute(
        sql("""
        UPDATE outages SET acknowledged_at = coalesce(acknowledged_at, now()),
          acknowledged_by = coalesce(acknowledged_by, :by)
        WHERE deployment = :deployment AND server_id = :server"""),
        {"deployment": deployment, "server": server_id, "by": by},
    )
    return row.rowcount == 1


async def is_acknowledged(conn: AsyncConnection, deployment: str, server_id: str) -> bool | None:
    """Whether somebody looks after the server; None: it takes no place. Its row is locked."""
    row = await conn.execute(
        sql("""
        SELECT acknowledged_at IS NOT NULL FROM outages
        WHERE deployment = :deployment AND server_id = :server FOR UPDATE"""),
        {"deployment": deployment, "server": server_id},
    )
    known: bool | None = row.scalar_one_or_none()
    return known


async def forget_acknowledgements(conn: AsyncConnection, deployment: str, server_ids: Sequence[str]) -> None:
    """Servers that are tried again: what comes of it counts anew."""
    await conn.execute(
        sql("""
        UPDATE outages SET acknowledged_at = NULL, acknowledged_by = NULL
        WHERE deployment = :deployment AND server_id = ANY(CAST(:ids AS text[]))"""),
        {"deployment": deployment, "ids": sorted(server_ids)},
    )
