"""Holds: a started plan's exclusive claim on a server, keyed by (deployment, server id)."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.ledger.sql import sql

CONFLICTS_SHOWN = 1000
"""How many conflicts are itemised; more are only counted."""


@dataclass(frozen=True, kw_only=True)
class HeldElsewhere:
    """A server that another plan holds."""

    server_id: str
    plan_id: UUID
    plan_name: str
    ord: int = -1
    """Its place in the plan that wants it."""

    @property
    def says(self) -> str:
        """Who has it, in words."""
        return f"Plan {self.plan_id} ({self.plan_name}) holds it."


async def take_holds(
    conn: AsyncConnection, deployment: str, plan_id: UUID, server_ids: Sequence[str] | None = None
) -> tuple[HeldElsewhere, ...]:
    """Takes the holds of all the plan's pending jobs, or of these servers of its, in the order of server ids; returns
    who has the others.

    The plan row must be locked. Where anything is returned, the caller rolls back or settles it.
    """
    which = "state = 'pending'" if server_ids is None else "server_id = ANY(CAST(:ids AS text[]))"
    parameters = {"deployment": deployment, "plan": plan_id} | ({} if server_ids is None else {"ids": list(server_ids)})
    while True:
        await conn.execute(
            sql(f"""
            INSERT INTO holds (deployment, server_id, plan_id)
            SELECT :deployment, server_id, plan_id FROM jobs
            WHERE plan_id = :plan AND {which} AND server_id IS NOT NULL
            ORDER BY server_id
            ON CONFLICT DO NOTHING"""),  # noqa: S608
            parameters,
        )
        rows = await conn.execute(
            sql(f"""
            SELECT j.ord, j.server_id, h.plan_id, p.name
            FROM jobs j LEFT JOIN holds h ON h.deployment = :deployment AND h.server_id = j.server_id
            LEFT JOIN plans p ON p.id = h.plan_id
            WHERE j.plan_id = :plan AND j.{which} AND j.server_id IS NOT NULL AND h.plan_id IS DISTINCT FROM :plan
            ORDER BY h.plan_id IS NOT NULL, j.ord LIMIT :shown"""),  # noqa: S608
            parameters | {"shown": CONFLICTS_SHOWN},
        )
        held = rows.all()
        # A hold that another plan gave back between the two statements is had by nobody: it is taken now.
        if not (held and held[0].plan_id is None):
            break
    return tuple(HeldElsewhere(server_id=r.server_id, plan_id=r.plan_id, plan_name=r.name, ord=r.ord) for r in held)


async def who_holds(
    conn: AsyncConnection, deployment: str, server_ids: Sequence[str], *, limit: int | None = CONFLICTS_SHOWN
) -> tuple[HeldElsewhere, ...]:
    """Which of these servers a started plan holds: a look, nothing is taken. `limit` None: all of them."""
    rows = await conn.execute(
        sql("""
        SELECT h.server_id, h.plan_id, p.name FROM holds h JOIN plans p ON p.id = h.plan_id
        WHERE h.deployment = :deployment AND h.server_id = ANY(CAST(:ids AS text[]))
        ORDER BY h.server_id LIMIT :shown"""),
        {"deployment": deployment, "ids": list(server_ids), "shown": limit},
    )
    return tuple(HeldElsewhere(server_id=r.server_id, plan_id=r.plan_id, plan_name=r.name) for r in rows)


async def release_plan_holds(conn: AsyncConnection, plan_id: UUID) -> None:
    """Gives back every hold of a plan that ended without having started anything for these servers."""
    await conn.execute(
        sql("DELETE FROM holds WHERE plan_id = :plan"),
        {"plan": plan_id},
    )
