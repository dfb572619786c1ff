"""What happens to servers over time.

Each operation is a *course*: a generator that yields how many seconds to wait and is sent the time at which it woke.
One heap holds them all, and is advanced whenever somebody looks, so that 20,000 servers cost no task and no timer,
and every time that is shown is the one at which the thing was due, however late the look.
"""

import heapq
import random
from collections.abc import Generator
from dataclasses import dataclass

from orchestrator.rehearsal.account import Account
from orchestrator.rehearsal.config import RehearsalConfig, RehearsalImage
from orchestrator.rehearsal.faults import Fault, FaultKind
from orchestrator.rehearsal.state import REBUILD_TASKS, Action, Server, Task, VmState

Course = Generator[float, float, None]

NO_VALID_HOST = "No valid host was found. There are not enough hosts available."
NO_EPHEMERAL = "The current driver does not support preserving ephemeral partitions."


class Timeline:
    """All courses under way, by when their next step is due."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, int, Server, Course]] = []
        self._count = 0

    def start(self, server: Server, course: Course, now: float) -> None:
        """Begins a course."""
        self._push(server, course, now, next(course))

    def abandon(self, server: Server) -> None:
        """Whatever is under way on this server goes no further."""
        server.course += 1

    def advance(self, now: float) -> None:
        """Takes every step that is due by now, in the order of time."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            due, _, number, server, course = heapq.heappop(heap)
            if number != server.course:
                continue
            try:
                self._push(server, course, due, course.send(due))
            except StopIteration:
                continue

    def _push(self, server: Server, course: Course, now: float, delay: float) -> None:
        self._count += 1
        heapq.heappush(self._heap, (now + delay, self._count, server.course, server, course))


@dataclass(frozen=True, kw_only=True)
class Rebuild:
    """One accepted rebuild, as the host sees it."""

    server: Server
    action: Action
    old_image: str
    vm_state: VmState
    """What the server was when the call came; a stopped one ends stopped."""
    replaces_disk: bool
    """False for a volume-booted server below 2.93: accepted and done, and the disk stays."""
    preserve_ephemeral: bool
    fault: Fault | None

    def fails_by(self, kind: FaultKind) -> bool:
        return self.fault is not None and self.fault.kind is kind


class Hosts:
    """The compute hosts: how long things take, and what becomes of them."""

    def __init__(
        self, config: RehearsalConfig, images: dict[str, RehearsalImage], account: Account, rng: random.Random
    ):
        self._config = config
        self._images = images
        self._account = account
        self._rng = rng

    def rebuild(self, order: Rebuild) -> Course:
        """A rebuild from the 202 to its end (nova-facts, 2, 6 and 11)."""
        server, action, account = order.server, order.action, self._account
        seconds = self._rng.uniform(*self._config.seconds_range)
        lag = self._config.action_lag
        conductor = action.begin("rebuild_server", action.start, server.host_id)
        image = self._images.get(server.image.lower())
        now = yield 0.02 * seconds
        unrunnable = image is not None and not image.runnable and server.image.lower() != order.old_image.lower()
        if order.fails_by(FaultKind.NO_VALID_HOST) or unrunnable:
            server.image = order.old_image
            server.fail(now, NO_VALID_HOST)
            account.ended(server.id, succeeded=False)
            action.end(conductor, now, failed=True)
            return
        action.end(conductor, now)
        if order.fails_by(FaultKind.STUCK):
            return
        now = yield 0.08 * seconds
        event = action.begin("compute_rebuild_instance", now, server.host_id)
        now = yield 0.2 * seconds
        if order.fails_by(FaultKind.IMAGE_GONE) or server.image.lower() not in self._images:
            server.enter(now, task=None)
            account.ended(server.id, succeeded=False)
            action.end(event, (yield lag), failed=True)
            return
        if order.preserve_ephemeral:
            server.fail(now, NO_EPHEMERAL, code=400)
            account.ended(server.id, succeeded=False)
            action.end(event, (yield lag), failed=True)
            return
        server.enter(now, task=Task.REBUILD_MAPPING)
        if order.replaces_disk:
            account.servers[server.id].wiped += 1
        now = yield 0.1 * seconds
        server.enter(now, task=Task.REBUILD_SPAWNING)
        if order.fault is not None and order.fails_by(FaultKind.SPAWN_FAILS):
            now = yield 0.55 * seconds
            server.enter(now, task=Task.REBUILD_SPAWNING, vm_state=VmState.ERROR)
            now = yield 0.05 * seconds
            server.fail(now, order.fault.message)
            account.ended(server.id, succeeded=False)
            action.end(event, (yield lag), failed=True)
            return
        now = yield 0.6 * seconds
        if order.fails_by(FaultKind.COMPUTE_DIES):
            server.fault = None
            server.enter(now, task=None, vm_state=VmState.ERROR)
            account.ended(server.id, succeeded=False)
            return
        server.launched_at = now
        if order.fails_by(FaultKind.WRONG_IMAGE):
            server.image = self._another(server.image, order.old_image)
        server.fault = None
        server.enter(now, task=None, vm_state=VmState.ACTIVE)
        account.ended(server.id, succeeded=True)
        if order.vm_state is VmState.STOPPED:
            now = yield min(0.1, self._config.power_seconds)
            if server.task is not None:
                action.end(event, now)
                return
            server.enter(now, task=Task.POWERING_OFF)
            stop = action.begin("compute_stop_instance", now, server.host_id)
            now = yield self._config.power_seconds
            server.enter(now, task=None, vm_state=VmState.STOPPED)
            action.end(stop, now)
        action.end(event, (yield lag))

    def _another(self, asked: str, old: str) -> str:
        """An image that nobody asked for; the old one where there is no third."""
        return next((i for i in self._images if i not in (asked.lower(), old.lower())), old)

    def change(
        self, server: Server, action: Action, now: float, *, event: str, task: Task, leads_to: VmState
    ) -> Course:
        """Stop, start, pause, unpause, reboot: one task, then a new vm_state."""
        server.enter(now, task=task)
        step = action.begin(event, now, server.host_id)
        now = yield self._config.power_seconds
        server.enter(now, task=None, vm_state=leads_to)
        action.end(step, now)

    def delete(self, server: Server, action: Action, now: float) -> Course:
        """Deleting, then gone; the record stays for changes-since."""
        server.enter(now, task=Task.DELETING)
        step = action.begin("compute_terminate_instance", now, server.host_id)
        now = yield self._config.power_seconds
        server.deleted_at = now
        server.enter(now, task=None, vm_state=VmState.DELETED)
        action.end(step, now)

    def interrupted(self, server: Server) -> None:
        """A rebuild, where one was under way, is over by force."""
        if server.task in REBUILD_TASKS:
            self._account.ended(server.id, succeeded=False)
