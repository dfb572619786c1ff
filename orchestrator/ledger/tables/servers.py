"""What is known beyond single plans: projects, clouds, and who holds or last rebuilt which server."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, ForeignKey, Index, UniqueConstraint, func, text
from sqlalchemy.orm import Mapped, mapped_column

from orchestrator.ledger.tables.base import Base


class Project(Base):
    """The real identity behind clouds' names, and what was learned of it."""

    __tablename__ = "projects"
    __table_args__ = (UniqueConstraint("deployment", "region", "project_id"),)

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    deployment: Mapped[str]
    region: Mapped[str]
    project_id: Mapped[str]
    paused: Mapped[bool] = mapped_column(server_default=text("false"))
    """The emergency stop: nothing is sent for any of its plans."""
    paused_reason: Mapped[str | None]
    paused_by: Mapped[str | None]
    paused_at: Mapped[datetime | None]
    learned_write_rate: Mapped[float | None]
    """Calls per second that the limiter had reached; the next driver starts there."""
    learned_rebuild_seconds: Mapped[float | None]
    """Median duration of a rebuild, from the 202 to its success."""
    incarnation: Mapped[str | None]
    """The database (system identifier and timeline) under which the ledger was last known to agree with the cloud."""
    changed_to: Mapped[str | None]
    changed_at: Mapped[datetime | None]
    changed_restored: Mapped[bool | None]
    """Another database that answers now, since when, and whether from a backup: until it is reconciled."""
    trouble_code: Mapped[str | None]
    trouble_message: Mapped[str | None]
    """Why nothing is sent just now, though plans run; the plans say it."""


class Cloud(Base):
    """A named connection of clouds.yaml, as the workers last found it."""

    __tablename__ = "clouds"

    name: Mapped[str] = mapped_column(primary_key=True)
    project: Mapped[int | None] = mapped_column(ForeignKey("projects.id"))
    healthy: Mapped[bool | None]
    error: Mapped[str | None]
    checked_at: Mapped[datetime | None]
    limiter: Mapped[dict[str, Any] | None]
    """The limiter's state as the driver last published it, with `at`."""


class Hold(Base):
    """A started plan's exclusive claim on a server."""

    __tablename__ = "holds"
    __table_args__ = (Index("ix_holds_plan_id", "plan_id"),)

    deployment: Mapped[str] = mapped_column(primary_key=True)
    server_id: Mapped[str] = mapped_column(primary_key=True)
    plan_id: Mapped[UUID] = mapped_column(ForeignKey("plans.id"))
    taken_at: Mapped[datetime] = mapped_column(server_default=func.now())


class LastRebuild(Base):
    """What the ledger knows of a server's newest rebuild; one row a server, however many plans there were."""

    __tablename__ = "last_rebuilds"

    deployment: Mapped[str] = mapped_column(primary_key=True)
    server_id: Mapped[str] = mapped_column(primary_key=True)
    plan_id: Mapped[UUID]
    state: Mapped[str]
    image: Mapped[str | None]
    actions: Mapped[list[str]] = mapped_column(server_default=text("'{}'"))
    """Request ids of its latest rebuilds, the newest last: actions of ours that are accounted for."""
    at: Mapped[datetime] = mapped_column(server_default=func.now())


class Outage(Base):
    """A server whose newest rebuild failed, got stuck or stayed unresolved: it keeps its place in every disruption
    budget until it succeeds, is deleted, or a person acknowledges it. One row a server."""

    __tablename__ = "outages"

    deployment: Mapped[str] = mapped_column(primary_key=True)
    server_id: Mapped[str] = mapped_column(primary_key=True)
    plan_id: Mapped[UUID]
    since: Mapped[datetime] = mapped_column(server_default=func.now())
    acknowledged_at: Mapped[datetime | None]
    acknowledged_by: Mapped[str | None]
