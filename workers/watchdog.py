"""The watchdog in each Celery worker's parent process: it keeps hints coming, and ends a worker that went deaf.

Celery on Redis can come out of a reconnect alive, connected, and consuming nothing (celery #7276, #8030, #8091,
#10205). Nothing inside it notices, so a thread beside it looks at the queue itself. And a drive process is what makes
everything move: where one is free, its hint was lost (with a killed child, or with Redis' data) and is sent anew.
Without a broker none can be sent: then a stand-in drives. The leases of a process that is surely dead are given back.
"""

import asyncio
import enum
import mmap
import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import asyncpg  # noqa: F401  SQLAlchemy would import it in the thread, and a fork meanwhile leave a child that hangs
from billiard.process import current_process
from celery import signals
from redis import asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from sqlalchemy.exc import DBAPIError

from orchestrator.hints import DRIVE_QUEUE, Hints
from orchestrator.ledger.engine import open_engine
from orchestrator.ledger.leases import release_all
from orchestrator.log import get_logger
from workers.runtime import StopPipe, process_name
from workers.standin import StandIn

log = get_logger(__name__)

LOOK_SECONDS = 0.5
FREE_SECONDS = 2.0
"""A drive process that ran nothing for this long gets a hint: longer than the gap between two slices."""
SILENT_SECONDS = 20.0
"""Messages that waited this long beside a free process, with nothing received, show a consumer that is deaf."""
ALONE_SECONDS = 3.0
"""A drive process that is free for this long without a broker gets a stand-in: well before its lease ends."""
IDLE_GRACE_SECONDS = 5.0
"""For a warm end where no task runs."""
BUSY_GRACE_SECONDS = 75.0
"""For a warm end where one does: longer than a call's timeout, shorter than the supervisor's own grace."""
MISSED_LOOKS = 6
"""So many looks' time without a look means that this process stood still; what it knew of time is void."""
BROKER_PATIENCE = 1.0
FREE_LEASES_SECONDS = 3.0
"""For giving back a dead process' leases, which end by themselves not much later."""

PROCESSES = 256
"""Pool processes that are told apart."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The figures above, for tests to lower; seconds."""

    look: float = LOOK_SECONDS
    free: float = FREE_SECONDS
    silent: float = SILENT_SECONDS
    alone: float = ALONE_SECONDS
    idle_grace: float = IDLE_GRACE_SECONDS
    busy_grace: float = BUSY_GRACE_SECONDS


class Advice(enum.Enum):
    """What a look asks for."""

    NOTHING = "nothing"
    """All is well, or nothing can be said."""
    HINT = "hint"
    """A process is free and no message is there for it."""
    STAND_IN = "stand_in"
    """A process is free, and no message can reach it."""
    END = "end"
    """The consumer is deaf."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one look found."""

    at: float
    """Monotonic seconds."""
    waiting: int | None
    """Messages in the worker's queues; None where the broker is away."""
    free: int
    """Pool processes that run no task."""
    received: int
    """Messages that the consumer was ever given."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What is kept from look to look."""

    last: Look | None = None
    free_since: float | None = float("-inf")
    """Since when a process is free; a worker that has just started needs no patience."""
    silent_since: float | None = None
    """Since when messages wait although they could be taken."""
    alone_since: float | None = None
    """Since when a process is free without a broker."""


def judge(before: Memory, look: Look, limits: Limits) -> tuple[Memory, Advice]:
    """The new memory, and what to do: end a worker that takes nothing, hint where one could.

    A worker whose processes are all busy takes nothing, rightly; so does one without a broker.
    """
    last = before.last
    stood_still = last is not None and look.at - last.at > MISSED_LOOKS * limits.look
    if look.free == 0:
        free_since = None
    elif stood_still or before.free_since is None:
        free_since = look.at
    else:
        free_since = before.free_since
    heard = last is not None and look.received != last.received
    if not look.waiting or look.free == 0 or heard:
        silent_since = None
    elif stood_still or before.silent_since is None:
        silent_since = look.at
    else:
        silent_since = before.silent_since
    if look.waiting is not None or look.free == 0:
        alone_since = None
    elif stood_still or before.alone_since is None:
        alone_since = look.at
    else:
        alone_since = before.alone_since
    after = Memory(last=look, free_since=free_since, silent_since=silent_since, alone_since=alone_since)
    if silent_since is not None and look.at - silent_since >= limits.silent:
        return after, Advice.END
    if look.waiting == 0 and free_since is not None and look.at - free_since >= limits.free:
        return replace(after, free_since=look.at), Advice.HINT
    if alone_since is not None and look.at - alone_since >= limits.alone:
        return replace(after, alone_since=look.at), Advice.STAND_IN
    return after, Advice.NOTHING


class Seats:
    """Which pool processes run a task: each writes its pid into a seat of shared memory while it does.

    Celery's own books say the same only as long as its main thread reads what the children tell it, and they keep
    a killed child's task for ten seconds.
    """

    def __init__(self) -> None:
        self._pids = memoryview(mmap.mmap(-1, PROCESSES * 8)).cast("q")
        self._dead = memoryview(mmap.mmap(-1, PROCESSES * 8)).cast("q")

    def take(self) -> None:
        """In a child: a task begins. A place is given to a new child only once the one before was waited for."""
        if (before := self._pids[self._own()]) not in (0, os.getpid()):
            self._dead[self._own()] = before
        self._pids[self._own()] = os.getpid()

    def leave(self) -> None:
        """In a child: the task has ended."""
        self._pids[self._own()] = 0

    def busy(self) -> int:
        """In the parent: how many children run a task. Those that died in theirs don't."""
        return sum(_runs(pid) for pid in self._pids if pid)

    def died(self) -> list[int]:
        """In the parent: children that died in their task, each told once."""
        found = [pid for pid in self._dead if pid]
        for place, pid in enumerate(self._dead):
            if pid:
                self._dead[place] = 0
        for place, pid in enumerate(self._pids):
            if pid and not _runs(pid):
                found.append(pid)
                self._pids[place] = 0
        return found

    @staticmethod
    def _own() -> int:
        return int(getattr(current_process(), "index", 0)) % PROCESSES


def _runs(pid: int) -> bool:
    """Whether that child of ours lives. One that nobody has waited for yet does not, and stays to be waited for."""
    try:
        if hasattr(os, "waitid"):
            return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        os.kill(pid, 0)
    except (ChildProcessError, ProcessLookupError):
        return False
    return True


class Watchdog:
    """Looks after one worker from a thread of its parent process. Made before the pool forks."""

    def __init__(self, redis_url: str, database_url: str, pipe: StopPipe, *, limits: Limits = Limits()):
        self.limits = limits
        self._redis_url = redis_url
        self._database_url = database_url
        self._pipe = pipe
        self._seats = Seats()
        self._stand_in = StandIn()
        self._ready = False
        self._received = 0
        self._stopping = False
        self._queues: Sequence[str] = ()
        self._processes = 1
        signals.task_prerun.connect(self._begin, weak=False)
        signals.task_postrun.connect(self._done, weak=False)
        # Whatever becomes of a message, it was received; an expired one only shows as revoked.
        for sign in (signals.task_received, signals.task_revoked, signals.task_rejected, signals.task_unknown):
            sign.connect(self._hear, weak=False)

    def start(self, queues: Sequence[str], processes: int) -> None:
        """Begins to look after a worker with those queues and so many pool processes."""
        self._queues, self._processes = queues, processes
        threading.Thread(target=lambda: asyncio.run(self._watch()), name="watchdog", daemon=True).start()

    def consuming(self) -> None:
        """The worker has its broker, and consumes: only from now on can it be called deaf."""
        self._ready = True
        self._received += 1

    def stop(self) -> None:
        """The worker shuts down: no more hints. From a signal handler, so it only says so."""
        self._stopping = True

    def wait_for_stand_in(self) -> None:
        """At the worker's end: what a stand-in sends is finished, as with the pool's processes."""
        self._stand_in.dismiss()
        self._stand_in.wait(self.limits.busy_grace)

    def _begin(self, **_: Any) -> None:
        self._seats.take()

    def _done(self, **_: Any) -> None:
        self._seats.leave()

    def _hear(self, **_: Any) -> None:
        self._received += 1

    async def _watch(self) -> None:
        redis = aioredis.Redis.from_url(
            self._redis_url,
            socket_timeout=BROKER_PATIENCE,
            socket_connect_timeout=BROKER_PATIENCE,
            retry=Retry(NoBackoff(), 0),
        )
        hints = Hints(self._redis_url)
        memory = Memory()
        try:
            while not self._stopping:
                try:
                    if dead := self._seats.died():
                        await self._free_leases_of(dead)
                        memory = replace(memory, free_since=float("-inf"))
                    look = await self._look(redis)
                    memory, advice = judge(memory, look, self.limits)
                    if look.free == 0:
                        self._stand_in.dismiss()
                    match advice:
                        case Advice.END if self._ready:
                            await self._end(look, look.at - (memory.silent_since or look.at))
                        case Advice.HINT if DRIVE_QUEUE in self._queues:
                            await self._hint(hints, look.free)
                        case Advice.STAND_IN if DRIVE_QUEUE in self._queues and not self._stopping:
                            self._stand_in.start()
                        case _:
                            pass
                except Exception:
                    log.exception("watchdog_failed")
                await asyncio.sleep(self.limits.look)
        finally:
            self._stand_in.dismiss()
            hints.close()
            await redis.aclose()

    async def _look(self, redis: "aioredis.Redis") -> Look:
        waiting: int | None = 0
        try:
            async with asyncio.timeout(2 * BROKER_PATIENCE), redis.pipeline(transaction=False) as pipeline:
                for queue in self._queues:
                    pipeline.llen(queue)
                waiting = sum(await pipeline.execute())
        except (aioredis.RedisError, OSError, TimeoutError):
            waiting = None
        return Look(
            at=time.monotonic(),
            waiting=waiting,
            free=max(0, self._processes - self._seats.busy()),
            received=self._received,
        )

    async def _free_leases_of(self, dead: Sequence[int]) -> None:
        """The kernel says that they are gone, so nothing of theirs can be sent any more: whoever is next need not wait
        for their leases' end. Where this fails, it waits."""
        try:
            async with (
                asyncio.timeout(FREE_LEASES_SECONDS),
                open_engine(self._database_url, name="rebuild-watchdog", pool_size=1) as engine,
                engine.begin() as conn,
            ):
                freed = await release_all(conn, [process_name(pid) for pid in dead])
            log.warning("processes_died", pids=dead, leases_freed=freed)
        except (DBAPIError, OSError, TimeoutError) as e:
            log.warning("leases_not_freed", pids=dead, error=str(e)[:200])

    async def _hint(self, hints: Hints, free: int) -> None:
        """One for each free process. They expire by the clock of whoever takes them: hosts whose clocks differ by
        more than that never take each other's hints, but each host's own watchdog goes on hinting at its worker."""
        log.info("drive_hinted", free=free)
        await asyncio.gather(*(hints.drive() for _ in range(free)))

    async def _end(self, look: Look, seconds: float) -> None:
        """Ends this process: warmly, as far as its main thread still hears; after a grace hard. Never returns."""
        log.error(
            "worker_deaf", queues=self._queues, waiting=look.waiting, free=look.free, seconds=round(seconds, 1),
            message="Messages wait, a process is free, and nothing is received: this worker ends to be started anew.",
        )  # fmt: skip
        self._pipe.shut()  # the children leave even where the main thread hangs
        os.kill(os.getpid(), signal.SIGTERM)
        began = idle_since = time.monotonic()
        while True:
            await asyncio.sleep(min(0.1, self.limits.look))
            now = time.monotonic()
            if self._seats.busy():
                idle_since = now
            if now - idle_since >= self.limits.idle_grace or now - began >= self.limits.busy_grace:
                log.error("worker_ended_hard", seconds=round(now - began, 1))
                os._exit(1)
