"""Disruption budgets: their groups, the servers that are out, and claims within what room there is."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.ledger.drive import JOB_FIELDS, NO_ATTEMPT, ClaimedJob, job_of
from orchestrator.ledger.sql import columns_of, sql, unnest

GROUP = {"name": "text", "size": "int", "places": "int"}


@dataclass(frozen=True, kw_only=True)
class PreparedGroup:
    """A group of a plan's budget: its servers in the cloud, and how many of them may be out at once."""

    name: str
    size: int
    places: int


@dataclass(frozen=True, kw_only=True)
class Out:
    """The project's servers that are out by the ledger."""

    moving: frozenset[str]
    """In flight."""
    idle: frozenset[str]
    """Drained and waiting; or failed, stuck or unresolved, by whatever plan, and not acknowledged. To start on one of
    them costs no room."""
    acknowledged: frozenset[str]
    """Those that a person looks after: no budget counts them, whatever the cloud says of them."""


async def add_groups(conn: AsyncConnection, plan_id: UUID, groups: Sequence[PreparedGroup]) -> None:
    """Groups of the plan's budget; those that it has already stay as they are."""
    if groups:
        await conn.execute(
            sql(f"""
            INSERT INTO budget_groups (plan_id, name, size, places)
            SELECT :plan, name, size, places FROM {unnest("i", GROUP)} ORDER BY name
            ON CONFLICT DO NOTHING"""),  # noqa: S608
            {"plan": plan_id} | columns_of(GROUP, [(g.name, g.size, g.places) for g in groups]),
        )


async def group_places(conn: AsyncConnection, plan_ids: Collection[UUID]) -> dict[UUID, dict[str, int]]:
    """How many servers of each group may be out at once, for each of these plans."""
    found: dict[UUID, dict[str, int]] = {i: {} for i in plan_ids}
    rows = await conn.execute(
        sql("SELECT plan_id, name, places FROM budget_groups WHERE plan_id = ANY(CAST(:ids AS uuid[]))"),
        {"ids": list(plan_ids)},
    )
    for r in rows:
        found[r.plan_id][r.name] = r.places
    return found


async def servers_out(conn: AsyncConnection, project: int, deployment: str) -> Out:
    """What every budget of the project counts."""
    moving = await conn.execute(
        sql("""
        SELECT j.server_id FROM plans p JOIN jobs j ON j.plan_id = p.id
          AND j.state IN ('checking', 'draining', 'sending', 'resolving', 'rebuilding', 'verifying', 'configuring')
        WHERE p.project = :project AND p.due"""),
        {"project": project},
    )
    drained = await conn.execute(
        sql("""
        SELECT j.server_id FROM plans p JOIN jobs j ON j.plan_id = p.id AND j.drained_at IS NOT NULL
          AND j.state = 'pending'
        WHERE p.project = :project AND p.due"""),
        {"project": project},
    )
    outages = await conn.execute(
        sql("SELECT server_id, acknowledged_at IS NOT NULL AS known FROM outages WHERE deployment = :deployment"),
        {"deployment": deployment},
    )
    rows = outages.all()
    return Out(
        moving=frozenset(r.server_id for r in moving if r.server_id),
        idle=frozenset(r.server_id for r in rows if not r.known) | {r.server_id for r in drained if r.server_id},
        acknowledged=frozenset(r.server_id for r in rows if r.known),
    )


async def pending_within(
    conn: AsyncConnection, deployment: str, plan_id: UUID, *, wave: int, limit: int, rooms: Mapping[str, int],
    out: Collection[str],
) -> list[ClaimedJob]:  # fmt: skip
    """Jobs of the waves up to `wave` that may be claimed now, locked: of each group as many as it has room for, and
    those whose server is `out` already, which cost none. In their order; only those whose server the plan holds."""
    columns = {"name": "text", "room": "int"}
    open_groups = [(name, room) for name, room in rooms.items() if room > 0]
    claimable = """j.plan_id = :plan AND j.state = 'pending' AND j.wave <= :wave
          AND (j.due_at IS NULL OR j.due_at <= now())
          AND EXISTS (SELECT 1 FROM holds h WHERE h.deployment = :deployment AND h.server_id = j.server_id
                      AND h.plan_id = :plan)"""
    rows = await conn.execute(
        sql(f"""
        WITH candidates AS MATERIALIZED (
          (SELECT x.ord, x.wave FROM {unnest("g", columns)}
          CROSS JOIN LATERAL (
            SELECT j.ord, j.wave FROM jobs j WHERE {claimable} AND j.budget_group = g.name
            ORDER BY j.wave, j.ord LIMIT least(g.room, :limit)) x
          ORDER BY x.wave, x.ord LIMIT :limit)
          UNION
          (SELECT j.ord, j.wave FROM jobs j WHERE {claimable} AND j.server_id = ANY(CAST(:out AS text[]))
          ORDER BY j.wave, j.ord LIMIT :limit)
        ), next AS MATERIALIZED (SELECT ord FROM candidates ORDER BY wave, ord LIMIT :limit)
        SELECT {JOB_FIELDS}, {NO_ATTEMPT} FROM next JOIN jobs j ON j.plan_id = :plan AND j.ord = next.ord
        WHERE j.state = 'pending'
        ORDER BY j.wave, j.ord FOR UPDATE OF j SKIP LOCKED"""),  # noqa: S608
        {"deployment": deployment, "plan": plan_id, "wave": wave, "limit": limit, "out": sorted(out)}
        | columns_of(columns, open_groups),
    )
    return [job_of(r) for r in rows]


async def regroup(conn: AsyncConnection, moved: Sequence[tuple[UUID, int, str]]) -> None:
    """Jobs (plan, place) whose server is in another group by now. Their plans' rows must be locked."""
    columns = {"plan_id": "uuid", "ord": "int", "name": "text"}
    keys = {"plan_id": "uuid", "ord": "int"}
    await conn.execute(
        sql(f"""
        SELECT 1 FROM jobs j JOIN {unnest("i", keys)} ON j.plan_id = i.plan_id AND j.ord = i.ord
        ORDER BY j.plan_id, j.ord FOR UPDATE OF j"""),  # noqa: S608
        columns_of(keys, [m[:2] for m in moved]),
    )
    await conn.execute(
        sql(f"""
        UPDATE jobs j SET budget_group = i.name FROM {unnest("i", columns)}
        WHERE j.plan_id = i.plan_id AND j.ord = i.ord"""),  # noqa: S608
        columns_of(columns, sorted(moved)),
    )
