"""Recording: transitions go to the ledger in batches, in the order in which they happened."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine

from orchestrator.failpoints import failpoint
from orchestrator.ledger.drive import Ownership
from orchestrator.ledger.leases import guard
from orchestrator.ledger.transitions import JobChange, JobKey, lock_plans, move_jobs
from orchestrator.log import get_logger

log = get_logger(__name__)

BATCH = 300
"""Rows a transaction: 4 ms; more gains little (embedded.md)."""
BACKLOG = 5_000
"""Changes that may wait; beyond, whoever records waits too, so that a slow database slows the driver down."""
GATHER_SECONDS = 0.02
PATIENCE = (0.1, 0.3, 1.0, 3.0)


@dataclass
class Recorder:
    """One project's queue of transitions. `recorded` is told of every change that was applied, `dropped` of those
    that found their job in another state (a person was faster)."""

    engine: AsyncEngine
    own: Ownership
    recorded: Callable[[JobChange], None]
    dropped: Callable[[JobChange], None]
    answers: int = 0
    """What is known of calls and not yet in the ledger: a crash now would leave them in doubt."""
    _queue: asyncio.Queue[JobChange] = field(default_factory=lambda: asyncio.Queue(BACKLOG))

    async def put(self, change: JobChange) -> None:
        """Queues a change; waits while the backlog is full."""
        self.answers += change.answer is not None
        await self._queue.put(change)

    @property
    def backlog(self) -> int:
        """Changes that wait to be written."""
        return self._queue.qsize()

    async def drain(self) -> None:
        """Waits until everything put so far is in the ledger."""
        await self._queue.join()

    async def run(self) -> None:
        """Writes until cancelled. Raises `LeaseLost`."""
        while True:
            batch = [await self._queue.get()]
            await asyncio.sleep(GATHER_SECONDS)
            while len(batch) < BATCH and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            applied = await self._write(batch)
            for change in batch:
                (self.recorded if id(change) in applied else self.dropped)(change)
                self.answers -= change.answer is not None
                self._queue.task_done()

    async def _write(self, batch: list[JobChange]) -> set[int]:
        """Tries until the database takes it: an answer of the cloud is never thrown away while the lease lasts.

        Repeating is safe: each change names the state that it expects, so one whose COMMIT got lost finds it moved.
        """
        for patience in (*PATIENCE, *[PATIENCE[-1]] * 1000):
            try:
                return await self._write_once(batch)
            except (OSError, TimeoutError, OperationalError, InterfaceError, DBAPIError) as e:
                log.warning("recording_failed", project=self.own.project, changes=len(batch), error=str(e)[:200])
                await asyncio.sleep(patience)
        raise TimeoutError("the ledger could not be written")

    async def _write_once(self, batch: list[JobChange]) -> set[int]:
        applied: set[int] = set()
        async with self.engine.begin() as conn:
            await guard(conn, self.own.lease, self.own.fence)
            await lock_plans(conn, {c.plan_id for c in batch})
            for round_ in rounds(batch):
                moved = await move_jobs(conn, self.own.deployment, round_)
                applied |= {id(c) for c in moved.values()}
            failpoint("record.before_commit")
        failpoint("record.after_commit")
        return applied


def rounds(batch: list[JobChange]) -> list[list[JobChange]]:
    """The batch in order, split so that no job moves twice in one statement."""
    found: list[list[JobChange]] = []
    seen: dict[JobKey, int] = {}
    for change in batch:
        at = seen.get(change.key, -1) + 1
        seen[change.key] = at
        if at == len(found):
            found.append([])
        found[at].append(change)
    return found
