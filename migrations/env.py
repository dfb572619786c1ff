"""Alembic's environment: async engine, one migrating process at a time, short locks."""

import asyncio

from alembic import context
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine

from orchestrator.ledger.tables import Base

LOCK = 0x6D69_6772
"""Advisory lock of a migration: a second process waits, then finds nothing left to do."""


def _run(connection: Connection) -> None:
    # A migration that waits for a lock makes everything behind it wait too: better to fail and be run again.
    connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": LOCK})
    connection.execute(text("SET lock_timeout = '5s'"))
    connection.execute(text("SET statement_timeout = '60s'"))
    connection.commit()
    try:
        context.configure(connection=connection, target_metadata=Base.metadata, compare_type=True,
                          compare_server_default=True, transaction_per_migration=True)  # fmt: skip
        with context.begin_transaction():
            context.run_migrations()
    finally:
        connection.rollback()
        connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": LOCK})
        connection.commit()


async def _online() -> None:
    engine = create_async_engine(context.config.attributes["url"])
    try:
        async with engine.connect() as connection:
            await connection.run_sync(_run)
    finally:
        await engine.dispose()


asyncio.run(_online())
