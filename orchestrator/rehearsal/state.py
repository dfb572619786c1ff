"""Servers and their actions, as a cloud keeps them. What happens to them over time is in `life.py`."""

from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from time import gmtime, strftime


class VmState(StrEnum):
    """What Nova believes the guest to be."""

    ACTIVE = "active"
    """Runs."""
    STOPPED = "stopped"
    """Powered off; shown as SHUTOFF."""
    PAUSED = "paused"
    """Frozen in memory."""
    ERROR = "error"
    """Something failed; `fault` may say what."""
    DELETED = "deleted"
    """Gone; only changes-since and its actions still show it."""


class Task(StrEnum):
    """What is being done to a server right now."""

    REBUILDING = "rebuilding"
    """The rebuild was accepted; no host has begun."""
    REBUILD_MAPPING = "rebuild_block_device_mapping"
    """The old guest is destroyed."""
    REBUILD_SPAWNING = "rebuild_spawning"
    """The new guest is made."""
    POWERING_OFF = "powering-off"
    """Being stopped."""
    POWERING_ON = "powering-on"
    """Being started."""
    PAUSING = "pausing"
    """Being paused."""
    UNPAUSING = "unpausing"
    """Being resumed from a pause."""
    REBOOTING = "rebooting"
    """Being rebooted."""
    DELETING = "deleting"
    """Being deleted."""


REBUILD_TASKS = frozenset({Task.REBUILDING, Task.REBUILD_MAPPING, Task.REBUILD_SPAWNING})

POWER = {VmState.ACTIVE: 1, VmState.STOPPED: 4, VmState.PAUSED: 3, VmState.ERROR: 1, VmState.DELETED: 0}
"""power_state once a vm_state is reached: 1 running, 3 paused, 4 shut down."""

STATUS = {
    VmState.ACTIVE: "ACTIVE",
    VmState.STOPPED: "SHUTOFF",
    VmState.PAUSED: "PAUSED",
    VmState.ERROR: "ERROR",
    VmState.DELETED: "DELETED",
}
"""The status of a server at rest; a rebuild or a reboot shows its own."""

# fmt: off
STATUSES = frozenset({
    "ACTIVE", "BUILD", "DELETED", "ERROR", "HARD_REBOOT", "MIGRATING", "PASSWORD", "PAUSED", "REBOOT", "REBUILD",
    "RESCUE", "RESIZE", "REVERT_RESIZE", "SHELVED", "SHELVED_OFFLOADED", "SHUTOFF", "SOFT_DELETED", "SUSPENDED",
    "UNKNOWN", "VERIFY_RESIZE",
})
# fmt: on
"""All that `status=` takes; another is 400 from 2.38 on (nova-facts, 7)."""


@lru_cache(maxsize=4096)
def _utc(second: int) -> str:
    return strftime("%Y-%m-%dT%H:%M:%S", gmtime(second))


def zulu(at: float) -> str:
    """As `created` and `updated` are written: to the second, with Z."""
    return _utc(int(at)) + "Z"


def micro(at: float | None) -> str | None:
    """As `launched_at` and the times of actions are written: to the second too, but without a zone."""
    return None if at is None else _utc(int(at)) + ".000000"


@dataclass(slots=True, kw_only=True)
class Event:
    """One step of an action."""

    event: str
    start: float
    host_id: str
    finish: float | None = None
    result: str | None = None


@dataclass(slots=True, kw_only=True)
class Action:
    """Nova's own account of one call that changed a server."""

    request_id: str
    action: str
    user_id: str
    project_id: str
    start: float
    updated: float
    message: str | None = None
    events: list[Event] = field(default_factory=list)
    """Newest first, as Nova lists them."""

    def begin(self, event: str, now: float, host_id: str) -> Event:
        """A step begins."""
        begun = Event(event=event, start=now, host_id=host_id)
        self.events.insert(0, begun)
        self.updated = now
        return begun

    def end(self, event: Event, now: float, *, failed: bool = False) -> None:
        """A step ends; a failed one makes the whole action an "Error"."""
        event.finish, event.result = now, "Error" if failed else "Success"
        self.updated = now
        if failed:
            self.message = "Error"


@dataclass(slots=True, kw_only=True)
class Fault:
    """Why a server is in ERROR, as far as its owner may know."""

    code: int
    message: str
    created: float


@dataclass(slots=True, kw_only=True)
class Server:
    """One server. Change it through its methods or call `touch`/`forget_view`, else lists go on showing the old one."""

    number: int
    """The row's number in Nova's database: never shown, yet it orders servers of the same second."""
    id: str
    name: str
    project_id: str
    user_id: str
    created: float
    updated: float
    launched_at: float
    image: str
    """As the call that set it wrote it, capitals too (seen on Zed). Of a volume-booted server: the image that its
    volume was made from, which Nova does not show."""
    zone: str
    host_id: str
    metadata: dict[str, str]
    tags: list[str] = field(default_factory=list)
    address: str | None = None
    """The fixed one of its port in the network `private`."""
    addresses: dict[str, list[tuple[str, str]]] | None = None
    """Instead of that one: by network, each with `fixed` or `floating`."""
    volume: str | None = None
    """The boot volume's id."""
    vm_state: VmState = VmState.ACTIVE
    task: Task | None = None
    power: int = 1
    locked: bool = False
    locked_reason: str | None = None
    fault: Fault | None = None
    deleted_at: float | None = None
    description: str | None = None
    hostname: str = ""
    disk_config: str = "MANUAL"
    access_v4: str = ""
    access_v6: str = ""
    key_name: str | None = None
    user_data: str | None = None
    course: int = 0
    """Goes up when what is under way is abandoned; steps of before no longer count."""
    actions: dict[str, Action] = field(default_factory=dict)
    """By request id, oldest first."""
    view: tuple[object, str] | None = None
    """What the last list showed, with what it depends on."""

    @property
    def fixed_addresses(self) -> list[str]:
        """Those of IPv4 that its ports have."""
        if self.addresses is None:
            return [] if self.address is None else [self.address]
        return [a for listed in self.addresses.values() for a, kind in listed if kind == "fixed" and ":" not in a]

    @property
    def status(self) -> str:
        if self.task is not None and self.vm_state is not VmState.DELETED:
            if self.task in REBUILD_TASKS:
                return "REBUILD"
            if self.task is Task.REBOOTING:
                return "REBOOT"
        return STATUS[self.vm_state]

    def touch(self, now: float) -> None:
        """The record changed: `updated` moves."""
        self.updated = now
        self.view = None

    def forget_view(self) -> None:
        """Something beside the record changed: `updated` stays (tags, a deleted metadata key)."""
        self.view = None

    def enter(self, now: float, *, task: Task | None, vm_state: VmState | None = None) -> None:
        """A new task_state, and a new vm_state where one is given."""
        self.task = task
        if vm_state is not None:
            self.vm_state = vm_state
            self.power = POWER[vm_state]
        self.touch(now)

    def fail(self, now: float, message: str, code: int = 500) -> None:
        """ERROR, with a fault."""
        self.fault = Fault(code=code, message=message, created=now)
        self.enter(now, task=None, vm_state=VmState.ERROR)
