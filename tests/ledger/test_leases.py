"""Leases: one holder at a time, and a fence that never repeats."""

import asyncio

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.errors import LeaseLost
from orchestrator.ledger.engine import open_engine, transaction
from orchestrator.ledger.leases import acquire, guard, release, renew


async def expire(conn: AsyncConnection, name: str) -> None:
    await conn.execute(
        text("UPDATE leases SET expires_at = clock_timestamp() - interval '1 s' WHERE name = :n"), {"n": name}
    )


async def test_a_living_lease_is_nobody_elses_and_every_new_holder_gets_a_higher_fence(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        assert await acquire(conn, "drive:1", "a", 60) == 1
        assert await acquire(conn, "drive:1", "b", 60) is None
        assert await acquire(conn, "drive:1", "a", 60) is None
        assert await acquire(conn, "drive:2", "b", 60) == 1
        await expire(conn, "drive:1")
        assert await acquire(conn, "drive:1", "b", 60) == 2
        await release(conn, "drive:1", 2)
        assert await acquire(conn, "drive:1", "a", 60) == 3


async def test_an_old_fence_renews_releases_and_guards_nothing(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        await acquire(conn, "drive:1", "a", 60)
        await expire(conn, "drive:1")
        await acquire(conn, "drive:1", "b", 60)
        assert not await renew(conn, "drive:1", 1, 60)
        await release(conn, "drive:1", 1)
        assert await acquire(conn, "drive:1", "c", 60) is None
        with pytest.raises(LeaseLost):
            await guard(conn, "drive:1", 1)
        await guard(conn, "drive:1", 2, unexpired=True)


async def test_an_expired_lease_still_guards_records_but_not_sending_and_can_be_renewed(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        await acquire(conn, "drive:1", "a", 60)
        await expire(conn, "drive:1")
        await guard(conn, "drive:1", 1)
        with pytest.raises(LeaseLost):
            await guard(conn, "drive:1", 1, unexpired=True)
        assert await renew(conn, "drive:1", 1, 60)
        await guard(conn, "drive:1", 1, unexpired=True)


async def test_nobody_takes_over_while_a_guarded_transaction_is_open(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine:
        async with transaction(engine) as conn:
            await acquire(conn, "drive:1", "a", 60)
            await expire(conn, "drive:1")
        async with engine.connect() as guarded:
            await guard(guarded, "drive:1", 1)
            async with engine.connect() as conn:
                await conn.execute(text("SET LOCAL lock_timeout = '100ms'"))
                with pytest.raises(DBAPIError, match="lock timeout"):
                    await acquire(conn, "drive:1", "b", 60)
            await guarded.rollback()
        async with transaction(engine) as conn:
            assert await acquire(conn, "drive:1", "b", 60) == 2


async def test_of_many_who_ask_at_once_one_gets_it(database_url: str) -> None:
    async with open_engine(database_url, name="test", pool_size=8) as engine:

        async def ask(holder: str) -> int | None:
            async with transaction(engine) as conn:
                return await acquire(conn, "drive:1", holder, 60)

        got = await asyncio.gather(*(ask(f"h{i}") for i in range(8)))
        assert sorted(got, key=lambda f: f is None) == [1] + [None] * 7
