"""Whether the service can work, and what it has to do: for /readyz and /metrics."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import redis.asyncio as redis
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from orchestrator.ledger.clouds import cloud_records
from orchestrator.ledger.migrate import is_current
from orchestrator.ledger.plans import plans_by_status, unfinished_jobs_by_state
from orchestrator.service.views import ReadyView

PING_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class Work:
    """What there is to do."""

    plans: Mapping[str, int]
    """By status."""
    jobs: Mapping[str, int]
    """Of unfinished plans, by state."""
    limiters: Mapping[str, Mapping[str, Any]]
    """By cloud, as last published."""


class Readiness:
    """Asks the database and the broker. Migrated once is migrated for good, so that is asked only until it is so."""

    def __init__(self, engine: AsyncEngine, database_url: str, broker: redis.Redis):
        self._engine = engine
        self._database_url = database_url
        self._broker = broker
        self._migrated = False

    async def look(self) -> ReadyView:
        """Without the broker it is degraded, not down: plans are taken, and workers find them by themselves."""
        database, broker = await asyncio.gather(self._database(), self._ping())
        migrated = database and await self._current()
        ready = database and migrated
        return ReadyView(
            status=("ok" if broker else "degraded") if ready else "unavailable",
            database="ok" if database else "away",
            migrations="ok" if migrated else ("behind" if database else "unknown"),
            broker="ok" if broker else "away",
        )

    async def _database(self) -> bool:
        try:
            async with asyncio.timeout(PING_SECONDS), self._engine.connect() as conn:
                await conn.execute(text("SELECT 1"))
        except (SQLAlchemyError, OSError):
            return False
        return True

    async def _current(self) -> bool:
        if not self._migrated:
            try:
                self._migrated = await is_current(self._database_url)
            except (SQLAlchemyError, OSError):
                return False
        return self._migrated

    async def _ping(self) -> bool:
        try:
            async with asyncio.timeout(PING_SECONDS):
                await self._broker.ping()
        except (RedisError, OSError):
            return False
        return True


async def work(engine: AsyncEngine) -> Work:
    """What there is to do, by counters: cheap however many jobs there are."""
    async with engine.connect() as conn:
        clouds = await cloud_records(conn)
        return Work(
            plans=await plans_by_status(conn),
            jobs=await unfinished_jobs_by_state(conn),
            limiters={name: c.limiter for name, c in clouds.items() if c.limiter is not None},
        )


async def work_if_there(engine: AsyncEngine) -> Work | None:
    """As `work`; None while the ledger can't be read."""
    try:
        async with asyncio.timeout(PING_SECONDS):
            return await work(engine)
    except (SQLAlchemyError, OSError):
        return None
