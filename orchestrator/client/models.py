"""What the API's answers look like to a program: frozen, and tolerant of fields that a newer service adds."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from orchestrator.client.errors import ApiProblem
from orchestrator.domain.states import FINAL_PLAN_STATUSES

T = TypeVar("T")


class Document(BaseModel):
    """A JSON object of the API. `raw` is the object as it came, unknown fields and all."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    raw: dict[str, Any] = Field(default_factory=dict, exclude=True, repr=False)

    @model_validator(mode="before")
    @classmethod
    def _keep(cls, document: Any) -> Any:
        """Nested objects keep theirs too."""
        return {**document, "raw": dict(document)} if isinstance(document, Mapping) else document

    @classmethod
    def of(cls, document: Any) -> Self:
        """From parsed JSON. Raises `ApiProblem` when this is no answer of this API (a proxy's page, say)."""
        try:
            return cls.model_validate(document)
        except ValidationError as e:
            first = e.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the document"
            raise ApiProblem(
                status=200,
                code="answer_invalid",
                detail=f"the API's answer can't be understood: {where}: {first['msg']}",
            ) from None


class Reason(Document):
    """Why something is as it is."""

    code: str
    message: str = ""


class Approval(Document):
    """What a person is to say at a wave's end, and has said."""

    needed: bool = False
    approved_by: str | None = None
    approved_at: datetime | None = None


class Wave(Document):
    """An ordered stage of a plan."""

    index: int
    name: str = ""
    size: int = 0
    status: str = ""
    counts: dict[str, int] = Field(default_factory=dict)
    """Jobs by state; states without a job may be missing."""
    bake_until: datetime | None = None
    approval: Approval | None = None


class Rate(Document):
    """Calls per second."""

    allowed_per_second: float | None = None
    used_per_second: float | None = None


class Eta(Document):
    """When the plan will be through, as far as is known now."""

    finish_at: datetime | None = None
    limited_by: str | None = None


class Plan(Document):
    """A plan as it stands."""

    id: str
    name: str = ""
    cloud: str = ""
    status: str
    reason: Reason | None = None
    digest: str | None = None
    url: str | None = None
    labels: dict[str, Any] = Field(default_factory=dict)
    created_by: str | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    start_at: datetime | None = None
    expires_at: datetime | None = None
    """When a saved preview that nobody starts expires, or an approval that nobody gives."""
    counts: dict[str, int] = Field(default_factory=dict)
    """`total` and every job state."""
    waves: tuple[Wave, ...] = ()
    rate: Rate | None = None
    eta: Eta | None = None
    max_in_flight: int | None = None
    rollback_of: str | None = None
    """The plan whose servers it takes back."""

    @property
    def is_final(self) -> bool:
        """Whether it moves no more by itself. A halted plan isn't final: it waits for a person."""
        return self.status in FINAL_PLAN_STATUSES

    def count(self, *states: str) -> int:
        """How many jobs are in these states."""
        return sum(self.counts.get(state, 0) for state in states)


class Job(Document):
    """One server of a plan."""

    server_id: str | None = None
    name: str | None = None
    state: str
    verdict: str | None = None
    reason: Reason | None = None
    wave: int | None = None
    attempts: int = 0
    previous_image: str | None = None
    target_image: str | None = None
    zone: str | None = None
    updated_at: datetime | None = None


class Event(Document):
    """An append-only line of a plan's history; `seq` is dense and grows by one."""

    seq: int
    at: datetime | None = None
    plan_id: str | None = None
    server_id: str | None = None
    type: str
    from_state: str | None = Field(default=None, alias="from")
    to_state: str | None = Field(default=None, alias="to")
    actor: str | None = None
    reason: Any = None
    data: Any = None


class JobDetail(Job):
    """A job with its attempts and their evidence, oldest first."""

    attempt_log: tuple[dict[str, Any], ...] = ()
    events: tuple[Event, ...] = ()
    hooks: tuple[dict[str, Any], ...] = ()
    """`phase`, `attempt`, `state`, `tries`, `http_status`, `message` and times of its hooks' calls."""


class Cloud(Document):
    """A cloud that the service may use."""

    name: str
    configured: bool = True
    """Whether the service finds it in its clouds.yaml."""
    project: dict[str, Any] | None = None
    """`deployment`, `region`, `project_id`, `paused`, `paused_reason`; None until a worker has signed in."""
    healthy: bool | None = None
    error: str | None = None
    checked_at: datetime | None = None
    limiter: dict[str, Any] | None = None


class Token(Document):
    """An API token; `token` is the secret itself and is there only in the answer to its creation."""

    id: str
    name: str = ""
    role: str = ""
    clouds: tuple[str, ...] = ()
    max_targets: int | None = None
    created_by: str | None = None
    created_at: datetime | None = None
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    token: str | None = Field(default=None, repr=False)


class Page(BaseModel, Generic[T]):
    """A part of a list, with the cursor of the next part; None at the end."""

    model_config = ConfigDict(frozen=True)

    items: tuple[T, ...]
    next: str | None = None


D = TypeVar("D", bound=Document)


def page_of(model: type[D], document: Any) -> Page[D]:
    """A page of such documents. Raises `ApiProblem` for an answer that is none."""
    if not isinstance(document, Mapping) or not isinstance(document.get("items"), list):
        raise ApiProblem(status=200, code="answer_invalid", detail="the API's answer can't be understood: no page")
    cursor = document.get("next")
    return Page[D](
        items=tuple(model.of(item) for item in document["items"]), next=None if cursor is None else str(cursor)
    )
