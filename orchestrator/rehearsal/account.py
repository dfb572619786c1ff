"""The exact account of what reached the rehearsal cloud: what tests and drills judge a client by."""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

DROPPED = "dropped"
"""Stands for the status of a call whose connection was cut without an answer."""
TRUNCATED = "truncated"
"""Stands for the status of a call whose answer broke off in the middle."""


class Busiest:
    """The most calls in any one second, the second sliding."""

    def __init__(self) -> None:
        self._times: deque[float] = deque()
        self.most = 0

    def add(self, now: float) -> None:
        times = self._times
        times.append(now)
        while times[0] <= now - 1.0:
            times.popleft()
        self.most = max(self.most, len(times))


@dataclass(slots=True, kw_only=True)
class ServerAccount:
    """What one server went through."""

    name: str
    zone: str = ""
    received: int = 0
    """POSTs of a rebuild that the client sent, whatever came of them; copies made on the way are not counted."""
    accepted: int = 0
    """Rebuilds that took effect, whether or not the client ever heard of it."""
    wiped: int = 0
    """Rebuilds that destroyed the old disk."""
    succeeded: int = 0
    failed: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    """Answers to the rebuild POSTs by status; `dropped` where none was given, `truncated` where one broke off."""
    attempts: list[str | None] = field(default_factory=list)
    """For each rebuild that took effect the marker in its metadata; None where it had none."""
    faults: Counter[str] = field(default_factory=Counter)
    """What went wrong with it by order, by kind: on the host, and on the wire around its calls."""
    reads: int = 0
    """GETs of this server or its actions."""

    def document(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "received": self.received,
            "accepted": self.accepted,
            "wiped": self.wiped,
            "succeeded": self.succeeded,
            "failed": self.failed,
            "answers": dict(self.answers),
            "attempts": list(self.attempts),
            "faults": dict(self.faults),
            "reads": self.reads,
        }


class Account:
    """Everything counted since the cloud began to serve."""

    def __init__(self) -> None:
        self.servers: dict[str, ServerAccount] = {}
        self.answers: Counter[str] = Counter()
        """All compute answers by status."""
        self.faults: Counter[str] = Counter()
        """Faults that struck, by kind."""
        self.reads = 0
        self.writes = 0
        self.sign_ins = 0
        self.in_flight = 0
        self.highest_in_flight = 0
        self.in_flight_by_zone: Counter[str] = Counter()
        self.highest_by_zone: Counter[str] = Counter()
        self.last_rebuild_at: float | None = None
        """When the newest rebuild took effect, Unix time by the cloud's own clock."""
        self.busiest_writes = Busiest()
        self.busiest_reads = Busiest()
        self.busiest_rebuilds = Busiest()
        """Of rebuilds that took effect."""

    def called(self, now: float, *, write: bool) -> None:
        """A compute call arrived."""
        if write:
            self.writes += 1
            self.busiest_writes.add(now)
        else:
            self.reads += 1
            self.busiest_reads.add(now)

    def struck(self, server_id: str | None, kind: str) -> None:
        """A fault struck: this server, or a call that names none."""
        self.faults[kind] += 1
        if (own := self.servers.get(server_id or "")) is not None:
            own.faults[kind] += 1

    def began(self, server_id: str, now: float, marker: str | None = None) -> None:
        """A rebuild took effect; `marker` is what its metadata say of whose attempt it is."""
        own = self.servers[server_id]
        own.accepted += 1
        own.attempts.append(marker)
        self.busiest_rebuilds.add(now)
        self.in_flight += 1
        self.highest_in_flight = max(self.highest_in_flight, self.in_flight)
        self.in_flight_by_zone[own.zone] += 1
        self.highest_by_zone[own.zone] = max(self.highest_by_zone[own.zone], self.in_flight_by_zone[own.zone])
        self.last_rebuild_at = now

    def ended(self, server_id: str, *, succeeded: bool) -> None:
        """A rebuild ended: well, or with an error, a reset or a deletion."""
        self.in_flight -= 1
        self.in_flight_by_zone[self.servers[server_id].zone] -= 1
        if succeeded:
            self.servers[server_id].succeeded += 1
        else:
            self.servers[server_id].failed += 1

    @property
    def accepted_twice(self) -> dict[str, int]:
        """Servers that were rebuilt more than once, with how often."""
        return {key: s.accepted for key, s in self.servers.items() if s.accepted > 1}

    def document(self, *, every: bool = True) -> dict[str, Any]:
        """The account as `GET /rehearsal/account` gives it; `every=False` leaves out servers that no rebuild named."""
        servers = self.servers.items()
        return {
            "accepted": sum(s.accepted for _, s in servers),
            "received": sum(s.received for _, s in servers),
            "wiped": sum(s.wiped for _, s in servers),
            "succeeded": sum(s.succeeded for _, s in servers),
            "failed": sum(s.failed for _, s in servers),
            "accepted_twice": self.accepted_twice,
            "answers": dict(self.answers),
            "faults": dict(self.faults),
            "reads": self.reads,
            "writes": self.writes,
            "sign_ins": self.sign_ins,
            "in_flight": self.in_flight,
            "highest_in_flight": self.highest_in_flight,
            "highest_by_zone": dict(self.highest_by_zone),
            "last_rebuild_at": self.last_rebuild_at,
            "busiest_second": {
                "writes": self.busiest_writes.most,
                "reads": self.busiest_reads.most,
                "rebuilds": self.busiest_rebuilds.most,
            },
            "servers": {key: s.document() for key, s in servers if every or s.received},
        }
