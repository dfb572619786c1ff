"""A light census of all servers of a project, for disruption budgets: where each one is, and how it does."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.clouds.protocol import Server
from orchestrator.domain.budget import BROKEN, group_of

GONE = frozenset({"DELETED", "SOFT_DELETED"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """As much of a server as budgets look at: there may be 100,000."""

    status: str
    zone: str | None
    host: str | None
    metadata: Mapping[str, str]


@dataclass
class Census:
    """The project's servers by id; `keys`: the metadata that budgets go by."""

    keys: frozenset[str]
    complete: bool = False
    """Whether a full read has filled it."""
    servers: dict[str, Counted] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    """Those that the cloud itself calls broken."""

    def note(self, server: Server) -> None:
        """A server as the cloud shows it now. A deleted one is counted no more."""
        if server.status in GONE:
            self.forget(server.id)
            return
        host, known = server.host or server.host_id, self.servers.get(server.id)
        metadata: Mapping[str, str] = {k: server.metadata[k] for k in self.keys & server.metadata.keys()}
        zone = server.zone
        if server.status == "UNKNOWN" and known is not None:  # its cell is away, and with it most of what it shows
            zone, host, metadata = zone or known.zone, host or known.host, metadata or known.metadata
        self.servers[server.id] = Counted(status=server.status, zone=zone, host=host, metadata=metadata)
        (self.broken.add if server.status in BROKEN else self.broken.discard)(server.id)

    def forget(self, server_id: str) -> None:
        """A server that is surely gone."""
        self.servers.pop(server_id, None)
        self.broken.discard(server_id)

    def group(self, server_id: str, per: str) -> str | None:
        """The server's group; None: there is no such server any more."""
        found = self.servers.get(server_id)
        return None if found is None else group_of(per, zone=found.zone, host=found.host, metadata=found.metadata)

    def size(self, per: str, group: str) -> int:
        """How many servers the group has."""
        return sum(group_of(per, zone=s.zone, host=s.host, metadata=s.metadata) == group for s in self.servers.values())
