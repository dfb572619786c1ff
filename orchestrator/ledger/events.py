"""Events, read by their dense number in a plan: it is the `Last-Event-ID`, the cursor and the tail at once."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.decide import Reason
from orchestrator.domain.states import PlanStatus
from orchestrator.ledger.sql import columns_of, sql, unnest
from orchestrator.ledger.tables import Event, Plan

_COLUMNS = (Event.plan_id, Event.seq, Event.at, Event.server_id, Event.type, Event.from_state, Event.to_state,
            Event.actor, Event.reason_code, Event.reason_message, Event.data)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class NewEvent:
    """An event to be appended; its `seq` is given under the plan row's lock."""

    plan_id: UUID
    type: str
    actor: str
    server_id: str | None = None
    from_state: str | None = None
    to_state: str | None = None
    reason: Reason | None = None
    data: Mapping[str, Any] | None = field(default=None)


@dataclass(frozen=True, kw_only=True)
class EventRecord:
    """An event's row."""

    plan_id: UUID
    seq: int
    at: datetime
    server_id: str | None
    type: str
    from_state: str | None
    to_state: str | None
    actor: str
    reason_code: str | None
    reason_message: str | None
    data: dict[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class Head:
    """How far a plan's events have come."""

    seq: int
    status: PlanStatus


async def append_events(conn: AsyncConnection, events: Sequence[NewEvent]) -> None:
    """Appends events with dense numbers, taken under the plan rows' locks."""
    if not events:
        return
    per_plan: dict[UUID, int] = defaultdict(int)
    for e in events:
        per_plan[e.plan_id] += 1
    counts = {"plan_id": "uuid", "n": "bigint"}
    rows = await conn.execute(
        sql(f"""
        UPDATE plans p SET event_seq = p.event_seq + i.n FROM {unnest("i", counts)}
        WHERE p.id = i.plan_id RETURNING p.id, p.event_seq - i.n AS last"""),  # noqa: S608
        columns_of(counts, sorted(per_plan.items())),
    )
    last = {r.id: r.last for r in rows}
    columns = {"plan_id": "uuid", "seq": "bigint", "server_id": "text", "type": "text", "from_state": "text",
               "to_state": "text", "actor": "text", "reason_code": "text", "reason_message": "text",
               "data": "jsonb"}  # fmt: skip
    records = []
    for e in events:
        last[e.plan_id] += 1
        records.append((e.plan_id, last[e.plan_id], e.server_id, e.type, e.from_state, e.to_state, e.actor,
                        e.reason.code if e.reason else None, e.reason.message if e.reason else None,
                        dict(e.data) if e.data is not None else None))  # fmt: skip
    await conn.execute(
        sql(f"""
        INSERT INTO events (plan_id, seq, server_id, type, from_state, to_state, actor, reason_code, reason_message,
                            data)
        SELECT plan_id, seq, server_id, type, from_state, to_state, actor, reason_code, reason_message,
               CAST(data AS jsonb)
        FROM {unnest("i", columns)}"""),  # noqa: S608
        columns_of(columns, records),
    )


async def event_heads(conn: AsyncConnection, plan_ids: Sequence[UUID]) -> dict[UUID, Head]:
    """The newest event's number and the status of each of these plans; unknown ids are left out."""
    rows = await conn.execute(select(Plan.id, Plan.event_seq, Plan.status).where(Plan.id.in_(plan_ids)))
    return {r.id: Head(seq=r.event_seq, status=PlanStatus(r.status)) for r in rows}


async def events_after(conn: AsyncConnection, plan_id: UUID, after: int, limit: int) -> list[EventRecord]:
    """Events with numbers above `after`, in their order."""
    return _records(
        await conn.execute(
            select(*_COLUMNS).where(Event.plan_id == plan_id, Event.seq > after).order_by(Event.seq).limit(limit)
        )
    )


async def latest_events(conn: AsyncConnection, plan_id: UUID, limit: int) -> list[EventRecord]:
    """The newest `limit` events of a plan, the newest first."""
    return _records(
        await conn.execute(select(*_COLUMNS).where(Event.plan_id == plan_id).order_by(Event.seq.desc()).limit(limit))
    )


async def server_events(conn: AsyncConnection, plan_id: UUID, server_id: str, limit: int) -> list[EventRecord]:
    """The newest `limit` events of one server, in their order."""
    rows = await conn.execute(
        select(*_COLUMNS)
        .where(Event.plan_id == plan_id, Event.server_id == server_id)
        .order_by(Event.seq.desc())
        .limit(limit)
    )
    return _records(rows)[::-1]


async def status_before_pause(conn: AsyncConnection, plan_id: UUID) -> PlanStatus | None:
    """Where a paused plan was, by its newest pause."""
    row = await conn.execute(
        select(Event.from_state)
        .where(Event.plan_id == plan_id, Event.type == "plan.paused")
        .order_by(Event.seq.desc())
        .limit(1)
    )
    state = row.scalar_one_or_none()
    return None if state is None else PlanStatus(state)


async def last_move_from(conn: AsyncConnection, plan_id: UUID, status: PlanStatus) -> EventRecord | None:
    """How the plan last left `status`; None: it never did."""
    rows = await conn.execute(
        select(*_COLUMNS)
        .where(Event.plan_id == plan_id, Event.server_id.is_(None), Event.from_state == status.value)
        .where(Event.to_state != status.value)
        .order_by(Event.seq.desc())
        .limit(1)
    )
    return next(iter(_records(rows)), None)


def _records(rows: Any) -> list[EventRecord]:
    return [EventRecord(**r._mapping) for r in rows]  # noqa: SLF001  SQLAlchemy's public name for it
