"""The cap: what the cloud says it allows keeps the rate below it, for everybody, for ten minutes or until it says
another."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import redis.asyncio as aioredis

from orchestrator.clouds import pacing
from orchestrator.clouds.pacing import Limiter, make_redis
from tests.clouds.pace import KEY, away, begin, gaps, hash_of


@pytest.fixture
async def valkey(redis_url: str) -> AsyncIterator["aioredis.Redis"]:
    client = make_redis(redis_url)
    await begin(client)
    yield client
    await client.aclose()


async def test_the_rate_that_the_cloud_allows_is_everybodys_at_once(redis_url: str, valkey: "aioredis.Redis") -> None:
    other_client = make_redis(redis_url)
    mine, theirs = Limiter(valkey, KEY, 100.0), Limiter(other_client, KEY, 100.0)
    permit = (await mine.reserve(1))[0]
    await mine.throttled(0.0, permit.epoch, allowed_rate=20.0)
    assert mine.learned_rate == pytest.approx(19.0)
    assert gaps(await theirs.reserve(3)) == pytest.approx([1 / 19] * 2, rel=0.01)
    assert (await theirs.state()).cap == pytest.approx(19.0)
    await other_client.aclose()


async def test_the_rate_climbs_to_the_cap_and_after_ten_minutes_to_the_ceiling(
    valkey: "aioredis.Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pacing, "CLIMB", 100.0)
    limiter = Limiter(valkey, KEY, 100.0)
    await limiter.throttled(0.0, 0, allowed_rate=20.0)
    await asyncio.sleep(0.05)  # the climb is a matter of time
    await limiter.reserve(1)
    assert limiter.learned_rate == pytest.approx(19.0)
    kept = await valkey.hgetall(hash_of())
    assert float(kept[b"capped"]) - float(kept[b"seen"]) == pytest.approx(600e6, abs=5e6)
    await valkey.hset(hash_of(), "capped", f"{float(kept[b'seen']):.6f}")
    await asyncio.sleep(0.05)
    await limiter.reserve(1)
    assert limiter.learned_rate == 100.0
    assert (await limiter.state()).cap is None


async def test_the_newest_figure_counts(valkey: "aioredis.Redis", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "CLIMB", 100.0)
    limiter = Limiter(valkey, KEY, 100.0)
    for allowed in (20.0, 60.0, 10.0):
        await limiter.throttled(0.0, 0, allowed_rate=allowed)
        await asyncio.sleep(0.05)
        await limiter.reserve(1)
        assert limiter.learned_rate == pytest.approx(0.95 * allowed)
    await limiter.throttled(0.0, 10**6)  # without a figure: the last one goes on
    await asyncio.sleep(0.05)
    await limiter.reserve(1)
    assert limiter.learned_rate == pytest.approx(9.5)


async def test_being_told_to_slow_down_below_the_cap_cuts_the_rate_as_ever(valkey: "aioredis.Redis") -> None:
    """Others share the project: each may call as often as the cloud says, all together may not."""
    limiter = Limiter(valkey, KEY, 100.0)
    await limiter.throttled(0.0, 0, allowed_rate=20.0)
    permits = await limiter.reserve(3)
    for permit in permits:
        await limiter.throttled(0.0, permit.epoch, allowed_rate=20.0)
    assert limiter.learned_rate == pytest.approx(19.0 * 0.7, rel=0.05)


async def test_a_cap_above_the_ceiling_leaves_the_ceiling_and_the_cut(valkey: "aioredis.Redis") -> None:
    limiter = Limiter(valkey, KEY, 100.0)
    await limiter.throttled(0.0, 0, allowed_rate=1000.0)
    assert limiter.learned_rate == pytest.approx(70.0, abs=1.5)


async def test_a_cap_below_the_floor_of_cuts_wins(valkey: "aioredis.Redis") -> None:
    limiter = Limiter(valkey, KEY, 100.0)
    await limiter.throttled(0.0, 0, allowed_rate=10 / 60)
    assert limiter.learned_rate == pytest.approx(0.95 * 10 / 60)
    for _ in range(20):
        await limiter.throttled(0.0, 10**6)  # it climbs a little in between, as 2 % of the cap a second
    assert 0.95 * 10 / 60 * 0.0199 <= limiter.learned_rate <= 0.95 * 10 / 60 * 0.7


async def test_an_answer_to_a_call_of_before_the_cut_still_brings_its_figure(valkey: "aioredis.Redis") -> None:
    limiter = Limiter(valkey, KEY, 100.0)
    for _ in range(3):
        await limiter.throttled(0.0, 10**6)
    epoch = (await limiter.reserve(1))[0].epoch
    await limiter.throttled(0.0, 0, allowed_rate=5.0)
    assert limiter.learned_rate == pytest.approx(4.75)
    assert (await limiter.reserve(1))[0].epoch == epoch


@pytest.mark.parametrize("allowed", [0.0, -1.0, float("nan"), float("inf"), float("-inf")])
async def test_figures_that_cant_be_meant_are_passed_over(allowed: float, valkey: "aioredis.Redis") -> None:
    limiter = Limiter(valkey, KEY, 100.0)
    await limiter.throttled(0.0, 0, allowed_rate=allowed)
    assert limiter.learned_rate == pytest.approx(70.0, abs=1.5)
    assert (await limiter.state()).cap is None


async def test_a_cap_outlives_a_flush_where_somebody_knows_it(valkey: "aioredis.Redis") -> None:
    limiter = Limiter(valkey, KEY, 100.0)
    await limiter.throttled(0.0, 0, allowed_rate=20.0)
    await valkey.flushdb()
    await limiter.state()
    other = Limiter(valkey, KEY, 100.0)
    assert (await other.state()).cap == pytest.approx(19.0)
    assert other.learned_rate == pytest.approx(19.0)


async def test_without_redis_the_cap_counts_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "CLIMB", 100.0)
    async with away() as client:
        limiter = Limiter(client, KEY, 100.0)
        await limiter.throttled(0.0, 0, allowed_rate=20.0)
        await asyncio.sleep(0.05)
        await limiter.reserve(1)
        state = await limiter.state()
        assert (limiter.learned_rate, state.cap) == (pytest.approx(19.0), pytest.approx(19.0))
        assert state.allowed == pytest.approx(9.5)
