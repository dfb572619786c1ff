"""The only bridge from Celery's synchronous tasks to asyncio: a loop for each task, and a word when it is to stop."""

import asyncio
import contextlib
import os
import secrets
import signal
import socket
from collections.abc import Awaitable, Callable

import uvloop

from orchestrator.clouds.sign_in import TokenCache

TOKENS = TokenCache()
"""Outlives the loops, so that a slice doesn't sign in anew; filled after the fork, in each process for itself."""
_WORKER = secrets.token_hex(3)
"""Made in a worker's parent, and its pool processes have it too: containers can share a host's name and have equal
pids, and a lease must name one process for certain."""


def process_name(pid: int) -> str:
    """How a process of this worker names itself in its leases."""
    return f"{socket.gethostname()}/{_WORKER}:{pid}"


class StopPipe:
    """Tells the children of a worker that it shuts down: Celery by itself signals only the parent.

    The parent holds the write end. Closing it, on purpose or by dying, is what every child sees.
    """

    def __init__(self, reading: int | None = None) -> None:
        """`reading`: in a process of its own, which was given the read end alone."""
        self._writes: list[int] = []
        if reading is None:
            reading, write = os.pipe()
            self._writes.append(write)
        self._read = reading

    def shut(self) -> None:
        """In the parent, from any thread or signal handler, any number of times: tells every child."""
        with contextlib.suppress(IndexError):
            os.close(self._writes.pop())

    def in_child(self) -> None:
        """In a child, right after the fork: gives up its copy of the write end, or the end would never come."""
        self.shut()

    def watch(self, loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
        """Sets `stop` when the parent shuts down or is gone."""

        def told() -> None:
            loop.remove_reader(self._read)
            stop.set()

        loop.add_reader(self._read, told)


def run(work: Callable[[asyncio.Event], Awaitable[None]], pipe: StopPipe | None = None) -> None:
    """Runs `work` in a new event loop; its event is set when this process is to stop."""

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, stop.set)
        if pipe:
            pipe.watch(loop, stop)
        await work(stop)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
