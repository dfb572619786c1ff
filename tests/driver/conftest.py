"""One cloud and one set of workers for each module of tests; every test takes servers of its own."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
import redis

from orchestrator.hints import Hints
from orchestrator.rehearsal import RehearsalConfig, Running, serve_in_thread
from tests.driver.site import QUEUES, Site, Workers, opened
from tests.parts import Databases, Servers


@pytest.fixture(scope="module")
def cloud() -> Iterator[Running]:
    """150 servers: the first three locked, then ERROR, SHUTOFF, paused and volume-booted ones, one each."""
    config = RehearsalConfig(servers=150, rebuild_seconds=0.6, locked=1, error=1, shutoff=1, paused=1, volume_booted=1)
    with serve_in_thread(config) as running:
        yield running


@pytest.fixture(scope="module")
def urls(servers: Servers, databases: Databases) -> Iterator[tuple[str, str]]:
    """A migrated database and an empty broker for the module."""
    database_url = databases.create()
    redis_url = urlunsplit(urlsplit(servers.redis_url)._replace(path="/15"))
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
    yield database_url, redis_url
    databases.drop(database_url)


@pytest.fixture(scope="module")
def workers(cloud: Running, urls: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """One Celery worker a queue. Their logs are shown when a test fails."""
    folder: Path = tmp_path_factory.mktemp("workers")
    running = Workers(Site.environment(cloud, folder, *urls), folder)
    running.start(*QUEUES)
    yield running
    running.stop()
    for log in sorted(folder.glob("*.log")):
        print(f"== {log.name}\n{log.read_text()[-2000:]}")  # noqa: T201  pytest shows it beside a failure


@pytest.fixture
async def site(cloud: Running, urls: tuple[str, str], workers: Workers) -> AsyncIterator[Site]:
    """The running service; faults ordered by a test end with it."""
    async with opened(urls[0]) as engine:
        hints = Hints(urls[1])
        try:
            yield Site(cloud=cloud, engine=engine, hints=hints, workers=workers)
        finally:
            cloud.cloud.faults.clear()
            hints.close()
