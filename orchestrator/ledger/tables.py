"""The ledger's tables.

`jobs` and `events` name their plan without a foreign key: they are written in bulk under the plan row's own lock, and
the check would cost a third of every bulk insert.

States are text: the life cycles in `domain` say which there are, and a new one needs no migration. Every time is
`timestamptz` by the database's own clock, so that no two machines' clocks are ever compared.
"""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, ForeignKey, Index, MetaData, SmallInteger, Text, UniqueConstraint, func, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NO_WAVE = -1
"""In `job_counts`: jobs that no wave has (undecided yet, or skipped or refused by preparing)."""

UNFINISHED_PLANS = "status NOT IN ('rejected', 'expired', 'cancelled', 'succeeded', 'failed')"


class Base(DeclarativeBase):
    """Names every constraint, so that migrations can speak of it."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012  SQLAlchemy's own way to say it
        str: Text,
        datetime: TIMESTAMP(timezone=True),
        dict[str, Any]: JSONB,
        list[Any]: JSONB,
        list[str]: ARRAY(Text),
    }


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


class BudgetGroup(Base):
    """A group of the plan's disruption budget, frozen by preparing."""

    __tablename__ = "budget_groups"

    plan_id: Mapped[UUID] = mapped_column(ForeignKey("plans.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    size: Mapped[int]
    """Servers of the group in the cloud, whether or not they are the plan's."""
    places: Mapped[int]
    """How many of them may be out at once."""


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
