"""Whatever is lost or falls silent, work goes on by itself: no beat runs here, and nobody helps."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest
import redis
from celery import Celery

from orchestrator.embedded import Embedded
from orchestrator.hints import DRIVE_QUEUE, DRIVE_TASK
from tests.driver.site import Site
from tests.parts import eventually
from tests.workers.site import DRIVE_PROCESSES, SILENT_SECONDS, LostHints, Supervised, drivers

pytestmark = pytest.mark.timeout(120)

RESTART_SECONDS = 20.0
"""A worker's end, its supervisor's backoff and its start, on a busy machine."""


def slowly(ids: Sequence[str]) -> dict[str, Any]:
    """A plan that takes a second for ten servers, so that something can happen to it."""
    return {"targets": {"servers": ids}, "rollout": {"rate": "10/s", "waves": [{"size": "100%"}]}}


def accepted(site: Site, ids: Sequence[str]) -> int:
    return sum(site.accepted(i) for i in ids)


async def some_are_accepted(site: Site, ids: Sequence[str], count: int) -> None:
    await eventually(lambda: accepted(site, ids) >= count, deadline=40, message=f"{count} calls were accepted")


async def new_drivers(site: Site, dead: Sequence[int], *, within: float) -> float:
    """Seconds until as many drive processes are at work as there were, none of those among them."""
    began = time.monotonic()

    async def there() -> bool:
        return len(await drivers(site.engine) - set(dead)) == DRIVE_PROCESSES

    await eventually(there, deadline=within, every=0.05, message="new drive processes are at work")
    return time.monotonic() - began


async def assert_each_was_sent_once(site: Site, plan: Any, ids: Sequence[str]) -> None:
    """No call was sent twice; what was in the air when a driver died may need a person."""
    assert await site.ended(plan) in ("succeeded", "failed")
    jobs = await site.jobs(plan)
    assert {state for state, _ in jobs.values()} <= {"succeeded", "unresolved"}
    assert all(site.received(i) <= 1 for i in ids)
    await site.assert_ledger_is_sound(plan)


async def test_killed_drive_processes_are_replaced_below_the_same_parent(site: Site, workers: Supervised) -> None:
    """Their messages were acknowledged when they began, so only the watchdog's hints bring new ones."""
    ids = site.named(*range(10, 40))
    plan = await site.submit(slowly(ids))
    await some_are_accepted(site, ids, 10)
    parent, restarts = workers.child(DRIVE_QUEUE).pid, workers.child(DRIVE_QUEUE).restarts
    dead = workers.kill_pool(DRIVE_QUEUE)
    at_death = accepted(site, ids)
    assert len(dead) == DRIVE_PROCESSES
    waited = await new_drivers(site, dead, within=10)
    print(f"new drive processes after {waited:.1f} s")  # noqa: T201  a measurement
    await eventually(lambda: accepted(site, ids) > at_death, deadline=20, message="the plan goes on")
    await assert_each_was_sent_once(site, plan, ids)
    assert (workers.child(DRIVE_QUEUE).pid, workers.child(DRIVE_QUEUE).restarts) == (parent, restarts)


async def test_a_flushed_broker_loses_no_plan(site: Site, own: Embedded, workers: Supervised) -> None:
    """The running plan goes on, and one whose hint was lost is found by the tick, prepared and driven."""
    first, second = site.named(*range(70, 100)), site.named(*range(110, 115))
    running = await site.submit(slowly(first))
    await some_are_accepted(site, first, 5)
    unhinted = Site(cloud=site.cloud, engine=site.engine, hints=LostHints(own.urls.redis_url), workers=site.workers)
    lost = await unhinted.submit(slowly(second))
    with redis.Redis.from_url(own.urls.redis_url) as client:
        client.flushall()
    began = time.monotonic()
    assert await site.ended(lost, within=30) == "succeeded"
    print(f"a plan without a hint is done after {time.monotonic() - began:.1f} s")  # noqa: T201
    assert await site.ended(running) == "succeeded"
    assert [site.received(i) for i in (*first, *second)] == [1] * 35
    await site.assert_ledger_is_sound(lost)


async def test_a_broker_that_dies_stops_nothing_and_is_used_again_once_it_is_back(
    site: Site, own: Embedded, workers: Supervised
) -> None:
    """The plan goes on without it. Drive processes that die meanwhile are replaced once hints can be sent."""
    ids, later = site.named(*range(120, 160)), site.named(*range(220, 225))
    plan = await site.submit(slowly(ids))
    await some_are_accepted(site, ids, 10)
    pids = [workers.child(queue).pid for queue in ("control", "prepare", "drive")]
    own.valkey.kill()
    away = accepted(site, ids)
    await some_are_accepted(site, ids, away + 8)
    dead = workers.kill_pool(DRIVE_QUEUE)
    own.valkey.start()
    waited = await new_drivers(site, dead, within=10)
    print(f"new drive processes {waited:.1f} s after the broker's return")  # noqa: T201
    began = time.monotonic()
    plan_later = await site.submit(slowly(later))
    assert await site.ended(plan_later, within=40) == "succeeded"
    print(f"a new plan is done {time.monotonic() - began:.1f} s later")  # noqa: T201
    await assert_each_was_sent_once(site, plan, ids)
    assert [workers.child(queue).pid for queue in ("control", "prepare", "drive")] == pids


async def test_a_worker_whose_processes_are_all_busy_is_not_taken_for_deaf(
    site: Site, own: Embedded, workers: Supervised
) -> None:
    """Messages wait for it longer than a deaf one would be given; they expire meanwhile."""
    pid = workers.child(DRIVE_QUEUE).pid
    app = Celery(broker=own.urls.redis_url, set_as_current=False)
    with redis.Redis.from_url(own.urls.redis_url) as client:
        for _ in range(4):
            app.send_task(DRIVE_TASK, queue=DRIVE_QUEUE, expires=1, ignore_result=True)
        try:
            end = time.monotonic() + SILENT_SECONDS + 2
            while time.monotonic() < end:
                assert client.llen(DRIVE_QUEUE) > 0
                assert workers.child(DRIVE_QUEUE).pid == pid
                await asyncio.sleep(0.2)
            assert "worker_deaf" not in workers.log(DRIVE_QUEUE)
        finally:
            client.delete(DRIVE_QUEUE)


async def test_a_deaf_consumer_is_ended_warmly_and_started_anew(site: Site, own: Embedded, workers: Supervised) -> None:
    """It stops consuming without knowing it, as after some reconnects. One of its processes dies, and no hint helps;
    the other one is sending, finishes that, and gives its lease back."""
    ids = site.named(*range(230, 300))
    worker = workers.child(DRIVE_QUEUE)
    pid, restarts, pool = worker.pid, worker.restarts, workers.pool(DRIVE_QUEUE)
    app = Celery(broker=own.urls.redis_url, set_as_current=False)
    app.control.cancel_consumer(DRIVE_QUEUE, destination=[workers.node(DRIVE_QUEUE)], reply=True, timeout=5)
    workers.kill_pool(DRIVE_QUEUE, but=1)
    began = time.monotonic()
    plan = await site.submit(slowly(ids))
    await eventually(
        lambda: worker.restarts > restarts, deadline=SILENT_SECONDS + RESTART_SECONDS, message="it is restarted"
    )
    print(f"restarted after {time.monotonic() - began:.1f} s")  # noqa: T201
    assert worker.pid != pid
    at_restart = accepted(site, ids)
    assert at_restart < len(ids)
    await new_drivers(site, pool, within=RESTART_SECONDS)
    await eventually(lambda: accepted(site, ids) > at_restart, deadline=20, message="the plan goes on")
    await assert_each_was_sent_once(site, plan, ids)
    said = workers.log(DRIVE_QUEUE)
    assert "worker_deaf" in said
    assert "worker_ended_hard" not in said


async def test_a_worker_that_hangs_is_ended_hard_and_started_anew(
    site: Site, own: Embedded, workers: Supervised
) -> None:
    """Its main thread minds no signal any more."""
    ids = site.named(*range(320, 325))
    worker = workers.child("prepare")
    restarts = worker.restarts
    app = Celery(broker=own.urls.redis_url, set_as_current=False)
    app.control.broadcast("hang", arguments={"seconds": 100}, destination=[workers.node("prepare")])
    began = time.monotonic()
    plan = await site.submit(slowly(ids))
    await eventually(
        lambda: worker.restarts > restarts, deadline=SILENT_SECONDS + RESTART_SECONDS, message="it is restarted"
    )
    print(f"restarted after {time.monotonic() - began:.1f} s")  # noqa: T201
    assert await site.ended(plan, within=40) == "succeeded"
    assert "worker_ended_hard" in workers.log("prepare")
    assert [site.received(i) for i in ids] == [1] * 5
