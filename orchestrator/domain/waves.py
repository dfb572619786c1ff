"""Which job belongs to which wave, and the figures that a plan's sizes come to.

Sizes count the jobs with verdict *rebuild*, are cumulative and round up; error limits round down.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.domain.spec import Failure, Wave
from orchestrator.domain.units import Size

OnUnresolved = Literal["halt", "continue"]


@dataclass(frozen=True, kw_only=True)
class AssignedWave:
    """A wave with its jobs."""

    index: int
    """From 0, without gaps."""
    name: str
    ordinals: tuple[int, ...]
    """Its jobs: those that the plan names for it first, then the others, each in the plan's order."""
    max_errors: int | None
    """Failures of its own that it puts up with; None leaves it to the plan's limit."""
    on_unresolved: OnUnresolved
    bake_seconds: float = 0.0
    approval: bool = False

    @property
    def size(self) -> int:
        """Jobs in it."""
        return len(self.ordinals)


def assign(
    waves: Sequence[Wave], jobs: Sequence[tuple[int, str]], *, failure: Failure | None = None
) -> list[AssignedWave]:
    """Gives every job one wave; `jobs` are (ordinal, server id) in the plan's order, verdict rebuild only.

    A wave takes the servers that it names, then fills up from the first jobs that no wave names until it and those
    before it have its size. Without a size it has its own servers only. A wave that ends up empty is dropped, as of
    1, 5 % and 25 % the second is for ten servers. Where the sizes stop short of the whole, a wave `rest` takes what is
    left. The first wave that remains puts up with no error and halts on an unresolved one unless the plan says
    otherwise.
    """
    owner = {server: i for i, wave in enumerate(waves) for server in wave.servers}
    own: list[list[int]] = [[] for _ in waves]
    others: list[int] = []
    for ordinal, server in jobs:
        place = owner.get(server)
        (others if place is None else own[place]).append(ordinal)

    filled: list[tuple[Wave, str, list[int]]] = []
    taken = given = 0
    for i, wave in enumerate(waves):
        mine = own[i]
        wanted = 0 if wave.size is None else max(1, wave.size.of(len(jobs), round_up=True)) - given - len(mine)
        if wanted > 0:
            mine = mine + others[taken : taken + wanted]
            taken = min(len(others), taken + wanted)
        given += len(mine)
        filled.append((wave, wave.name or _default_name(i, len(waves)), mine))
    if rest := others[taken:]:
        filled.append((Wave(size=Size.parse("100%")), "rest", rest))

    names = _unique(name for _, name, ordinals in filled if ordinals)
    kept = [(wave, ordinals) for wave, _, ordinals in filled if ordinals]
    return [
        AssignedWave(
            index=index,
            name=name,
            ordinals=tuple(ordinals),
            max_errors=_wave_errors(wave, index, len(ordinals)),
            on_unresolved=(failure and failure.on_unresolved) or ("halt" if index == 0 else "continue"),
            bake_seconds=wave.bake or 0.0,
            approval=wave.approval,
        )
        for index, ((wave, ordinals), name) in enumerate(zip(kept, names, strict=True))
    ]


def allowed_errors(limit: Size, total: int) -> int:
    """How many of `total` may fail; one more halts. A percentage rounds down, so 5 % of 19 is none."""
    return limit.of(total, round_up=False)


def places(max_in_flight: int | None, total: int, cloud_limit: int | None = None) -> int:
    """Servers of the plan that may be out at once: as it says, else the larger of 10 and 2 % of its `total` jobs;
    never more than the cloud's own limit."""
    wanted = max(10, Size.parse("2%").of(total, round_up=True)) if max_in_flight is None else max_in_flight
    return wanted if cloud_limit is None else min(wanted, cloud_limit)


def _wave_errors(wave: Wave, index: int, size: int) -> int | None:
    if wave.max_errors is not None:
        return allowed_errors(wave.max_errors, size)
    return 0 if index == 0 else None


def _default_name(position: int, total: int) -> str:
    return "canary" if position == 0 and total > 1 else f"wave-{position + 1}"


def _unique(names: Iterator[str]) -> list[str]:
    """The names, with `-2` and so on where one would stand twice."""
    seen: dict[str, None] = {}
    for name in names:
        fresh, n = name, 2
        while fresh in seen:
            fresh, n = f"{name}-{n}", n + 1
        seen[fresh] = None
    return list(seen)
