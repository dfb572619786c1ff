"""Fixtures of the whole suite. What they stand on is in `parts.py`; servers start when a test first asks for them."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
import redis

from tests.parts import WORKER, Databases, Servers, running_servers, short_folder


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """PostgreSQL and Valkey, one of each for this xdist worker, or those of the environment."""
    with running_servers() as found:
        yield found


@pytest.fixture(scope="session")
def databases(servers: Servers) -> Iterator[Databases]:
    with Databases(servers.database_url) as factory:
        yield factory


@pytest.fixture
def database_url(databases: Databases) -> Iterator[str]:
    """A database of this test's own with all migrations applied."""
    url = databases.create()
    yield url
    databases.drop(url)


@pytest.fixture
def blank_database_url(databases: Databases) -> Iterator[str]:
    """A database of this test's own with nothing in it."""
    url = databases.create_blank()
    yield url
    databases.drop(url)


@pytest.fixture(scope="session")
def _redis_numbers(servers: Servers) -> Iterator[int]:
    """Database numbers to use in turn; on a shared server each xdist worker keeps to one of the usual 16."""
    return itertools.cycle(range(1, 64)) if servers.embedded else itertools.repeat(WORKER % 15 + 1)


@pytest.fixture
def redis_url(servers: Servers, _redis_numbers: Iterator[int]) -> str:
    """An empty database of Valkey or Redis. Scripts and pub/sub channels are the server's, not the database's."""
    url = urlunsplit(urlsplit(servers.redis_url)._replace(path=f"/{next(_redis_numbers)}"))
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """A folder for embedded servers that does not exist yet."""
    with short_folder() as folder:
        yield folder / "state"
