"""A plan's way through its waves."""

from datetime import datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.states import JobState
from orchestrator.ledger.sql import sql
from orchestrator.ledger.transitions import add_counts


async def enter_wave(conn: AsyncConnection, plan_id: UUID, wave: int) -> None:
    """The plan goes on to `wave`; its row is locked."""
    await conn.execute(sql("UPDATE plans SET current_wave = :w WHERE id = :id"), {"w": wave, "id": plan_id})
    await conn.execute(
        sql("""
        UPDATE waves SET started_at = CASE WHEN index = :w THEN coalesce(started_at, now()) ELSE started_at END,
          finished_at = CASE WHEN index < :w THEN coalesce(finished_at, now()) ELSE finished_at END
        WHERE plan_id = :id"""),
        {"w": wave, "id": plan_id},
    )


async def begin_bake(conn: AsyncConnection, plan_id: UUID, wave: int, until: datetime | None) -> None:
    """Until when the wave bakes; None: it has to end once more first. The plan's row is locked."""
    await conn.execute(
        sql("UPDATE waves SET bake_until = :until WHERE plan_id = :id AND index = :w"),
        {"id": plan_id, "w": wave, "until": until},
    )


async def end_bake(conn: AsyncConnection, plan_id: UUID) -> None:
    """The current wave's bake is over as of now: a second ago, so that it is over by the driver's clock, too."""
    await conn.execute(
        sql("""
        UPDATE waves w SET bake_until = least(w.bake_until, clock_timestamp() - interval '1 s') FROM plans p
        WHERE p.id = :id AND w.plan_id = p.id AND w.index = p.current_wave"""),
        {"id": plan_id},
    )


async def approve_wave(conn: AsyncConnection, plan_id: UUID, by: str) -> None:
    """The current wave has been approved: the next one may begin."""
    await conn.execute(
        sql("""
        UPDATE waves w SET approved_by = :by, approved_at = clock_timestamp() FROM plans p
        WHERE p.id = :id AND w.plan_id = p.id AND w.index = p.current_wave"""),
        {"id": plan_id, "by": by},
    )


async def reopen_wave(conn: AsyncConnection, plan_id: UUID) -> None:
    """The current wave has something to do again: its bake and its approval are to be had anew."""
    await conn.execute(
        sql("""
        UPDATE waves w SET bake_until = NULL, approved_by = NULL, approved_at = NULL FROM plans p
        WHERE p.id = :id AND w.plan_id = p.id AND w.index = p.current_wave"""),
        {"id": plan_id},
    )


async def replenish_wave(conn: AsyncConnection, plan_id: UUID, wave: int, places: int) -> int:
    """Moves the next pending jobs of later waves into `wave`, whose own jobs were all skipped; how many came."""
    rows = await conn.execute(
        sql("""
        WITH chosen AS (
          SELECT ord, wave FROM jobs WHERE plan_id = :id AND wave > :wave AND state = 'pending'
          ORDER BY wave, ord LIMIT :places FOR UPDATE
        ), moved AS (
          UPDATE jobs j SET wave = :wave FROM chosen c WHERE j.plan_id = :id AND j.ord = c.ord
        )
        SELECT wave, count(*) AS n FROM chosen GROUP BY wave"""),
        {"id": plan_id, "wave": wave, "places": places},
    )
    taken: list[tuple[int, int]] = [(r.wave, r.n) for r in rows]
    if not taken:
        return 0
    total = sum(n for _, n in taken)
    deltas = {(plan_id, w, JobState.PENDING.value): -n for w, n in taken}
    deltas[plan_id, wave, JobState.PENDING.value] = total
    await add_counts(conn, deltas)
    await conn.execute(
        sql("""
        UPDATE waves w SET size = w.size + i.n
        FROM unnest(CAST(:waves AS int[]), CAST(:n AS int[])) AS i(wave, n)
        WHERE w.plan_id = :id AND w.index = i.wave"""),
        {"id": plan_id, "waves": [wave, *(w for w, _ in taken)], "n": [total, *(-n for _, n in taken)]},
    )
    return total
