"""Calls of hooks: what is to be done with the open ones, which of them is made with which token, and how they ended."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.hooks import HookResult, Phase
from orchestrator.domain.states import PlanStatus
from orchestrator.ledger.drive import JOB_FIELDS, NO_ATTEMPT, ClaimedJob, job_of
from orchestrator.ledger.sql import columns_of, sql, unnest

HookKey = tuple[UUID, int, str, int]
"""Plan id, the job's place in it, phase, attempt."""
KEY = {"plan_id": "uuid", "ord": "int", "phase": "text", "attempt": "int"}
SAME = "h.plan_id = i.plan_id AND h.ord = i.ord AND h.phase = i.phase AND h.attempt = i.attempt"


@dataclass(frozen=True, kw_only=True)
class OpenHook:
    """An open call that something is to be done with."""

    job: ClaimedJob
    phase: Phase
    attempt: int
    state: str
    tries: int
    result: HookResult | None
    """As the token's holder has answered."""
    message: str | None
    http_status: int | None
    deadline_at: datetime
    called: bool
    over: bool
    """Its time is up."""
    ready: bool
    """It may be called now, as far as its own times say."""
    plan_status: PlanStatus
    paused: bool
    """The project is."""

    @property
    def key(self) -> HookKey:
        """Plan id, the job's place in it, phase, attempt."""
        return self.job.plan_id, self.job.ord, self.phase.value, self.attempt

    @property
    def message_id(self) -> str:
        """The same for all tries of a call, and no other call's."""
        return "-".join(str(part) for part in (*self.key, int(self.deadline_at.timestamp() * 1000)))


async def open_hooks(conn: AsyncConnection, project: int, limit: int = 500) -> list[OpenHook]:
    """Open calls of the project's due plans with which something is to be done now. A server isn't drained while it is
    still to be released from before."""
    rows = await conn.execute(
        sql(f"""
        WITH calls AS MATERIALIZED (
          SELECT h.*, p.status AS plan_status, pr.paused FROM plans p JOIN projects pr ON pr.id = p.project
          JOIN hook_calls h ON h.plan_id = p.id AND h.state IN ('due', 'waiting')
          WHERE p.project = :project AND p.due),
        open AS (
          SELECT c.*, c.deadline_at <= now() AS over, c.called_at IS NOT NULL AS called,
            c.state = 'due' AND c.due_at <= now() AND NOT (c.phase = 'before' AND c.server_id IN (
              SELECT r.server_id FROM calls r WHERE r.phase = 'release')) AS ready
          FROM calls c)
        SELECT {JOB_FIELDS}, {NO_ATTEMPT}, h.phase, h.attempt, h.state AS call_state, h.tries, h.result, h.message,
               h.http_status AS call_status, h.deadline_at AS ends_at, h.called, h.over, h.ready, h.plan_status,
               h.paused
        FROM open h JOIN jobs j ON j.plan_id = h.plan_id AND j.ord = h.ord
        WHERE h.ready OR h.over OR h.result IS NOT NULL
          OR (h.phase = 'before' AND (h.plan_status = 'cancelling' OR j.state <> 'draining'
              OR (h.tries = 0 AND (h.plan_status <> 'running' OR h.paused))))
          OR (h.phase = 'after' AND j.state <> 'configuring')
        ORDER BY (h.over OR h.result IS NOT NULL) DESC, h.due_at LIMIT :limit"""),  # noqa: S608
        {"project": project, "limit": limit},
    )
    return [
        OpenHook(
            job=job_of(r), phase=Phase(r.phase), attempt=r.attempt, state=r.call_state, tries=r.tries,
            result=HookResult(r.result) if r.result else None, message=r.message, http_status=r.call_status,
            deadline_at=r.ends_at, called=r.called, over=r.over, ready=r.ready,
            plan_status=PlanStatus(r.plan_status), paused=r.paused,
        )
        for r in rows
    ]  # fmt: skip


async def adopt_hooks(conn: AsyncConnection, project: int) -> None:
    """What another driver was calling, or was about to, is due at once."""
    await conn.execute(
        sql("""
        UPDATE hook_calls h SET due_at = now() FROM plans p
        WHERE p.project = :project AND p.due AND h.plan_id = p.id AND h.state = 'due' AND h.due_at > now()"""),
        {"project": project},
    )


async def begin_calls(conn: AsyncConnection, calls: Sequence[tuple[OpenHook, str]], *, within: float) -> set[HookKey]:
    """Each of these calls, with the digest of its new token, is made now; only those returned may be, once the commit
    is answered. Another driver leaves them alone for `within` seconds. The plans are locked."""
    columns = {**KEY, "tries": "int", "token": "text"}
    rows = await conn.execute(
        sql(f"""
        UPDATE hook_calls h SET tries = h.tries + 1, token_sha256 = i.token, called_at = clock_timestamp(),
          due_at = now() + make_interval(secs => :within)
        FROM {unnest("i", columns)}, plans p
        WHERE {SAME} AND h.state = 'due' AND h.tries = i.tries AND h.result IS NULL AND p.id = h.plan_id
          AND (h.phase <> 'before' OR h.tries > 0 OR p.status = 'running')
        RETURNING h.plan_id, h.ord, h.phase, h.attempt"""),  # noqa: S608
        columns_of(columns, [(*c.key, c.tries, token) for c, token in calls]) | {"within": within},
    )
    return {(r.plan_id, r.ord, r.phase, r.attempt) for r in rows}


@dataclass(frozen=True, kw_only=True)
class HookMove:
    """What became of a call."""

    key: HookKey
    state: str
    """due (to be tried again), waiting, done or failed."""
    message: str | None
    http_status: int | None = None
    wait: float = 0.0
    """Seconds until the next try."""
    never_left: bool = False
    """Not a byte of it was sent, so that nothing has to be undone."""


async def move_hooks(conn: AsyncConnection, moves: Sequence[HookMove]) -> set[HookKey]:
    """Writes down what became of calls; those that were still open. The plans are locked."""
    columns = {**KEY, "state": "text", "message": "text", "http_status": "int", "wait": "float8",
               "never_left": "boolean"}  # fmt: skip
    rows = await conn.execute(
        sql(f"""
        UPDATE hook_calls h SET state = i.state,
          message = CASE WHEN h.result IS NULL OR i.state IN ('done', 'failed') THEN i.message ELSE h.message END,
          http_status = coalesce(i.http_status, h.http_status), due_at = now() + make_interval(secs => i.wait),
          called_at = CASE WHEN i.never_left AND h.tries = 1 THEN NULL ELSE h.called_at END,
          ended_at = CASE WHEN i.state IN ('done', 'failed') THEN now() END
        FROM {unnest("i", columns)} WHERE {SAME} AND h.state IN ('due', 'waiting')
        RETURNING h.plan_id, h.ord, h.phase, h.attempt"""),  # noqa: S608
        columns_of(columns, sorted((*m.key, m.state, m.message, m.http_status, m.wait, m.never_left) for m in moves)),
    )
    return {(r.plan_id, r.ord, r.phase, r.attempt) for r in rows}


async def withdraw_hooks(conn: AsyncConnection, keys: Sequence[HookKey]) -> None:
    """Calls that were never made are not due any more."""
    await conn.execute(
        sql(f"DELETE FROM hook_calls h USING {unnest('i', KEY)} WHERE {SAME} AND h.called_at IS NULL"),  # noqa: S608
        columns_of(KEY, sorted(keys)),
    )


@dataclass(frozen=True, kw_only=True)
class HookRecord:
    """A call's row, as far as it is shown."""

    phase: str
    attempt: int
    state: str
    tries: int
    http_status: int | None
    message: str | None
    called_at: datetime | None
    deadline_at: datetime
    ended_at: datetime | None


async def hooks_of(conn: AsyncConnection, plan_id: UUID, place: int) -> list[HookRecord]:
    """The calls of one job, the oldest attempt first."""
    rows = await conn.execute(
        sql("""
        SELECT phase, attempt, state, tries, http_status, message, called_at, deadline_at, ended_at FROM hook_calls
        WHERE plan_id = :plan AND ord = :ord
        ORDER BY attempt, CASE phase WHEN 'before' THEN 0 WHEN 'after' THEN 1 ELSE 2 END"""),
        {"plan": plan_id, "ord": place},
    )
    return [HookRecord(**r._mapping) for r in rows]  # noqa: SLF001


@dataclass(frozen=True, kw_only=True)
class AnsweredHook:
    """The call that a one-time token belongs to."""

    key: HookKey
    open: bool
    """It waits for its answer still."""


async def hook_of_token(
    conn: AsyncConnection, plan_id: UUID, server_id: str, phase: str, token_sha256: str
) -> AnsweredHook | None:
    """The call of that token for this job and phase, locked; None: it is none's."""
    row = (
        await conn.execute(
            sql("""
            SELECT h.plan_id, h.ord, h.phase, h.attempt,
                   h.state IN ('due', 'waiting') AND h.result IS NULL AND h.deadline_at > now() AS open
            FROM jobs j JOIN hook_calls h ON h.plan_id = j.plan_id AND h.ord = j.ord AND h.phase = :phase
            WHERE j.plan_id = :plan AND j.server_id = :server AND h.token_sha256 = :token FOR UPDATE OF h"""),
            {"plan": plan_id, "server": server_id, "phase": phase, "token": token_sha256},
        )
    ).first()
    return None if row is None else AnsweredHook(key=(row.plan_id, row.ord, row.phase, row.attempt), open=row.open)


async def answer_hook(conn: AsyncConnection, key: HookKey, result: HookResult, message: str | None) -> None:
    """Notes what the token's holder says; the driver ends the call by it."""
    await conn.execute(
        sql(f"""
        UPDATE hook_calls h SET result = :result, message = :message FROM {unnest("i", KEY)} WHERE {SAME}"""),  # noqa: S608
        columns_of(KEY, [key]) | {"result": result.value, "message": message},
    )
