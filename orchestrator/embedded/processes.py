"""Runs child processes for `rebuildctl up`: starts them in order, starts again what dies, stops them in reverse.

Each child runs below a guard (`guard.py`) in a session of its own, and ends with this process however it ends.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Self

from orchestrator.embedded.child import Child, ChildSpec, ChildState
from orchestrator.embedded.errors import EmbeddedFailed
from orchestrator.embedded.state import StateLock
from orchestrator.log import get_logger

__all__ = ["Child", "ChildEvent", "ChildSpec", "ChildState", "Supervisor"]

log = get_logger(__name__)

BACKOFF_SECONDS = (0.1, 0.5, 1.0, 2.0, 3.0)
"""Waits before the first, second, … start in a row; the last one repeats, so a dead child is back within 5 s."""
CALM_SECONDS = 30.0
"""A child that ran this long starts its backoff anew."""


@dataclass(frozen=True, kw_only=True)
class ChildEvent:
    """Something that happened to a child: `started`, `ready`, `not_ready`, `exited` or `stopped`."""

    at: float
    """Seconds since the epoch."""
    name: str
    what: str
    pid: int | None
    exit_code: int | None
    """With `exited` and `stopped`: 128 + signal when a signal ended it."""


class Supervisor:
    """Keeps children running in one state folder, which it locks: `async with Supervisor(state_dir) as supervisor`.

    Entering raises `StateFolderBusy` when another process has the folder. It belongs to one event loop.
    """

    def __init__(self, state_dir: Path, *, on_event: Callable[[ChildEvent], None] | None = None):
        self.state_dir = state_dir
        self.events: deque[ChildEvent] = deque(maxlen=1000)
        """The latest events, oldest first."""
        self.children: dict[str, Child] = {}
        """By name, in the order in which they were first started."""
        self._on_event = on_event
        self._lock = StateLock(state_dir)
        self._keepers: dict[str, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._lock.acquire)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def log_path(self, name: str) -> Path:
        """The file that child's output is appended to."""
        return self.state_dir / "log" / f"{name}.log"

    async def start(self, spec: ChildSpec) -> Child:
        """Starts a child and returns once it is ready; from then on it is kept running.

        Raises `EmbeddedFailed`, with the end of its log, when it ends first or isn't ready within `ready_seconds`;
        then it has been stopped.
        """
        child = self._child(spec)
        try:
            await child.launch()
            self._tell(child, "started")
            if not await child.until_ready():
                late = not child.ended.is_set()
                await self._end(child)
                raise EmbeddedFailed(
                    f"{spec.name} "
                    + (f"was not ready within {spec.ready_seconds:g} s" if late else f"ended, code {child.exit_code}")
                    + child.log_tail()
                )
        except BaseException:
            await self._end(child)
            raise
        self._tell(child, "ready")
        self._keepers[spec.name] = asyncio.create_task(self._keep(child), name=f"keep-{spec.name}")
        return child

    async def run(self, spec: ChildSpec) -> None:
        """Runs a program to its end. Raises `EmbeddedFailed`, with the end of its log, unless it exits with 0."""
        child = self._child(spec)
        try:
            await child.launch()
            await child.ended.wait()
        finally:
            await self._end(child)
            del self.children[spec.name]
        if child.exit_code:
            raise EmbeddedFailed(f"{spec.name} ended, code {child.exit_code}{child.log_tail()}")

    async def stop_child(self, name: str) -> None:
        """Stops one child in order, and doesn't start it again."""
        await self._end(self.children[name])

    async def kill_child(self, name: str) -> None:
        """Kills one child with SIGKILL, as a crash would; it is started again if its spec says so."""
        child = self.children[name]
        ended = child.ended
        child.kill()
        await ended.wait()

    async def stop(self) -> None:
        """Stops all children, the last one started first, and gives the state folder back. May be called twice."""
        try:
            for group, members in groupby(reversed(list(self.children.values())), key=lambda c: c.spec.group):
                if group:
                    await asyncio.gather(*(self._end(child) for child in members))
                else:
                    for child in members:
                        await self._end(child)
        finally:
            self._lock.release()

    def _child(self, spec: ChildSpec) -> Child:
        known = self.children.get(spec.name)
        if known is not None and known.state is not ChildState.STOPPED:
            raise EmbeddedFailed(f"{spec.name} is running already")
        child = self.children[spec.name] = Child(spec, self.log_path(spec.name), self._lock.fd)
        return child

    async def _keep(self, child: Child) -> None:
        """Starts the child again whenever it ends."""
        row, since = 0, time.monotonic()
        while True:
            await child.ended.wait()
            child.state = ChildState.BACKING_OFF if child.spec.restart else ChildState.STOPPED
            self._tell(child, "exited")
            if not child.spec.restart:
                return
            row = 0 if time.monotonic() - since > CALM_SECONDS else row
            await asyncio.sleep(BACKOFF_SECONDS[min(row, len(BACKOFF_SECONDS) - 1)])
            row, since = row + 1, time.monotonic()
            child.restarts += 1
            try:
                await child.launch()
                self._tell(child, "started")
                if await child.until_ready():
                    self._tell(child, "ready")
                else:
                    self._tell(child, "not_ready")
                    await child.close()
            except EmbeddedFailed as e:
                # Out of processes, memory or disk: that may pass, and giving up would leave the service down for good.
                log.error("child_not_started", child=child.spec.name, error=e.message)
                await child.close()

    async def _end(self, child: Child) -> None:
        keeper = self._keepers.pop(child.spec.name, None)
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait([keeper])
        running = not child.ended.is_set()
        await child.close()
        if running and child.pid is not None:
            self._tell(child, "stopped")
        child.state = ChildState.STOPPED

    def _tell(self, child: Child, what: str) -> None:
        event = ChildEvent(at=time.time(), name=child.spec.name, what=what, pid=child.pid, exit_code=child.exit_code)
        self.events.append(event)
        say = log.warning if what in ("exited", "not_ready") else log.info
        say("child_" + what, child=event.name, pid=event.pid, exit_code=event.exit_code)
        if self._on_event is not None:
            self._on_event(event)
