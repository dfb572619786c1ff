"""The real parts that tests run against: PostgreSQL and Valkey (embedded, or those of `TEST_DATABASE_URL` and
`TEST_REDIS_URL`), fresh databases on them, and waiting for a fact."""

import asyncio
import inspect
import itertools
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from orchestrator.embedded import Embedded, start_embedded

T = TypeVar("T")

WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
"""The number of this pytest-xdist worker; 0 without xdist."""


async def eventually(
    condition: Callable[[], T | Awaitable[T]], *, deadline: float = 10.0, message: str = "", every: float = 0.01
) -> T:
    """Asks until the answer is true and returns it; an AssertionError counts as not yet.

    Raises AssertionError with `message` and the last answer when `deadline` seconds have passed.
    """
    end = time.monotonic() + deadline
    last: object = None
    while True:
        try:
            answer = condition()
            last = value = await answer if inspect.isawaitable(answer) else answer
            if value:
                return value
        except AssertionError as e:
            last = e
        if time.monotonic() >= end:
            raise AssertionError(f"{message or 'the condition'} did not hold within {deadline:g} s; last: {last!r}")
        await asyncio.sleep(every)


@contextmanager
def short_folder() -> Iterator[Path]:
    """A new folder, removed at the end, which another user may be let into: pytest's own lie below one of mode 0700."""
    folder = Path(tempfile.mkdtemp(prefix="rebuild-test-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class Servers:
    """The suite's servers. `embedded` is there when it started them itself, and then only for this xdist worker."""

    database_url: str
    redis_url: str
    embedded: Embedded | None


@contextmanager
def running_servers() -> Iterator[Servers]:
    """The servers named in the environment, and the suite's own for those that aren't."""
    database_url, redis_url = os.environ.get("TEST_DATABASE_URL", ""), os.environ.get("TEST_REDIS_URL", "")
    if database_url and redis_url:
        yield Servers(database_url=database_url, redis_url=redis_url, embedded=None)
        return
    with short_folder() as folder:
        own = start_embedded(folder / "state", durable=False)
        try:
            yield Servers(
                database_url=database_url or own.urls.database_url,
                redis_url=redis_url or own.urls.redis_url,
                embedded=own,
            )
        finally:
            own.stop()


class Databases:
    """Makes databases on one server, each a copy of a template that the migrations ran on once.

    It keeps one connection in an event loop of its own thread, so that fixtures of sync and async tests can use it.
    """

    def __init__(self, server_url: str):
        self._server = server_url
        self._prefix = f"test_{WORKER}_{secrets.token_hex(4)}"
        self._numbers = itertools.count()
        self._template: str | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._admin: asyncpg.Connection | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._template is not None:
                self.drop(self.url_of(self._template))
            if self._admin is not None:
                self._run(self._admin.close())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def url_of(self, name: str) -> str:
        return urlunsplit(urlsplit(self._server)._replace(path=f"/{name}"))

    def create_blank(self) -> str:
        """The URL of a new, empty database."""
        return self._create("template1")

    def create(self) -> str:
        """The URL of a new database with all migrations applied."""
        if self._template is None:
            from orchestrator.ledger.migrate import upgrade

            url = self.create_blank()
            self._run(upgrade(url))
            self._template = urlsplit(url).path.removeprefix("/")
        return self._create(self._template)

    def drop(self, url: str) -> None:
        """Drops it with whatever is still connected."""
        name = urlsplit(url).path.removeprefix("/")
        self._execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def _create(self, template: str) -> str:
        name = f"{self._prefix}_{next(self._numbers)}"
        # WAL_LOG (PostgreSQL 15 and later) copies through the log; FILE_COPY would ask for two checkpoints each time.
        self._execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY WAL_LOG')
        return self.url_of(name)

    def _execute(self, statement: str) -> None:
        self._run(self._execute_now(statement))

    async def _execute_now(self, statement: str) -> None:
        if self._admin is None or self._admin.is_closed():
            self._admin = await asyncpg.connect(self._server)
        await self._admin.execute(statement)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=120)
