"""One cloud, one PostgreSQL, one Valkey and one set of workers for a module; no test's servers are another's."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from orchestrator.embedded import Embedded, start_embedded
from orchestrator.hints import Hints
from orchestrator.rehearsal import RehearsalConfig, Running, serve_in_thread
from tests.driver.site import QUEUES, Site, Workers, opened
from tests.parts import Databases, eventually, short_folder
from tests.workers.site import DRIVE_PROCESSES, Supervised, drivers


@pytest.fixture(scope="module")
def cloud() -> Iterator[Running]:
    with serve_in_thread(RehearsalConfig(servers=400, rebuild_seconds=0.6)) as running:
        yield running


@pytest.fixture(scope="module")
def own() -> Iterator[Embedded]:
    """Servers to kill; nobody else's."""
    with short_folder() as folder:
        servers = start_embedded(folder / "state", durable=False)
        try:
            yield servers
        finally:
            servers.stop()


@pytest.fixture(scope="module")
def own_database_url(own: Embedded) -> Iterator[str]:
    with Databases(own.urls.database_url) as databases:
        url = databases.create()
        yield url
        databases.drop(url)


@pytest.fixture(scope="module")
def workers(
    cloud: Running, own: Embedded, own_database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Supervised]:
    """One supervised worker a queue, and no beat. Their logs are shown when a test fails."""
    folder: Path = tmp_path_factory.mktemp("workers")
    running = Supervised(own, Site.environment(cloud, folder, own_database_url, own.urls.redis_url))
    for queue in QUEUES:
        running.start(queue)
    yield running
    running.stop(*QUEUES)
    for queue in QUEUES:
        print(f"== {queue}\n{running.log(queue)[-9000:]}")  # noqa: T201  pytest shows it beside a failure


@pytest.fixture
async def site(
    cloud: Running, own: Embedded, own_database_url: str, workers: Supervised, tmp_path: Path
) -> AsyncIterator[Site]:
    """The service, with its drive processes at work."""
    async with opened(own_database_url) as engine:
        hints = Hints(own.urls.redis_url)
        try:

            async def at_work() -> bool:
                return len(await drivers(engine)) == DRIVE_PROCESSES

            await eventually(at_work, deadline=60, every=0.1, message="all drive processes are at work")
            yield Site(cloud=cloud, engine=engine, hints=hints, workers=Workers({}, tmp_path))
        finally:
            hints.close()
