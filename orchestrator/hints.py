"""Hints to the workers: messages that say “look now”, sent by task name, so that nothing here imports the workers.

A lost hint loses time, never work: the ledger says what is to be done. So a broker that is away is a log line here.
"""

import asyncio
import functools
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID

from celery import Celery

from orchestrator.log import get_logger

log = get_logger(__name__)

PREPARE_TASK, PREPARE_QUEUE = "rebuild.prepare", "prepare"
DRIVE_TASK, DRIVE_QUEUE = "rebuild.drive", "drive"
TICK_TASK, TICK_QUEUE = "rebuild.tick", "control"

DRIVE_EXPIRES_SECONDS = 5
PREPARE_EXPIRES_SECONDS = 30
"""The tick hints at a plan that still waits again; without a worker they must not pile up."""
WAIT_SECONDS = 1.0
"""A request waits no longer than this for its hint to be on its way."""
MAX_WAITING = 64
"""Hints that wait for a broker which doesn't answer; more are dropped."""


def broker_url(redis_url: str) -> str:
    """The Redis URL as Celery wants it: a Unix socket is `redis+socket://` there."""
    parts = urlsplit(redis_url)
    return urlunsplit(parts._replace(scheme="redis+socket")) if parts.scheme == "unix" else redis_url


class Hints:
    """Sends hints from a thread of its own: Celery's client blocks, and its connection is for one thread at a time."""

    def __init__(self, redis_url: str):
        self._app = Celery("rebuild-hints", broker=broker_url(redis_url), set_as_current=False)
        self._app.conf.update(
            task_ignore_result=True,
            broker_connection_retry=False,
            broker_connection_timeout=WAIT_SECONDS,
            broker_transport_options={
                "socket_timeout": WAIT_SECONDS,
                "socket_connect_timeout": WAIT_SECONDS,
                "retry_on_timeout": False,
                "max_retries": 1,
                "interval_start": 0,
                "interval_step": 0,
                "interval_max": 0,
            },
        )
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hints")
        self._waiting = 0

    async def prepare(self, plan_id: UUID) -> None:
        """A plan is there to be prepared."""
        await self._send(PREPARE_TASK, PREPARE_QUEUE, {"plan_id": str(plan_id)}, expires=PREPARE_EXPIRES_SECONDS)

    async def drive(self) -> None:
        """Some project has something to drive."""
        await self._send(DRIVE_TASK, DRIVE_QUEUE, {}, expires=DRIVE_EXPIRES_SECONDS)

    def close(self) -> None:
        """Sends nothing more, and waits for nothing."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _send(self, task: str, queue: str, kwargs: dict[str, str], *, expires: int) -> None:
        if self._waiting >= MAX_WAITING:
            log.warning("hint_dropped", task=task, waiting=self._waiting)
            return
        self._waiting += 1
        send = functools.partial(
            self._app.send_task, task, kwargs=kwargs, queue=queue, expires=expires, ignore_result=True, retry=False
        )
        sent = asyncio.get_running_loop().run_in_executor(self._thread, send)
        sent.add_done_callback(functools.partial(self._done, task))
        await asyncio.wait([sent], timeout=WAIT_SECONDS)

    def _done(self, task: str, sent: "asyncio.Future[object]") -> None:
        self._waiting -= 1
        if not sent.cancelled() and (error := sent.exception()) is not None:
            log.warning("hint_not_sent", task=task, error=f"{type(error).__name__}: {error}")
