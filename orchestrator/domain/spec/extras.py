"""What a plan may have around its rebuilds: hooks, probes, a schedule, notifications."""

from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field, model_validator

from orchestrator.domain.spec.codes import Code, refusal
from orchestrator.domain.spec.types import (
    Count,
    Listed,
    Moment,
    Period,
    SecretName,
    Strict,
    Text,
    WebAddress,
    matching,
)


class ReleaseHook(Strict):
    """Called at the end, always, once `before` was called."""

    url: WebAddress
    secret: SecretName | None = None
    timeout: Period = 60.0


class Hook(Strict):
    """Called for a server, and waited for until it reports its result."""

    url: WebAddress
    secret: SecretName | None = None
    timeout: Period = 600.0
    on_failure: Literal["fail", "continue"] = "fail"


class Hooks(Strict):
    """Calls around each server's rebuild."""

    before: Hook | None = None
    """Drains the server."""
    after: Hook | None = None
    """Configures it."""
    release: ReleaseHook | None = None
    """Takes it back into service."""

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.before is None and self.after is None and self.release is None:
            raise refusal(Code.TOO_SHORT, "names no hook: give before, after or release, or leave hooks out")
        if self.release is not None and self.before is None:
            raise refusal(Code.IMPOSSIBLE, "release is called once before was called: give before, too")
        return self


Port = Annotated[int, Field(ge=1, le=65535)]


class TcpProbe(Strict):
    """The port takes connections."""

    port: Port
    timeout: Period = 120.0
    """Until when it must have succeeded."""
    interval: Period = 5.0
    successes: Count = 1
    """In a row."""
    address: Literal["fixed", "floating"] = "fixed"
    version: Literal[4, 6] = 4
    network: Text | None = None


class HttpProbe(TcpProbe):
    """The port answers a GET with the status."""

    path: Annotated[str, Field(max_length=2048), matching("/[!-~]*", "must be a path such as /health")] = "/"
    status: Annotated[int, Field(ge=100, le=599)] = 200


class Probe(Strict):
    """One check of a rebuilt server."""

    tcp: TcpProbe | None = None
    http: HttpProbe | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.tcp is None) == (self.http is None):
            raise refusal(Code.IMPOSSIBLE, "must be exactly one of tcp and http; write two items for both")
        return self


def _zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (KeyError, ValueError, OSError):
        raise refusal(Code.INVALID_VALUE, "must be a time zone such as Europe/Berlin or UTC") from None
    return value


Clock = Annotated[str, matching(r"([01]\d|2[0-3]):[0-5]\d|24:00", 'must be a time of day in quotes, such as "01:00"')]


class Window(Strict):
    """A time of the week in which calls may be sent; one that ends before it begins goes on past midnight."""

    days: Annotated[Listed[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]], Field(min_length=1)]
    from_: Annotated[Clock, Field(alias="from")]
    to: Clock
    tz: Annotated[str, AfterValidator(_zone)]

    @model_validator(mode="after")
    def _has_length(self) -> Self:
        if self.from_ == self.to:
            raise refusal(Code.IMPOSSIBLE, "from and to are the same; for a whole day write 00:00 and 24:00")
        return self


class Schedule(Strict):
    """When the plan may run."""

    start_at: Moment | None = None
    windows: Listed[Window] = ()

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.start_at is None and not self.windows:
            raise refusal(Code.TOO_SHORT, "is empty: give start_at or windows, or leave schedule out")
        return self


Occasion = Literal[
    "started", "paused", "resumed", "halted", "approval_needed", "wave_finished", "unresolved", "stuck", "finished"
]


class Notification(Strict):
    """Where to tell of the plan's course."""

    url: WebAddress
    secret: SecretName | None = None
    format: Literal["cloudevents"] = "cloudevents"
    events: Annotated[Listed[Occasion], Field(min_length=1)] = ("halted", "finished")
