"""Real PostgreSQL and Valkey from wheels, in a state folder, supervised: what `rebuildctl up`, the demo and tests run.

Tell where the servers are by URLs and everything else is as in production; with `REBUILD_DATABASE_URL` and
`REBUILD_REDIS_URL` set nothing of this is needed.
"""

from orchestrator.embedded.child import Child, ChildSpec, ChildState
from orchestrator.embedded.errors import EmbeddedFailed, EmbeddedMissing, StateFolderBusy
from orchestrator.embedded.processes import ChildEvent, Supervisor
from orchestrator.embedded.servers import (
    Embedded,
    EmbeddedUrls,
    ServerHandle,
    embedded,
    start_embedded,
    start_postgres,
    start_servers,
    start_valkey,
)

__all__ = [
    "Child",
    "ChildEvent",
    "ChildSpec",
    "ChildState",
    "Embedded",
    "EmbeddedFailed",
    "EmbeddedMissing",
    "EmbeddedUrls",
    "ServerHandle",
    "StateFolderBusy",
    "Supervisor",
    "embedded",
    "start_embedded",
    "start_postgres",
    "start_servers",
    "start_valkey",
]
