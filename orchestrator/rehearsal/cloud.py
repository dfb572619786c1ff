"""The rehearsal cloud itself: its servers, images and clock, and what can be done to them. HTTP is elsewhere."""

import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.domain.evidence import MARKER
from orchestrator.rehearsal.account import Account, ServerAccount
from orchestrator.rehearsal.config import RehearsalConfig, RehearsalUser
from orchestrator.rehearsal.faults import Fault, Faults
from orchestrator.rehearsal.fleet import fleet
from orchestrator.rehearsal.life import Hosts, Rebuild, Timeline
from orchestrator.rehearsal.refusals import Refusal, bad_request, conflict, forbidden, not_found, unexpected
from orchestrator.rehearsal.state import Action, Server, Task, VmState


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who asks, in which request, at which microversion (2.`minor`)."""

    user: RehearsalUser
    request_id: str
    now: float
    minor: int

    @property
    def is_admin(self) -> bool:
        return self.user.role == "admin"


@dataclass(frozen=True, kw_only=True)
class _Verb:
    """A simple server action: its name in messages, what it may start from, and where it leads."""

    name: str
    event: str
    allowed: frozenset[VmState]
    task: Task
    leads_to: VmState


VERBS: Mapping[str, _Verb] = {
    "os-stop": _Verb(
        name="stop",
        event="compute_stop_instance",
        allowed=frozenset({VmState.ACTIVE, VmState.ERROR}),
        task=Task.POWERING_OFF,
        leads_to=VmState.STOPPED,
    ),
    "os-start": _Verb(
        name="start",
        event="compute_start_instance",
        allowed=frozenset({VmState.STOPPED}),
        task=Task.POWERING_ON,
        leads_to=VmState.ACTIVE,
    ),
    "pause": _Verb(
        name="pause",
        event="compute_pause_instance",
        allowed=frozenset({VmState.ACTIVE}),
        task=Task.PAUSING,
        leads_to=VmState.PAUSED,
    ),
    "unpause": _Verb(
        name="unpause",
        event="compute_unpause_instance",
        allowed=frozenset({VmState.PAUSED}),
        task=Task.UNPAUSING,
        leads_to=VmState.ACTIVE,
    ),
    "reboot": _Verb(
        name="reboot",
        event="compute_reboot_instance",
        allowed=frozenset({VmState.ACTIVE}),
        task=Task.REBOOTING,
        leads_to=VmState.ACTIVE,
    ),
}

REBUILD_FROM = frozenset({VmState.ACTIVE, VmState.STOPPED, VmState.ERROR})
MAX_METADATA = 128
GIB = 1024**3


class RehearsalCloud:
    """A project full of servers, in memory. Not for several threads: one event loop owns it.

    `clock` gives seconds since the epoch; tests may hand in their own.
    """

    def __init__(self, config: RehearsalConfig, *, clock: Callable[[], float] = time.time):
        self.config = config
        self.clock = clock
        self.account = Account()
        self.rng = random.Random(config.seed)
        self.faults = Faults(random.Random(config.seed + 1), fail_rate=config.fail_rate)
        self.images = {image.id: image for image in config.images}
        self.timeline = Timeline()
        self.hosts = Hosts(config, self.images, self.account, self.rng)
        self.servers: dict[str, Server] = {}
        self.order: list[Server] = []
        """As lists show them: created, then number, both descending; deleted ones too."""
        self.rank: dict[str, int] = {}
        self._place(fleet(config, began=int(clock()) - 86400))

    def now(self) -> float:
        """The present, with everything done that is due by now."""
        now = self.clock()
        self.timeline.advance(now)
        return now

    def fail(self, *faults: Fault) -> None:
        """Puts faults in force."""
        self.faults.add(faults, self.clock())

    # What callers may see.

    def find(self, caller: Caller, server_id: str, *, deleted: bool = False, partly: bool = False) -> Server:
        """The server, where the caller may know of it; else 404 in Nova's words. `partly`: though its cell is down."""
        server = self.servers.get(server_id)
        hidden = server is None or not self.visible(caller, server)
        if server is None or hidden or (server.vm_state is VmState.DELETED and not deleted):
            raise not_found(f"Instance {server_id} could not be found.")
        if not partly and self.cell_down(caller, server):
            raise Refusal(500, "computeFault", unexpected("oslo_db.exception.DBConnectionError"))
        return server

    def cell_down(self, caller: Caller, server: Server) -> bool:
        """Whether the server's cell doesn't answer."""
        down = self.faults.cell_down(caller.now)
        return bool(down) and (server.id in down or server.name in down)

    def visible(self, caller: Caller, server: Server) -> bool:
        """Whether it is of the caller's project, and not made to vanish."""
        if server.project_id != caller.user.project_id and not caller.is_admin:
            return False
        gone = self.faults.vanished(caller.now)
        return not gone or (server.id not in gone and server.name not in gone)

    # What callers may do.

    def rebuild(self, caller: Caller, server: Server, asked: Mapping[str, Any]) -> None:
        """Accepts a rebuild, or refuses it. The body's form was checked before; the order of checks is Nova's."""
        self._unlocked(caller, server)
        self._free(server, "rebuild", REBUILD_FROM)
        if asked.get("key_name") not in (None, *self.config.key_names):
            raise bad_request("Invalid key_name provided.")
        image_id = str(asked["imageRef"])
        old_image = server.image
        self._check_image(image_id)
        if server.volume is not None and caller.minor < 93 and image_id.lower() != old_image.lower():
            raise bad_request(
                f"Image {image_id} is unacceptable: Unable to rebuild with a different image for a "
                "volume-backed server."
            )
        metadata = asked.get("metadata")
        if metadata is not None:
            if len(metadata) > MAX_METADATA:
                raise forbidden(f"Maximum number of metadata items exceeds {MAX_METADATA}")
            server.metadata = dict(metadata)
        server.name = str(asked.get("name", server.name)).strip()
        server.image = image_id
        for field, attribute in _PLAIN_FIELDS.items():
            if field in asked:
                setattr(server, attribute, asked[field])
        vm_state = server.vm_state
        action = self.record(caller, server, "rebuild")
        server.enter(caller.now, task=Task.REBUILDING)
        self.account.began(server.id, caller.now, (metadata or {}).get(MARKER))
        fault = self.faults.for_host(server.id, server.name, caller.now)
        if fault is not None:
            self.account.struck(server.id, fault.kind)
        order = Rebuild(
            server=server,
            action=action,
            old_image=old_image,
            vm_state=vm_state,
            replaces_disk=server.volume is None or caller.minor >= 93,
            preserve_ephemeral=str(asked.get("preserve_ephemeral", "")).lower() in ("true", "1", "on", "yes"),
            fault=fault,
        )
        self.timeline.start(server, self.hosts.rebuild(order), caller.now)

    def act(self, caller: Caller, server: Server, verb: str) -> None:
        """os-stop, os-start, pause, unpause or reboot."""
        how = VERBS[verb]
        self._unlocked(caller, server)
        self._free(server, how.name, how.allowed)
        action = self.record(caller, server, how.name)
        course = self.hosts.change(server, action, caller.now, event=how.event, task=how.task, leads_to=how.leads_to)
        self.timeline.start(server, course, caller.now)

    def lock(self, caller: Caller, server: Server, *, locked: bool, reason: str | None = None) -> None:
        """Locks or unlocks. `updated` moves with every unlock; a second lock changes nothing (seen on Zed)."""
        action = self.record(caller, server, "lock" if locked else "unlock")
        event = action.begin("api_lock" if locked else "api_unlock", caller.now, server.host_id)
        action.end(event, caller.now)
        if not (locked and server.locked):
            server.locked, server.locked_reason = locked, reason
            server.touch(caller.now)

    def reset_state(self, caller: Caller, server: Server, state: VmState) -> None:
        """An admin's way out of a stuck state."""
        if not caller.is_admin:
            raise forbidden("Policy doesn't allow os_compute_api:os-admin-actions:reset_state to be performed.")
        self.record(caller, server, "resetState")
        self.hosts.interrupted(server)
        self.timeline.abandon(server)
        server.enter(caller.now, task=None)
        server.vm_state = state

    def delete(self, caller: Caller, server: Server) -> None:
        """Deletes; allowed in the midst of a rebuild."""
        self._unlocked(caller, server)
        action = self.record(caller, server, "delete")
        self.hosts.interrupted(server)
        self.timeline.abandon(server)
        self.timeline.start(server, self.hosts.delete(server, action, caller.now), caller.now)

    def rename(self, caller: Caller, server: Server, name: str) -> None:
        """A new name."""
        server.name = name
        server.touch(caller.now)

    def set_metadata(self, caller: Caller, server: Server, items: Mapping[str, str], *, replace: bool) -> None:
        """Merges or replaces; `updated` moves (seen on Zed)."""
        self._unlocked(caller, server)
        merged = dict(items) if replace else {**server.metadata, **items}
        if len(merged) > MAX_METADATA:
            raise forbidden(f"Maximum number of metadata items exceeds {MAX_METADATA}")
        server.metadata = merged
        server.touch(caller.now)

    def drop_metadata(self, caller: Caller, server: Server, key: str) -> None:
        """Removes one key; `updated` does *not* move (seen on Zed)."""
        if key not in server.metadata:
            raise not_found("Metadata item was not found")
        self._unlocked(caller, server)
        del server.metadata[key]
        server.forget_view()

    def set_tags(self, server: Server, tags: Iterable[str]) -> None:
        """Replaces the tags, locked or not; `updated` does *not* move (seen on Zed)."""
        server.tags = sorted(set(tags))
        server.forget_view()

    def set_addresses(self, server_id: str, addresses: Mapping[str, Iterable[tuple[str, str]]]) -> None:
        """Gives a server other addresses, for what is to be reached or not: by network, each `fixed` or `floating`;
        `updated` stays, as it does in Nova for an address that Neutron moves."""
        server = self.servers[server_id]
        server.addresses = {network: list(listed) for network, listed in addresses.items()}
        server.forget_view()

    def record(self, caller: Caller, server: Server, name: str) -> Action:
        """A new action in the server's account."""
        user = caller.user
        action = Action(
            request_id=caller.request_id,
            action=name,
            user_id=user.id,
            project_id=user.project_id,
            start=caller.now,
            updated=caller.now,
        )
        server.actions[caller.request_id] = action
        return action

    def adopt(self, server: Server) -> None:
        """One more server, for tests that need a peculiar one."""
        self._place([server])

    def _unlocked(self, caller: Caller, server: Server) -> None:
        if server.locked and not caller.is_admin:
            raise conflict(f"Instance {server.id} is locked")

    @staticmethod
    def _free(server: Server, verb: str, allowed: frozenset[VmState]) -> None:
        said = f"Cannot '{verb}' instance {server.id} while it is in"
        if server.vm_state not in allowed:
            raise conflict(f"{said} vm_state {server.vm_state}")
        if server.task is not None:
            raise conflict(f"{said} task_state {server.task}")

    def _check_image(self, image_id: str) -> None:
        image = self.images.get(image_id.lower())
        if image is None:
            raise bad_request("Cannot find image for rebuild")
        if image.status != "active":
            raise bad_request(f"Image {image.id} is not active.")
        if image.min_disk > self.config.disk:
            raise bad_request(
                "Flavor's disk is smaller than the minimum size specified in image metadata. "
                f"Flavor disk is {self.config.disk * GIB} bytes, minimum size is {image.min_disk * GIB} bytes."
            )

    # How it came to be.

    def _place(self, servers: Iterable[Server]) -> None:
        for server in servers:
            self.servers[server.id] = server
            self.account.servers[server.id] = ServerAccount(name=server.name, zone=server.zone)
        self.order = sorted(self.servers.values(), key=lambda s: (int(s.created), s.number), reverse=True)
        self.rank = {s.id: at for at, s in enumerate(self.order)}


_PLAIN_FIELDS = {
    "description": "description",
    "OS-DCF:diskConfig": "disk_config",
    "accessIPv4": "access_v4",
    "accessIPv6": "access_v6",
    "hostname": "hostname",
    "user_data": "user_data",
    "key_name": "key_name",
}
