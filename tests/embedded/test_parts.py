"""Facts about the suite's own fixtures: each test gets parts of its own."""

import asyncio

import asyncpg
import pytest
from redis import asyncio as redis

from tests.parts import Databases, eventually


async def test_two_databases_share_nothing(databases: Databases, blank_database_url: str) -> None:
    other = databases.create_blank()
    try:
        for url in (blank_database_url, other):
            conn = await asyncpg.connect(url)
            await conn.execute("CREATE TABLE mine (id int)")  # would exist already, were they one
            await conn.close()
    finally:
        databases.drop(other)


async def test_a_migrated_database_has_the_ledgers_tables_and_no_rows(database_url: str) -> None:
    conn = await asyncpg.connect(database_url)
    try:
        assert await conn.fetchval("SELECT count(*) FROM jobs") == 0
        assert await conn.fetchval("SELECT count(*) FROM alembic_version") == 1
    finally:
        await conn.close()


async def test_a_database_is_dropped_with_what_is_still_connected(databases: Databases) -> None:
    url = databases.create_blank()
    conn = await asyncpg.connect(url)
    await asyncio.to_thread(databases.drop, url)
    await eventually(conn.is_closed)
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await asyncpg.connect(url)


@pytest.mark.parametrize("turn", [1, 2])
async def test_each_test_gets_an_empty_redis(redis_url: str, turn: int) -> None:
    async with redis.Redis.from_url(redis_url) as client:
        assert await client.dbsize() == 0
        await client.set("left-behind", turn)


async def test_eventually_fails_with_the_last_answer_and_not_before_the_deadline() -> None:
    answers = iter([0, 0, 7])
    assert await eventually(lambda: next(answers)) == 7
    with pytest.raises(AssertionError, match=r"the tide did not hold within 0.05 s; last: \[\]"):
        await eventually(list, deadline=0.05, message="the tide")
