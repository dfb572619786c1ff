"""A ledger that takes answers slowly, or not at all: the driver slows down, and few calls are ever in doubt."""

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
import yaml
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from orchestrator.rehearsal import RehearsalConfig, Running, serve_in_thread
from tests.driver.site import ENDED, QUEUES, Site, Workers
from tests.parts import eventually
from workers.driver.send import CALLS_AT_ONCE, SLICE_SECONDS, UNRECORDED

pytestmark = pytest.mark.timeout(150)

RATE = 1000
SERVERS = 1200
BOUND = CALLS_AT_ONCE + UNRECORDED + int(RATE * SLICE_SECONDS)
"""Calls that may be sent and not recorded: under way, answered, and a batch that has just passed the gate."""


@pytest.fixture(scope="module")
def cloud() -> Iterator[Running]:
    with serve_in_thread(RehearsalConfig(servers=2 * SERVERS, rebuild_seconds=0.6)) as running:
        yield running


@pytest.fixture(scope="module")
def workers(cloud: Running, urls: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """One Celery worker a queue; the cloud is allowed far more than the ledger takes."""
    folder: Path = tmp_path_factory.mktemp("workers")
    env = Site.environment(cloud, folder, *urls)
    document = yaml.safe_load((folder / "clouds.yaml").read_text())
    document["clouds"]["rehearsal"]["rebuild"] |= {"write_rate": f"{RATE}/s", "max_in_flight": 2 * SERVERS}
    (folder / "clouds.yaml").write_text(yaml.safe_dump(document))
    running = Workers(env, folder)
    running.start(*QUEUES)
    yield running
    running.stop()
    for log in sorted(folder.glob("*.log")):
        print(f"== {log.name}\n{log.read_text()[-2000:]}")  # noqa: T201  pytest shows it beside a failure


async def recording_does(engine: AsyncEngine, what: str) -> None:
    """What the database does from now on whenever answers are recorded."""
    async with engine.begin() as conn:
        await conn.execute(text("DROP TRIGGER IF EXISTS ordered ON attempts"))
        if what:
            await conn.execute(text(
                "CREATE OR REPLACE FUNCTION ordered() RETURNS trigger LANGUAGE plpgsql AS "
                f"$$ BEGIN {what}; RETURN NULL; END $$"
            ))  # fmt: skip
            await conn.execute(text(
                "CREATE TRIGGER ordered AFTER UPDATE ON attempts FOR EACH STATEMENT EXECUTE FUNCTION ordered()"
            ))  # fmt: skip


async def in_doubt(site: Site, plan: UUID) -> int:
    """Calls that the cloud accepted and whose answers are not recorded; rather too few, since asked for first."""
    accepted = sum(a.accepted for a in list(site.cloud.account.servers.values()))
    async with site.engine.connect() as conn:
        applied = await conn.execute(text("SELECT count(*) FROM attempts WHERE effect = 'applied'"))
        return accepted - int(applied.scalar_one())


async def submitted(site: Site, numbers: range) -> tuple[UUID, list[str]]:
    ids = list(site.named(*numbers))
    rollout = {"max_in_flight": SERVERS, "waves": [{"size": "100%"}]}
    return await site.submit({"targets": {"servers": ids}, "rollout": rollout}), ids


async def test_a_ledger_that_takes_a_third_of_a_second_slows_the_driver_down(site: Site) -> None:
    await recording_does(site.engine, "PERFORM pg_sleep(0.3)")
    try:
        plan, ids = await submitted(site, range(10, 10 + SERVERS))
        most = 0

        async def over() -> bool:
            nonlocal most
            most = max(most, await in_doubt(site, plan))
            return (await site.status(plan))[0] in ENDED

        await eventually(over, deadline=120, every=0.02, message="the plan ends")
    finally:
        await recording_does(site.engine, "")
    print(f"at most {most} calls in doubt")  # noqa: T201  a measurement
    assert most <= BOUND
    assert (await site.status(plan))[0] == "succeeded"
    assert [site.received(i) for i in ids] == [1] * len(ids)
    await site.assert_ledger_is_sound(plan)


async def test_a_driver_that_cant_record_answers_soon_sends_nothing_more(site: Site, workers: Workers) -> None:
    """Everything else can be written: intents, claims and the lease."""
    await recording_does(site.engine, "RAISE EXCEPTION 'ordered by the test'")
    log = workers.logs / "drive.log"
    before = log.read_text().count("recording_failed")
    try:
        plan, ids = await submitted(site, range(10 + SERVERS, 10 + SERVERS + 1000))
        most = 0

        async def tried_often() -> bool:
            nonlocal most
            most = max(most, await in_doubt(site, plan))
            return log.read_text().count("recording_failed") >= before + 6

        await eventually(tried_often, deadline=90, every=0.02, message="it tried again and again to record")
        most = max(most, await in_doubt(site, plan))
    finally:
        await recording_does(site.engine, "")
    assert 0 < most <= BOUND
    assert await site.ended(plan, within=90) == "succeeded"
    assert [site.received(i) for i in ids] == [1] * len(ids)
    await site.assert_ledger_is_sound(plan)
