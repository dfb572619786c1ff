"""What a person's word on a job reads and writes: resolving an open call, and retrying what failed."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.states import JobState
from orchestrator.ledger.drive import ATTEMPT, JOB_FIELDS, ClaimedJob, job_of
from orchestrator.ledger.sql import sql
from orchestrator.ledger.tables import NO_WAVE
from orchestrator.ledger.transitions import JobKey, add_counts


async def job_to_settle(conn: AsyncConnection, plan_id: UUID, server_id: str) -> ClaimedJob | None:
    """The job of a server with its newest attempt; None: the plan has no such server."""
    row = (
        await conn.execute(
            sql(f"""
            SELECT {JOB_FIELDS}, {ATTEMPT} FROM jobs j
            LEFT JOIN attempts a ON a.plan_id = j.plan_id AND a.ord = j.ord AND a.number = j.attempts
            WHERE j.plan_id = :plan AND j.server_id = :server"""),  # noqa: S608
            {"plan": plan_id, "server": server_id},
        )
    ).first()
    return None if row is None else job_of(row)


async def reason_code_of(conn: AsyncConnection, key: JobKey) -> str | None:
    """The code of the job's reason."""
    row = await conn.execute(
        sql("SELECT reason_code FROM jobs WHERE plan_id = :plan AND ord = :ord"), {"plan": key[0], "ord": key[1]}
    )
    code: str | None = row.scalar_one()
    return code


async def tell_driver(conn: AsyncConnection, plan_id: UUID) -> None:
    """The plan's driver is to read its jobs anew; its row is locked. A plan without a driver gets one."""
    await conn.execute(
        sql("UPDATE plans SET go_epoch = go_epoch + 1, due = project IS NOT NULL WHERE id = :id"), {"id": plan_id}
    )


@dataclass(frozen=True, kw_only=True)
class Retryable:
    """A job that a person wants another attempt of."""

    ord: int
    server_id: str
    state: JobState


async def jobs_to_retry(conn: AsyncConnection, plan_id: UUID, server_ids: Sequence[str] | None) -> list[Retryable]:
    """The plan's jobs of these servers in any state; without any, all that failed."""
    which = "state = 'failed'" if server_ids is None else "server_id = ANY(CAST(:ids AS text[]))"
    rows = await conn.execute(
        sql(f"""
        SELECT ord, server_id, state FROM jobs
        WHERE plan_id = :plan AND {which} AND server_id IS NOT NULL ORDER BY ord"""),  # noqa: S608
        {"plan": plan_id} | ({} if server_ids is None else {"ids": list(server_ids)}),
    )
    return [Retryable(ord=r.ord, server_id=r.server_id, state=JobState(r.state)) for r in rows]


async def note_retries(conn: AsyncConnection, plan_id: UUID, places: Sequence[int]) -> None:
    """Counts a retry of each of these jobs. Those that preparing refused, and gave no wave, go into the last one."""
    parameters = {"plan": plan_id, "places": list(places)}
    await conn.execute(
        sql("""
        UPDATE jobs SET retries = retries + 1, refusals = 0, rebuilt_again = 0, busy_since = NULL
        WHERE plan_id = :plan AND ord = ANY(CAST(:places AS int[]))"""),
        parameters,
    )
    last = (
        await conn.execute(sql("SELECT coalesce(max(index), 0) FROM waves WHERE plan_id = :plan"), {"plan": plan_id})
    ).scalar_one()
    rows = await conn.execute(
        sql("""
        UPDATE jobs SET wave = :last WHERE plan_id = :plan AND ord = ANY(CAST(:places AS int[])) AND wave IS NULL
        RETURNING state"""),
        parameters | {"last": last},
    )
    states = [r.state for r in rows]
    if not states:
        return
    deltas = {
        (plan_id, wave, s): sign * states.count(s) for s in set(states) for wave, sign in ((NO_WAVE, -1), (last, 1))
    }
    await add_counts(conn, deltas)
    await conn.execute(
        sql("""
        INSERT INTO waves AS w (plan_id, index, name, size, on_unresolved)
        VALUES (:plan, :last, 'retry', :n, 'continue')
        ON CONFLICT (plan_id, index) DO UPDATE SET size = w.size + excluded.size"""),
        {"plan": plan_id, "last": last, "n": len(states)},
    )
