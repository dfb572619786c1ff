"""The newest events of plans that somebody follows: one reader of the ledger for all streams of this process."""

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

import asyncpg
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from orchestrator.domain.states import FINAL_PLAN_STATUSES
from orchestrator.ledger.events import EventRecord, Head, event_heads, events_after
from orchestrator.log import get_logger
from orchestrator.service.show import event_view
from orchestrator.service.views import EventView

log = get_logger(__name__)

EVERY_SECONDS = 0.5
BATCH = 500
"""Events in one read; a stream that is further behind reads on by itself."""


@dataclass(kw_only=True, eq=False)
class _Listener:
    """A stream's mailbox: it holds the newest batch only, since numbers are dense and what is missed can be read."""

    changed: asyncio.Event = field(default_factory=asyncio.Event)
    head: Head | None = None
    batch: Sequence[EventView] = ()


class Tail:
    """Follows plans. `run` must be running; it reads nothing while nobody listens."""

    def __init__(self, engine: AsyncEngine):
        self._engine = engine
        self._listeners: dict[UUID, set[_Listener]] = defaultdict(set)
        self._known: dict[UUID, int] = {}
        self._wake = asyncio.Event()
        self._closed = False
        self.lag_seconds = 0.0
        """How old the newest event was when it was last handed on."""
        self.read_at = time.monotonic()
        """When the ledger last answered, or nobody listened."""

    @property
    def listeners(self) -> int:
        """How many streams there are."""
        return sum(len(listeners) for listeners in self._listeners.values())

    @property
    def closed(self) -> bool:
        """Whether all streams were ended."""
        return self._closed

    async def run(self) -> None:
        """Reads until cancelled; a ledger that is away is asked again."""
        while True:
            if not self._listeners:
                self._wake.clear()
                self.read_at = time.monotonic()
                await self._wake.wait()
            try:
                await self._read()
                self.read_at = time.monotonic()
            except (SQLAlchemyError, asyncpg.PostgresError, OSError) as e:
                log.warning("tail_can_not_read", error=type(e).__name__)
            await asyncio.sleep(EVERY_SECONDS)

    def close(self) -> None:
        """Ends all streams, politely: their clients come back to another process."""
        self._closed = True
        for listeners in self._listeners.values():
            for listener in listeners:
                listener.changed.set()

    async def follow(
        self, plan_id: UUID, after: int, *, silence: float
    ) -> AsyncGenerator[Sequence[EventView] | None, None]:
        """Batches of the plan's events after number `after`, each event once and in order.

        None after `silence` seconds without any. It ends when the plan has ended and all was told, or on `close`.
        """
        listener = _Listener()
        self._listeners[plan_id].add(listener)
        self._known.pop(plan_id, None)  # so that the next read tells everyone, the new one too, how far it is
        self._wake.set()
        try:
            while not self._closed:
                batch = await self._next(listener, plan_id, after, silence)
                if batch:
                    after = batch[-1].seq
                    yield batch
                elif batch is None:
                    yield None
                if listener.head is not None and _told_all(listener.head, after):
                    return
        finally:
            self._listeners[plan_id].discard(listener)
            if not self._listeners[plan_id]:
                del self._listeners[plan_id]
                self._known.pop(plan_id, None)

    async def _next(self, listener: _Listener, plan_id: UUID, after: int, silence: float) -> Sequence[EventView] | None:
        """What comes after `after`: nothing yet (an empty one), or None for silence."""
        if listener.head is None or listener.head.seq <= after:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(silence):
                    await listener.changed.wait()
            if not listener.changed.is_set():
                return None
            listener.changed.clear()
        if listener.head is None or listener.head.seq <= after:
            return ()
        new = [e for e in listener.batch if e.seq > after]
        if new and new[0].seq == after + 1:
            return new
        async with self._engine.connect() as conn:
            records = await events_after(conn, plan_id, after, BATCH)
        if not records:
            listener.head = None  # the plan is gone: wait for news rather than ask on and on
        return [event_view(r) for r in records]

    async def _read(self) -> None:
        async with self._engine.connect() as conn:
            heads = await event_heads(conn, list(self._listeners))
            for plan_id, head in heads.items():
                known = self._known.get(plan_id)
                if known == head.seq:
                    continue
                records: list[EventRecord] = []
                if known is not None:
                    records = await events_after(conn, plan_id, known, BATCH)
                    if records:
                        self.lag_seconds = max(0.0, (datetime.now(UTC) - records[-1].at).total_seconds())
                self._known[plan_id] = head.seq
                batch = [event_view(r) for r in records]
                for listener in self._listeners.get(plan_id, ()):
                    listener.head, listener.batch = head, batch
                    listener.changed.set()


def _told_all(head: Head, after: int) -> bool:
    return head.status in FINAL_PLAN_STATUSES and after >= head.seq
