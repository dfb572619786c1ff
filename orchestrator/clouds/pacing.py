"""The rate limit: one pace for each project and kind of call, shared by all processes through Redis.

A pace is a row of equally spaced slots on Redis' clock (GCRA with burst 0): whoever reserves gets the next ones, and
a slot that is missed is lost, so a stall is never followed by a burst. A cloud's "slow down" cuts the pace for
everybody at once, and it climbs back by itself (AIMD). Without Redis a process goes on by itself at a share of the
pace that it last knew.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis.asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from orchestrator.clouds.pacing_scripts import RESERVE, STATE, THROTTLED
from orchestrator.log import get_logger

log = get_logger(__name__)

LATE = 0.020
"""Seconds after its time up to which a permit may be used; measured in embedded.md's terms: later ones bunch up."""
REDIS_PATIENCE = 0.25
"""Seconds for one call to Redis."""
RETRY_REDIS = 1.0
"""Seconds between tries while Redis is away."""
LOCAL_SHARE = 0.5
"""Of the last known rate, while Redis is away: another process may be doing the same."""
CUT = 0.7
CLIMB = 0.02
"""Of the ceiling, per second without a "slow down"."""
FLOOR = 0.02
"""Of the ceiling: the slowest that cuts lead to."""
DEFAULT_BLOCK = 1.0
"""Seconds to stop for where the cloud doesn't say how long."""
MAX_BLOCK = 3600.0


@dataclass(frozen=True, kw_only=True, order=True)
class Permit:
    """The right to make one call at one time."""

    at: float
    """`time.monotonic()` of its slot."""
    epoch: int
    """How often the pace had been cut when it was handed out."""

    def late(self, now: float | None = None) -> bool:
        """Whether its slot is missed: throw it away and reserve anew."""
        return (time.monotonic() if now is None else now) > self.at + LATE


@dataclass(frozen=True, kw_only=True)
class LimiterState:
    """What the dashboard shows of a pace. Rates are calls per second; times are Unix times by Redis' clock."""

    ceiling: float
    allowed: float
    used_per_second: float
    """Slots of the last 5 s, per second."""
    last_429_at: float | None
    blocked_until: float | None
    degraded: bool
    """Redis is away; this process goes on by itself at a share of the rate."""


class LocalPace:
    """Slots of one process: a plan's own `rate`, and a limiter without Redis. `rate` in calls per second."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._next = 0.0

    def reserve(self, n: int, start: float) -> list[float]:
        """The next `n` slots at or after `start`, on the caller's clock."""
        first = max(start, self._next)
        self._next = first + n / self.rate
        return [first + i / self.rate for i in range(n)]

    def hold_until(self, at: float) -> None:
        """No slot before that time."""
        self._next = max(self._next, at)

    @property
    def next(self) -> float:
        """The earliest slot that is still free."""
        return self._next


class _Clock:
    """Redis' clock against this process's monotonic one, from the tightest exchange of late.

    A stalled event loop makes an exchange look long, and its time says little: such samples are passed over.
    """

    def __init__(self) -> None:
        self._offset = 0.0
        self._width = float("inf")
        self._at = 0.0

    def sample(self, server: float, sent: float, received: float) -> None:
        """Redis said `server` (seconds) between two local times."""
        width, offset = received - sent, server - (sent + received) / 2
        grown = self._width + (received - self._at) * 1e-3
        jumped = abs(offset - self._offset) > (width + grown) / 2 + 0.001
        if width <= grown or jumped:
            self._offset, self._width, self._at = offset, width, received

    def local(self, server: float) -> float:
        """The local time of a time of Redis."""
        return server - self._offset


class Limiter:
    """The shared pace of one kind of call to one project.

    `key`: the project and `read` or `write`; `rate_per_second`: the ceiling; `learned`: the rate to begin with where
    Redis knows none. One instance for each event loop.
    """

    def __init__(
        self, redis: "aioredis.Redis", key: str, rate_per_second: float, *, learned: float | None = None
    ) -> None:
        self._redis = redis
        self._keys = [f"rebuild:pace:{{{key}}}", f"rebuild:pace:{{{key}}}:used"]
        self._ceiling = rate_per_second
        self._rate = min(learned or rate_per_second, rate_per_second)
        self._epoch = 0
        self._blocked = 0.0
        self._last_slot = 0.0
        self._owed = False
        self._last_429: float | None = None
        self._local = LocalPace(self._rate * LOCAL_SHARE)
        self._used: list[float] = []
        self._clock = _Clock()
        self._away = False
        self._retry_at = 0.0
        self._reserve = redis.register_script(RESERVE)
        self._throttled = redis.register_script(THROTTLED)
        self._state = redis.register_script(STATE)

    @property
    def learned_rate(self) -> float:
        """Calls per second last known to be bearable: for the ledger, to start from after Redis lost its data."""
        return self._rate

    @property
    def degraded(self) -> bool:
        """Whether Redis is away."""
        return self._away

    async def reserve(
        self, n: int, not_before_seconds: float = 0.0, *, within: float | None = None
    ) -> Sequence[Permit]:
        """The next `n` slots, none earlier than `not_before_seconds` from now.

        With `within`, only those that lie within that many seconds from now: fewer, or none, and the others stay free.
        """
        if self._owed and not self._away:
            # The cloud asked to slow down while Redis was away: everybody else hears of it now.
            self._owed = False
            await self.throttled(max(0.0, self._local.next - time.monotonic()), 2**31)
        earliest = time.monotonic() + not_before_seconds
        horizon = within if within is not None else 1e9
        # Slots handed out locally while Redis was away count too: its return brings no burst.
        wait = max(earliest, self._local.next) - time.monotonic()
        answer = await self._call(self._reserve, n, _micro(max(0.0, wait)), _micro(horizon))
        if answer is None:
            return self._reserve_locally(n, earliest, horizon)
        first, interval, granted, rate, epoch, blocked = answer
        self._learn(float(rate), int(epoch), float(blocked) / 1e6)
        start, step = self._clock.local(float(first) / 1e6), float(interval) / 1e6
        self._last_slot = max(self._last_slot, start + (int(granted) - 1) * step)
        return [Permit(at=start + i * step, epoch=self._epoch) for i in range(int(granted))]

    async def acquire(self) -> Permit:
        """Waits for one slot, and for another if that one is missed."""
        while True:
            (permit,) = await self.reserve(1)
            await asyncio.sleep(permit.at - time.monotonic())
            if not self.late(permit):
                return permit

    def late(self, permit: Permit) -> bool:
        """Whether to throw the permit away: missed, or overtaken by a "slow down" that this process knows of."""
        now = time.monotonic()
        return permit.late(now) or (permit.epoch < self._epoch and now < self._clock.local(self._blocked))

    async def throttled(self, retry_after: float | None, epoch: int) -> None:
        """The cloud asked to slow down, in answer to a call with a permit of that epoch.

        Everybody stops for `retry_after` seconds (1 where it isn't said). The rate is cut once for all the calls
        that were permitted before the cut.
        """
        block = min(DEFAULT_BLOCK if retry_after is None else max(0.0, retry_after), MAX_BLOCK)
        self._last_429 = time.time()
        answer = await self._call(self._throttled, epoch, _micro(block), CUT, FLOOR)
        if answer is None:
            if epoch >= self._epoch:
                self._learn(max(self._rate * CUT, self._ceiling * FLOOR), self._epoch + 1, self._blocked)
                self._owed = True
            self._local.hold_until(time.monotonic() + block)
            return
        rate, new_epoch, blocked = answer
        self._learn(float(rate), int(new_epoch), float(blocked) / 1e6)
        log.warning("cloud_throttled", key=self._keys[0], allowed=round(self._rate, 3), retry_after=retry_after)

    async def state(self) -> LimiterState:
        """The pace as it is now; by this process's own knowledge while Redis is away."""
        answer = await self._call(self._state)
        now = time.monotonic()
        if answer is None:
            self._used = [at for at in self._used if at > now - 5]
            return LimiterState(
                ceiling=self._ceiling,
                allowed=self._rate * LOCAL_SHARE,
                used_per_second=sum(at <= now for at in self._used) / 5,
                last_429_at=self._last_429,
                blocked_until=None,
                degraded=True,
            )
        rate, epoch, blocked, last, used, server_now = answer
        self._learn(float(rate), int(epoch), float(blocked) / 1e6)
        return LimiterState(
            ceiling=self._ceiling,
            allowed=self._rate,
            used_per_second=int(used) / 5,
            last_429_at=float(last) / 1e6 if float(last) else None,
            blocked_until=float(blocked) / 1e6 if float(blocked) > float(server_now) else None,
            degraded=False,
        )

    def _learn(self, rate: float, epoch: int, blocked: float) -> None:
        self._rate, self._epoch, self._blocked = rate, epoch, blocked
        self._local.rate = max(rate * LOCAL_SHARE, 1e-6)

    def _reserve_locally(self, n: int, earliest: float, horizon: float) -> Sequence[Permit]:
        limit = time.monotonic() + horizon
        first = max(earliest, self._local.next)
        n = min(n, max(0, int((limit - first) * self._local.rate) + 1)) if first <= limit else 0
        slots = self._local.reserve(n, earliest) if n else []
        self._used = [*(at for at in self._used if at > time.monotonic() - 5), *slots]
        return [Permit(at=at, epoch=self._epoch) for at in slots]

    async def _call(self, script: Any, *args: float) -> list[Any] | None:
        """A script's answer, after its first value (Redis' time) went to the clock; None where Redis is away."""
        now = time.monotonic()
        if self._away and now < self._retry_at:
            return None
        try:
            async with asyncio.timeout(REDIS_PATIENCE):
                sent = time.monotonic()
                values: list[Any] = await script(
                    keys=self._keys, args=[repr(a) for a in (self._ceiling, self._rate, self._epoch, CLIMB, *args)]
                )
        except (RedisError, OSError, TimeoutError) as e:
            if not self._away:
                log.warning("limiter_degraded", key=self._keys[0], error=type(e).__name__, rate=self._local.rate)
                self._local.hold_until(max(self._clock.local(self._blocked), self._last_slot + 1 / self._local.rate))
            self._away, self._retry_at = True, time.monotonic() + RETRY_REDIS
            return None
        if self._away:
            log.info("limiter_recovered", key=self._keys[0])
        self._away = False
        self._clock.sample(float(values[0]) / 1e6, sent, time.monotonic())
        return values[1:]


def make_redis(url: str) -> "aioredis.Redis":
    """A client for limiters: waits for a free connection, gives up soon, and never tries a reservation twice."""
    pool = aioredis.BlockingConnectionPool.from_url(
        url,
        max_connections=8,
        timeout=REDIS_PATIENCE,
        socket_timeout=REDIS_PATIENCE,
        socket_connect_timeout=REDIS_PATIENCE,
        retry=Retry(NoBackoff(), 0),
    )
    return aioredis.Redis.from_pool(pool)


def _micro(seconds: float) -> int:
    return round(seconds * 1e6)
