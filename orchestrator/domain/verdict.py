"""Whether a server may be rebuilt at all: asked by preparing for the preview, and again before every wipe."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.domain.decide import Reason
from orchestrator.domain.seen import SeenServer

REBUILDABLE = frozenset({"ACTIVE", "SHUTOFF", "ERROR"})
"""Statuses that Nova rebuilds from (nova-facts, 4)."""
STANDING = frozenset({"PAUSED", "SUSPENDED", "RESCUE", "SHELVED", "SHELVED_OFFLOADED"})
"""Statuses that won't change by themselves; all others pass."""
DELETED = frozenset({"DELETED", "SOFT_DELETED"})


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is refused whatever a plan says."""

    project_id: str
    error_rebuild: bool = True
    """Whether the cloud can rebuild a server in ERROR."""
    protect_metadata: Mapping[str, str] = field(default_factory=dict)
    protect_tags: tuple[str, ...] = ()


ALREADY_THERE = Reason(code="already_there", message="The server already is as the plan wants it.")


def refusal(server: SeenServer | None, limits: Limits, *, reimage_boot_volume: bool) -> Reason | None:
    """Why a server can't or must not be rebuilt; None: nothing speaks against it. None for a server: 404."""
    if server is None or server.status in DELETED:
        return Reason(code="unknown_server", message="The cloud has no such server in this project.")
    if server.project_id is not None and server.project_id != limits.project_id:
        return Reason(code="other_project", message="The server belongs to another project.")
    if server.locked:
        return Reason(code="locked", message="The server is locked; unlock it first (openstack server unlock).")
    for key, value in limits.protect_metadata.items():
        if server.metadata.get(key) == value:
            return Reason(code="protected", message=f"The cloud's settings protect servers with {key}={value}.")
    for tag in limits.protect_tags:
        if tag in server.tags:
            return Reason(code="protected", message=f"The cloud's settings protect servers tagged {tag}.")
    if server.status == "ERROR" and not limits.error_rebuild:
        return Reason(code="error_status", message="The server is in ERROR, which this cloud can't rebuild.")
    if server.status in STANDING:
        message = f"The server is {server.status}; only ACTIVE, SHUTOFF and ERROR can be rebuilt."
        return Reason(code="wrong_state", message=message)
    if server.volume_booted and not reimage_boot_volume:
        message = (
            "The server boots from a volume, which a plain rebuild leaves as it is; "
            "consent to losing the volume's data with rebuild.reimage_boot_volume: true."
        )
        return Reason(code="volume_booted", message=message)
    return None


def too_small(
    flavor: Mapping[str, Any], *, min_disk: int, min_ram: int, volume_booted: bool
) -> Reason | None:  # fmt: skip
    """Why a server's flavor can't take an image that wants `min_disk` GiB and `min_ram` MiB; None: it can, or its sizes
    aren't shown (before microversion 2.47). Nova takes a disk of 0 for any size, and minds none of a volume's."""
    disk, ram = flavor.get("disk"), flavor.get("ram")
    short = []
    if isinstance(disk, int) and 0 < disk < min_disk and not volume_booted:
        short.append(f"has a disk of {disk} GiB, the image needs {min_disk}")
    if isinstance(ram, int) and ram < min_ram:
        short.append(f"has {ram} MiB of memory, the image needs {min_ram}")
    if not short:
        return None
    name = flavor.get("original_name") or "its flavor"
    return Reason(code="flavor_too_small", message=f"The server's flavor ({name}) " + ", and ".join(short) + ".")


def busy(server: SeenServer) -> Reason | None:
    """What the server is at just now; None: it is free."""
    if server.task_state is None and server.status in REBUILDABLE:
        return None
    return Reason(code="busy", message=f"The server is at something else ({server.task_state or server.status}).")
