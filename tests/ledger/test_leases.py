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


async def taken(conn: AsyncConnection, name: str, holder: str) -> int:
    """The fence that the holder gets."""
    fence = await acquire(conn, name, holder, 60)
    assert fence is not None
    return fence


async def test_a_living_lease_is_nobody_elses_and_every_new_holder_gets_a_higher_fence(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        first = await taken(conn, "drive:1", "a")
        assert await acquire(conn, "drive:1", "b", 60) is None
        assert await acquire(conn, "drive:1", "a", 60) is None
        assert await acquire(conn, "drive:2", "b", 60) is not None
        await expire(conn, "drive:1")
        second = await taken(conn, "drive:1", "b")
        await release(conn, "drive:1", second)
        assert first < second < await taken(conn, "drive:1", "a")


async def test_a_fence_grows_though_the_databases_clock_went_back(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        await taken(conn, "drive:1", "a")
        await conn.execute(text("UPDATE leases SET fence = fence + 3600000000, expires_at = '-infinity'"))
        before = (await conn.execute(text("SELECT fence FROM leases"))).scalar_one()
        assert await taken(conn, "drive:1", "b") == before + 1


async def test_an_old_fence_renews_releases_and_guards_nothing(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        old = await taken(conn, "drive:1", "a")
        await expire(conn, "drive:1")
        new = await taken(conn, "drive:1", "b")
        assert not await renew(conn, "drive:1", old, 60)
        await release(conn, "drive:1", old)
        assert await acquire(conn, "drive:1", "c", 60) is None
        with pytest.raises(LeaseLost):
            await guard(conn, "drive:1", old)
        await guard(conn, "drive:1", new, unexpired=True)


async def test_an_expired_lease_still_guards_records_but_not_sending_and_can_be_renewed(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        fence = await taken(conn, "drive:1", "a")
        await expire(conn, "drive:1")
        await guard(conn, "drive:1", fence)
        with pytest.raises(LeaseLost):
            await guard(conn, "drive:1", fence, unexpired=True)
        assert await renew(conn, "drive:1", fence, 60)
        await guard(conn, "drive:1", fence, unexpired=True)


async def test_nobody_takes_over_while_a_guarded_transaction_is_open(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine:
        async with transaction(engine) as conn:
            fence = await taken(conn, "drive:1", "a")
            await expire(conn, "drive:1")
        async with engine.connect() as guarded:
            await guard(guarded, "drive:1", fence)
            async with engine.connect() as conn:
                await conn.execute(text("SET LOCAL lock_timeout = '100ms'"))
                with pytest.raises(DBAPIError, match="lock timeout"):
                    await acquire(conn, "drive:1", "b", 60)
            await guarded.rollback()
        async with transaction(engine) as conn:
            assert await taken(conn, "drive:1", "b") > fence


async def test_of_many_who_ask_at_once_one_gets_it(database_url: str) -> None:
    async with open_engine(database_url, name="test", pool_size=8) as engine:

        async def ask(holder: str) -> int | None:
            async with transaction(engine) as conn:
                return await acquire(conn, "drive:1", holder, 60)

        got = await asyncio.gather(*(ask(f"h{i}") for i in range(8)))
        assert sum(fence is not None for fence in got) == 1
