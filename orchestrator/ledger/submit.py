"""Submitting: the plan's row and its explicit targets, in one transaction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import func

from orchestrator.domain.decide import Reason
from orchestrator.domain.states import JobState, PlanStatus
from orchestrator.ledger.events import NewEvent, append_events
from orchestrator.ledger.sql import copy_in
from orchestrator.ledger.tables import NO_WAVE, Plan
from orchestrator.ledger.transitions import add_counts

TargetRow = tuple[str | None, str | None, str | None]
"""A target named one by one: server id or else the name to find, and its overrides as JSON text. No class, since there
may be 100,000 of them."""


@dataclass(frozen=True, kw_only=True)
class NewPlan:
    """A plan as it was submitted."""

    id: UUID
    name: str
    cloud: str
    spec: Mapping[str, Any]
    """Without explicit servers; user data as size and digest only."""
    user_data: bytes | None
    labels: Mapping[str, str]
    hold: bool
    created_by: str
    idempotency_key: str | None
    body_sha256: str
    targets: Sequence[TargetRow]
    rollback_of: UUID | None = None
    """The plan whose servers it takes back."""
    reason: Reason | None = None
    """Why it was made, where it was made of another plan."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """What its first event says besides."""


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """What an Idempotency-Key was used for."""

    plan_id: UUID
    body_sha256: str | None


async def submitted_before(conn: AsyncConnection, created_by: str, idempotency_key: str) -> Submitted | None:
    """The plan that this token submitted with this key."""
    row = (
        await conn.execute(
            select(Plan.id, Plan.body_sha256).where(
                Plan.created_by == created_by, Plan.idempotency_key == idempotency_key
            )
        )
    ).first()
    return None if row is None else Submitted(plan_id=row.id, body_sha256=row.body_sha256)


async def insert_plan(conn: AsyncConnection, plan: NewPlan) -> None:
    """Writes plan, targets, counters and the first event; preparing is due at once.

    The row goes first: a second submit under the same key waits at its unique index, and has copied nothing when it
    is told so. Raises `sqlalchemy.exc.IntegrityError` for a key that is used by now.
    """
    count = len(plan.targets)
    await conn.execute(
        insert(Plan).values(
            id=plan.id, name=plan.name, cloud=plan.cloud, status=PlanStatus.PREPARING.value, spec=dict(plan.spec),
            user_data=plan.user_data, labels=dict(plan.labels), hold=plan.hold, total=count, explicit=count,
            created_by=plan.created_by, idempotency_key=plan.idempotency_key, body_sha256=plan.body_sha256,
            prepare_at=func.now(), rollback_of=plan.rollback_of,
        )
    )  # fmt: skip
    if count:
        columns = ("plan_id", "ord", "server_id", "find", "overrides")
        await copy_in(conn, "jobs", columns, ((plan.id, place, *target) for place, target in enumerate(plan.targets)))
        await add_counts(conn, {(plan.id, NO_WAVE, JobState.PENDING.value): count})
    await append_events(
        conn,
        [
            NewEvent(
                plan_id=plan.id,
                type="plan.preparing",
                actor=plan.created_by,
                to_state=PlanStatus.PREPARING.value,
                reason=plan.reason,
                data={"servers": count, **plan.data},
            )
        ],
    )
