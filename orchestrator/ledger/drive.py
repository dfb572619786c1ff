"""What the driver reads and writes: due projects, plans' figures, claims, and what is in flight."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.causes import Cause
from orchestrator.domain.evidence import Case
from orchestrator.domain.gate import PlanFigures, WaveFigures
from orchestrator.domain.states import JobState, PlanStatus
from orchestrator.ledger.leases import INCARNATION, drive_lease
from orchestrator.ledger.sql import sql
from orchestrator.ledger.tables import NO_WAVE
from orchestrator.ledger.transitions import JobKey


@dataclass(frozen=True, kw_only=True)
class DueProject:
    """A project with something to drive."""

    project: int
    cloud: str
    deployment: str
    driven: bool
    """Some driver's lease on it is alive."""


@dataclass(frozen=True, kw_only=True)
class DrivenPlan:
    """A plan as its driver needs it."""

    id: UUID
    cloud: str
    name: str
    status: PlanStatus
    spec: Mapping[str, Any]
    user_data: bytes | None
    image_id: str
    max_in_flight: int
    rate: float | None
    max_errors: int | None
    current_wave: int
    go_epoch: int
    acknowledged_failures: int
    acknowledged_unresolved: int
    reason_code: str | None = None
    reason_message: str | None = None
    check_drift: bool = False
    """What changed since it was prepared is to be looked for before its first send."""
    drift_limit: int | None = None


@dataclass(frozen=True, kw_only=True)
class ClaimedJob:
    """A job that the driver has claimed or watches; `attempt` is the number of its newest attempt (0: none)."""

    plan_id: UUID
    ord: int
    server_id: str
    state: JobState
    wave: int | None
    overrides: Mapping[str, Any] | None
    target_image: str
    attempt: int
    refusals: int
    busy_since: datetime | None
    deadline_at: datetime | None
    baseline: Mapping[str, Any] | None = None
    request_id: str | None = None
    cloud_date: datetime | None = None
    answered_at: datetime | None = None
    intended_at: datetime | None = None
    classification: str | None = None
    http_status: int | None = None
    rebuilt_again: int = 0
    retries: int = 0
    name: str | None = None
    previous_image: str | None = None
    seen_status: str | None = None
    """Status and digest of the metadata that preparing saw, where the plan began later than that; else None."""
    seen_metadata: str | None = None
    drained_at: datetime | None = None
    """Since when its `before` hook has drained it."""
    budget_group: str | None = None

    @property
    def key(self) -> JobKey:
        """Plan id and the job's place in it."""
        return self.plan_id, self.ord

    def case(self, user_id: str | None) -> Case:
        """Its newest attempt as a call whose effect is open; `user_id`: who we are to the cloud."""
        baseline = self.baseline or {}
        return Case(
            cause=Cause(self.classification.partition("/")[2]) if self.classification else Cause.NO_ANSWER,
            http_status=self.http_status,
            request_id=self.request_id,
            marker=baseline.get("marker"),
            since=_time(baseline.get("date")),
            user_id=baseline.get("user") or user_id,
            known_actions=frozenset(baseline.get("rebuild_actions") or ()),
            launched_before=_time(baseline.get("launched_at")),
            target_image=self.target_image,
        )


def _time(value: Any) -> datetime | None:
    return datetime.fromisoformat(value) if value else None


@dataclass(frozen=True, kw_only=True)
class Ownership:
    """A driver's right to a project: the lease that it holds, by its fencing number."""

    project: int
    deployment: str
    fence: int

    @property
    def lease(self) -> str:
        """The lease's name."""
        return drive_lease(self.project)


async def due_projects(conn: AsyncConnection) -> list[DueProject]:
    """Projects that have plans to drive, each with one of the clouds that name it."""
    rows = await conn.execute(
        sql(f"""
        SELECT p.id, p.deployment, min(pl.cloud) AS cloud,
               coalesce(bool_or(l.expires_at > clock_timestamp() AND l.incarnation = {INCARNATION}), false) AS driven
        FROM plans pl JOIN projects p ON p.id = pl.project LEFT JOIN leases l ON l.name = 'drive:' || p.id
        WHERE pl.project IS NOT NULL AND pl.due
        GROUP BY p.id ORDER BY p.id""")  # noqa: S608
    )
    return [DueProject(project=r.id, cloud=r.cloud, deployment=r.deployment, driven=r.driven) for r in rows]


async def plans_of(conn: AsyncConnection, project: int) -> dict[UUID, DrivenPlan]:
    """The project's plans that are due."""
    rows = await conn.execute(
        sql("""
        SELECT id, cloud, name, status, spec, user_data, image_id, max_in_flight, rate, max_errors, current_wave,
               go_epoch, acknowledged_failures, acknowledged_unresolved, reason_code, reason_message, check_drift,
               drift_limit
        FROM plans WHERE project = :project AND due ORDER BY id"""),
        {"project": project},
    )
    return {
        r.id: DrivenPlan(
            id=r.id, cloud=r.cloud, name=r.name, status=PlanStatus(r.status), spec=r.spec, user_data=r.user_data,
            image_id=r.image_id, max_in_flight=r.max_in_flight, rate=r.rate, max_errors=r.max_errors,
            current_wave=r.current_wave, go_epoch=r.go_epoch, acknowledged_failures=r.acknowledged_failures,
            acknowledged_unresolved=r.acknowledged_unresolved, reason_code=r.reason_code,
            reason_message=r.reason_message, check_drift=r.check_drift, drift_limit=r.drift_limit,
        )
        for r in rows
    }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Pulse:
    """What the driver reads every moment to see what has changed: cheap, one row a plan."""

    id: UUID
    status: PlanStatus
    go_epoch: int
    event_seq: int
    rate: float | None
    max_in_flight: int


async def pulse(conn: AsyncConnection, project: int) -> tuple[list[Pulse], bool]:
    """The due plans' states, and whether the project is paused."""
    rows = await conn.execute(
        sql("""
        SELECT pl.id, pl.status, pl.go_epoch, pl.event_seq, pl.rate, pl.max_in_flight, p.paused
        FROM projects p LEFT JOIN plans pl ON pl.project = p.id AND pl.due WHERE p.id = :project ORDER BY pl.id"""),
        {"project": project},
    )
    found = rows.all()
    plans = [Pulse(id=r.id, status=PlanStatus(r.status), go_epoch=r.go_epoch, event_seq=r.event_seq, rate=r.rate,
                   max_in_flight=r.max_in_flight)
             for r in found if r.id is not None]  # fmt: skip
    return plans, bool(found and found[0].paused)


async def figures(conn: AsyncConnection, plans: Sequence[DrivenPlan]) -> dict[UUID, PlanFigures]:
    """What the gate needs of each plan, from counters; causes only where something failed."""
    ids = [p.id for p in plans]
    counts: dict[UUID, dict[int, dict[JobState, int]]] = defaultdict(lambda: defaultdict(dict))
    for r in await conn.execute(
        sql("SELECT plan_id, wave, state, n FROM job_counts WHERE plan_id = ANY(CAST(:ids AS uuid[])) AND n <> 0"),
        {"ids": ids},
    ):
        counts[r.plan_id][r.wave][JobState(r.state)] = r.n
    waves: dict[UUID, list[WaveFigures]] = defaultdict(list)
    for r in await conn.execute(
        sql("""
        SELECT plan_id, index AS number, name, size, max_errors, on_unresolved, resumed, bake_seconds, bake_until,
               approval, approved_at IS NOT NULL AS approved FROM waves
        WHERE plan_id = ANY(CAST(:ids AS uuid[])) ORDER BY plan_id, index"""),
        {"ids": ids},
    ):
        waves[r.plan_id].append(
            WaveFigures(
                index=r.number,
                name=r.name,
                size=r.size,
                max_errors=r.max_errors,
                halt_on_unresolved=r.on_unresolved == "halt",
                resumed=r.resumed,
                bake_seconds=r.bake_seconds,
                bake_until=r.bake_until,
                approval=r.approval,
                approved=r.approved,
                counts=counts[r.plan_id][r.number],
            )
        )
    failing = [i for i in ids if any(w.failures for w in waves[i])]
    causes: dict[UUID, dict[str, int]] = defaultdict(dict)
    if failing:
        for r in await conn.execute(
            sql("""
            SELECT j.plan_id, coalesce(j.fingerprint, j.reason_code, 'unknown') AS cause, count(*) AS n
            FROM plans p JOIN jobs j ON j.plan_id = p.id AND j.state IN ('failed', 'stuck')
            WHERE p.id = ANY(CAST(:ids AS uuid[]))
              AND (p.acknowledged_at IS NULL OR j.updated_at > p.acknowledged_at) GROUP BY 1, 2"""),
            {"ids": failing},
        ):
            causes[r.plan_id][r.cause] = r.n
    return {
        p.id: PlanFigures(
            status=p.status, current_wave=p.current_wave, waves=waves[p.id], max_in_flight=p.max_in_flight,
            max_errors=p.max_errors, same_cause=_same_cause(p, waves[p.id]), causes=causes[p.id],
            acknowledged_failures=p.acknowledged_failures, acknowledged_unresolved=p.acknowledged_unresolved,
            outside_failures=sum(counts[p.id][NO_WAVE].get(s, 0) for s in (JobState.REFUSED, JobState.FAILED)),
        )
        for p in plans
    }  # fmt: skip


def _same_cause(plan: DrivenPlan, waves: Sequence[WaveFigures]) -> int | None:
    """The plan's `same_cause`; off at 0, and for fewer than three servers."""
    threshold: int = plan.spec.get("failure", {}).get("same_cause", 0)
    return threshold if threshold and sum(w.size for w in waves) >= 3 else None


JOB_FIELDS = """j.plan_id, j.ord, j.server_id, j.state, j.wave, j.overrides, j.target_image, j.attempts, j.refusals,
                j.rebuilt_again, j.retries, j.busy_since, j.deadline_at, j.name, j.previous_image, j.seen_status,
                j.seen_metadata, j.drained_at, j.budget_group"""
NO_ATTEMPT = """NULL AS baseline, NULL AS request_id, NULL AS cloud_date, NULL AS answered_at, NULL AS intended_at,
                NULL AS classification, NULL AS http_status"""
ATTEMPT = """a.baseline, a.request_id, a.cloud_date, a.answered_at, a.intended_at, a.classification, a.http_status"""
MOVING = """'checking', 'draining', 'sending', 'resolving', 'rebuilding', 'verifying', 'configuring', 'stuck',
          'unresolved'"""


async def pending_jobs(
    conn: AsyncConnection, deployment: str, plan_id: UUID, *, wave: int, limit: int
) -> list[ClaimedJob]:
    """Jobs of the waves up to `wave` that may be claimed now, locked; only those whose server the plan holds."""
    rows = await conn.execute(
        sql(f"""
        SELECT {JOB_FIELDS}, {NO_ATTEMPT}
        FROM jobs j JOIN holds h ON h.deployment = :deployment AND h.server_id = j.server_id AND h.plan_id = j.plan_id
        WHERE j.plan_id = :plan AND j.state = 'pending' AND j.wave <= :wave
          AND (j.due_at IS NULL OR j.due_at <= now())
        ORDER BY j.wave, j.ord LIMIT :limit FOR UPDATE OF j SKIP LOCKED"""),  # noqa: S608
        {"deployment": deployment, "plan": plan_id, "wave": wave, "limit": limit},
    )
    return [job_of(r) for r in rows]


async def unfinished_servers(conn: AsyncConnection, project: int) -> set[str]:
    """The servers that the project's due plans still have to do with."""
    rows = await conn.execute(
        sql("""
        SELECT h.server_id FROM holds h JOIN plans p ON p.id = h.plan_id WHERE p.project = :project AND p.due"""),
        {"project": project},
    )
    return {r.server_id for r in rows}


async def next_due(conn: AsyncConnection, project: int) -> float | None:
    """Seconds until the next pending job's backoff is over; None: none waits."""
    row = await conn.execute(
        sql("""
        SELECT extract(epoch FROM min(j.due_at) - clock_timestamp())
        FROM plans p JOIN jobs j ON j.plan_id = p.id AND j.state = 'pending' AND j.due_at IS NOT NULL
        WHERE p.project = :project AND p.due AND p.status = 'running' AND j.wave <= p.current_wave"""),
        {"project": project},
    )
    seconds = row.scalar_one_or_none()
    return None if seconds is None else float(seconds)


async def moving_jobs(conn: AsyncConnection, project: int) -> list[ClaimedJob]:
    """Everything of the project that is neither pending nor final, with its newest attempt: for a new driver."""
    rows = await conn.execute(
        sql(f"""
        SELECT {JOB_FIELDS}, {ATTEMPT}
        FROM plans p JOIN jobs j ON j.plan_id = p.id AND j.state IN ({MOVING})
        LEFT JOIN attempts a ON a.plan_id = j.plan_id AND a.ord = j.ord AND a.number = j.attempts
        WHERE p.project = :project AND p.due ORDER BY j.plan_id, j.ord"""),  # noqa: S608
        {"project": project},
    )
    return [job_of(r) for r in rows]


def job_of(r: Any) -> ClaimedJob:
    """A row of `JOB_FIELDS` and `ATTEMPT` (or `NO_ATTEMPT`)."""
    return ClaimedJob(
        plan_id=r.plan_id, ord=r.ord, server_id=r.server_id, state=JobState(r.state), wave=r.wave,
        overrides=r.overrides, target_image=r.target_image, attempt=r.attempts, refusals=r.refusals,
        busy_since=r.busy_since, deadline_at=r.deadline_at, baseline=r.baseline, request_id=r.request_id,
        cloud_date=r.cloud_date, answered_at=r.answered_at, intended_at=r.intended_at,
        classification=r.classification, http_status=r.http_status, rebuilt_again=r.rebuilt_again, retries=r.retries,
        name=r.name, previous_image=r.previous_image, seen_status=r.seen_status, seen_metadata=r.seen_metadata,
        drained_at=r.drained_at, budget_group=r.budget_group,
    )  # fmt: skip


async def lost_claims(conn: AsyncConnection, project: int) -> list[ClaimedJob]:
    """Jobs that are `checking`: those that no driver has in its hands go back."""
    rows = await conn.execute(
        sql(f"""
        SELECT {JOB_FIELDS}, {NO_ATTEMPT} FROM plans p JOIN jobs j ON j.plan_id = p.id AND j.state = 'checking'
        WHERE p.project = :project AND p.due ORDER BY j.plan_id, j.ord"""),  # noqa: S608
        {"project": project},
    )
    return [job_of(r) for r in rows]


async def leave_plan(conn: AsyncConnection, plan_id: UUID) -> None:
    """Nothing of the plan is left to drive or watch, unless a hook is still to be called; its row is locked."""
    await conn.execute(
        sql("""
        UPDATE plans SET due = EXISTS (SELECT 1 FROM hook_calls h
          WHERE h.plan_id = plans.id AND h.state IN ('due', 'waiting')) WHERE id = :id"""),
        {"id": plan_id},
    )


async def sweepable_jobs(conn: AsyncConnection, plan_id: UUID, limit: int = 1000) -> list[tuple[int, str | None]]:
    """Pending jobs of a plan that is being cancelled: (place, server id), locked."""
    rows = await conn.execute(
        sql("""
        SELECT ord, server_id FROM jobs WHERE plan_id = :id AND state = 'pending' ORDER BY ord LIMIT :limit
        FOR UPDATE"""),
        {"id": plan_id, "limit": limit},
    )
    return [(r.ord, r.server_id) for r in rows]
