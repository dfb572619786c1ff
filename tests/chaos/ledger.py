"""What the ledger says of a plan, read in one snapshot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine


@dataclass(frozen=True, kw_only=True)
class JobRow:
    """One job."""

    server_id: str
    name: str | None
    state: str
    reason_code: str | None
    reason_message: str | None
    attempts: int
    target_image: str | None


@dataclass(frozen=True, kw_only=True)
class AttemptRow:
    """One intent, and what was answered."""

    server_id: str
    number: int
    classification: str | None
    http_status: int | None
    cloud_date: datetime | None


@dataclass(frozen=True, kw_only=True)
class LeaseRow:
    """A lease, and whether it counts now."""

    name: str
    holder: str
    live: bool
    acquired_at: datetime


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One plan, and who drives."""

    status: str
    due: bool
    event_seq: int
    jobs: Mapping[str, JobRow]
    counted: Mapping[str, int]
    attempts: Sequence[AttemptRow]
    events: Sequence[tuple[int, str | None, str | None]]
    """(seq, server, state entered), in order."""
    held: frozenset[str]
    leases: Sequence[LeaseRow]

    def attempts_of(self, server_id: str) -> Sequence[AttemptRow]:
        return [a for a in self.attempts if a.server_id == server_id]


async def snapshot(engine: AsyncEngine, plan: UUID) -> Snapshot:
    """Everything there is to judge, as of one moment."""
    async with engine.connect() as plain:
        conn = await plain.execution_options(isolation_level="REPEATABLE READ")
        of = {"id": plan}
        row = (await conn.execute(text("SELECT status, due, event_seq FROM plans WHERE id = :id"), of)).one()
        jobs = await conn.execute(
            text("""
            SELECT server_id, name, state, reason_code, reason_message, attempts, target_image
            FROM jobs WHERE plan_id = :id"""),
            of,
        )
        counts = await conn.execute(
            text("SELECT state, sum(n)::int AS n FROM job_counts WHERE plan_id = :id GROUP BY state"), of
        )
        attempts = await conn.execute(
            text("""
            SELECT server_id, number, classification, http_status, cloud_date
            FROM attempts JOIN jobs USING (plan_id, ord) WHERE plan_id = :id ORDER BY ord, number"""),
            of,
        )
        events = await conn.execute(
            text("SELECT seq, server_id, to_state FROM events WHERE plan_id = :id ORDER BY seq"), of
        )
        holds = await conn.execute(text("SELECT server_id FROM holds WHERE plan_id = :id"), of)
        return Snapshot(
            status=row.status,
            due=row.due,
            event_seq=row.event_seq,
            jobs={r.server_id: JobRow(**r._mapping) for r in jobs},
            counted={r.state: r.n for r in counts if r.n},
            attempts=[AttemptRow(**r._mapping) for r in attempts],
            events=[(r.seq, r.server_id, r.to_state) for r in events],
            held=frozenset(r.server_id for r in holds),
            leases=await leases(conn),
        )


async def leases(conn: AsyncConnection) -> Sequence[LeaseRow]:
    """All drivers' leases."""
    rows = await conn.execute(
        text("""
        SELECT name, holder, acquired_at, expires_at > clock_timestamp() AS live
        FROM leases WHERE name LIKE 'drive:%'""")
    )
    return [LeaseRow(**r._mapping) for r in rows]
