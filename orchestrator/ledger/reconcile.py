"""After a failover or a restored backup: what the ledger may have lost, and what the cloud shows of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.decide import Reason
from orchestrator.domain.lifecycle import PlanEvent, plan_moves
from orchestrator.domain.states import JobState, PlanStatus
from orchestrator.ledger.drive import ATTEMPT, JOB_FIELDS, ClaimedJob, job_of
from orchestrator.ledger.leases import incarnation
from orchestrator.ledger.sql import columns_of, sql, unnest
from orchestrator.ledger.transitions import JobKey, PlanMove, lock_plans, move_plan

RESTORED_AFTER = timedelta(minutes=15)
"""A database whose last sign of its driver is older than this was restored from a backup; a failover is quicker."""
SCHEDULED_BEFORE = Reason(
    code="database_restored",
    message="The database was restored from a backup; this scheduled plan may have run already: submit it again.",
)
JUST_FINISHED = timedelta(hours=1)
"""Plans that ended so shortly before are looked at too: their last transitions may be what was lost."""


@dataclass(frozen=True, kw_only=True)
class Changed:
    """Another database answers than the one that the project was last known to be true on."""

    now: str
    restored: bool
    """From a backup, rather than failed over."""
    since: datetime
    """When that was first noticed, by the ledger's clock."""
    first: bool
    """Noticed just now: nobody has acted on it yet."""


@dataclass(frozen=True, kw_only=True)
class LastSeen:
    """What the lease's row says of the time before."""

    incarnation: str
    alive_at: datetime | None
    now: datetime


async def last_seen(conn: AsyncConnection, lease: str) -> LastSeen | None:
    """The lease as the driver before left it; None: there was none. Read before the lease is taken."""
    row = (
        await conn.execute(
            sql("""
            SELECT incarnation, clock_timestamp() AS now,
                   greatest(acquired_at, CASE WHEN isfinite(expires_at) THEN expires_at END) AS alive_at
            FROM leases WHERE name = :name"""),
            {"name": lease},
        )
    ).first()
    return None if row is None else LastSeen(incarnation=row.incarnation, alive_at=row.alive_at, now=row.now)


async def changed(conn: AsyncConnection, project: int, before: LastSeen | None) -> Changed | None:
    """Whether the ledger has to be held against the cloud before anything is sent. None: it is the database that it
    was; a project that is driven for the first time is noted and trusted."""
    now = await incarnation(conn)
    row = (
        await conn.execute(
            sql("SELECT incarnation, changed_to, changed_at, changed_restored FROM projects WHERE id = :id FOR UPDATE"),
            {"id": project},
        )
    ).one()
    if row.incarnation is None:
        await reconciled(conn, project, now)
    if row.incarnation in (None, now):
        return None
    if row.changed_to == now:
        return Changed(now=now, restored=row.changed_restored, since=row.changed_at, first=False)
    late = before is not None and before.alive_at is not None and before.now - before.alive_at > RESTORED_AFTER
    restored = late or row.incarnation.partition("/")[0] != now.partition("/")[0]
    noted = await conn.execute(
        sql("""
        UPDATE projects SET changed_to = :now, changed_at = clock_timestamp(), changed_restored = :restored
        WHERE id = :id RETURNING changed_at"""),
        {"now": now, "restored": restored, "id": project},
    )
    return Changed(now=now, restored=restored, since=noted.scalar_one(), first=True)


async def restored(conn: AsyncConnection, project: int) -> bool:
    """Whether the database was restored from a backup and the project is not reconciled yet."""
    now = await incarnation(conn)
    row = (
        await conn.execute(
            sql("SELECT incarnation, changed_to, changed_restored FROM projects WHERE id = :id"), {"id": project}
        )
    ).one()
    if row.incarnation in (None, now):
        return False
    other = row.incarnation.partition("/")[0] != now.partition("/")[0]
    return other or (row.changed_to == now and bool(row.changed_restored))


async def reconciled(conn: AsyncConnection, project: int, now: str) -> None:
    """The project's ledger is known to be true on this database."""
    await conn.execute(
        sql("""
        UPDATE projects SET incarnation = :now, changed_to = NULL, changed_at = NULL, changed_restored = NULL
        WHERE id = :id"""),
        {"now": now, "id": project},
    )


async def pause_all(conn: AsyncConnection, project: int, reason: Reason) -> int:
    """A restored backup starts with all its plans paused, and scheduled ones, which may have run already, rejected;
    how many were paused."""
    rows = await conn.execute(
        sql("SELECT id FROM plans WHERE project = :project AND (due OR status = 'scheduled')"), {"project": project}
    )
    plans = await lock_plans(conn, [r.id for r in rows])
    paused = 0
    for plan in plans.values():
        if plan_moves(plan.status, PlanEvent.PAUSE):
            paused += await move_plan(conn, PlanMove(plan_id=plan.id, expected=plan.status, status=PlanStatus.PAUSED,
                                                     actor="reconcile", reason=reason, stop_sending=True))  # fmt: skip
        elif plan.status is PlanStatus.SCHEDULED:
            await move_plan(conn, PlanMove(plan_id=plan.id, expected=plan.status, status=PlanStatus.REJECTED,
                                           actor="reconcile", reason=SCHEDULED_BEFORE))  # fmt: skip
    return paused


async def doubtful_jobs(conn: AsyncConnection, project: int) -> list[tuple[ClaimedJob, datetime]]:
    """Jobs that the ledger takes for unsent or ended, of plans that are driven or ended lately, each with the time
    from which a rebuild that it doesn't know of would be its own: its newest attempt's, else its plan's start."""
    rows = await conn.execute(
        sql(f"""
        SELECT {JOB_FIELDS}, {ATTEMPT}, coalesce(a.intended_at, p.started_at, p.created_at) AS since
        FROM plans p JOIN jobs j ON j.plan_id = p.id
          AND j.state IN ('pending', 'checking', 'succeeded', 'failed', 'refused', 'cancelled')
        LEFT JOIN attempts a ON a.plan_id = j.plan_id AND a.ord = j.ord AND a.number = j.attempts
        WHERE p.project = :project AND p.started_at IS NOT NULL AND j.server_id IS NOT NULL
          AND (p.due OR p.finished_at > clock_timestamp() - CAST(:lately AS interval))
        ORDER BY j.plan_id, j.ord"""),  # noqa: S608
        {"project": project, "lately": JUST_FINISHED},
    )
    return [(job_of(r), r.since) for r in rows]


@dataclass(frozen=True, kw_only=True)
class LostAttempt:
    """A call that the cloud has carried out and the ledger has lost."""

    plan_id: UUID
    ord: int
    number: int
    request_id: str | None
    marker: str | None

    @property
    def key(self) -> JobKey:
        """Plan id and the job's place in it."""
        return self.plan_id, self.ord


async def insert_lost_attempts(conn: AsyncConnection, fence: int, attempts: Sequence[LostAttempt]) -> None:
    """Writes down attempts as far as they are known; the plan rows are locked. Ended plans are driven again."""
    columns = {"plan_id": "uuid", "ord": "int", "number": "int", "request_id": "text", "baseline": "jsonb"}
    rows = [(a.plan_id, a.ord, a.number, a.request_id, {"marker": a.marker, "lost": True}) for a in attempts]
    await conn.execute(
        sql(f"""
        WITH i AS (SELECT * FROM {unnest("t", columns)}), counted AS (
          UPDATE jobs j SET attempts = greatest(j.attempts, i.number)
          FROM i WHERE j.plan_id = i.plan_id AND j.ord = i.ord)
        INSERT INTO attempts AS a (plan_id, ord, number, fence, body_sha256, baseline, request_id, effect)
        SELECT plan_id, ord, number, :fence, '', CAST(baseline AS jsonb), request_id, 'applied' FROM i
        ON CONFLICT (plan_id, ord, number) DO UPDATE
        SET effect = 'applied', request_id = coalesce(a.request_id, excluded.request_id)"""),  # noqa: S608
        columns_of(columns, rows) | {"fence": fence},
    )
    await conn.execute(
        sql("UPDATE plans SET due = project IS NOT NULL WHERE id = ANY(CAST(:ids AS uuid[]))"),
        {"ids": sorted({a.plan_id for a in attempts})},
    )


async def retake_holds(conn: AsyncConnection, deployment: str, jobs: Sequence[ClaimedJob]) -> None:
    """Jobs that move again need their servers' holds; where another plan has one, that plan keeps it."""
    columns = {"server_id": "text", "plan_id": "uuid"}
    rows = sorted((j.server_id, j.plan_id) for j in jobs)
    await conn.execute(
        sql(f"""
        INSERT INTO holds (deployment, server_id, plan_id)
        SELECT :deployment, server_id, plan_id FROM {unnest("i", columns)} ORDER BY server_id
        ON CONFLICT DO NOTHING"""),  # noqa: S608
        {"deployment": deployment} | columns_of(columns, rows),
    )


AttemptKey = tuple[UUID, int, int]
"""Plan id, the job's place in it, and the attempt's number."""


async def known_effects(conn: AsyncConnection, keys: Sequence[AttemptKey]) -> dict[AttemptKey, str]:
    """What is known of the effect of attempts, those of which nothing is are left out."""
    columns = {"plan_id": "uuid", "ord": "int", "number": "int"}
    rows = await conn.execute(
        sql(f"""
        SELECT a.plan_id, a.ord, a.number, a.effect FROM attempts a JOIN {unnest("i", columns)}
          ON a.plan_id = i.plan_id AND a.ord = i.ord AND a.number = i.number
        WHERE a.effect IS NOT NULL"""),  # noqa: S608
        columns_of(columns, keys),
    )
    return {(r.plan_id, r.ord, r.number): r.effect for r in rows}


FINISHED_STATES = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.REFUSED, JobState.CANCELLED})
"""States of `doubtful_jobs` in which the hold has gone."""
