"""What requests are read into: their bodies, queries and paths, with every fault named."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, TypeVar
from uuid import UUID

from aiohttp import web
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from orchestrator.domain.hooks import HookResult
from orchestrator.domain.states import JobState, PlanStatus
from orchestrator.errors import Fault, NotFound
from orchestrator.service.errors import BodyUnreadable, RequestInvalid
from orchestrator.service.roles import Role
from orchestrator.service.settle import ResolveDecision

M = TypeVar("M", bound=BaseModel)

JSON_TYPES = ("application/json", "application/octet-stream", "")
"""Bodies without a type are taken for JSON; aiohttp calls those octet-stream."""


def _no_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not hold NUL characters")
    return value


Line = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_no_nul)]
MAX_PAGE = 1000


class Input(BaseModel):
    """A part of a request."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Paged(Input):
    """A page of a list."""

    limit: Annotated[int, Field(ge=1, le=MAX_PAGE)] = 100
    cursor: Line | None = None
    """`next` of the page before."""


class PlansQuery(Paged):
    """Which plans."""

    status: list[PlanStatus] = []
    label: list[Line] = []
    """`key=value` (or `key:value`); all must be there."""
    cloud: Line | None = None

    def labels(self) -> dict[str, str]:
        """The pairs. Raises `RequestInvalid`."""
        pairs: dict[str, str] = {}
        for given in self.label:
            at = min((i for i in (given.find("="), given.find(":")) if i > 0), default=-1)
            if at < 0:
                raise _invalid([Fault(path="label", code="invalid_value", message="must be key=value")])
            pairs[given[:at]] = given[at + 1 :]
        return pairs


class JobsQuery(Paged):
    """Which jobs."""

    state: list[JobState] = []
    wave: Annotated[int, Field(ge=0, le=32_000)] | None = None
    cause: Line | None = None
    """A reason's code or a failure's fingerprint."""
    q: Line | None = None
    """A part of the name, or the beginning of the id."""


class EventsQuery(Paged):
    """Which events."""

    after: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    """Those with greater numbers."""


class NoQuery(Input):
    """No parameters."""


class ActionBody(Input):
    """What goes with every action."""

    reason: Line | None = None
    """Why; it is recorded."""


class StartBody(ActionBody):
    """What goes with start."""

    digest: Line | None = None
    """Only if the plan has this digest."""


class RetryBody(ActionBody):
    """What goes with retry."""

    servers: Annotated[list[Line], Field(min_length=1)] | None = None
    """Only these, by their ids; without it all that failed."""


class RollbackBody(ActionBody):
    """What goes with rollback."""

    servers: Annotated[list[Line], Field(min_length=1)] | None = None
    """Only these, by their ids; without it all that the plan changed."""
    hold: Annotated[bool, Field(strict=True)] = False
    """A preview: `start` then runs it."""


class ChangeBody(ActionBody):
    """What a plan's pace is to be."""

    max_in_flight: Annotated[int, Field(ge=1, le=2**31 - 1, strict=True)] | None = None
    """Servers at once; not above the cloud's own limit."""
    rate: Line | None = None
    """Calls per second as in a plan file, such as 10/s; not above the cloud's own rate."""


class ResolveBody(Input):
    """What a person says of a call whose effect is unknown."""

    decision: ResolveDecision
    """applied: watch it as a rebuild. not_applied: looked at once more, then sent again. give_up: failed, and free."""
    attempt: Annotated[int, Field(ge=1, le=2**15 - 1, strict=True)]
    """The attempt that was looked at; where the job is at another one, nothing is done."""
    reason: Line | None = None
    """Why; it is recorded."""


class HookBody(Input):
    """The result of a hook that was answered 202."""

    result: HookResult
    message: Line | None = None
    """For the plan's people."""


class TokenBody(Input):
    """A token to be made."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@:/-]{0,99}$")]
    role: Role
    clouds: list[Line] = []
    """Clouds that it may use; empty: all."""
    max_targets: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    expires_at: AwareDatetime | None = None

    @property
    def expires(self) -> datetime | None:
        """When it ends."""
        return self.expires_at


def read_query(request: web.Request, model: type[M]) -> M:
    """The query's parameters; those that are lists may be repeated or separated by commas. Raises `RequestInvalid`."""
    given: dict[str, Any] = {}
    for name in request.query:
        field = model.model_fields.get(name)
        values = request.query.getall(name)
        if field is not None and isinstance(field.default, list):
            given[name] = [part for value in values for part in value.split(",") if part]
        else:
            given[name] = values[-1]
    return _validated(model, given)


async def read_body(request: web.Request, model: type[M]) -> M:
    """The JSON body; none at all counts as {}. Raises `RequestInvalid`, `BodyUnreadable`."""
    body = await read_bytes(request)
    try:
        given = json.loads(body) if body.strip() else {}
    except (ValueError, RecursionError) as e:
        raise BodyUnreadable(f"The body is not JSON: {e}") from None
    if not isinstance(given, Mapping):
        raise BodyUnreadable("The body must be a JSON object.")
    return _validated(model, dict(given))


async def read_bytes(request: web.Request) -> bytes:
    """The body, decompressed. A type other than JSON is a 415: rebuildctl turns YAML into JSON."""
    if request.content_type not in JSON_TYPES:
        raise web.HTTPUnsupportedMediaType(
            text=f"Send application/json, not {request.content_type}; rebuildctl turns YAML into JSON."
        )
    return await request.read()


def plan_id_of(request: web.Request) -> UUID:
    """The plan's id in the path. Raises `NotFound` for what is no id."""
    return _id(request.match_info["id"], "plan")


def token_id_of(request: web.Request) -> UUID:
    """The token's id in the path. Raises `NotFound` for what is no id."""
    return _id(request.match_info["id"], "token")


def server_id_of(request: web.Request) -> str:
    """The server's id in the path. Raises `NotFound` for what can't be one."""
    server_id = request.match_info["server_id"]
    if "\0" in server_id:
        raise NotFound("The plan has no server of that id.")
    return server_id


def cloud_name_of(request: web.Request) -> str:
    """The cloud's name in the path. Raises `NotFound` for what can't be one."""
    name = request.match_info["name"]
    if "\0" in name:
        raise NotFound("There is no cloud of that name.")
    return name


def _id(value: str, what: str) -> UUID:
    try:
        return UUID(value)
    except ValueError:
        raise NotFound(f"There is no {what} of that id.") from None


def _validated(model: type[M], given: dict[str, Any]) -> M:
    try:
        return model.model_validate(given)
    except ValidationError as e:
        faults = [
            Fault(
                path=".".join(str(part) for part in err["loc"]),
                code="unknown_field" if err["type"] == "extra_forbidden" else err["type"],
                message=_said(model, err["type"], err["msg"]),
            )
            for err in e.errors(include_url=False, include_input=False)
        ]
        raise _invalid(faults) from None


def _said(model: type[BaseModel], kind: str, said: str) -> str:
    """What is wrong with a field; for one that isn't known, with those that are (the inputs have no parts)."""
    if kind != "extra_forbidden":
        return said.removeprefix("Value error, ")
    known = ", ".join(model.model_fields)
    return f"is not taken here; what is: {known}" if known else "is not taken here; nothing is"


def _invalid(faults: list[Fault]) -> RequestInvalid:
    return RequestInvalid("; ".join(f"{f.path}: {f.message}" for f in faults), errors=faults)
