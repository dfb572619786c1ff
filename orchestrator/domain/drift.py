"""What changed of a server between preparing, whose findings a person has looked at, and now."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.domain.decide import Reason
from orchestrator.domain.evidence import MARKER
from orchestrator.domain.seen import SeenServer
from orchestrator.domain.verdict import DELETED, REBUILDABLE, STANDING

SETTLED = REBUILDABLE | STANDING
"""Statuses that don't pass by themselves; what passes is waited for, and is no drift."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What preparing saw of a server."""

    image: str | None
    name: str | None
    status: str
    metadata: str
    """As `metadata_digest` gives it."""


def metadata_digest(metadata: Mapping[str, str]) -> str:
    """SHA-256, in hex, of a server's metadata without our own marker, which every rebuild of ours moves."""
    own = {key: value for key, value in metadata.items() if key != MARKER}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


def drift(prepared: Prepared, server: SeenServer | None) -> str | None:
    """What differs, in words; None: nothing that matters. No server: the cloud has none of that id any more."""
    if server is None or server.status in DELETED:
        return "the server is gone"
    if server.status == "UNKNOWN":  # its cell is down: the cloud shows next to nothing of it, which is no change
        return None
    changes = []
    if server.image != prepared.image:
        changes.append(f"its image is {server.image or 'a volume'}, no longer {prepared.image or 'a volume'}")
    if prepared.name is not None and server.name != prepared.name:
        changes.append(f"its name is {server.name!r}, no longer {prepared.name!r}")
    if server.status != prepared.status and server.status in SETTLED and prepared.status in SETTLED:
        changes.append(f"its status is {server.status}, no longer {prepared.status}")
    if metadata_digest(server.metadata) != prepared.metadata:
        changes.append("its metadata was changed")
    return "; ".join(changes) or None


def drifted(what: str) -> Reason:
    """Why a server that changed is left out."""
    message = f"It changed since the plan was prepared: {what}. Retry it to rebuild it nevertheless."
    return Reason(code="drift", message=message)
