"""The limiter while Redis forgets, stalls, refuses, dies and comes back with another clock: in no sliding second are
there more calls than the rate allows, 5 % and one.

Where a test takes all the slots that are handed out, it counts slots and not calls: that is the harder bound, and the
test machine's pauses don't matter to it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import redis.asyncio as aioredis

from orchestrator.clouds import pacing
from orchestrator.clouds.pacing import AHEAD, SHORT_AHEAD, Limiter, Permit, make_redis
from tests.clouds.pace import KEY, away, begin, gaps, hash_of, most_in_a_second, never_a_burst, spaced
from tests.clouds.raw import Connection, raw_server
from tests.parts import Servers, eventually
from workers.driver.send import HORIZON

Mishap = Callable[["aioredis.Redis"], Awaitable[object]]


@pytest.fixture
async def valkey(redis_url: str) -> AsyncIterator["aioredis.Redis"]:
    client = make_redis(redis_url)
    yield client
    await client.aclose()


async def all_slots(limiters: list[Limiter], seconds: float) -> list[Permit]:
    """Everything that is handed out for so long, to users who take whatever there is."""
    taken: list[Permit] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for limiter in limiters:
            taken += await limiter.reserve(10_000, within=HORIZON)
        await asyncio.sleep(0.05)
    return taken


async def flush_db(redis: "aioredis.Redis") -> None:
    await redis.flushdb()


async def flush_all(redis: "aioredis.Redis") -> None:
    await redis.flushdb()
    await redis.script_flush()


async def lose_the_slot(redis: "aioredis.Redis") -> None:
    await redis.hdel(hash_of(), "tat")


async def flush_scripts(redis: "aioredis.Redis") -> None:
    await redis.script_flush()


def test_nobody_reserves_further_ahead_than_a_loss_is_waited_out() -> None:
    assert HORIZON <= AHEAD


@pytest.mark.parametrize("mishap", [flush_db, flush_all, lose_the_slot, flush_scripts])
@pytest.mark.parametrize("rate", [80.0, 0.9])
async def test_a_loss_of_redis_memory_brings_no_burst(valkey: "aioredis.Redis", mishap: Mishap, rate: float) -> None:
    """Two users hold all slots of two seconds when it happens, the second one the later ones; the first knows only
    its own."""
    await begin(valkey)
    limiters = [Limiter(valkey, KEY, rate, learned=rate) for _ in range(2)]
    before = [*await limiters[0].reserve(2), *await limiters[1].reserve(10_000), *await all_slots(limiters[1:], 0.3)]
    await mishap(valkey)
    after = await all_slots(limiters, 1.0 + 2 / rate)
    assert after, "the pace goes on"
    assert never_a_burst([*before, *after], rate), most_in_a_second([*before, *after])
    assert spaced([*before, *after], rate)
    assert not any(limiter.degraded for limiter in limiters)


async def test_after_a_loss_the_slots_of_this_process_are_not_used_again(valkey: "aioredis.Redis") -> None:
    await begin(valkey)
    limiter = Limiter(valkey, KEY, 20.0)
    held = await limiter.reserve(1000)
    await valkey.hset(hash_of(), mapping={"tat": 1})  # older data: the row is there, and free from now on
    after = await all_slots([limiter], 0.3)
    assert after
    assert min(p.at for p in after) >= held[-1].at + 0.9 / 20
    assert never_a_burst([*held, *after], 20.0)


async def test_a_block_outlives_the_loss_where_somebody_knows_it(valkey: "aioredis.Redis") -> None:
    await begin(valkey)
    limiter = Limiter(valkey, KEY, 20.0)
    await limiter.throttled(60.0, 0)
    await valkey.flushdb()
    assert await limiter.reserve(1) == []
    other = Limiter(valkey, KEY, 20.0)
    state = await other.state()
    assert state.blocked_until == pytest.approx(time.time() + 60, abs=15)
    assert other.learned_rate == pytest.approx(14.0, abs=0.5)


# Taking over


@pytest.mark.parametrize("rate", [50.0, 0.5])
async def test_a_new_driver_after_a_flush_waits_for_what_the_old_one_may_hold(
    valkey: "aioredis.Redis", rate: float
) -> None:
    await begin(valkey)
    old = Limiter(valkey, KEY, rate, learned=rate)
    held = list(await old.reserve(1000))
    await valkey.flushdb()
    new = Limiter(valkey, KEY, rate, learned=rate)
    slots = await all_slots([new], 0.3 + 1 / rate)
    assert slots
    assert min(p.at for p in slots) >= held[-1].at + 0.9 / rate
    assert never_a_burst([*held, *slots], rate)


async def test_a_new_driver_without_redis_waits_for_what_the_old_one_may_hold(valkey: "aioredis.Redis") -> None:
    await begin(valkey)
    held = list(await Limiter(valkey, KEY, 50.0, learned=50.0).reserve(1000))
    async with away() as nowhere:
        new = Limiter(nowhere, KEY, 50.0, learned=50.0)
        slots = await all_slots([new], 1.5)
        assert new.degraded
    assert slots
    assert min(p.at for p in slots) >= held[-1].at + 0.9 / 50
    assert gaps(slots) == pytest.approx([1 / 25] * (len(slots) - 1), rel=0.01)


async def test_a_new_driver_where_redis_knows_the_row_waits_for_nothing(valkey: "aioredis.Redis") -> None:
    await begin(valkey)
    await Limiter(valkey, KEY, 50.0, learned=50.0).reserve(1)
    began = time.monotonic()
    (permit,) = await Limiter(valkey, KEY, 50.0, learned=50.0).reserve(1)
    assert permit.at <= max(began + 0.1, time.monotonic())


async def test_a_new_deployment_waits_a_third_of_a_second_and_no_more(valkey: "aioredis.Redis") -> None:
    for rate in (50.0, 0.1):
        before = time.monotonic()
        (permit,) = await Limiter(valkey, f"new|{rate}", rate).reserve(1)
        assert before + SHORT_AHEAD - 0.01 <= permit.at <= time.monotonic() + SHORT_AHEAD + 0.01


# Stalls


async def drive(limiter: Limiter, stop: asyncio.Event, used: list[Permit]) -> None:
    """As the driver does: a few slots at a time, each used unless it comes late."""
    while not stop.is_set():
        permits = await limiter.reserve(max(1, int(limiter.learned_rate * 0.05)), 0.015, within=HORIZON)
        for permit in permits:
            await asyncio.sleep(permit.at - time.monotonic())
            if not limiter.late(permit):
                used.append(permit)
        if not permits:
            await asyncio.sleep(0.05)


async def test_stalls_of_redis_and_of_the_loop_bring_no_burst(redis_url: str, valkey: "aioredis.Redis") -> None:
    await begin(valkey)
    clients = [make_redis(redis_url) for _ in range(2)]
    limiters = [Limiter(client, KEY, 40.0) for client in clients]
    used: list[Permit] = []
    stop = asyncio.Event()
    degraded = False
    async with asyncio.TaskGroup() as tasks:
        for limiter in limiters:
            tasks.create_task(drive(limiter, stop, used))
        await eventually(lambda: len(used) > 20)
        await valkey.execute_command("CLIENT", "PAUSE", "900", "ALL")
        await eventually(lambda: any(limiter.degraded for limiter in limiters))
        degraded = True
        await eventually(lambda: not any(limiter.degraded for limiter in limiters), deadline=20)
        seen = len(used)
        await eventually(lambda: len(used) > seen + 10, deadline=20)
        time.sleep(0.7)  # noqa: ASYNC251  the loop's stall
        seen = len(used)
        await eventually(lambda: len(used) > seen + 10, deadline=20)
        stop.set()
    assert degraded
    assert never_a_burst(used, 40.0), most_in_a_second(used)
    for client in clients:
        await client.aclose()


async def test_many_who_wait_are_served_in_order_and_without_a_burst_over_a_flush(valkey: "aioredis.Redis") -> None:
    await begin(valkey, "p|read")
    limiters = [Limiter(valkey, "p|read", 40.0) for _ in range(3)]
    used: list[list[Permit]] = [[], [], []]

    async def wait(number: int) -> None:
        used[number].append(await limiters[number].acquire())

    waiting = [asyncio.create_task(wait(i % 3)) for i in range(90)]
    await eventually(lambda: sum(map(len, used)) > 20)
    await valkey.flushdb()
    await asyncio.gather(*waiting)
    everything = [permit for permits in used for permit in permits]
    assert len(everything) == 90
    assert never_a_burst(everything, 40.0), most_in_a_second(everything)


async def test_a_slow_way_to_redis_delays_permits_and_loses_none(
    valkey: "aioredis.Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that takes longer than a permit may be late would otherwise bring missed slots only."""
    monkeypatch.setattr(pacing, "REDIS_PATIENCE", 5.0)  # the machine may add to the slowness
    await begin(valkey, "p|read")
    limiter = Limiter(valkey, "p|read", 200.0)
    script = limiter._reserve

    async def slow(**given: Any) -> Any:
        await asyncio.sleep(0.05)
        answer = await script(**given)
        await asyncio.sleep(0.05)
        return answer

    limiter._reserve = slow  # type: ignore[assignment]
    used = [await asyncio.wait_for(limiter.acquire(), 20) for _ in range(5)]
    assert not limiter.degraded
    assert never_a_burst(used, 200.0)


# Errors


@pytest.mark.parametrize(
    "error",
    [
        "LOADING Redis is loading the dataset in memory",
        "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
        "MASTERDOWN Link with MASTER is down",
        "CLUSTERDOWN The cluster is down",
        "NOPERM this user has no permissions to run the 'evalsha' command",
        "ERR whatever",
    ],
)
async def test_a_redis_that_answers_an_error_counts_as_away(error: str) -> None:
    async def refuse(connection: Connection) -> None:
        while data := await connection.reader.read(65536):
            refused = b"EVALSHA" in data or b"SCRIPT" in data
            connection.writer.write(f"-{error}\r\n".encode() if refused else b"+OK\r\n" * data.count(b"*"))

    async with raw_server(refuse) as server:
        client = make_redis(server.url.replace("http", "redis") + "/0")
        limiter = Limiter(client, KEY, 40.0)
        permits = await limiter.reserve(3)
        assert gaps(permits) == pytest.approx([1 / 20] * 2, abs=1e-3)
        assert limiter.degraded
        assert (await limiter.state()).degraded
        await client.aclose()


async def test_rubbish_from_redis_counts_as_away(valkey: "aioredis.Redis") -> None:
    limiter = Limiter(valkey, KEY, 40.0)

    async def rubbish(**_: object) -> list[bytes]:
        return [b"hello"]

    limiter._reserve = rubbish  # type: ignore[assignment]
    assert len(await limiter.reserve(3)) == 3
    assert limiter.degraded


async def test_rubbish_in_redis_is_passed_over(valkey: "aioredis.Redis") -> None:
    fields = ("rate", "tat", "epoch", "blocked", "climbed", "last", "cap", "capped", "calm", "shares", "seen")
    for value in ("rubbish", "nan", "-1", ""):
        await valkey.flushdb()
        await valkey.hset(hash_of(), mapping=dict.fromkeys(fields, value))
        limiter = Limiter(valkey, KEY, 40.0)
        slots = await all_slots([limiter], 0.1)
        assert not limiter.degraded, value
        assert gaps(slots) == pytest.approx([1 / 40] * (len(slots) - 1), abs=0.01), value


@pytest.mark.parametrize("trouble", ["read only", "out of memory"])
async def test_a_redis_that_takes_no_writes_counts_as_away_until_it_does(
    trouble: str, servers: Servers, valkey: "aioredis.Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    if servers.embedded is None:
        pytest.skip("changes the server's settings")
    monkeypatch.setattr(pacing, "RETRY_REDIS", 0.05)
    begun, ended = (
        (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE"))
        if trouble == "read only"
        else (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0"))
    )
    await begin(valkey)
    limiter = Limiter(valkey, KEY, 40.0)
    permits = list(await limiter.reserve(5))
    await valkey.execute_command(*begun)
    try:
        permits += await limiter.reserve(5)
        assert limiter.degraded
        await asyncio.sleep(0.06)  # the time between two tries
        assert (await limiter.state()).degraded, "reading works, which is no use"
    finally:
        await valkey.execute_command(*ended)

    async def well() -> bool:
        return not (await limiter.state()).degraded

    await eventually(well, message="the end of the trouble")
    permits += await limiter.reserve(5)
    assert len(permits) == 15
    assert never_a_burst(permits, 40.0)
    assert spaced(permits, 40)
