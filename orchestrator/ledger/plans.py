"""Plans to be looked at, and what a person's action on one writes besides its transition."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.decide import Reason
from orchestrator.domain.states import JobState, PlanStatus
from orchestrator.domain.units import parse_duration
from orchestrator.ledger.events import NewEvent, append_events
from orchestrator.ledger.tables import UNFINISHED_PLANS, BudgetGroup, Cloud, JobCount, Plan, Project, Wave

_COLUMNS = (
    Plan.id, Plan.name, Plan.cloud, Plan.status, Plan.reason_code, Plan.reason_message, Plan.faults, Plan.digest,
    Plan.labels, Plan.explicit, Plan.total, Plan.max_in_flight, Plan.rate, Plan.current_wave, Plan.created_by,
    Plan.created_at, Plan.started_at, Plan.finished_at, Plan.expires_at, Plan.start_at, Cloud.limiter,
    Project.deployment, Project.learned_write_rate, Project.learned_rebuild_seconds,
    Plan.spec["failure"]["timeout"].label("timeout"), Project.trouble_code, Project.trouble_message,
    Plan.rollback_of,
    Project.paused.label("cloud_paused"), Project.paused_reason, Project.paused_by,
    select(func.sum(BudgetGroup.places)).where(BudgetGroup.plan_id == Plan.id).scalar_subquery().label("budget_places"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PlanRecord:
    """A plan's row, as far as it is shown, with what is known of its cloud. Rates in calls per second."""

    id: UUID
    name: str
    cloud: str
    status: str
    reason_code: str | None
    reason_message: str | None
    faults: list[Any] | None
    digest: str | None
    labels: dict[str, Any]
    explicit: int
    total: int
    max_in_flight: int | None
    rate: float | None
    current_wave: int
    created_by: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None
    start_at: datetime | None
    limiter: dict[str, Any] | None
    deployment: str | None
    """None until the plan was prepared."""
    learned_write_rate: float | None
    learned_rebuild_seconds: float | None
    timeout: str | None
    """`failure.timeout` as stored, such as 30m."""
    trouble_code: str | None
    trouble_message: str | None
    """Why nothing is sent to its cloud just now."""
    rollback_of: UUID | None
    cloud_paused: bool | None = None
    """Whether a person has stopped its cloud; None until it was prepared."""
    paused_reason: str | None = None
    paused_by: str | None = None
    budget_places: int | None = None
    """How many servers of all its groups together may be out; None: it has no disruption budget."""

    @property
    def timeout_seconds(self) -> float:
        """How long a rebuild of the plan may take."""
        return parse_duration(self.timeout) if self.timeout else 1800.0


@dataclass(frozen=True, kw_only=True)
class WaveRecord:
    """A wave's row."""

    index: int
    name: str
    size: int
    started_at: datetime | None
    finished_at: datetime | None
    bake_seconds: float
    bake_until: datetime | None
    approval: bool
    approved_by: str | None
    approved_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class PlanFilter:
    """Which plans; everything given must hold."""

    statuses: Sequence[PlanStatus] = ()
    labels: Mapping[str, str] | None = None
    clouds: Sequence[str] | None = None
    """None: all."""


Counts = Mapping[int, Mapping[str, int]]
"""Wave (or `NO_WAVE`) → state → how many."""


async def plan_now(conn: AsyncConnection) -> datetime:
    """The database's clock."""
    now: datetime = (await conn.execute(text("SELECT clock_timestamp()"))).scalar_one()
    return now


async def plan_record(conn: AsyncConnection, plan_id: UUID) -> PlanRecord | None:
    """One plan."""
    row = (await conn.execute(_plans().where(Plan.id == plan_id))).first()
    return None if row is None else _record(row)


async def plan_page(conn: AsyncConnection, wanted: PlanFilter, *, before: UUID | None, limit: int) -> list[PlanRecord]:
    """Plans, the newest first (their ids are in order of time), from below `before` on."""
    query = _plans().order_by(Plan.id.desc()).limit(limit)
    if before is not None:
        query = query.where(Plan.id < before)
    if wanted.statuses:
        query = query.where(Plan.status.in_([s.value for s in wanted.statuses]))
    if wanted.labels:
        query = query.where(Plan.labels.contains(dict(wanted.labels)))
    if wanted.clouds is not None:
        query = query.where(Plan.cloud.in_(wanted.clouds))
    return [_record(r) for r in await conn.execute(query)]


async def job_counts(conn: AsyncConnection, plan_ids: Sequence[UUID]) -> dict[UUID, Counts]:
    """Counters of these plans' jobs."""
    counts: dict[UUID, dict[int, dict[str, int]]] = {i: defaultdict(dict) for i in plan_ids}
    rows = await conn.execute(
        select(JobCount.plan_id, JobCount.wave, JobCount.state, JobCount.n).where(JobCount.plan_id.in_(plan_ids))
    )
    for r in rows:
        counts[r.plan_id][r.wave][r.state] = r.n
    return dict(counts)


async def wave_records(conn: AsyncConnection, plan_ids: Sequence[UUID]) -> dict[UUID, list[WaveRecord]]:
    """These plans' waves, in their order."""
    waves: dict[UUID, list[WaveRecord]] = {i: [] for i in plan_ids}
    rows = await conn.execute(
        select(
            Wave.plan_id, Wave.index, Wave.name, Wave.size, Wave.started_at, Wave.finished_at, Wave.bake_seconds,
            Wave.bake_until, Wave.approval, Wave.approved_by, Wave.approved_at,
        )
        .where(Wave.plan_id.in_(plan_ids))
        .order_by(Wave.plan_id, Wave.index)
    )  # fmt: skip
    for r in rows:
        waves[r.plan_id].append(
            WaveRecord(**{k: v for k, v in r._mapping.items() if k != "plan_id"})  # noqa: SLF001
        )
    return waves


async def plan_spec(conn: AsyncConnection, plan_id: UUID) -> dict[str, Any]:
    """The stored plan file, without explicit servers."""
    spec: dict[str, Any] = (await conn.execute(select(Plan.spec).where(Plan.id == plan_id))).scalar_one()
    return spec


async def plans_by_status(conn: AsyncConnection) -> dict[str, int]:
    """How many plans there are in each status."""
    rows = await conn.execute(text("SELECT status, count(*) AS n FROM plans GROUP BY status"))
    return {r.status: r.n for r in rows}


async def unfinished_jobs_by_state(conn: AsyncConnection) -> dict[str, int]:
    """How many jobs of unfinished plans are in each state, by the counters."""
    rows = await conn.execute(
        text(f"""
        SELECT c.state, sum(c.n) AS n FROM job_counts c JOIN plans p ON p.id = c.plan_id
        WHERE p.{UNFINISHED_PLANS} GROUP BY c.state""")  # noqa: S608
    )
    return {r.state: int(r.n) for r in rows}


async def change_pace(
    conn: AsyncConnection, plan_id: UUID, *, max_in_flight: int | None, rate: float | None, lowered: bool,
    old: Mapping[str, Any], new: Mapping[str, Any], actor: str, why: str | None,
) -> None:  # fmt: skip
    """Another pace for a plan, whose row is locked. `lowered`: what is claimed and not sent may be too much."""
    await conn.execute(
        text("""
        UPDATE plans SET max_in_flight = :places, rate = :rate, go_epoch = go_epoch + :bump WHERE id = :id"""),
        {"id": plan_id, "places": max_in_flight, "rate": rate, "bump": int(lowered)},
    )
    reason = Reason(code="changed", message=why) if why else None
    data = {"old": dict(old), "new": dict(new)}
    await append_events(conn, [NewEvent(plan_id=plan_id, type="plan.changed", actor=actor, reason=reason, data=data)])


async def note_waiting(
    conn: AsyncConnection, plan_id: UUID, reason: Reason | None, *, stop_sending: bool = False
) -> None:
    """Why a running plan starts nothing just now, or (None) that it does again. The plan row must be locked."""
    await conn.execute(
        text("""
        UPDATE plans SET reason_code = :code, reason_message = :message, go_epoch = go_epoch + :bump WHERE id = :id"""),
        {"id": plan_id, "code": reason.code if reason else None, "message": reason.message if reason else None,
         "bump": int(stop_sending)},
    )  # fmt: skip
    kind = "plan.waiting" if reason else "plan.going_on"
    await append_events(conn, [NewEvent(plan_id=plan_id, type=kind, actor="driver", reason=reason)])


async def expire_at(conn: AsyncConnection, plan_id: UUID, seconds: float) -> None:
    """What the plan waits for is to come within so many seconds. The plan row must be locked."""
    await conn.execute(
        text("UPDATE plans SET expires_at = clock_timestamp() + make_interval(secs => :s) WHERE id = :id"),
        {"id": plan_id, "s": seconds},
    )


async def cancel_pending_jobs(conn: AsyncConnection, plan_id: UUID, *, actor: str, reason: Reason | None) -> int:
    """Cancels every pending job of a plan that holds nothing; counters and one event a job go along. How many.

    The plan row must be locked.
    """
    row = await conn.execute(
        text("""
        WITH moved AS (
          UPDATE jobs SET state = 'cancelled', reason_code = :code, reason_message = :message, due_at = NULL,
            updated_at = now()
          WHERE plan_id = :id AND state = 'pending' RETURNING ord, server_id, coalesce(wave, -1) AS wave
        ), per_wave AS (
          SELECT wave, count(*) AS n FROM moved GROUP BY wave
        ), counted AS (
          INSERT INTO job_counts AS c (plan_id, wave, state, n)
          SELECT :id, wave, s.state, s.sign * n
          FROM per_wave, (VALUES ('pending', -1), ('cancelled', 1)) AS s (state, sign)
          ON CONFLICT (plan_id, wave, state) DO UPDATE SET n = c.n + excluded.n
        ), numbered AS (
          UPDATE plans SET event_seq = event_seq + (SELECT count(*) FROM moved) WHERE id = :id
          RETURNING event_seq - (SELECT count(*) FROM moved) AS last
        )
        INSERT INTO events (plan_id, seq, server_id, type, from_state, to_state, actor, reason_code, reason_message)
        SELECT :id, n.last + row_number() OVER (ORDER BY m.ord), m.server_id, 'job.cancelled', 'pending', :cancelled,
               :actor, :code, :message
        FROM moved m, numbered n"""),
        {
            "id": plan_id, "actor": actor, "cancelled": JobState.CANCELLED.value,
            "code": reason.code if reason else None, "message": reason.message if reason else None,
        },
    )  # fmt: skip
    return row.rowcount


def _plans() -> Any:
    return (
        select(*_COLUMNS)
        .join(Cloud, Cloud.name == Plan.cloud, isouter=True)
        .join(Project, Project.id == Plan.project, isouter=True)
    )


def _record(row: Any) -> PlanRecord:
    return PlanRecord(**row._mapping)  # noqa: SLF001  SQLAlchemy's public name for it
