"""PostgreSQL and Valkey as one thing: inside a supervisor, as a context, or by hand for tests and scripts."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.embedded.child import Prepared
from orchestrator.embedded.errors import EmbeddedFailed
from orchestrator.embedded.postgres import prepare_postgres
from orchestrator.embedded.processes import Supervisor
from orchestrator.embedded.state import port_is_free
from orchestrator.embedded.valkey import prepare_valkey

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class EmbeddedUrls:
    """Where the servers are, with their passwords; the same at every start unless another process took the port."""

    database_url: str = field(repr=False)
    """`postgresql://rebuild:…@127.0.0.1:port/rebuild`"""
    redis_url: str = field(repr=False)
    """`redis://:…@127.0.0.1:port/0`"""


async def start_postgres(supervisor: Supervisor, *, durable: bool = True) -> str:
    """Starts PostgreSQL under that supervisor and returns its URL.

    Raises `EmbeddedMissing` without the wheel, `EmbeddedFailed` when it does not start.
    """
    return (await _start(supervisor, lambda: prepare_postgres(supervisor, durable=durable, restart=True))).url


async def start_valkey(supervisor: Supervisor, *, durable: bool = True) -> str:
    """Starts Valkey under that supervisor and returns its URL. Raises as `start_postgres`."""
    return (await _start(supervisor, lambda: prepare_valkey(supervisor, durable=durable, restart=True))).url


@asynccontextmanager
async def embedded(state_dir: Path, *, durable: bool = True) -> AsyncIterator[EmbeddedUrls]:
    """PostgreSQL and Valkey in a state folder, kept running until the end of the block.

    `durable=False` gives up safety against a crash of the machine for speed: for tests alone.
    Raises `StateFolderBusy` when another process has the folder, and as `start_postgres`.
    """
    async with Supervisor(state_dir) as supervisor:
        yield await start_servers(supervisor, durable=durable)


async def start_servers(supervisor: Supervisor, *, durable: bool = True) -> EmbeddedUrls:
    """Starts both side by side. Raises as `start_postgres`."""
    urls = await _both(start_postgres(supervisor, durable=durable), start_valkey(supervisor, durable=durable))
    return EmbeddedUrls(database_url=urls[0], redis_url=urls[1])


class ServerHandle:
    """One server of `start_embedded`: tests stop, kill and start it at the same address, with the same data."""

    def __init__(self, embedded: "Embedded", prepared: Prepared):
        self._embedded = embedded
        self._spec = prepared.spec
        self.url = prepared.url

    @property
    def pid(self) -> int | None:
        """Of the running server; None while it is down."""
        child = self._embedded.supervisor.children[self._spec.name]
        return None if child.ended.is_set() else child.pid

    def kill(self) -> None:
        """SIGKILL; returns once it and all its processes are gone."""
        self._embedded.wait_for(self._embedded.supervisor.kill_child(self._spec.name))

    def stop(self) -> None:
        """Stops it in order."""
        self._embedded.wait_for(self._embedded.supervisor.stop_child(self._spec.name))

    def start(self) -> None:
        """Starts it again, and returns once it is ready. Raises `EmbeddedFailed`."""
        self._embedded.wait_for(self._embedded.supervisor.start(self._spec))


class Embedded:
    """Both servers without an event loop of the caller's: they are kept by one in a thread of its own.

    Nothing is restarted by itself here, so that a test decides how long a server is away.
    """

    def __init__(self, state_dir: Path, *, durable: bool):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="embedded", daemon=True)
        self._thread.start()
        self.supervisor = Supervisor(state_dir)
        try:
            postgres, valkey = self.wait_for(self._open(durable))
        except BaseException:
            self.stop()
            raise
        self.postgres = ServerHandle(self, postgres)
        self.valkey = ServerHandle(self, valkey)
        self.urls = EmbeddedUrls(database_url=postgres.url, redis_url=valkey.url)

    async def _open(self, durable: bool) -> tuple[Prepared, Prepared]:
        supervisor = await self.supervisor.__aenter__()
        return await _both(
            _start(supervisor, lambda: prepare_postgres(supervisor, durable=durable, restart=False)),
            _start(supervisor, lambda: prepare_valkey(supervisor, durable=durable, restart=False)),
        )

    def wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine in the servers' loop and returns its result; not from within that loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def stop(self) -> None:
        """Stops both in order and gives the state folder back. May be called twice."""
        if self._loop.is_closed():
            return
        try:
            self.wait_for(self.supervisor.stop())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


def start_embedded(state_dir: Path, *, durable: bool = True) -> Embedded:
    """Starts both servers for a script or a test; `stop()` them at the end. Raises as `embedded`."""
    return Embedded(state_dir, durable=durable)


async def _both(first: Coroutine[Any, Any, T], second: Coroutine[Any, Any, T]) -> tuple[T, T]:
    """Both results; the first error, once the other one has been cancelled and is done with cleaning up."""
    one, other = asyncio.ensure_future(first), asyncio.ensure_future(second)
    try:
        return await asyncio.gather(one, other)
    except BaseException:
        one.cancel()
        other.cancel()
        await asyncio.wait([one, other])
        raise


async def _start(supervisor: Supervisor, prepare: Callable[[], Awaitable[Prepared]]) -> Prepared:
    """Prepares and starts a server; once more with a new port where another process was quicker to take it."""
    for _ in range(3):
        prepared = await prepare()
        try:
            await supervisor.start(prepared.spec)
        except EmbeddedFailed:
            if port_is_free(prepared.port):
                raise
        else:
            return prepared
    raise EmbeddedFailed("every free port was taken by another process before the server could listen on it")
