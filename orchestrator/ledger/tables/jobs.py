"""The servers of plans: where each stands, its calls and their evidence."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, ForeignKey, Index, SmallInteger, func, text
from sqlalchemy.orm import Mapped, mapped_column

from orchestrator.ledger.tables.base import Base


class Job(Base):
    """One server in one plan: the row that the whole service turns on."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index(
            "uq_jobs_plan_id_server_id",
            "plan_id",
            "server_id",
            unique=True,
            postgresql_where=text("server_id IS NOT NULL"),
        ),
        Index("ix_jobs_pending", "plan_id", "wave", "ord", postgresql_where=text("state = 'pending'")),
        Index(
            "ix_jobs_waiting",
            "plan_id",
            "due_at",
            postgresql_where=text("state = 'pending' AND due_at IS NOT NULL"),
        ),
        Index(
            "ix_jobs_moving",
            "plan_id",
            "state",
            "ord",
            postgresql_where=text(
                "state IN ('checking', 'draining', 'sending', 'resolving', 'rebuilding', 'verifying',"
                " 'configuring', 'stuck', 'unresolved')"
            ),
        ),
        Index("ix_jobs_causes", "plan_id", "fingerprint", postgresql_where=text("state IN ('failed', 'stuck')")),
        Index(
            "ix_jobs_group",
            "plan_id",
            "budget_group",
            "wave",
            "ord",
            postgresql_where=text("state = 'pending' AND budget_group IS NOT NULL"),
        ),
        Index("ix_jobs_drained", "plan_id", postgresql_where=text("drained_at IS NOT NULL")),
        {"postgresql_with": {"fillfactor": "70"}},
    )

    plan_id: Mapped[UUID] = mapped_column(primary_key=True)
    ord: Mapped[int] = mapped_column(primary_key=True)
    """Its place in the plan, from 0: explicit servers as written, then selected ones."""
    server_id: Mapped[str | None]
    """None until a `find` was resolved."""
    find: Mapped[str | None]
    overrides: Mapped[dict[str, Any] | None]
    name: Mapped[str | None]
    state: Mapped[str] = mapped_column(server_default=text("'pending'"))
    verdict: Mapped[str | None]
    reason_code: Mapped[str | None]
    reason_message: Mapped[str | None]
    fingerprint: Mapped[str | None]
    wave: Mapped[int | None] = mapped_column(SmallInteger)
    attempts: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    """Rebuild calls so far, whatever came of them: the number of the newest attempt."""
    refusals: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    """Attempts that count against `failure.attempts`."""
    rebuilt_again: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    """How often `failure.rebuild_again` has sent it back after an accepted rebuild failed."""
    retries: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    """How often a person has retried it; a retried job is never skipped."""
    due_at: Mapped[datetime | None]
    """A pending job is not claimed before this time."""
    busy_since: Mapped[datetime | None]
    """Since when its server was found at something else, again and again."""
    deadline_at: Mapped[datetime | None]
    """A sent job is `stuck` after this time."""
    previous_image: Mapped[str | None]
    target_image: Mapped[str | None]
    zone: Mapped[str | None]
    host: Mapped[str | None]
    budget_group: Mapped[str | None]
    """What it has in common with the others of its group, for the plan's disruption budget; empty: it has no value."""
    seen_status: Mapped[str | None]
    seen_metadata: Mapped[str | None]
    """Status, and a digest of the metadata, that preparing saw: what differs at the check is drift."""
    drained_at: Mapped[datetime | None]
    """Since when it is drained by the plan's `before` hook; none any more once the job has ended."""
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class JobCount(Base):
    """How many jobs of a wave are in a state, kept in the transition's own transaction."""

    __tablename__ = "job_counts"

    plan_id: Mapped[UUID] = mapped_column(ForeignKey("plans.id", ondelete="CASCADE"), primary_key=True)
    wave: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    state: Mapped[str] = mapped_column(primary_key=True)
    n: Mapped[int]


class Attempt(Base):
    """One rebuild call for a job, with its evidence."""

    __tablename__ = "attempts"

    plan_id: Mapped[UUID] = mapped_column(ForeignKey("plans.id", ondelete="CASCADE"), primary_key=True)
    ord: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    fence: Mapped[int] = mapped_column(BigInteger)
    body_sha256: Mapped[str]
    baseline: Mapped[dict[str, Any]]
    """What the server was right before: status, image, launched_at, metadata, and the cloud's `Date`."""
    intended_at: Mapped[datetime] = mapped_column(server_default=func.now())
    answered_at: Mapped[datetime | None]
    cloud_date: Mapped[datetime | None]
    request_id: Mapped[str | None]
    http_status: Mapped[int | None]
    effect: Mapped[str | None]
    """`applied` or `not_applied`, once it is known: by the answer, by evidence, or by a person's word."""
    classification: Mapped[str | None]
    """`effect/cause`, as `clouds.answers` has them."""
    message: Mapped[str | None]
    evidence: Mapped[list[Any]] = mapped_column(server_default=text("'[]'"))
    """[{kind, value, at}], appended to, never changed."""


class HookCall(Base):
    """One phase of a plan's hooks for one server, from its first call to its result."""

    __tablename__ = "hook_calls"
    __table_args__ = (
        Index("ix_hook_calls_open", "plan_id", postgresql_where=text("state IN ('due', 'waiting')")),
        {"postgresql_with": {"fillfactor": "80"}},
    )

    plan_id: Mapped[UUID] = mapped_column(ForeignKey("plans.id", ondelete="CASCADE"), primary_key=True)
    ord: Mapped[int] = mapped_column(primary_key=True)
    phase: Mapped[str] = mapped_column(primary_key=True)
    """before, after or release."""
    attempt: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    """The attempt that it is called for: the coming one before the call, the newest one afterwards."""
    server_id: Mapped[str]
    name: Mapped[str | None]
    state: Mapped[str] = mapped_column(server_default=text("'due'"))
    """due (to be called at `due_at`), waiting (202: answered later), done or failed."""
    tries: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    due_at: Mapped[datetime] = mapped_column(server_default=func.now())
    deadline_at: Mapped[datetime]
    token_sha256: Mapped[str | None]
    """Of the one-time token that answers it: the newest call's alone."""
    result: Mapped[str | None]
    """ok or failed, as the token's holder has answered; the driver ends the call by it."""
    http_status: Mapped[int | None]
    message: Mapped[str | None]
    called_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
