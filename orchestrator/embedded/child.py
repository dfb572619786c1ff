"""One supervised child: its spec, its state, and the guard process that runs it."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from orchestrator.embedded import guard
from orchestrator.embedded.errors import EmbeddedFailed
from orchestrator.embedded.state import ServerUser
from orchestrator.log import get_logger

log = get_logger(__name__)

KEEP_LOG_BYTES = 16 * 1024 * 1024
"""A log file above this size becomes NAME.log.1 at the next start."""


@dataclass(frozen=True, kw_only=True)
class ChildSpec:
    """A program to keep running."""

    name: str
    argv: Sequence[str | Path]
    env: Mapping[str, str] | None = None
    """The child's whole environment; None hands on this process's. Secrets go here, never into `argv`."""
    cwd: Path | None = None
    user: ServerUser | None = None
    """Whom to become first, where this process is root."""
    stop_signal: signal.Signals = signal.SIGTERM
    grace_seconds: float = 10.0
    """From the stop signal to SIGKILL for the whole process group."""
    group: str = ""
    """Children started in a row with the same non-empty group are stopped together: workers drain side by side."""
    ready: Callable[[], Awaitable[bool]] | None = None
    """Asked until it says yes (an OSError or a timeout is a no); None is ready once started."""
    ready_seconds: float = 30.0
    restart: bool = True
    """Whether a child that ends by itself is started again."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A server that can be started, and where it will be; the URL holds its password."""

    spec: ChildSpec
    url: str = field(repr=False)
    port: int


class ChildState(StrEnum):
    STARTING = "starting"
    """Started, and not ready yet."""
    READY = "ready"
    """Running, and its readiness check has said yes."""
    BACKING_OFF = "backing_off"
    """It ended, and is started again shortly."""
    STOPPED = "stopped"
    """Not running, and not to be started again by itself."""


class Child:
    """A child as it is now. Only its `Supervisor` launches and closes it."""

    def __init__(self, spec: ChildSpec, log_path: Path, lock_fd: int):
        self.spec = spec
        self.log_path = log_path
        self.state = ChildState.STOPPED
        self.pid: int | None = None
        self.restarts = 0
        """Starts after a death."""
        self.exit_code: int | None = None
        """Of the last run: 128 + signal when a signal ended it; None while it runs."""
        self.ended = asyncio.Event()
        """Set once the child and all its descendants are gone; a new one with every launch."""
        self.guard_pid: int | None = None
        self._lock_fd = lock_fd
        self._guard: asyncio.subprocess.Process | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def launch(self) -> None:
        """Starts the guard and with it the program. Raises `EmbeddedFailed` when the guard can't be started."""
        spec = self.spec
        self.state, self.exit_code, self.pid, self.ended = ChildState.STARTING, None, None, asyncio.Event()
        started = asyncio.Event()
        try:
            self.log_path.parent.mkdir(mode=0o700, exist_ok=True)
            if self.log_path.exists() and self.log_path.stat().st_size > KEEP_LOG_BYTES:
                self.log_path.rename(self.log_path.with_suffix(".log.1"))
            drop = spec.user if spec.user is not None and spec.user.drop else None
            order = guard.Order(
                argv=[str(word) for word in spec.argv],
                log=str(self.log_path.absolute()),
                cwd=str(spec.cwd) if spec.cwd else None,
                uid=drop.uid if drop else None,
                gid=drop.gid if drop else None,
                stop_signal=int(spec.stop_signal),
                grace_seconds=spec.grace_seconds,
                lock_fd=self._lock_fd if self._lock_fd >= 0 else None,
            )
            self._guard = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", guard.__file__, json.dumps(order)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=dict(os.environ if spec.env is None else spec.env),
                start_new_session=True,
                pass_fds=() if self._lock_fd < 0 else (self._lock_fd,),
            )
        except OSError as e:
            self.ended.set()
            raise EmbeddedFailed(f"{spec.name} can't be started: {e.strerror}") from e
        self.guard_pid = self._guard.pid
        self._watcher = asyncio.create_task(self._watch(self._guard, started, self.ended))
        await started.wait()
        if self.pid is None:
            raise EmbeddedFailed(f"the guard of {spec.name} could not be started")

    async def _watch(self, process: asyncio.subprocess.Process, started: asyncio.Event, ended: asyncio.Event) -> None:
        """Follows the guard to its end, which is the end of the child and of all its descendants."""
        try:
            assert process.stdout is not None  # noqa: S101  # a pipe was asked for
            word, _, number = (await process.stdout.readline()).decode().strip().partition(" ")
            if word == "pid" and number.isdigit():
                self.pid = int(number)
            started.set()
            word, _, number = (await process.stdout.read()).decode().strip().partition(" ")
            await process.wait()
            if word == "exit" and number.isdigit():
                self.exit_code = int(number)
            else:
                # The guard was killed. PR_SET_PDEATHSIG told its child to stop; it must be gone before another starts.
                self.exit_code = 128 + signal.SIGKILL
                await self._until_gone()
        finally:
            started.set()
            ended.set()

    async def _until_gone(self) -> None:
        if self.pid is None:
            return
        deadline = time.monotonic() + self.spec.grace_seconds
        with suppress(ProcessLookupError, PermissionError):
            while True:
                os.kill(self.pid, 0)
                if time.monotonic() >= deadline:
                    os.killpg(self.pid, signal.SIGKILL)
                await asyncio.sleep(0.02)

    async def until_ready(self) -> bool:
        """Waits for readiness. False when the child ended or `ready_seconds` passed first."""
        try:
            async with asyncio.timeout(self.spec.ready_seconds):
                pause = 0.005
                while not self.ended.is_set():
                    if await self._says_ready():
                        self.state = ChildState.READY
                        return True
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self.ended.wait(), pause)
                    pause = min(0.1, pause * 1.5)
        except TimeoutError:
            return False
        return False

    async def _says_ready(self) -> bool:
        if self.spec.ready is None:
            return True
        try:
            return await asyncio.wait_for(self.spec.ready(), 5.0)
        except (OSError, TimeoutError):
            return False

    def kill(self) -> None:
        """SIGKILL to the child's process group, as a crash would be."""
        if self.pid is not None and not self.ended.is_set():
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    async def close(self) -> None:
        """Tells the guard to stop the child, and waits until both are gone."""
        process = self._guard
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            await asyncio.wait_for(self.ended.wait(), self.spec.grace_seconds + guard.STRAYS_GRACE_SECONDS + 3.0)
        except TimeoutError:
            log.error("guard_hangs", child=self.spec.name, pid=self.pid)
            with suppress(ProcessLookupError):
                process.kill()
            await self.ended.wait()

    def log_tail(self) -> str:
        """The end of its log, for an error message."""
        try:
            lines = self.log_path.read_text(errors="replace").strip().splitlines()[-5:]
        except OSError:
            lines = []
        return ": " + " | ".join(lines) if lines else f" and wrote nothing to {self.log_path}"
