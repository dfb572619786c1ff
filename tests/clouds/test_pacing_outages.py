"""The limiter over outages and failovers of Redis: half the pace alone, a share each together, and no burst at either
switch, whatever the clock of the server that takes over."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis.asyncio as aioredis

from orchestrator.clouds import pacing
from orchestrator.clouds.pacing import Limiter, Permit, make_redis
from tests.clouds.pace import KEY, begin, gaps, hash_of, most_in_a_second, never_a_burst, pace_of, spaced
from tests.parts import Servers, eventually

TIMES = ("tat", "blocked", "climbed", "last", "capped", "calm", "seen")


@pytest.fixture
async def valkey(redis_url: str) -> AsyncIterator["aioredis.Redis"]:
    client = make_redis(redis_url)
    await begin(client)
    yield client
    await client.aclose()


@pytest.fixture
def server(servers: Servers) -> Iterator[Any]:
    """The suite's own Valkey, to be stopped and started; its data is kept."""
    if servers.embedded is None:
        pytest.skip("stops the server")
    yield servers.embedded.valkey
    if servers.embedded.valkey.pid is None:
        servers.embedded.valkey.start()


async def take(limiters: list[Limiter], stop: asyncio.Event) -> list[Permit]:
    """Everything that is handed out until then, to users who take whatever there is and a second ahead."""

    async def one(limiter: Limiter) -> list[Permit]:
        taken: list[Permit] = []
        while not stop.is_set():
            taken += await limiter.reserve(10_000, within=1.0)
            await asyncio.sleep(0.05)
        return taken

    return [permit for taken in await asyncio.gather(*map(one, limiters)) for permit in taken]


async def broken(**_: object) -> None:
    raise ConnectionRefusedError


async def acquainted(redis_url: str, number: int, rate: float) -> list[Limiter]:
    """As many who share the pace, and know it."""
    limiters = [Limiter(make_redis(redis_url), KEY, rate) for _ in range(number)]

    async def all_know() -> bool:
        for limiter in limiters:
            await limiter.reserve(1, within=1.0)
        return all(limiter._users == number and not limiter.degraded for limiter in limiters)

    await eventually(all_know)
    return limiters


@pytest.mark.parametrize("users", [1, 3])
async def test_a_long_outage_is_gone_through_at_a_share_each_and_without_a_burst(
    users: int, server: Any, redis_url: str, valkey: "aioredis.Redis"
) -> None:
    rate = 60.0
    clients = [make_redis(redis_url) for _ in range(users)]
    limiters = [Limiter(client, KEY, rate) for client in clients]
    stop = asyncio.Event()
    taking = asyncio.create_task(take(limiters, stop))
    await asyncio.sleep(0.5)  # some seconds with Redis, some without, some with
    went = time.monotonic()
    await asyncio.to_thread(server.stop)
    await eventually(lambda: all(limiter.degraded for limiter in limiters), message="all know")
    await asyncio.sleep(4.0)
    assert all(limiter.degraded for limiter in limiters)
    shares = [(await limiter.state()).allowed for limiter in limiters]
    await asyncio.to_thread(server.start)
    back = time.monotonic()
    await eventually(lambda: not any(limiter.degraded for limiter in limiters), message="all are back")
    await asyncio.sleep(5.0)
    stop.set()
    permits = await taking
    assert shares == pytest.approx([rate * (0.5 if users == 1 else 1 / users)] * users, rel=0.01)
    during = [p for p in permits if went + 3.0 <= p.at <= back]
    assert len(during) >= 10, "the pace went on"
    # Without Redis everybody's slots have a phase of their own: one more each.
    assert most_in_a_second(permits) <= rate * 1.05 + users
    late = [p for p in permits if p.at > back + 4.5]
    assert pace_of(late) == pytest.approx(rate, rel=0.05), "the full pace at the end"
    for client in clients:
        await client.aclose()


async def test_a_killed_redis_that_lost_its_data_brings_no_burst(
    server: Any, redis_url: str, valkey: "aioredis.Redis"
) -> None:
    limiters = [Limiter(valkey, KEY, 40.0, learned=40.0), Limiter(make_redis(redis_url), KEY, 40.0, learned=40.0)]
    stop = asyncio.Event()
    taking = asyncio.create_task(take(limiters, stop))
    await asyncio.sleep(0.5)
    await valkey.flushdb()
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)
    await asyncio.sleep(4.0)
    stop.set()
    permits = await taking
    assert not any(limiter.degraded for limiter in limiters)
    assert most_in_a_second(permits) <= 40.0 * 1.05 + 2
    await limiters[1]._redis.aclose()


@pytest.mark.parametrize("case", ["data lost", "long quiet", "newcomer", "noticed"])
async def test_who_comes_first_after_an_outage_leaves_the_others_their_shares(
    case: str, redis_url: str, valkey: "aioredis.Redis"
) -> None:
    """The others still go on by themselves; the first lost Redis as well, made no call while it was away, or is
    new."""
    rate = 60.0
    limiters = await acquainted(redis_url, 3, rate)
    first, others = limiters[0], limiters[1:]
    scripts = {limiter: limiter._reserve for limiter in limiters}
    stop = asyncio.Event()
    taking = [asyncio.create_task(take(others, stop))]
    for limiter in limiters if case == "noticed" else others:
        limiter._reserve = broken  # type: ignore[assignment]
    if case == "noticed":
        await first.reserve(1)

    def just_failed() -> bool:
        soon = time.monotonic() + 0.7 * pacing.RETRY_REDIS
        return all(other._used and other._retry_at > soon for other in others)

    await eventually(just_failed, message="the others go by themselves, and won't try for a while")
    if case == "data lost":
        await valkey.flushdb()
    elif case != "noticed":
        await shift(valkey, -pacing.QUIET, ("seen",))
    if case == "newcomer":
        limiters.append(first := Limiter(make_redis(redis_url), KEY, rate))
    for limiter, script in scripts.items():
        limiter._reserve = script
    taking.append(asyncio.create_task(take([first], stop)))
    await eventually(lambda: not any(o.degraded for o in others), message="all are back")
    back = time.monotonic()
    await asyncio.sleep(4.5)
    stop.set()
    permits = [permit for taken in taking for permit in await taken]
    assert most_in_a_second(permits) <= rate * 1.05 + 3
    late = [p for p in permits if p.at > back + 4.0]
    assert pace_of(late) == pytest.approx(rate, rel=0.05), "the full pace at the end"
    for limiter in limiters:
        await limiter._redis.aclose()


async def test_who_misses_redis_for_a_moment_does_not_go_beside_the_others(
    redis_url: str, valkey: "aioredis.Redis"
) -> None:
    """They noticed nothing, and have the whole rate."""
    rate = 60.0
    limiters = await acquainted(redis_url, 3, rate)
    stop = asyncio.Event()
    taking = asyncio.create_task(take(limiters, stop))
    script = limiters[0]._reserve
    limiters[0]._reserve = broken  # type: ignore[assignment]
    await eventually(lambda: limiters[0].degraded)
    limiters[0]._reserve = script
    await eventually(lambda: not limiters[0].degraded)
    await asyncio.sleep(1.5)
    stop.set()
    assert never_a_burst(await taking, rate)
    for limiter in limiters:
        await limiter._redis.aclose()


async def test_tries_are_a_second_apart_however_long_they_take(valkey: "aioredis.Redis") -> None:
    """So the time in which somebody goes on by itself, though Redis is back, has a bound."""
    limiter = Limiter(valkey, KEY, 60.0)
    tried: list[float] = []

    async def hang(**_: object) -> None:
        tried.append(time.monotonic())
        await asyncio.sleep(60)

    limiter._reserve = hang  # type: ignore[assignment]

    async def twice() -> bool:
        await limiter.reserve(1)
        return len(tried) == 2

    await eventually(twice)
    assert limiter.degraded
    assert limiter._retry_at <= tried[1] + pacing.RETRY_REDIS


async def test_one_loss_after_another_does_not_make_anybody_forget_how_many_share(
    redis_url: str, valkey: "aioredis.Redis"
) -> None:
    limiters = await acquainted(redis_url, 3, 60.0)
    await valkey.flushdb()
    await limiters[0].reserve(1)
    limiters[0]._reserve = broken  # type: ignore[assignment]
    await limiters[0].reserve(1)
    assert limiters[0].degraded
    limiters[0]._state = broken  # type: ignore[assignment]
    assert (await limiters[0].state()).allowed == pytest.approx(20.0, rel=0.01)
    for limiter in limiters:
        await limiter._redis.aclose()


async def test_when_redis_returns_there_is_no_burst(valkey: "aioredis.Redis", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "RETRY_REDIS", 0.05)
    limiter = Limiter(valkey, KEY, 100.0)
    before = list(await limiter.reserve(5))
    script = limiter._reserve
    limiter._reserve = broken  # type: ignore[assignment]
    during = list(await limiter.reserve(5))
    assert limiter.degraded
    limiter._reserve = script
    await asyncio.sleep(0.06)  # the time between two tries
    after = list(await limiter.reserve(5))
    assert not limiter.degraded
    assert min(gaps([*before, *during, *after])) >= 0.0095
    assert gaps(during) == pytest.approx([0.02] * 4, abs=1e-3)
    assert [p.at for p in after] == sorted(p.at for p in after)
    assert after[0].at >= during[-1].at


async def test_without_redis_nobody_waits_for_it_twice_and_no_slot_is_of_the_past(
    valkey: "aioredis.Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    limiter = Limiter(valkey, KEY, 100.0)
    await limiter.reserve(1)

    async def hang(**_: object) -> None:
        await asyncio.sleep(60)

    limiter._reserve = hang  # type: ignore[assignment]
    (permit,) = await limiter.reserve(1)
    assert permit.at >= time.monotonic() - 0.1, "not of before the wait for Redis"


async def test_a_slow_down_of_an_outage_is_told_to_redis_afterwards(
    valkey: "aioredis.Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two cuts of two epochs, the block and the cap: all of it, once."""
    monkeypatch.setattr(pacing, "RETRY_REDIS", 0.0)
    limiter = Limiter(valkey, KEY, 100.0)
    permit = (await limiter.reserve(1))[0]
    script = limiter._throttled
    limiter._throttled = broken  # type: ignore[assignment]
    await limiter.throttled(0.0, permit.epoch)
    await limiter.throttled(1.5, permit.epoch)  # of before the cut: none more
    assert limiter.learned_rate == pytest.approx(70.0)
    await limiter.throttled(1.5, permit.epoch + 1, allowed_rate=50.0)
    assert limiter.learned_rate == pytest.approx(47.5)
    limiter._throttled = script
    await limiter.reserve(1)
    other = Limiter(valkey, KEY, 100.0)
    slots = list(await other.reserve(2))
    assert slots[0].at > time.monotonic() + 0.3
    assert gaps(slots)[0] == pytest.approx(1 / 47.5, rel=0.02)
    assert (await other.state()).cap == pytest.approx(47.5)
    epoch = slots[0].epoch
    await limiter.reserve(1)
    assert (await other.reserve(1))[0].epoch == epoch


async def test_alone_the_rate_climbs_back_too(monkeypatch: pytest.MonkeyPatch, valkey: "aioredis.Redis") -> None:
    monkeypatch.setattr(pacing, "CLIMB", 5.0)
    limiter = Limiter(valkey, KEY, 100.0)
    limiter._reserve = limiter._throttled = broken  # type: ignore[assignment]
    await limiter.throttled(0.0, 0)
    assert limiter.learned_rate == pytest.approx(70.0)
    await asyncio.sleep(0.1)  # the climb is a matter of time
    await limiter.reserve(1)
    assert limiter.learned_rate == 100.0


# Another server takes over


async def shift(redis: "aioredis.Redis", seconds: float, fields: tuple[str, ...] = TIMES) -> None:
    """As if the clock had gone back by so much: the times kept are that much later than before."""
    kept = await redis.hgetall(hash_of())
    moved = {f: f"{float(kept[f.encode()]) + seconds * 1e6:.6f}" for f in fields if f.encode() in kept}
    await redis.hset(hash_of(), mapping=moved)


@pytest.mark.parametrize("fields", [TIMES, ("tat", "blocked", "climbed")], ids=["all times", "without the last write"])
@pytest.mark.parametrize("seconds", [5.0, 30.0, 3600.0, 1e6, -0.5, -30.0, -3600.0, -1e6])
async def test_a_clock_that_jumps_brings_neither_a_burst_nor_a_standstill(
    seconds: float, fields: tuple[str, ...], valkey: "aioredis.Redis"
) -> None:
    limiter = Limiter(valkey, KEY, 40.0, learned=40.0)
    permits = list(await limiter.reserve(1000))
    if fields is not TIMES and 0 < seconds < 3600:
        fields = ("tat", "climbed")  # a block of half a minute would be taken for what it says
    await shift(valkey, seconds, fields)
    moved = time.monotonic()
    after: list[Permit] = []
    while time.monotonic() < moved + 1.0 or (not after and time.monotonic() < moved + 10):
        after += await limiter.reserve(1000)
        await asyncio.sleep(0.05)
    assert after[0].at <= moved + pacing.AHEAD + 1.5, "the pace goes on once the slots handed out are past"
    assert never_a_burst([*permits, *after], 40.0)
    assert spaced([*permits, *after], 40)
    assert limiter.learned_rate == 40.0


@pytest.mark.parametrize("seconds", [30.0, 1e6])
async def test_a_block_lasts_as_long_as_it_was_said_though_the_clock_went_back(
    seconds: float, valkey: "aioredis.Redis"
) -> None:
    limiter = Limiter(valkey, KEY, 40.0)
    await limiter.throttled(20.0, 0)
    await shift(valkey, seconds)
    state = await Limiter(valkey, KEY, 40.0).state()
    assert state.blocked_until == pytest.approx(time.time() + 20.0, abs=10.0)
    assert await limiter.reserve(1) == []


async def test_a_clock_that_went_forward_does_not_forget_others_slots(redis_url: str, valkey: "aioredis.Redis") -> None:
    """The other user holds the later slots, which by the new clock are long past."""
    clients = [make_redis(redis_url) for _ in range(2)]
    mine, theirs = (Limiter(client, KEY, 40.0, learned=40.0) for client in clients)
    held = [*await mine.reserve(2), *await theirs.reserve(1000)]
    jump = 3600.0
    await shift(valkey, -jump)

    def by_the_new_clock(script: Any, times: tuple[int, ...]) -> Any:
        async def call(**given: Any) -> Any:
            answer = await script(**given)
            return [float(v) + jump * 1e6 if i in times else v for i, v in enumerate(answer)]

        return call

    for limiter in (mine, theirs):
        limiter._reserve = by_the_new_clock(limiter._reserve, (0, 3, 5, 6))
    after: list[Permit] = []

    async def more() -> bool:
        after.extend(await mine.reserve(1000))
        after.extend(await theirs.reserve(1000))
        return len(after) >= 40

    await eventually(more, every=0.05)
    assert never_a_burst([*held, *after], 40.0)
    assert spaced([*held, *after], 40)
    for client in clients:
        await client.aclose()


# Several processes


@pytest.mark.parametrize("mishap", ["none", "flush", "restart"])
async def test_processes_that_share_a_row_stay_within_the_rate_together(
    mishap: str, server: Any, redis_url: str, valkey: "aioredis.Redis"
) -> None:
    rate, number = 50.0, 3
    await begin(valkey, "p|read")
    arguments = ("-m", "tests.clouds.pacing_process", redis_url, "p|read", str(rate), "5")
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=asyncio.subprocess.PIPE)
        for _ in range(number)
    ]

    joined: list[float] = []

    async def all_share() -> bool:
        """And have heard of each other: all of them called after the last one had joined."""
        called = [at for _, at in await valkey.zrange(f"{hash_of('p|read')}:users", 0, -1, withscores=True)]
        if len(called) == number:
            joined.append(max(called))
        return bool(joined) and min(called) > joined[0]

    await eventually(all_share, message="all processes at work", deadline=60)
    if mishap == "flush":
        await valkey.flushdb()
    elif mishap == "restart":
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
    answers = [(await process.communicate())[0].decode().splitlines()[-1] for process in processes]
    permits = [Permit(at=at, epoch=0) for answer in answers for at in json.loads(answer)]
    assert len(permits) > 2 * rate
    # Some noticed the restart, others connected anew: nobody goes by itself unless its next try fails, too.
    assert most_in_a_second(permits) <= rate * 1.05 + (number if mishap == "restart" else 1)
