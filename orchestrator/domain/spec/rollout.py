"""How a plan goes through its servers, `rollout`, and what it puts up with, `failure`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from orchestrator.domain.spec.codes import Code, refusal
from orchestrator.domain.spec.types import (
    Count,
    Duration,
    ErrorLimit,
    Listed,
    Period,
    Rate,
    ServerIds,
    Share,
    Strict,
    Text,
    Title,
    matching,
)
from orchestrator.domain.units import Size

MAX_WAVES = 100


class Wave(Strict):
    """An ordered stage of the plan, with a gate at its end."""

    name: Title | None = None
    """`canary` for the first of several waves, else `wave-N`."""
    size: Share | None = None
    """How many servers have had their turn by the end of this wave: sizes are cumulative."""
    servers: ServerIds = ()
    """Servers that this wave and no other begins with."""
    bake: Duration | None = None
    """How long to wait and watch at its end."""
    approval: bool = False
    """Whether a person must approve before the next wave."""
    max_errors: ErrorLimit | None = None
    """Failures that it puts up with, of its own servers; the first wave none, later ones the plan's, unless given."""

    @model_validator(mode="after")
    def _has_some(self) -> Self:
        if self.size is None and not self.servers:
            raise refusal(Code.MISSING, "must have a size, or servers of its own")
        return self


DEFAULT_WAVES = (
    Wave(name="canary", size=Size.parse(1)),
    Wave(size=Size.parse("5%")),
    Wave(size=Size.parse("25%")),
    Wave(size=Size.parse("100%")),
)


class MaxUnavailable(Strict):
    """A disruption budget: how much of each group may be out at once, over all plans."""

    per: Annotated[
        str,
        matching(
            r"availability_zone|host|metadata\.[a-zA-Z0-9\-_:. ]{1,255}",
            "must be availability_zone, host or metadata.KEY",
        ),
    ]
    """availability_zone, host or metadata.KEY: what servers of one group have in common."""
    limit: Share


class Rollout(Strict):
    """In which order and how fast."""

    waves: Annotated[Listed[Wave], Field(min_length=1, max_length=MAX_WAVES)] = DEFAULT_WAVES
    """Where sizes stop short of the whole, a last wave `rest` takes what is left."""
    max_in_flight: Count | None = None
    """Servers out at once; unless given the larger of 10 and 2 % of the plan, and never more than the cloud allows."""
    max_unavailable: MaxUnavailable | None = None
    rate: Rate | None = None
    """Rebuild calls per second, to go below the cloud's own."""


class Backoff(Strict):
    """How long a refused call waits for its next try: twice as long each time, up to `max`."""

    initial: Period = 10.0
    max: Period = 300.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.initial > self.max:
            raise refusal(Code.IMPOSSIBLE, "initial is longer than max")
        return self


class Failure(Strict):
    """What the plan puts up with, and what it tries again."""

    max_errors: ErrorLimit = Size.parse_limit("5%")
    """More failed or stuck servers than this halt the plan; a percentage rounds down."""
    same_cause: Annotated[int, Field(ge=0, le=1_000_000)] = 3
    """So many failures of one cause halt it; 0 turns that off, as does a plan of fewer than 3 servers."""
    attempts: Annotated[int, Field(ge=1, le=100)] = 3
    """Calls for one server that may be refused, or proved not applied."""
    rebuild_again: Annotated[int, Field(ge=0, le=2)] = 0
    """How often a server whose accepted rebuild failed is wiped once more by itself."""
    backoff: Backoff = Backoff()
    timeout: Period = 1800.0
    """From the call to its end; later the server is stuck, and still watched."""
    on_unresolved: Literal["halt", "continue"] | None = None
    """Unless given, halt in the first wave, then continue."""
    drift_limit: ErrorLimit = Size.parse_limit(0)

    def same_cause_among(self, total: int) -> int | None:
        """The threshold for a plan of `total` servers; None where it is off."""
        return self.same_cause if self.same_cause and total >= 3 else None


Label = Annotated[
    str,
    matching(
        r"[A-Za-z0-9][A-Za-z0-9._/\-]{0,62}",
        "a label's key is 1 to 63 letters, digits and . _ - /, a letter or digit first",
    ),
]
Labels = Annotated[dict[Label, Text], Field(max_length=64)]
"""Up to 64 pairs that plans are found by; a key has no `=`."""
