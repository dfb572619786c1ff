"""The tasks: thin. Each opens a loop, does its piece, and leaves; the ledger tells the next one what is to be done."""

import asyncio
import os
from uuid import UUID

from celery.exceptions import Ignore

from orchestrator.clouds.pacing import make_redis
from orchestrator.hints import DRIVE_TASK, PREPARE_TASK, TICK_TASK, Hints
from orchestrator.ledger.engine import open_engine
from orchestrator.log import get_logger
from workers.app import app, pipe, settings
from workers.driver.slice import run_slice
from workers.prepare.plan import prepare_plan
from workers.runtime import TOKENS, process_name, run
from workers.tick import tick_once

log = get_logger(__name__)


@app.task(name=DRIVE_TASK)
def drive() -> None:
    """Drives projects for a slice, then asks for the next one.

    A slice that ends with an exception asks for nothing: the watchdog hints at the free process after a moment, and
    so an error that comes again at once is not repeated without a pause.
    """

    async def work(stop: asyncio.Event) -> None:
        await run_slice(settings.database_url, settings.redis_url, TOKENS, stop, api_url=settings.api_url)
        if not stop.is_set():
            hints = Hints(settings.redis_url)
            await hints.drive()
            hints.close()

    run(work, pipe)


@app.task(name=PREPARE_TASK)
def prepare(plan_id: str) -> None:
    """Prepares one plan."""
    try:
        plan = UUID(plan_id)
    except ValueError:
        raise Ignore from None

    async def work(_: asyncio.Event) -> None:
        redis = make_redis(settings.redis_url)
        try:
            async with open_engine(settings.database_url, name="rebuild-prepare", pool_size=4) as engine:
                await prepare_plan(engine, redis, TOKENS, plan, process_name(os.getpid()))
        finally:
            await redis.aclose()

    run(work)


@app.task(name=TICK_TASK)
def tick() -> None:
    """Moves what time moves, and hints at what is due."""

    async def work(_: asyncio.Event) -> None:
        async with open_engine(settings.database_url, name="rebuild-tick", pool_size=1) as engine:
            found = await tick_once(engine)
        hints = Hints(settings.redis_url)
        try:
            # Together, so that a broker which doesn't answer holds the tick up once.
            sending = [hints.prepare(plan_id) for plan_id in found.to_prepare]
            await asyncio.gather(*sending, *([hints.drive()] if found.undriven else []))
        finally:
            hints.close()

    run(work)
