"""The disruption budget: how many servers of each group may be out at once, over all plans of a project.

A server is out while it is in flight or drained, after it failed, got stuck or stayed unresolved, or where the cloud
itself calls it broken. One that is out already costs nothing, so that a broken fleet can be mended.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

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
