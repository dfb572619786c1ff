"""What preparing saw of a plan's servers, for the look at what has changed before the first send."""

from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.drift import Prepared
from orchestrator.ledger.sql import sql


async def prepared_servers(conn: AsyncConnection, plan_id: UUID) -> list[tuple[str, Prepared]]:
    """Server id and what preparing saw of it, for each pending job that a person hasn't retried."""
    rows = await conn.execute(
        sql("""
        SELECT server_id, previous_image, name, seen_status, seen_metadata FROM jobs
        WHERE plan_id = :plan AND state = 'pending' AND attempts = 0 AND retries = 0
          AND seen_status IS NOT NULL AND seen_metadata IS NOT NULL ORDER BY ord"""),
        {"plan": plan_id},
    )
    return [
        (r.server_id, Prepared(image=r.previous_image, name=r.name, status=r.seen_status, metadata=r.seen_metadata))
        for r in rows
    ]


async def foresee(conn: AsyncConnection, deployment: str, plan_id: UUID) -> None:
    """What plans of ours have done to a queued plan's servers since it was submitted is no drift: it queued behind
    them. The plan's row is locked, and it holds the servers."""
    await conn.execute(
        sql("""
        UPDATE jobs j SET seen_status = NULL, seen_metadata = NULL FROM plans p, last_rebuilds l
        WHERE p.id = :plan AND j.plan_id = p.id AND j.state = 'pending' AND j.seen_status IS NOT NULL
          AND l.deployment = :deployment AND l.server_id = j.server_id AND l.at >= p.created_at"""),
        {"plan": plan_id, "deployment": deployment},
    )


async def drift_checked(conn: AsyncConnection, plan_id: UUID) -> None:
    """What changed has been looked at: from now on each job's own check finds it. The plan's row is locked."""
    await conn.execute(sql("UPDATE plans SET check_drift = false WHERE id = :plan"), {"plan": plan_id})
