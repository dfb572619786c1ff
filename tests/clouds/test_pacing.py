"""The shared limiter on a real Valkey: it paces across processes, never bursts, slows down once and climbs back."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio as aioredis

from orchestrator.clouds import pacing
from orchestrator.clouds.pacing import LATE, Limiter, LocalPace, Permit, make_redis
from orchestrator.clouds.pacing_local import ServerClock
from tests.clouds.pace import away, begin, gaps
from tests.clouds.raw import Connection, raw_server
from tests.parts import eventually


@pytest.fixture
async def valkey(redis_url: str) -> AsyncIterator["aioredis.Redis"]:
    """With a row of slots for `p|write` that is free from now on."""
    client = make_redis(redis_url)
    await begin(client)
    yield client
    await client.aclose()


async def test_slots_are_evenly_spaced_and_begin_now(valkey: "aioredis.Redis") -> None:
    limiter = Limiter(valkey, "p|write", 100.0)
    before = time.monotonic()
    permits = list(await limiter.reserve(10))
    assert before - LATE <= permits[0].at <= time.monotonic() + 0.05
    assert gaps(permits) == pytest.approx([0.01] * 9, abs=1e-4)


async def test_slots_can_begin_later(valkey: "aioredis.Redis") -> None:
    before = time.monotonic()
    permits = await Limiter(valkey, "p|write", 100.0).reserve(2, 0.5)
    assert before + 0.5 - LATE <= permits[0].at <= time.monotonic() + 0.5 + LATE


async def test_processes_share_one_row_of_slots(redis_url: str) -> None:
    """Each limiter stands for a process: they share nothing but Redis."""
    clients = [make_redis(redis_url) for _ in range(4)]
    limiters = [Limiter(client, "p|write", 200.0) for client in clients]

    async def take(limiter: Limiter) -> list[Permit]:
        return [permit for _ in range(10) for permit in await limiter.reserve(5)]

    permits = [p for taken in await asyncio.gather(*map(take, limiters)) for p in taken]
    assert len(permits) == 200
    times = sorted(p.at for p in permits)
    assert (len(times) - 1) / (times[-1] - times[0]) <= 200.0 * 1.02
    # In no sliding tenth of a second is there much more than a tenth of the rate.
    assert max(sum(t <= u < t + 0.1 for u in times) for t in times) <= 22
    for client in clients:
        await client.aclose()


async def test_projects_and_kinds_of_call_have_paces_of_their_own(valkey: "aioredis.Redis") -> None:
    await Limiter(valkey, "p|write", 1.0).reserve(10)
    await begin(valkey, "p|read")
    other = await Limiter(valkey, "p|read", 1.0).reserve(1)
    assert other[0].at <= time.monotonic() + 0.05


async def test_missed_slots_are_lost_and_no_burst_follows(valkey: "aioredis.Redis") -> None:
    limiter = Limiter(valkey, "p|write", 50.0)
    first = list(await limiter.reserve(3))
    await asyncio.sleep(0.2)  # a stall: all three slots go by
    assert all(limiter.late(p) for p in first)
    now = time.monotonic()
    later = list(await limiter.reserve(10))
    assert later[0].at >= now - LATE
    assert gaps(later) == pytest.approx([0.02] * 9, abs=1e-4)


async def test_a_stalled_exchange_does_not_move_the_slots(
    valkey: "aioredis.Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Redis said before the loop stalled counts from when it was said."""
    monkeypatch.setattr(pacing, "REDIS_PATIENCE", 5.0)
    limiter = Limiter(valkey, "p|write", 100.0)
    first = await limiter.reserve(1)
    script = limiter._reserve
    answered = 0.0

    async def stalled_script(**given: Any) -> Any:
        nonlocal answered
        answer = await script(**given)
        answered = time.monotonic()
        time.sleep(0.5)  # noqa: ASYNC251  the stall
        return answer

    limiter._reserve = stalled_script  # type: ignore[assignment]
    stalled = await limiter.reserve(5)
    limiter._reserve = script
    following = await limiter.reserve(5)
    assert not limiter.degraded
    assert stalled[0].at <= max(answered, first[0].at + 0.01) + LATE
    assert gaps(stalled) == pytest.approx([0.01] * 4, abs=1e-4)
    assert min(gaps([*first, *stalled, *following])) >= 0.0095


def test_redis_clock_is_known_from_its_tightest_exchange() -> None:
    clock = ServerClock()
    assert not clock.sample(1000.0, 10.0, 10.001)
    assert clock.local(1001.0) == pytest.approx(11.0, abs=0.001)
    assert not clock.sample(1005.0, 15.0, 15.4)  # a stall: the answer may be anything from 0 to 0.4 s old
    assert clock.local(1001.0) == pytest.approx(11.0, abs=0.001)
    assert clock.sample(500.0, 20.0, 20.001)  # another server took over, with another clock
    assert clock.local(501.0) == pytest.approx(21.0, abs=0.001)
    assert clock.server(21.0) == pytest.approx(501.0, abs=0.001)


async def test_only_what_lies_within_the_horizon_is_handed_out(valkey: "aioredis.Redis") -> None:
    limiter = Limiter(valkey, "p|write", 10.0)
    first = list(await limiter.reserve(100, within=0.95))
    assert len(first) in {9, 10}
    assert await limiter.reserve(5, within=0.3) == []
    more = list(await limiter.reserve(1))
    assert gaps([first[-1], *more]) == pytest.approx([0.1], abs=LATE)
    everything = [*first, *more, *await limiter.reserve(1000)]
    assert everything[-1].at <= time.monotonic() + pacing.AHEAD


def test_a_permit_is_late_after_20_milliseconds() -> None:
    permit = Permit(at=100.0, epoch=0)
    assert not permit.late(99.0)
    assert not permit.late(100.019)
    assert permit.late(100.021)


async def test_acquire_waits_for_its_slot(valkey: "aioredis.Redis") -> None:
    limiter = Limiter(valkey, "p|read", 20.0)
    began = time.monotonic()
    for _ in range(5):
        await limiter.acquire()
    assert time.monotonic() - began >= 0.19


async def test_a_slow_down_cuts_the_rate_once_for_all_permits_of_its_epoch(valkey: "aioredis.Redis") -> None:
    limiter = Limiter(valkey, "p|write", 100.0)
    permits = list(await limiter.reserve(5))
    for permit in permits:
        await limiter.throttled(0.0, permit.epoch)
    assert limiter.learned_rate == pytest.approx(70.0, abs=1.5)
    newer = (await limiter.reserve(1))[0]
    await limiter.throttled(0.0, newer.epoch)
    assert limiter.learned_rate == pytest.approx(49.0, abs=2.5)


async def test_a_slow_down_reaches_the_other_processes(redis_url: str) -> None:
    one, two = make_redis(redis_url), make_redis(redis_url)
    mine, theirs = Limiter(one, "p|write", 100.0), Limiter(two, "p|write", 100.0)
    permit = (await mine.reserve(1))[0]
    before = time.monotonic()
    await mine.throttled(1.5, permit.epoch)
    after = time.monotonic()
    slots = list(await theirs.reserve(2))
    assert before + 1.5 - LATE <= slots[0].at <= after + 1.5 + LATE
    assert gaps(slots)[0] == pytest.approx(1 / 70, abs=0.002)
    await one.aclose()
    await two.aclose()


async def test_permits_of_before_the_slow_down_are_late_while_it_lasts(valkey: "aioredis.Redis") -> None:
    limiter = Limiter(valkey, "p|write", 10.0)
    permits = list(await limiter.reserve(2, 0.2))
    assert not limiter.late(permits[1])
    await limiter.throttled(1.5, permits[0].epoch)
    assert limiter.late(permits[1])
    assert not limiter.late((await limiter.reserve(1))[0])


async def test_in_a_long_block_nothing_is_handed_out(valkey: "aioredis.Redis") -> None:
    limiter = Limiter(valkey, "p|write", 10.0)
    await limiter.throttled(600.0, 0)
    assert await limiter.reserve(1) == []
    await limiter.throttled(1.2, 0)
    assert await limiter.reserve(1) == []  # the longer one counts


async def test_after_a_block_the_slots_are_spaced_too(valkey: "aioredis.Redis") -> None:
    limiter = Limiter(valkey, "p|write", 10.0)
    before = time.monotonic()
    await limiter.throttled(1.2, 0)
    after = time.monotonic()
    permits = [*await limiter.reserve(2), *await limiter.reserve(2)]
    assert gaps(permits) == pytest.approx([1 / 7] * 3, rel=0.05)
    assert before + 1.2 - LATE <= permits[0].at <= after + 1.2 + LATE


async def test_the_rate_climbs_back_to_the_ceiling_and_no_further(
    valkey: "aioredis.Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pacing, "CLIMB", 1.0)  # a second from nothing to the ceiling, rather than fifty
    limiter = Limiter(valkey, "p|write", 100.0)
    await limiter.throttled(0.0, 0)
    began = time.monotonic()
    cut = limiter.learned_rate
    await asyncio.sleep(0.1)  # the climb is a matter of time
    await limiter.reserve(1)
    passed = time.monotonic() - began
    assert cut < limiter.learned_rate <= min(100.0, cut + 100.0 * (passed + 0.05))

    async def climbed() -> bool:
        await limiter.reserve(1)
        return limiter.learned_rate >= 100.0

    await eventually(climbed, message="the rate is at its ceiling again", every=0.05)
    await limiter.reserve(1)
    assert limiter.learned_rate == 100.0


async def test_cuts_end_at_a_floor(valkey: "aioredis.Redis") -> None:
    limiter = Limiter(valkey, "p|write", 100.0)
    for _ in range(40):
        await limiter.throttled(0.0, 10**6)
    assert limiter.learned_rate == pytest.approx(2.0, abs=0.2)


async def test_a_learned_rate_is_where_a_redis_without_memory_begins(valkey: "aioredis.Redis") -> None:
    limiter = Limiter(valkey, "p|write", 100.0, learned=30.0)
    assert gaps(list(await limiter.reserve(2)))[0] == pytest.approx(1 / 30, rel=0.05)


async def test_a_flushed_redis_neither_fails_nor_repeats_cuts(valkey: "aioredis.Redis") -> None:
    """Its scripts are gone, too; and permits of an old epoch still cut only once."""
    limiter = Limiter(valkey, "p|write", 100.0)
    for _ in range(3):
        await limiter.throttled(0.0, (await limiter.reserve(1))[0].epoch)
    permits = await limiter.reserve(3)
    await valkey.flushdb()
    await valkey.script_flush()
    before = limiter.learned_rate
    for permit in permits:
        await limiter.throttled(0.0, permit.epoch)
    assert limiter.learned_rate == pytest.approx(before * 0.7, rel=0.1)
    assert not limiter.degraded


async def test_a_lower_ceiling_counts_at_once(valkey: "aioredis.Redis") -> None:
    await Limiter(valkey, "p|write", 100.0).reserve(1)
    assert gaps(list(await Limiter(valkey, "p|write", 10.0).reserve(2)))[0] == pytest.approx(0.1, rel=0.01)


async def test_the_state_shows_what_is_allowed_and_used(valkey: "aioredis.Redis") -> None:
    limiter = Limiter(valkey, "p|write", 50.0)
    fresh = await limiter.state()
    assert (fresh.ceiling, fresh.allowed, fresh.used_per_second, fresh.degraded) == (50.0, 50.0, 0.0, False)
    assert (fresh.last_429_at, fresh.blocked_until) == (None, None)
    await limiter.reserve(10)

    async def all_used() -> bool:
        return (await limiter.state()).used_per_second == pytest.approx(2.0)

    await eventually(all_used, message="ten slots in seconds that are over", deadline=4.0)
    await limiter.throttled(30.0, 0)
    state = await limiter.state()
    assert state.allowed == pytest.approx(35.0)
    assert state.last_429_at == pytest.approx(time.time(), abs=5)
    assert state.blocked_until == pytest.approx(time.time() + 30, abs=5)


async def test_without_redis_the_pace_goes_on_at_half_the_rate_and_says_so() -> None:
    async with away() as client:
        limiter = Limiter(client, "p|write", 40.0)
        permits = [*await limiter.reserve(3), *await limiter.reserve(3)]
        assert gaps(permits) == pytest.approx([1 / 20] * 5, abs=1e-3)
        state = await limiter.state()
        assert (state.degraded, state.allowed, limiter.degraded) == (True, 20.0, True)


async def test_without_redis_a_slow_down_still_counts() -> None:
    async with away() as client:
        limiter = Limiter(client, "p|write", 100.0)
        permits = await limiter.reserve(2)
        for permit in permits:
            await limiter.throttled(0.5, permit.epoch)
        assert limiter.learned_rate == pytest.approx(70.0)
        assert (await limiter.reserve(1))[0].at >= time.monotonic() + 0.4


async def test_a_redis_that_hangs_costs_a_quarter_of_a_second_and_is_not_asked_again_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pacing, "RETRY_REDIS", 60.0)
    tries = 0

    async def hang(connection: Connection) -> None:
        nonlocal tries
        tries += 1
        while await connection.reader.read(1000):
            pass

    async with raw_server(hang) as server:
        client = make_redis(server.url.replace("http", "redis") + "/0")
        limiter = Limiter(client, "p|write", 1000.0)
        began = time.monotonic()
        await limiter.reserve(1)
        assert 0.2 <= time.monotonic() - began < 1.0
        for _ in range(20):
            await limiter.reserve(1)
        assert tries == 1
        await client.aclose()


def test_a_plans_own_pace_spaces_its_slots() -> None:
    pace = LocalPace(10.0)
    assert pace.reserve(3, 100.0) == pytest.approx([100.0, 100.1, 100.2])
    assert pace.reserve(1, 100.05) == pytest.approx([100.3])
    assert pace.reserve(2, 200.0) == pytest.approx([200.0, 200.1])
