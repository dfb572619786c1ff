"""What the limiter's tests share."""

import itertools
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import redis.asyncio as aioredis

from orchestrator.clouds.pacing import Permit, make_redis

NOWHERE = "redis://127.0.0.1:1/0"
KEY = "p|write"


def hash_of(key: str = KEY) -> str:
    """Where Redis keeps a pace."""
    return f"rebuild:pace:{{{key}}}"


async def begin(redis: "aioredis.Redis", key: str = KEY) -> None:
    """A pace that Redis knows and that nobody uses: its next slot is free now."""
    await redis.hset(hash_of(key), mapping={"tat": 1})


@asynccontextmanager
async def away() -> AsyncIterator["aioredis.Redis"]:
    """A client of a Redis that isn't there."""
    client = make_redis(NOWHERE)
    try:
        yield client
    finally:
        await client.aclose()


def gaps(permits: Iterable[Permit]) -> list[float]:
    """Seconds between slots, in order."""
    times = sorted(p.at for p in permits)
    return [b - a for a, b in itertools.pairwise(times)]


def pace_of(permits: Iterable[Permit]) -> float:
    """Slots a second, from the first one to the last one."""
    between = gaps(permits)
    return len(between) / sum(between)


def most_in_a_second(permits: Iterable[Permit]) -> int:
    """Of the permits' slots, the most in any sliding second."""
    times = sorted(p.at for p in permits)
    return max((sum(t <= u <= t + 1.0 for u in times) for t in times), default=0)


def never_a_burst(permits: Iterable[Permit], rate: float) -> bool:
    """The bound that holds whatever happens to Redis: in any sliding second the rate, 5 % and one call more."""
    return most_in_a_second(permits) <= rate * 1.05 + 1


def spaced(permits: Iterable[Permit], rate: float) -> bool:
    """No two slots are much closer than the rate allows. How Redis' clock stands is known to some milliseconds only,
    on a loaded machine."""
    return min(gaps(permits), default=1.0) >= 0.9 / rate - 0.01
