"""The disruption budget: how many servers of each group may be out at once, over all plans of a project.

A server is out while it is in flight or drained, after it failed, got stuck or stayed unresolved, or where the cloud
itself calls it broken. One that is out already costs nothing, so that a broken fleet can be mended.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from orchestrator.domain.units import Size

BROKEN = frozenset({"ERROR", "UNKNOWN"})
"""Statuses by which the cloud calls a server broken. One that somebody switched off is not."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A pending job that may be next."""

    ord: int
    wave: int
    server_id: str
    group: str | None
    """What it has in common with the others of its group; None: the plan has no budget."""


METADATA = "metadata."


def group_of(per: str, *, zone: str | None, host: str | None, metadata: Mapping[str, str]) -> str:
    """A server's group under a budget per `availability_zone`, `host` or `metadata.KEY`; empty: it has no value."""
    if per == "availability_zone":
        return zone or ""
    if per == "host":
        return host or ""
    return metadata.get(per.removeprefix(METADATA)) or ""


def key_of(per: str) -> str | None:
    """The metadata key that a budget goes by; None for one per zone or host."""
    return per.removeprefix(METADATA) if per.startswith(METADATA) else None


def places(limit: Size, size: int) -> int:
    """How many servers of a group of `size` may be out: a count as given; a percentage rounds down, at least 1."""
    return limit.count if limit.count is not None else max(1, limit.of(size, round_up=False))


def rooms(limits: Mapping[str, int], out: Iterable[tuple[str, str]]) -> dict[str, int]:
    """How many more servers of each group may go out; `out`: (server id, its group), in any number and repetition."""
    servers: dict[str, set[str]] = {}
    for server_id, group in out:
        servers.setdefault(group, set()).add(server_id)
    return {group: max(0, limit - len(servers.get(group, ()))) for group, limit in limits.items()}


def choose(
    candidates: Sequence[Candidate], places: int, rooms: Mapping[str, int] | None, out: Set[str]
) -> list[Candidate]:
    """The candidates that may start, at most `places` of them, in the order of waves and plans."""
    left = dict(rooms or {})
    chosen: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (c.wave, c.ord)):
        if len(chosen) == places:
            break
        if rooms is not None and candidate.server_id not in out:
            room = left.get(candidate.group or "", 0)
            if room <= 0:
                continue
            left[candidate.group or ""] = room - 1
        chosen.append(candidate)
    return chosen
