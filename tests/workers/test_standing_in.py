"""Drive processes that die: their leases are free at once, and without a broker a stand-in takes their place."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from orchestrator.embedded import Embedded
from orchestrator.hints import DRIVE_QUEUE
from orchestrator.ledger.leases import acquire
from tests.driver.site import Site, opened
from tests.parts import eventually
from tests.workers.site import DRIVE_PROCESSES, Supervised, drivers, stand_ins_of
from tests.workers.test_recovering import accepted, assert_each_was_sent_once, slowly, some_are_accepted
from workers.runtime import StopPipe, process_name
from workers.watchdog import Limits, Watchdog

pytestmark = pytest.mark.timeout(400)


def stand_ins(workers: Supervised) -> list[int]:
    """Pids of the stand-ins below that worker's parent."""
    return stand_ins_of(workers.child(DRIVE_QUEUE).pid)


async def holder(engine: AsyncEngine) -> int:
    """The pid of the drive process that has the lease."""
    async with engine.connect() as conn:
        found = await conn.execute(text("SELECT holder FROM leases WHERE name LIKE 'drive:%'"))
        return int(str(found.scalar_one()).rpartition(":")[2])


async def the_pool_drives_again(site: Site, workers: Supervised) -> None:
    """Celery's own processes are all at work, and no stand-in is left."""

    async def there() -> bool:
        pool = set(workers.pool(DRIVE_QUEUE))
        return len(pool) == DRIVE_PROCESSES and await drivers(site.engine) == pool and not stand_ins(workers)

    await eventually(there, deadline=150, every=0.1, message="the pool drives and the stand-in has left")


@asynccontextmanager
async def no_broker(site: Site, own: Embedded, workers: Supervised, plan: UUID, ids: list[str]) -> AsyncIterator[None]:
    """Valkey is dead meanwhile; afterwards the pool drives again, and each server was sent once."""
    own.valkey.kill()
    try:
        yield
    finally:
        own.valkey.start()
    await the_pool_drives_again(site, workers)
    await assert_each_was_sent_once(site, plan, ids)


async def test_without_a_broker_a_stand_in_drives_until_the_pool_can(
    site: Site, own: Embedded, workers: Supervised
) -> None:
    """All drive processes die while no message can reach new ones."""
    ids = site.named(*range(10, 70))
    plan = await site.submit(slowly(ids))
    await some_are_accepted(site, ids, 5)
    async with no_broker(site, own, workers, plan, ids):
        dead = workers.kill_pool(DRIVE_QUEUE)
        assert len(dead) == DRIVE_PROCESSES
        at_death = accepted(site, ids)
        await some_are_accepted(site, ids, at_death + 5)
        assert await holder(site.engine) in stand_ins(workers)


async def test_a_stand_in_that_dies_is_replaced(site: Site, own: Embedded, workers: Supervised) -> None:
    ids = site.named(*range(70, 130))
    plan = await site.submit(slowly(ids))
    await some_are_accepted(site, ids, 5)
    async with no_broker(site, own, workers, plan, ids):
        workers.kill_pool(DRIVE_QUEUE)
        await some_are_accepted(site, ids, accepted(site, ids) + 5)
        first = await holder(site.engine)
        os.kill(first, signal.SIGKILL)
        await some_are_accepted(site, ids, accepted(site, ids) + 5)
        assert await holder(site.engine) in set(stand_ins(workers)) - {first}


async def test_a_worker_that_starts_without_a_broker_drives_too(site: Site, own: Embedded, workers: Supervised) -> None:
    """The whole worker dies and is started anew; Celery waits for its broker, the plan doesn't."""
    ids = site.named(*range(130, 190))
    plan = await site.submit(slowly(ids))
    await some_are_accepted(site, ids, 5)
    async with no_broker(site, own, workers, plan, ids):
        restarts = workers.child(DRIVE_QUEUE).restarts
        own.wait_for(own.supervisor.kill_child(DRIVE_QUEUE))
        at_death = accepted(site, ids)
        await some_are_accepted(site, ids, at_death + 5)
        assert workers.child(DRIVE_QUEUE).restarts > restarts
        assert await holder(site.engine) in stand_ins(workers)


async def test_a_worker_told_to_leave_waits_for_its_stand_in(site: Site, own: Embedded, workers: Supervised) -> None:
    """A warm shutdown while the stand-in sends: it finishes that and gives the lease back."""
    ids = site.named(*range(190, 250))
    plan = await site.submit(slowly(ids))
    await some_are_accepted(site, ids, 5)
    async with no_broker(site, own, workers, plan, ids):
        workers.kill_pool(DRIVE_QUEUE)
        await some_are_accepted(site, ids, accepted(site, ids) + 5)
        workers.stop(DRIVE_QUEUE)
        try:
            async with site.engine.connect() as conn:
                lease = await conn.execute(
                    text("SELECT expires_at = '-infinity' FROM leases WHERE name LIKE 'drive:%'")
                )
                assert lease.scalar_one(), "it was given back"
                sending = await conn.execute(text("SELECT count(*) FROM jobs WHERE state = 'sending'"))
                assert sending.scalar_one() == 0
        finally:
            workers.start(DRIVE_QUEUE)


async def test_a_killed_drivers_lease_is_not_waited_for(site: Site, own: Embedded, workers: Supervised) -> None:
    """The lease is made to last for an hour: only the word that its holder is dead can free it."""
    ids = site.named(*range(250, 310))
    plan = await site.submit(slowly(ids))
    await some_are_accepted(site, ids, 5)
    dead = await _stopped_with_a_lease_of_an_hour(site.engine)
    at_death = accepted(site, ids)
    os.kill(dead, signal.SIGKILL)
    await some_are_accepted(site, ids, at_death + 5)
    assert await holder(site.engine) != dead
    await the_pool_drives_again(site, workers)
    await assert_each_was_sent_once(site, plan, ids)


async def _stopped_with_a_lease_of_an_hour(engine: AsyncEngine) -> int:
    """The pid of the driver, stopped at a moment at which it holds no lock on its lease's row."""
    for _ in range(50):
        pid = await holder(engine)
        os.kill(pid, signal.SIGSTOP)
        try:
            async with engine.begin() as conn:
                await conn.execute(text("SET LOCAL lock_timeout = '200ms'"))
                await conn.execute(
                    text(
                        "UPDATE leases SET expires_at = clock_timestamp() + interval '1 hour' WHERE name LIKE 'drive:%'"
                    )
                )
        except DBAPIError:
            os.kill(pid, signal.SIGCONT)
        else:
            return pid
    raise AssertionError("the driver holds its lease's row all the time")


@pytest.mark.parametrize("reused", [False, True], ids=["its place is empty", "its place was given away"])
async def test_the_leases_of_a_dead_child_are_given_back_and_no_others(
    database_url: str, redis_url: str, reused: bool
) -> None:
    watchdog = Watchdog(redis_url, database_url, StopPipe(), limits=Limits(look=0.05))
    seats = watchdog._seats
    died, lives = _child(seats.take), _child(lambda: None)
    async with opened(database_url) as engine:
        async with engine.begin() as conn:
            for name, of in (
                ("drive:1", process_name(died)),
                ("drive:2", process_name(lives)),
                ("drive:3", f"x:{died}"),
            ):
                assert await acquire(conn, name, of, 3600)
        await eventually(lambda: seats.busy() == 1, message="the child is in its task")
        os.kill(died, signal.SIGKILL)
        if reused:
            _waited_for(died)
            seats.take()
        watchdog.start([], 1)
        try:

            async def free() -> list[str]:
                async with engine.connect() as conn:
                    rows = await conn.execute(text("SELECT name FROM leases WHERE expires_at < clock_timestamp()"))
                    return [r.name for r in rows]

            assert await eventually(free, message="the dead child's lease is free") == ["drive:1"]
        finally:
            watchdog.stop()
            os.kill(lives, signal.SIGKILL)
            _waited_for(lives)
            if not reused:
                _waited_for(died)
        assert seats.died() == [], "a dead child is told once"


def _waited_for(pid: int) -> None:
    os.waitpid(pid, 0)


def _child(first: Any) -> int:
    pid = os.fork()
    if pid == 0:
        first()
        while True:
            signal.pause()
    return pid
