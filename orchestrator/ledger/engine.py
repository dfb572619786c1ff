"""Engines and transactions. An engine belongs to one event loop: open it there, close it there."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from orchestrator.errors import SettingsInvalid


def sqlalchemy_url(database_url: str) -> str:
    """`database_url` with the asyncpg driver named, as SQLAlchemy wants it. Raises `SettingsInvalid`."""
    scheme, separator, rest = database_url.partition("://")
    if not separator or scheme not in ("postgresql", "postgres", "postgresql+asyncpg"):
        raise SettingsInvalid("REBUILD_DATABASE_URL must be postgresql://user:password@host:port/name")
    return "postgresql+asyncpg://" + rest


@asynccontextmanager
async def open_engine(database_url: str, *, name: str, pool_size: int = 5) -> AsyncIterator[AsyncEngine]:
    """An engine for this loop, closed at the end; `name` shows in pg_stat_activity.

    Commits are durable (`synchronous_commit = on`) whatever the server's default: an intent that was committed must
    survive. JIT is off: it costs more than every statement here takes.
    """
    engine = create_async_engine(
        sqlalchemy_url(database_url),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=10,
        pool_pre_ping=True,
        connect_args={
            "timeout": 5,
            "command_timeout": 60,
            "server_settings": {
                "application_name": name,
                "synchronous_commit": "on",
                "jit": "off",
                "idle_in_transaction_session_timeout": "15s",
                "timezone": "UTC",
            },
        },
    )
    try:
        yield engine
    finally:
        await engine.dispose()


@asynccontextmanager
async def transaction(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """One transaction: committed at the end, rolled back on any error."""
    async with engine.begin() as conn:
        yield conn
