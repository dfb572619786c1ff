"""A slice: what one drive process does between two yield points. It takes leases up to its share of the projects."""

import asyncio
import math
import os
import time
from dataclasses import dataclass, field

import structlog
from redis import asyncio as aioredis
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from orchestrator.clouds.pacing import make_redis
from orchestrator.clouds.sign_in import TokenCache
from orchestrator.domain.decide import Reason
from orchestrator.errors import CloudError, LeaseLost
from orchestrator.failpoints import failpoint
from orchestrator.hints import Hints
from orchestrator.ledger import drive, projects, tick
from orchestrator.ledger.drive import DueProject
from orchestrator.ledger.engine import open_engine
from orchestrator.ledger.leases import guard
from orchestrator.log import get_logger
from workers.driver.lease import LeaseKeeper
from workers.driver.project import drive_project
from workers.runtime import process_name
from workers.tick import tick_once

log = get_logger(__name__)

SLICE_SECONDS = 60.0
HARD_CAP_SECONDS = 600.0
LOOK_SECONDS = 0.25
"""How often a drive process looks for projects without a driver: a killed one is replaced at its lease's end."""
LIFE_SECONDS = 2.0
"""How often it says that it lives, and ticks."""
CLOUD_TROUBLE_SECONDS = 5.0
"""A project whose cloud could not be signed in to is left alone for this long."""


@dataclass
class Slice:
    """One drive process's work in one event loop; nothing of it crosses a fork or a loop but the tokens."""

    engine: AsyncEngine
    redis: aioredis.Redis
    tokens: TokenCache
    hints: Hints
    stop: asyncio.Event
    api_url: str
    name: str = field(default_factory=lambda: process_name(os.getpid()))
    _said_at: float = float("-inf")
    _processes: int = 1
    _running: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    _yields: dict[int, asyncio.Event] = field(default_factory=dict)
    _not_before: dict[int, float] = field(default_factory=dict)

    async def run(self) -> None:
        """Drives until stopped, or until the slice is over and another process should have its turn."""
        began = time.monotonic()
        try:
            while not self.stop.is_set():
                try:
                    if time.monotonic() > self._said_at + LIFE_SECONDS:
                        self._said_at = time.monotonic()
                        await self._live()
                    await self._look()
                    if await self._over(time.monotonic() - began):
                        break
                except (DBAPIError, OSError, TimeoutError) as e:
                    log.warning("ledger_trouble", error=str(e)[:200])
                await _wait(self.stop, LOOK_SECONDS)
        finally:
            failpoint("slice.end")
            for event in self._yields.values():
                event.set()
            await asyncio.gather(*self._running.values(), return_exceptions=True)
            await self._say_goodbye()

    async def _look(self) -> None:
        """Takes what nobody drives, up to this process's share."""
        for ended, task in list(self._running.items()):
            if task.done():
                del self._running[ended], self._yields[ended]
                self._report(ended, task)
        async with self.engine.connect() as conn:
            due = await drive.due_projects(conn)
        share = math.ceil(len(due) / self._processes)
        for project in due:
            if len(self._running) >= share:
                break
            if project.driven or project.project in self._running:
                continue
            if time.monotonic() < self._not_before.get(project.project, 0.0):
                continue
            lease = await LeaseKeeper.take(self.engine, project.project, project.deployment, self.name)
            if lease:
                self._yields[project.project] = asyncio.Event()
                self._running[project.project] = asyncio.create_task(self._drive(project, lease))

    async def _live(self) -> None:
        """Says that this process lives, and ticks: every drive process does, so that the service goes on without a
        beat; a lock keeps it to one at a time."""
        async with self.engine.begin() as conn:
            await tick.seen(conn, self.name, "drive")
            self._processes = max(1, await tick.living(conn, "drive"))
        found = await tick_once(self.engine)
        for plan_id in found.to_prepare:
            await self.hints.prepare(plan_id)

    async def _drive(self, project: DueProject, lease: LeaseKeeper) -> None:
        stop = self._yields[project.project]
        try:
            with structlog.contextvars.bound_contextvars(project=project.project, fence=lease.own.fence):
                await drive_project(self.engine, self.redis, self.tokens, project, lease, stop, self.api_url)
        except CloudError as e:
            await self._say_trouble(project, lease, e)
            raise
        finally:
            try:
                await lease.give_back()
            except (DBAPIError, OSError, TimeoutError) as e:  # it ends by itself
                log.warning("lease_not_given_back", project=project.project, error=str(e)[:200])

    async def _say_trouble(self, project: DueProject, lease: LeaseKeeper, error: CloudError) -> None:
        """The cloud can't be signed in to: the project's plans say so until a driver gets in."""
        reason = Reason(
            code=error.reason_code, message=f"Nothing is sent until the cloud answers again: {error.message}"
        )
        async with self.engine.begin() as conn:
            await guard(conn, lease.own.lease, lease.own.fence)
            await projects.note_trouble(conn, project.project, reason)

    def _report(self, project: int, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        causes = _leaves(error)
        lost = [c for c in causes if isinstance(c, LeaseLost)]  # whatever else broke then is a consequence
        for cause in lost[:1] or causes:
            match cause:
                case None:
                    pass
                case LeaseLost():
                    log.warning("lease_lost", project=project)
                case CloudError():
                    self._not_before[project] = time.monotonic() + CLOUD_TROUBLE_SECONDS
                    log.warning("cloud_trouble", project=project, error=cause.message)
                case DBAPIError() | OSError() | TimeoutError():
                    self._not_before[project] = time.monotonic() + 1.0
                    log.warning("ledger_trouble", project=project, error=str(cause)[:200])
                case _:
                    log.error("driver_failed", project=project, exc_info=cause)
                    self._not_before[project] = time.monotonic() + 1.0

    async def _over(self, seconds: float) -> bool:
        """A yield point: leave only if somebody's project lacks a driver, or at the hard cap; never without a broker,
        for nobody could be told to come back."""
        if seconds < SLICE_SECONDS:
            return False
        try:
            await self.redis.ping()
        except (aioredis.RedisError, OSError):
            return False
        if seconds > HARD_CAP_SECONDS:
            return True
        async with self.engine.connect() as conn:
            return any(not p.driven for p in await drive.due_projects(conn))

    async def _say_goodbye(self) -> None:
        try:
            async with self.engine.begin() as conn:
                await tick.gone(conn, self.name)
        except (DBAPIError, OSError) as e:
            log.warning("ledger_trouble", error=str(e)[:200])


async def run_slice(
    database_url: str, redis_url: str, tokens: TokenCache, stop: asyncio.Event, *, api_url: str
) -> None:
    """Opens what a slice needs, in this loop, runs it, and closes everything."""
    redis = make_redis(redis_url)
    hints = Hints(redis_url)
    try:
        async with open_engine(database_url, name="rebuild-drive", pool_size=8) as engine:
            await Slice(engine=engine, redis=redis, tokens=tokens, hints=hints, stop=stop, api_url=api_url).run()
    finally:
        hints.close()
        await redis.aclose()


def _leaves(error: BaseException | None) -> list[BaseException | None]:
    """The errors of groups of groups, one by one."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for e in error.exceptions for leaf in _leaves(e)]
    return [error]


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
