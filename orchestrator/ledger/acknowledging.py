"""What a person has acknowledged by resuming a halted plan: it counts no more, until it is no longer what it was."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.ledger.sql import columns_of, sql, unnest


async def acknowledge_failures(conn: AsyncConnection, plan_id: UUID, *, failures: int, unresolved: int) -> None:
    """Resuming a halted plan: its failures so far count no more, and the current wave may end without a success."""
    await conn.execute(
        sql("""
        UPDATE plans SET acknowledged_failures = :failures, acknowledged_unresolved = :unresolved,
          acknowledged_at = now() WHERE id = :id"""),
        {"failures": failures, "unresolved": unresolved, "id": plan_id},
    )
    await conn.execute(
        sql("""
        UPDATE waves w SET resumed = true FROM plans p
        WHERE p.id = :id AND w.plan_id = p.id AND w.index = p.current_wave"""),
        {"id": plan_id},
    )


async def release_acknowledged(conn: AsyncConnection, leaving: Sequence[tuple[UUID, int, str]]) -> None:
    """Jobs that are about to leave these states, as failures or as unresolved: those of them that were acknowledged
    would otherwise hide as many others that come later. Plans and jobs are locked.

    `leaving`: (plan id, place, present state); a job in another state is left out.
    """
    columns = {"plan_id": "uuid", "ord": "int", "state": "text"}
    await conn.execute(
        sql(f"""
        WITH gone AS (
          SELECT j.plan_id, count(*) FILTER (WHERE j.state <> 'unresolved') AS failures,
                 count(*) FILTER (WHERE j.state = 'unresolved') AS unresolved
          FROM {unnest("i", columns)} JOIN plans p ON p.id = i.plan_id
          JOIN jobs j ON j.plan_id = i.plan_id AND j.ord = i.ord AND j.state = i.state
          WHERE j.updated_at <= p.acknowledged_at GROUP BY j.plan_id)
        UPDATE plans p SET acknowledged_failures = greatest(0, p.acknowledged_failures - gone.failures),
          acknowledged_unresolved = greatest(0, p.acknowledged_unresolved - gone.unresolved)
        FROM gone WHERE p.id = gone.plan_id"""),  # noqa: S608
        columns_of(columns, leaving),
    )
