"""What is answered: the shapes of the REST interface, and the source of its OpenAPI schemas."""

from datetime import datetime
from typing import Any, Generic, Literal, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.domain.hooks import HookResult, Phase
from orchestrator.domain.states import JobState, PlanStatus, Verdict
from orchestrator.service.roles import Role

T = TypeVar("T")


class View(BaseModel):
    """A part of an answer."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, use_attribute_docstrings=True,
        json_schema_serialization_defaults_required=True,
    )  # fmt: skip


class ReasonView(View):
    """Why: a stable code, and a sentence for a person."""

    code: str
    message: str


class FaultView(View):
    """One thing that is wrong with an input."""

    path: str
    code: str
    message: str


class ProblemView(View):
    """An error, as RFC 9457 has it."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    """The error's stable name."""
    errors: list[FaultView] = []


class Counts(View):
    """How many jobs are in each state."""

    total: int = 0
    pending: int = 0
    checking: int = 0
    draining: int = 0
    sending: int = 0
    resolving: int = 0
    rebuilding: int = 0
    verifying: int = 0
    configuring: int = 0
    succeeded: int = 0
    skipped: int = 0
    refused: int = 0
    failed: int = 0
    stuck: int = 0
    unresolved: int = 0
    cancelled: int = 0


class ApprovalView(View):
    """What a person is to say at a wave's end, and has said."""

    needed: bool
    """Whether the next wave waits for it; never so after the last one."""
    approved_by: str | None
    approved_at: datetime | None


class WaveView(View):
    """A wave of a plan."""

    index: int
    name: str
    size: int
    """Jobs with the verdict rebuild, of this wave alone."""
    status: str
    """pending, running, baking, awaiting_approval or finished."""
    counts: Counts
    bake_until: datetime | None = None
    """When its bake is over, or was; None: it has none, or has not ended yet."""
    approval: ApprovalView


class RateView(View):
    """Calls per second that the limiter allows now, and that the plan's project uses."""

    allowed_per_second: float | None = None
    """None while nothing is sent."""
    used_per_second: float = 0.0


class EtaView(View):
    """When the plan is likely to have finished, and what keeps it from being sooner."""

    finish_at: datetime
    limited_by: str
    """rate, max_in_flight or max_unavailable."""


class PlanView(View):
    """A plan."""

    id: UUID
    name: str
    cloud: str
    status: PlanStatus
    reason: ReasonView | None
    digest: str | None
    """SHA-256 of what was prepared; `start` can ask for it."""
    url: str
    labels: dict[str, str]
    created_by: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    start_at: datetime | None
    """Not before, by its schedule."""
    expires_at: datetime | None
    """When a saved preview that nobody starts expires, or an approval that nobody gives."""
    counts: Counts
    waves: list[WaveView]
    rate: RateView
    eta: EtaView | None
    max_in_flight: int | None
    """Servers at once; None until prepared."""
    errors: list[FaultView] = []
    """Why it was rejected, itemised."""
    rollback_of: UUID | None = None
    """The plan whose servers it takes back to the images that they had."""


class JobView(View):
    """One server of a plan."""

    server_id: str | None
    """None until a name was found."""
    name: str | None
    state: JobState
    verdict: Verdict | None
    reason: ReasonView | None
    wave: int | None
    attempts: int
    previous_image: str | None
    target_image: str | None
    zone: str | None
    updated_at: datetime


class EventView(View):
    """A line of the ledger."""

    seq: int
    at: datetime
    plan_id: UUID
    server_id: str | None
    type: str
    from_: str | None = Field(alias="from")
    to: str | None
    actor: str
    reason: ReasonView | None
    data: dict[str, Any] | None


class AttemptView(View):
    """One rebuild call, with its evidence."""

    number: int
    fence: int
    sent_at: datetime
    request_id: str | None
    http_status: int | None
    classification: str | None
    """`effect/cause`."""
    body_sha256: str
    baseline: dict[str, Any]
    """What the server was right before."""
    evidence: list[dict[str, Any]]


class HookView(View):
    """One phase of the plan's hooks for one server."""

    phase: Phase
    attempt: int
    """The attempt that it is called for."""
    state: Literal["due", "waiting", "done", "failed"]
    """waiting: answered 202, its result comes later."""
    tries: int
    http_status: int | None
    """Of the newest answer."""
    message: str | None
    called_at: datetime | None
    deadline_at: datetime
    """When it has failed, at the latest."""
    ended_at: datetime | None


class HookAnswerView(View):
    """What was noted of a hook."""

    phase: Phase
    result: HookResult


class JobDetailView(JobView):
    """One server of a plan, with all that is known."""

    attempt_log: list[AttemptView]
    events: list[EventView]
    """The newest ones."""
    hooks: list[HookView] = []


class ProjectView(View):
    """The real identity behind a cloud's name."""

    deployment: str
    region: str
    project_id: str
    paused: bool
    paused_reason: str | None
    paused_by: str | None = None
    paused_at: datetime | None = None


class HealthView(View):
    """How the workers last found a cloud."""

    status: Literal["ok", "error", "unknown"]
    """unknown: no worker has signed in yet."""
    error: str | None
    checked_at: datetime | None


class CloudView(View):
    """A cloud of clouds.yaml."""

    name: str
    configured: bool
    """Whether this process finds it in clouds.yaml."""
    project: ProjectView | None
    """None until a worker has signed in."""
    health: HealthView
    limiter: dict[str, Any] | None
    """As the project's driver last published it."""


class TokenView(View):
    """A token, without its secret."""

    id: UUID
    name: str
    role: Role
    clouds: list[str]
    """Empty: all."""
    max_targets: int | None
    created_by: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class NewTokenView(TokenView):
    """A token just made; its secret is shown this once."""

    token: str


class Page(View, Generic[T]):
    """Some items, and the cursor of those after them."""

    items: list[T]
    next: str | None
    """Give it as `cursor`; None: these were the last."""


class ReadyView(View):
    """Whether the service can work."""

    status: Literal["ok", "degraded", "unavailable"]
    """degraded: the broker is away; plans are taken, hints are not sent."""
    database: Literal["ok", "away"]
    migrations: Literal["ok", "behind", "unknown"]
    broker: Literal["ok", "away"]


class AliveView(View):
    """The process answers."""

    status: Literal["ok"] = "ok"
