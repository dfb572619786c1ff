"""Jobs and their attempts, to be looked at."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.states import JobState
from orchestrator.ledger.tables import Attempt, Job

_COLUMNS = (Job.ord, Job.server_id, func.coalesce(Job.name, Job.find).label("name"), Job.state, Job.verdict,
            Job.reason_code, Job.reason_message, Job.fingerprint, Job.wave, Job.attempts, Job.previous_image,
            Job.target_image, Job.zone, Job.updated_at)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """A job's row, as far as it is shown. `name` is the exact name asked for until the server was found."""

    ord: int
    server_id: str | None
    name: str | None
    state: str
    verdict: str | None
    reason_code: str | None
    reason_message: str | None
    fingerprint: str | None
    wave: int | None
    attempts: int
    previous_image: str | None
    target_image: str | None
    zone: str | None
    updated_at: datetime


@dataclass(frozen=True, kw_only=True)
class AttemptRecord:
    """An attempt's row; `sent_at` is when its intent was committed."""

    number: int
    fence: int
    sent_at: datetime
    request_id: str | None
    http_status: int | None
    classification: str | None
    body_sha256: str
    baseline: dict[str, Any]
    evidence: list[Any]


@dataclass(frozen=True, kw_only=True)
class JobFilter:
    """Which jobs; everything given must hold."""

    states: Sequence[JobState] = ()
    wave: int | None = None
    cause: str | None = None
    """A reason's code or a failure's fingerprint."""
    q: str | None = None
    """A part of the name, or the beginning of the id; any case."""


@dataclass(frozen=True, kw_only=True)
class ExplicitTarget:
    """A target that was named one by one."""

    server_id: str | None
    find: str | None
    overrides: dict[str, Any] | None


async def job_page(
    conn: AsyncConnection, plan_id: UUID, wanted: JobFilter, *, after: int, limit: int
) -> list[JobRecord]:
    """Jobs with places above `after`, in their order."""
    query = select(*_COLUMNS).where(Job.plan_id == plan_id, Job.ord > after).order_by(Job.ord).limit(limit)
    if wanted.states:
        query = query.where(Job.state.in_([s.value for s in wanted.states]))
    if wanted.wave is not None:
        query = query.where(Job.wave == wanted.wave)
    if wanted.cause is not None:
        query = query.where(or_(Job.reason_code == wanted.cause, Job.fingerprint == wanted.cause))
    if wanted.q is not None:
        query = query.where(
            or_(
                func.coalesce(Job.name, Job.find).icontains(wanted.q, autoescape=True),
                Job.server_id.istartswith(wanted.q, autoescape=True),
            )
        )
    return [_record(r) for r in await conn.execute(query)]


async def job_of_server(conn: AsyncConnection, plan_id: UUID, server_id: str) -> JobRecord | None:
    """The job of one server."""
    row = (await conn.execute(select(*_COLUMNS).where(Job.plan_id == plan_id, Job.server_id == server_id))).first()
    return None if row is None else _record(row)


async def attempts_of(conn: AsyncConnection, plan_id: UUID, place: int) -> list[AttemptRecord]:
    """The attempts of one job, in their order."""
    rows = await conn.execute(
        select(
            Attempt.number, Attempt.fence, Attempt.intended_at.label("sent_at"), Attempt.request_id,
            Attempt.http_status, Attempt.classification, Attempt.body_sha256, Attempt.baseline, Attempt.evidence,
        )
        .where(Attempt.plan_id == plan_id, Attempt.ord == place)
        .order_by(Attempt.number)
    )  # fmt: skip
    return [AttemptRecord(**r._mapping) for r in rows]  # noqa: SLF001


async def explicit_targets(conn: AsyncConnection, plan_id: UUID, explicit: int) -> list[ExplicitTarget]:
    """The first `explicit` targets: those that were named one by one."""
    rows = await conn.execute(
        select(Job.server_id, Job.find, Job.overrides)
        .where(Job.plan_id == plan_id, Job.ord < explicit)
        .order_by(Job.ord)
    )
    return [ExplicitTarget(**r._mapping) for r in rows]  # noqa: SLF001


def _record(row: Any) -> JobRecord:
    return JobRecord(**row._mapping)  # noqa: SLF001  SQLAlchemy's public name for it
