"""What was submitted, and its way through its gates."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, ForeignKey, Index, SmallInteger, func, text
from sqlalchemy.orm import Mapped, mapped_column

from orchestrator.ledger.tables.base import UNFINISHED_PLANS, Base


class Plan(Base):
    """What was submitted. Its row's lock orders everything that happens to the plan."""

    __tablename__ = "plans"
    __table_args__ = (
        Index("ix_plans_unfinished", "id", postgresql_where=text(UNFINISHED_PLANS)),
        Index("ix_plans_due", "project", postgresql_where=text("project IS NOT NULL AND due")),
        Index("ix_plans_scheduled", "id", postgresql_where=text("status = 'scheduled'")),
        Index(
            "uq_plans_idempotency",
            "created_by",
            "idempotency_key",
            unique=True,
            postgresql_where=text("idempotency_key IS NOT NULL"),
        ),
        Index("ix_plans_labels", "labels", postgresql_using="gin"),
        Index("ix_plans_cloud_id", "cloud", "id"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    cloud: Mapped[str]
    project: Mapped[int | None] = mapped_column(ForeignKey("projects.id"))
    status: Mapped[str]
    reason_code: Mapped[str | None]
    reason_message: Mapped[str | None]
    faults: Mapped[list[Any] | None]
    """Why it was rejected, itemised: [{path, code, message}]."""
    spec: Mapped[dict[str, Any]]
    """The plan file without explicit servers (they live in `jobs`), user data as size and digest only."""
    user_data: Mapped[bytes | None]
    digest: Mapped[str | None]
    """SHA-256 over what was prepared: image, verdicts and waves of all jobs."""
    labels: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    hold: Mapped[bool] = mapped_column(server_default=text("false"))
    image_id: Mapped[str | None]
    image_name: Mapped[str | None]
    total: Mapped[int] = mapped_column(server_default=text("0"))
    explicit: Mapped[int] = mapped_column(server_default=text("0"))
    """How many of its jobs, from `ord` 0 on, were named one by one; GET spec joins them back."""
    max_in_flight: Mapped[int | None]
    rate: Mapped[float | None]
    """Calls per second, where the plan goes below the cloud's own."""
    max_errors: Mapped[int | None]
    """Failures that are still tolerated; one more halts."""
    current_wave: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    acknowledged_failures: Mapped[int] = mapped_column(server_default=text("0"))
    acknowledged_unresolved: Mapped[int] = mapped_column(server_default=text("0"))
    acknowledged_at: Mapped[datetime | None]
    """When a resume acknowledged the failures so far; causes count anew from there."""
    go_epoch: Mapped[int] = mapped_column(server_default=text("0"))
    """Moves whenever sending must stop; the second gate compares it."""
    event_seq: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    due: Mapped[bool] = mapped_column(server_default=text("false"))
    """A driver has something to do here: the plan runs, or some of its jobs are watched."""
    created_by: Mapped[str]
    idempotency_key: Mapped[str | None]
    body_sha256: Mapped[str | None]
    prepare_at: Mapped[datetime | None]
    """When preparing is to be tried (again)."""
    prepare_tries: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    prepared_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    """When a held plan that nobody started expires, or an approval that nobody gave."""
    start_at: Mapped[datetime | None]
    """Not started before, by its schedule."""
    queued_for: Mapped[str | None]
    """A server that another plan holds, for which the plan waits in the queue."""
    approve_first: Mapped[bool] = mapped_column(server_default=text("false"))
    """Whether its cloud wants an approval before it starts; false again once it was given."""
    check_drift: Mapped[bool] = mapped_column(server_default=text("false"))
    """It was prepared earlier than started: what changed since is looked for before its first send."""
    drift_limit: Mapped[int | None]
    """Servers that may have changed since; one more halts."""
    rollback_of: Mapped[UUID | None]
    """The plan whose servers it takes back to the images that they had."""


class Wave(Base):
    """An ordered stage of a plan."""

    __tablename__ = "waves"

    plan_id: Mapped[UUID] = mapped_column(ForeignKey("plans.id", ondelete="CASCADE"), primary_key=True)
    index: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    name: Mapped[str]
    size: Mapped[int]
    max_errors: Mapped[int | None]
    on_unresolved: Mapped[str]
    resumed: Mapped[bool] = mapped_column(server_default=text("false"))
    """Resumed after a halt: it may end without a success."""
    bake_seconds: Mapped[float] = mapped_column(server_default=text("0"))
    bake_until: Mapped[datetime | None]
    """When its bake is over; it began when the wave had ended."""
    approval: Mapped[bool] = mapped_column(server_default=text("false"))
    approved_by: Mapped[str | None]
    approved_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class BudgetGroup(Base):
    """A group of the plan's disruption budget, frozen by preparing."""

    __tablename__ = "budget_groups"

    plan_id: Mapped[UUID] = mapped_column(ForeignKey("plans.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    size: Mapped[int]
    """Servers of the group in the cloud, whether or not they are the plan's."""
    places: Mapped[int]
    """How many of them may be out at once."""


class Event(Base):
    """An append-only line of the ledger; `seq` is dense in its plan and grows in commit order."""

    __tablename__ = "events"

    plan_id: Mapped[UUID] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    server_id: Mapped[str | None]
    type: Mapped[str]
    from_state: Mapped[str | None]
    to_state: Mapped[str | None]
    actor: Mapped[str]
    reason_code: Mapped[str | None]
    reason_message: Mapped[str | None]
    data: Mapped[dict[str, Any] | None]
