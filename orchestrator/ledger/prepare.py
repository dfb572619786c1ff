"""What preparing reads and publishes: a plan's targets in, verdicts and waves out, in one commit."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.decide import Reason
from orchestrator.domain.states import JobState, PlanStatus, Verdict
from orchestrator.ledger.budgets import PreparedGroup as PreparedGroup
from orchestrator.ledger.budgets import add_groups
from orchestrator.ledger.sql import columns_of, copy_in, to_json, unnest
from orchestrator.ledger.tables import NO_WAVE
from orchestrator.ledger.transitions import add_counts


@dataclass(frozen=True, kw_only=True)
class PreparingPlan:
    """A plan that is to be prepared."""

    id: UUID
    cloud: str
    status: PlanStatus
    spec: Mapping[str, Any]
    user_data: bytes | None
    hold: bool
    tries: int
    created_at: datetime
    now: datetime
    rollback_of: UUID | None = None
    """The plan whose servers it takes back: those without an image to go back to are refused, one by one."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """An explicit target as it was submitted."""

    ord: int
    server_id: str | None
    find: str | None
    overrides: Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class PreparedJob:
    """A job as preparing found it."""

    ord: int
    server_id: str
    find: str | None = None
    overrides: Mapping[str, Any] | None = None
    name: str | None = None
    verdict: Verdict = Verdict.REBUILD
    reason: Reason | None = None
    wave: int | None = None
    previous_image: str | None = None
    target_image: str | None = None
    zone: str | None = None
    host: str | None = None
    seen_status: str | None = None
    seen_metadata: str | None = None
    """A digest (domain/drift.py)."""
    budget_group: str | None = None

    @property
    def state(self) -> JobState:
        """The job's state by its verdict."""
        return {
            Verdict.REBUILD: JobState.PENDING,
            Verdict.SKIP: JobState.SKIPPED,
            Verdict.REFUSE: JobState.REFUSED,
        }[self.verdict]


@dataclass(frozen=True, kw_only=True)
class PreparedWave:
    """A wave with its frozen size and threshold."""

    index: int
    name: str
    size: int
    max_errors: int | None
    on_unresolved: str
    bake_seconds: float = 0.0
    approval: bool = False


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """All that preparing publishes."""

    project: int
    image_id: str
    image_name: str
    digest: str
    jobs: Sequence[PreparedJob]
    waves: Sequence[PreparedWave]
    max_in_flight: int
    rate: float | None
    max_errors: int | None
    expires_at: datetime | None
    start_at: datetime | None = None
    approve_first: bool = False
    """Whether the cloud wants an approval before the plan starts."""
    check_drift: bool = False
    """The plan begins later: what changes until then is to be looked for."""
    drift_limit: int | None = None
    groups: Sequence[PreparedGroup] = ()
    """Of its disruption budget; none: it has none."""


async def plans_to_prepare(conn: AsyncConnection, limit: int = 20) -> list[UUID]:
    """Plans whose preparing is due and under nobody's live lease. Each is due again in a while: a hint can get lost,
    and a queue must not fill with repeats."""
    rows = await conn.execute(
        text("""
        UPDATE plans SET prepare_at = now() + interval '15 s' WHERE id IN (
          SELECT p.id FROM plans p LEFT JOIN leases l ON l.name = 'prepare:' || p.id
          WHERE p.status = 'preparing' AND p.prepare_at <= now()
            AND (l.expires_at IS NULL OR l.expires_at < clock_timestamp())
          ORDER BY p.prepare_at LIMIT :limit FOR NO KEY UPDATE OF p SKIP LOCKED)
        RETURNING id"""),
        {"limit": limit},
    )
    return [r.id for r in rows]


async def plan_to_prepare(conn: AsyncConnection, plan_id: UUID) -> PreparingPlan | None:
    """The plan, if it is still to be prepared."""
    row = (
        await conn.execute(
            text("""
            SELECT id, cloud, status, spec, user_data, hold, prepare_tries, created_at, rollback_of,
              now() AS now FROM plans
            WHERE id = :id AND status = 'preparing'"""),
            {"id": plan_id},
        )
    ).first()
    if row is None:
        return None
    return PreparingPlan(
        id=row.id, cloud=row.cloud, status=PlanStatus(row.status), spec=row.spec, user_data=row.user_data,
        hold=row.hold, tries=row.prepare_tries, created_at=row.created_at, now=row.now,
        rollback_of=row.rollback_of,
    )  # fmt: skip


async def explicit_targets(conn: AsyncConnection, plan_id: UUID) -> list[Target]:
    """The plan's explicit targets, in their order."""
    rows = await conn.execute(
        text("SELECT ord, server_id, find, overrides FROM jobs WHERE plan_id = :id ORDER BY ord"), {"id": plan_id}
    )
    return [Target(ord=r.ord, server_id=r.server_id, find=r.find, overrides=r.overrides) for r in rows]


async def note_project(conn: AsyncConnection, cloud: str, *, deployment: str, region: str, project_id: str) -> int:
    """The ledger's id of the project behind a cloud; notes that the cloud answered."""
    row = await conn.execute(
        text("""
        INSERT INTO projects AS p (deployment, region, project_id) VALUES (:deployment, :region, :project_id)
        ON CONFLICT (deployment, region, project_id) DO UPDATE SET region = p.region RETURNING id"""),
        {"deployment": deployment, "region": region, "project_id": project_id},
    )
    project: int = row.scalar_one()
    await note_cloud(conn, cloud, project=project, error=None)
    return project


async def note_cloud(conn: AsyncConnection, cloud: str, *, project: int | None, error: str | None) -> None:
    """How the cloud was found just now; `project` None leaves the known one."""
    await conn.execute(
        text("""
        INSERT INTO clouds AS c (name, project, healthy, error, checked_at)
        VALUES (:name, :project, :healthy, :error, now())
        ON CONFLICT (name) DO UPDATE SET project = coalesce(excluded.project, c.project),
          healthy = excluded.healthy, error = excluded.error, checked_at = excluded.checked_at"""),
        {"name": cloud, "project": project, "healthy": error is None, "error": error},
    )


async def last_rebuild_states(conn: AsyncConnection, deployment: str, server_ids: Sequence[str]) -> dict[str, JobState]:
    """How each server's newest rebuild stands by the ledger; servers it never rebuilt are left out."""
    rows = await conn.execute(
        text("""
        SELECT server_id, state FROM last_rebuilds
        WHERE deployment = :deployment AND server_id = ANY(CAST(:ids AS text[])) AND state <> 'pending'"""),
        {"deployment": deployment, "ids": list(server_ids)},
    )
    return {r.server_id: JobState(r.state) for r in rows}


async def known_actions(conn: AsyncConnection, deployment: str, server_ids: Sequence[str]) -> dict[str, list[str]]:
    """The request ids of each server's latest rebuilds that the ledger accounts for; servers without any are left
    out."""
    rows = await conn.execute(
        text("""
        SELECT server_id, actions FROM last_rebuilds
        WHERE deployment = :deployment AND server_id = ANY(CAST(:ids AS text[])) AND actions <> '{}'"""),
        {"deployment": deployment, "ids": list(server_ids)},
    )
    return {r.server_id: list(r.actions) for r in rows}


async def postpone_preparing(conn: AsyncConnection, plan_id: UUID, seconds: float, reason: Reason) -> None:
    """The cloud could not be read: the next try is due later, and the plan says why it waits."""
    await conn.execute(
        text("""
        UPDATE plans SET prepare_at = now() + make_interval(secs => :seconds), prepare_tries = prepare_tries + 1,
          reason_code = :code, reason_message = :message
        WHERE id = :id AND status = 'preparing'"""),
        {"id": plan_id, "seconds": seconds, "code": reason.code, "message": reason.message},
    )


async def publish(conn: AsyncConnection, plan_id: UUID, prepared: Prepared) -> None:
    """Writes verdicts, waves, counters and the events of skipped and refused jobs.

    The plan row must be locked and `preparing`. Explicit targets keep their places; selected ones are added.
    """
    await _write_jobs(conn, plan_id, prepared.jobs)
    await _write_counts(conn, plan_id, prepared.jobs)
    columns = {"index": "int", "name": "text", "size": "int", "max_errors": "int", "on_unresolved": "text",
               "bake_seconds": "float", "approval": "boolean"}  # fmt: skip
    names = ", ".join(columns)
    await conn.execute(
        text(f"""
        INSERT INTO waves (plan_id, {names})
        SELECT :plan, {names} FROM {unnest("i", columns)}"""),  # noqa: S608
        {"plan": plan_id} | columns_of(columns, [tuple(getattr(w, c) for c in columns) for w in prepared.waves]),
    )
    await conn.execute(
        text("""
        UPDATE plans SET project = :project, image_id = :image_id, image_name = :image_name, digest = :digest,
          total = :total, max_in_flight = :max_in_flight, rate = :rate, max_errors = :max_errors,
          expires_at = :expires_at, start_at = :start_at, approve_first = :approve_first,
          check_drift = :check_drift, drift_limit = :drift_limit, prepared_at = now(), prepare_at = NULL,
          reason_code = NULL, reason_message = NULL
        WHERE id = :id"""),
        {
            "id": plan_id, "project": prepared.project, "image_id": prepared.image_id,
            "image_name": prepared.image_name, "digest": prepared.digest, "total": len(prepared.jobs),
            "max_in_flight": prepared.max_in_flight, "rate": prepared.rate, "max_errors": prepared.max_errors,
            "expires_at": prepared.expires_at, "start_at": prepared.start_at,
            "approve_first": prepared.approve_first,
            "check_drift": prepared.check_drift, "drift_limit": prepared.drift_limit,
        },
    )  # fmt: skip
    await add_groups(conn, plan_id, prepared.groups)
    await _announce(conn, plan_id)


async def _write_jobs(conn: AsyncConnection, plan_id: UUID, jobs: Sequence[PreparedJob]) -> None:
    columns = ("plan_id", "ord", "server_id", "find", "overrides", "name", "state", "verdict", "reason_code",
               "reason_message", "wave", "previous_image", "target_image", "zone", "host",
               "seen_status", "seen_metadata", "budget_group")  # fmt: skip
    await conn.execute(
        text("""
        CREATE TEMPORARY TABLE prepared (plan_id uuid, ord int, server_id text, find text, overrides text, name text,
          state text, verdict text, reason_code text, reason_message text, wave smallint, previous_image text,
          target_image text, zone text, host text, seen_status text, seen_metadata text,
          budget_group text) ON COMMIT DROP""")
    )
    await copy_in(
        conn, "prepared", columns,
        [
            (plan_id, j.ord, j.server_id, j.find, to_json(j.overrides), j.name, j.state.value, j.verdict.value,
             j.reason.code if j.reason else None, j.reason.message if j.reason else None, j.wave, j.previous_image,
             j.target_image, j.zone, j.host, j.seen_status, j.seen_metadata, j.budget_group)
            for j in jobs
        ],
    )  # fmt: skip
    names = ", ".join(columns)
    values = names.replace("overrides", "CAST(overrides AS jsonb)")
    await conn.execute(text("DELETE FROM jobs WHERE plan_id = :plan"), {"plan": plan_id})
    await conn.execute(text(f"INSERT INTO jobs ({names}) SELECT {values} FROM prepared ORDER BY ord"))  # noqa: S608


async def _write_counts(conn: AsyncConnection, plan_id: UUID, jobs: Sequence[PreparedJob]) -> None:
    await conn.execute(text("DELETE FROM job_counts WHERE plan_id = :plan"), {"plan": plan_id})
    counts = Counter((plan_id, NO_WAVE if j.wave is None else j.wave, j.state.value) for j in jobs)
    await add_counts(conn, counts)


async def _announce(conn: AsyncConnection, plan_id: UUID) -> None:
    """One event for each job that preparing skipped or refused."""
    await conn.execute(
        text("""
        WITH decided AS (
          SELECT server_id, state, reason_code, reason_message, row_number() OVER (ORDER BY ord) AS n
          FROM prepared WHERE state IN ('skipped', 'refused')
        ), numbered AS (
          UPDATE plans SET event_seq = event_seq + (SELECT count(*) FROM decided) WHERE id = :plan
          RETURNING event_seq - (SELECT count(*) FROM decided) AS last
        )
        INSERT INTO events (plan_id, seq, server_id, type, from_state, to_state, actor, reason_code, reason_message)
        SELECT :plan, last + n, server_id, 'job.' || state, 'pending', state, 'prepare', reason_code, reason_message
        FROM decided, numbered"""),
        {"plan": plan_id},
    )
