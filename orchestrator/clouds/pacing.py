"""The rate limit: one pace for each project and kind of call, shared by all processes through Redis.

A pace is a row of equally spaced slots on Redis' clock (GCRA with burst 0): whoever reserves gets the next ones, and
a slot that is missed is lost, so a stall is never followed by a burst. A cloud's "slow down" cuts the pace for
everybody at once, and it climbs back by itself (AIMD). Without Redis a process goes on by itself at a share of the
pace that it last knew.

Nobody is handed a slot further away than `AHEAD`. So when Redis forgot the row (flushed, lost, another server), or a
process can't know what others hold, waiting for that long is all that it takes never to use a slot twice.
"""

import asyncio
import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis.asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from orchestrator.clouds.pacing_local import LocalPace as LocalPace
from orchestrator.clouds.pacing_local import ServerClock
from orchestrator.clouds.pacing_scripts import RESERVE, STATE, THROTTLED
from orchestrator.log import get_logger

log = get_logger(__name__)

LATE = 0.020
"""Seconds after its time up to which a permit may be used; measured in embedded.md's terms: later ones bunch up."""
AHEAD = 2.0
"""Seconds from now within which slots are handed out; what is beyond stays free. The driver's horizon."""
SHORT_AHEAD = 0.3
"""The same for `acquire`, whose users wait for one slot at a time; so a new deployment's first use waits no longer."""
REDIS_PATIENCE = 0.25
"""Seconds for one call to Redis."""
RETRY_REDIS = 1.0
"""Seconds between tries while Redis is away."""
QUIET = 5.0
"""Seconds without anybody's call to Redis after which it may have been away. Whoever comes then, or finds that it
forgot the pace, goes at a share until others, who may go on by themselves, have had the time to return."""
LOCAL_SHARE = 0.5
"""Of the last known rate, while Redis is away: another process may be doing the same. Less where more than two did."""
CUT = 0.7
CLIMB = 0.02
"""Of the ceiling (or the cap), per second without a "slow down"."""
FLOOR = 0.02
"""Of the ceiling (or the cap): the slowest that cuts lead to."""
CAP_SHARE = 0.95
"""Of the rate that the cloud says it allows: its window and our clock are not quite the same."""
CAP_SECONDS = 600.0
"""For how long the cloud's own figure keeps the rate from climbing further."""
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
    cap: float | None = None
    """What the cloud itself said it allows, while that counts."""


class Limiter:
    """The shared pace of one kind of call to one project.

    `key`: the project and `read` or `write`; `rate_per_second`: the ceiling; `learned`: the rate to begin with where
    Redis knows none. It also says that somebody used the key before, who may hold slots up to `AHEAD` away: without
    Redis' memory the first slot is beyond those. One instance for each event loop.
    """

    def __init__(
        self, redis: "aioredis.Redis", key: str, rate_per_second: float, *, learned: float | None = None
    ) -> None:
        name = f"rebuild:pace:{{{key}}}"
        self._redis = redis
        self._keys = [name, f"{name}:used", f"{name}:users"]
        self._id = secrets.token_hex(8)
        self._ceiling = rate_per_second
        self._rate = min(learned or rate_per_second, rate_per_second)
        self._epoch = 0
        self._heard = False
        self._used_before = learned is not None
        self._ahead = AHEAD if self._used_before else SHORT_AHEAD
        self._users = 1
        # Local times (`time.monotonic()`): nothing before, the cap's end, when the rate last climbed, the last slot.
        self._blocked = self._capped = self._climbed = self._last_slot = 0.0
        self._cap = 0.0
        self._owed = False
        self._lag = 0.0
        self._last_429: float | None = None
        self._local = LocalPace(self._rate * LOCAL_SHARE)
        self._used: list[float] = []
        self._clock = ServerClock()
        self._jumped = False
        self._away = False
        self._retry_at = self._alone_from = 0.0
        self._one = asyncio.Lock()
        self._queue = asyncio.Lock()
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

        Only those that lie within `within` (at most `AHEAD`) seconds from now: fewer, or none, and the others stay
        free.
        """
        permits, _ = await self._next(n, not_before_seconds, AHEAD if within is None else min(within, AHEAD))
        return permits

    async def acquire(self) -> Permit:
        """Waits for one slot, and for another if that one is missed. Who came first is served first."""
        while True:
            async with self._queue:
                permits, free = await self._next(1, 0.0, SHORT_AHEAD)
                while not permits:
                    await asyncio.sleep(min(1.0, max(0.005, free - SHORT_AHEAD - time.monotonic())))
                    permits, free = await self._next(1, 0.0, SHORT_AHEAD)
            await asyncio.sleep(permits[0].at - time.monotonic())
            if not self.late(permits[0]):
                return permits[0]

    def late(self, permit: Permit) -> bool:
        """Whether to throw the permit away: missed, or overtaken by a "slow down" that this process knows of."""
        now = time.monotonic()
        return permit.late(now) or (permit.epoch < self._epoch and now < self._blocked)

    async def throttled(self, retry_after: float | None, epoch: int, *, allowed_rate: float | None = None) -> None:
        """The cloud asked to slow down, in answer to a call with a permit of that epoch.

        Everybody stops for `retry_after` seconds (1 where it isn't said). The rate is cut once for all the calls
        that were permitted before the cut. `allowed_rate`: calls per second that the cloud said it allows; for ten
        minutes, or until it says another, the rate is at most a little less.
        """
        block = min(DEFAULT_BLOCK if retry_after is None else max(0.0, retry_after), MAX_BLOCK)
        sane = allowed_rate is not None and math.isfinite(allowed_rate) and allowed_rate > 0
        cap = CAP_SHARE * allowed_rate if sane and allowed_rate else 0.0
        self._last_429 = time.time()
        told = await self._call(self._throttled, epoch, _micro(block), CUT, FLOOR, 1e9, cap, _micro(CAP_SECONDS))
        if told is None:
            self._slow_down_alone(block, epoch, cap)
        log.warning("cloud_throttled", key=self._keys[0], allowed=round(self._rate, 3), retry_after=retry_after)

    async def state(self) -> LimiterState:
        """The pace as it is now; by this process's own knowledge while Redis is away."""
        answer = await self._call(self._state)
        now, unix = time.monotonic(), time.time()
        cap = self._cap if self._cap and now < self._capped else None
        if answer is None:
            self._used = [at for at in self._used if at > now - 5]
            return LimiterState(
                ceiling=self._ceiling,
                allowed=self._local.rate,
                used_per_second=sum(at <= now for at in self._used) / 5,
                last_429_at=self._last_429,
                blocked_until=unix + self._blocked - now if self._blocked > now else None,
                degraded=True,
                cap=cap,
            )
        last, used = answer
        return LimiterState(
            ceiling=self._ceiling,
            allowed=self._rate,
            used_per_second=used / 5,
            last_429_at=last / 1e6 if last else None,
            blocked_until=self._clock.server(self._blocked) if self._blocked > now else None,
            degraded=False,
            cap=cap,
        )

    # The shared row

    async def _next(self, n: int, not_before: float, horizon: float) -> tuple[Sequence[Permit], float]:
        """The slots, and the local time of the first one that was free."""
        async with self._one:
            if self._owed:
                await self._tell()
            push = 0.0
            for _ in range(2):
                # Slots handed out locally while Redis was away count too: its return brings no burst. An answer that
                # takes its time brings slots that are missed already, so they begin later.
                earliest = max(time.monotonic() + max(not_before, self._lag - LATE / 2), self._local.next)
                before = self._last_slot
                answer = await self._call(
                    self._reserve, n, _micro(earliest - time.monotonic()), _micro(horizon), _micro(push), self._id
                )
                if answer is None:
                    return self._next_locally(n, not_before, horizon)
                first, step, granted = self._clock.local(answer[0] / 1e6), answer[1] / 1e6, int(answer[2])
                self._users = int(answer[3])
                self._ahead = max(self._ahead, horizon)
                push = self._overlap(first, before, step)
                if not push:
                    if granted:
                        self._last_slot = max(self._last_slot, first + (granted - 1) * step)
                    return [Permit(at=first + i * step, epoch=self._epoch) for i in range(granted)], first
            return [], time.monotonic() + push

    def _overlap(self, first: float, last_slot: float, step: float) -> float:
        """How far to push the row on, in seconds, because it went back: Redis has another clock or older data."""
        jumped, self._jumped = self._jumped, False
        away = 0.0
        if jumped and self._users > 1:  # others hold slots by the old clock that nobody here knows
            away = time.monotonic() + self._ahead + step
            log.warning("limiter_clock_jumped", key=self._keys[0])
        if last_slot and first + max(step / 2, LATE / 2) < last_slot + step:
            away = max(away, last_slot + step)
        return max(0.0, away - time.monotonic())

    def _window(self) -> float:
        """Seconds in which others may hold slots, for a Redis that doesn't know; at a new deployment nobody does."""
        return self._ahead + (1 / self._rate if self._heard or self._used_before else 0.0)

    async def _tell(self) -> None:
        """What the cloud asked for while Redis was away: everybody hears of it now."""
        now = time.monotonic()
        cap = self._cap if now < self._capped else 0.0
        block, lasting = _micro(max(0.0, self._blocked - now)), _micro(max(0.0, self._capped - now))
        self._owed = (
            await self._call(self._throttled, 2**31, block, 1.0, FLOOR, self._rate, cap, lasting)
        ) is None  # fmt: skip

    # Alone

    def _next_locally(self, n: int, not_before: float, horizon: float) -> tuple[Sequence[Permit], float]:
        now = time.monotonic()
        self._climb(now)
        first = max(now + not_before, self._local.next, self._alone_from)
        n = min(n, max(0, int((now + horizon - first) * self._local.rate) + 1)) if first <= now + horizon else 0
        slots = self._local.reserve(n, first) if n else []
        if slots:
            self._last_slot = max(self._last_slot, slots[-1])
        self._used = [*(at for at in self._used if at > now - 5), *slots]
        return [Permit(at=at, epoch=self._epoch) for at in slots], first

    def _climb(self, now: float) -> None:
        """As Redis does it."""
        top = min(self._ceiling, self._cap) if self._cap and now < self._capped else self._ceiling
        since = max(self._climbed, self._blocked)
        self._set_rate(min(self._rate + top * CLIMB * max(0.0, now - since), top))
        self._climbed = now

    def _slow_down_alone(self, block: float, epoch: int, cap: float) -> None:
        now = time.monotonic()
        if cap:
            self._cap, self._capped = cap, now + CAP_SECONDS
        top = min(self._ceiling, self._cap) if self._cap and now < self._capped else self._ceiling
        if cap and self._rate > cap:
            self._set_rate(cap)
        elif epoch >= self._epoch:
            self._set_rate(max(self._rate * CUT, top * FLOOR))
        if epoch >= self._epoch:
            self._epoch += 1
        self._blocked = max(self._blocked, now + block)
        self._local.hold_until(self._blocked)
        self._owed = True

    def _set_rate(self, rate: float) -> None:
        self._rate = rate
        self._local.rate = max(rate * min(LOCAL_SHARE, 1 / max(1, self._users)), 1e-6)

    # Redis

    async def _call(self, script: Any, *args: float | str) -> list[float] | None:
        """A script's own figures, after its common ones were learned; None where Redis is away.

        Away is a Redis that can't be reached, takes too long, or answers an error, whichever: LOADING after a start,
        READONLY after a failover, OOM.
        """
        now = time.monotonic()
        if self._away and now < self._retry_at:
            return None
        known = (
            self._ceiling, CLIMB, _micro(AHEAD), self._rate, self._epoch, _micro(self._window()),
            _micro(max(0.0, self._blocked - now)), self._cap, _micro(max(0.0, self._capped - now)),
            self._users, _micro(0.0 if self._away else QUIET), _micro(RETRY_REDIS + REDIS_PATIENCE + self._ahead),
        )  # fmt: skip
        try:
            if self._away or not self._heard:
                await self._connect()
            async with asyncio.timeout(REDIS_PATIENCE):
                sent = time.monotonic()
                values: list[Any] = await script(
                    keys=self._keys, args=[a if isinstance(a, str) else repr(a) for a in (*known, *args)]
                )
                received = time.monotonic()
            server, rate, epoch, blocked, cap, capped, *own = map(float, values)
        except (RedisError, OSError, TimeoutError, ValueError, TypeError) as e:
            self._lost(e, now)
            return None
        if self._away:
            log.info("limiter_recovered", key=self._keys[0])
        self._away = False
        self._heard = True
        self._lag = max(received - sent, 0.9 * self._lag)
        self._jumped = self._clock.sample(server / 1e6, sent, received) or self._jumped
        self._epoch, self._cap, self._climbed = int(epoch), cap, received
        self._blocked, self._capped = self._clock.local(blocked / 1e6), self._clock.local(capped / 1e6)
        self._set_rate(rate)
        return own

    async def _connect(self) -> None:
        """Connects, and reads Redis' clock over the connection: an exchange that connects as well says little of it."""
        async with asyncio.timeout(REDIS_PATIENCE):
            await self._redis.time()
        async with asyncio.timeout(REDIS_PATIENCE):
            sent = time.monotonic()
            seconds, micro = await self._redis.time()
            self._jumped = self._clock.sample(seconds + micro / 1e6, sent, time.monotonic()) or self._jumped

    def _lost(self, error: Exception, asked: float) -> None:
        """From now on alone, after all slots that somebody may hold.

        Others may not have noticed, and go on at the full rate: where there may be some, nothing is handed out before
        another try has failed. By then whoever makes calls has noticed too.
        """
        if not self._away:
            asked = time.monotonic()
            self._set_rate(self._rate)
            if self._users > 1 or not self._heard:
                hold = asked + RETRY_REDIS + self._window()
            else:
                hold = self._last_slot + 1 / self._local.rate
            self._alone_from = max(hold, self._blocked)
            log.warning("limiter_degraded", key=self._keys[0], error=type(error).__name__, rate=self._local.rate)
        self._away = True
        self._retry_at = asked + RETRY_REDIS


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
