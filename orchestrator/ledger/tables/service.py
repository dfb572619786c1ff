"""The service itself: who drives, who lives, who may."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import BigInteger, func, text
from sqlalchemy.orm import Mapped, mapped_column

from orchestrator.ledger.tables.base import Base


class Lease(Base):
    """A right to drive a project (`drive:<id>`) or to prepare a plan (`prepare:<id>`), with its fencing number."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(primary_key=True)
    holder: Mapped[str]
    fence: Mapped[int] = mapped_column(BigInteger)
    incarnation: Mapped[str] = mapped_column(server_default=text("''"))
    """The database that gave it: its system identifier and timeline. Void on any other."""
    acquired_at: Mapped[datetime]
    expires_at: Mapped[datetime]


class Process(Base):
    """A living drive process, for fair shares of projects and for the dashboard."""

    __tablename__ = "processes"

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    seen_at: Mapped[datetime]


class Token(Base):
    """An API token; only its hash is kept."""

    __tablename__ = "tokens"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    sha256: Mapped[str] = mapped_column(unique=True)
    role: Mapped[str]
    clouds: Mapped[list[str]] = mapped_column(server_default=text("'{}'"))
    """Clouds that it may use; empty: all."""
    max_targets: Mapped[int | None]
    created_by: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
