"""How a job's transition makes hooks due: rows of `hook_calls`, in the transition's own transaction."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.hooks import HookDue
from orchestrator.ledger.sql import columns_of, sql, unnest

ANEW = """ON CONFLICT (plan_id, ord, phase, attempt) DO UPDATE SET state = 'due', tries = 0, due_at = now(),
          deadline_at = excluded.deadline_at, token_sha256 = NULL, result = NULL, http_status = NULL, message = NULL,
          called_at = NULL, ended_at = NULL"""
"""A job that ended before anything was sent, and was retried, has the same coming attempt once more."""


async def insert_due(conn: AsyncConnection, hooks: Sequence[tuple[UUID, int, HookDue]]) -> None:
    """`before` and `after` of these jobs are due. The jobs are locked."""
    if not hooks:
        return
    columns = {"plan_id": "uuid", "ord": "int", "phase": "text", "timeout": "float8"}
    await conn.execute(
        sql(f"""
        INSERT INTO hook_calls (plan_id, ord, phase, attempt, server_id, name, deadline_at)
        SELECT j.plan_id, j.ord, i.phase, j.attempts + CASE WHEN i.phase = 'before' THEN 1 ELSE 0 END, j.server_id,
               coalesce(j.name, j.find), now() + make_interval(secs => i.timeout)
        FROM {unnest("i", columns)} JOIN jobs j ON j.plan_id = i.plan_id AND j.ord = i.ord
        {ANEW}"""),  # noqa: S608
        columns_of(columns, [(p, o, h.phase.value, h.timeout) for p, o, h in hooks]),
    )


async def owe_releases(conn: AsyncConnection, ending: Sequence[tuple[UUID, int, str]]) -> None:
    """`release` of those jobs that end out of the expected state (plan, place, state) and whose `before` was called:
    they are drained, or were being drained. The jobs are locked and not moved yet."""
    if not ending:
        return
    columns = {"plan_id": "uuid", "ord": "int", "expected": "text"}
    await conn.execute(
        sql(f"""
        WITH drained AS MATERIALIZED (
          SELECT j.plan_id, j.ord, j.server_id, coalesce(j.name, j.find) AS name, j.attempts, j.drained_at
          FROM {unnest("i", columns)} JOIN jobs j ON j.plan_id = i.plan_id AND j.ord = i.ord AND j.state = i.expected
          WHERE j.drained_at IS NOT NULL OR j.state = 'draining')
        INSERT INTO hook_calls (plan_id, ord, phase, attempt, server_id, name, deadline_at)
        SELECT d.plan_id, d.ord, 'release', greatest(d.attempts, b.attempt), d.server_id, d.name,
               now() + CAST(p.spec #>> '{{hooks,release,timeout}}' AS interval)
        FROM drained d JOIN plans p ON p.id = d.plan_id JOIN LATERAL (
          SELECT h.attempt, h.called_at FROM hook_calls h
          WHERE h.plan_id = d.plan_id AND h.ord = d.ord AND h.phase = 'before'
          ORDER BY h.attempt DESC LIMIT 1) b ON true
        WHERE p.spec #>> '{{hooks,release,url}}' IS NOT NULL AND (d.drained_at IS NOT NULL OR b.called_at IS NOT NULL)
        {ANEW}"""),  # noqa: S608
        columns_of(columns, sorted(ending)),
    )
