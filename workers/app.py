"""The Celery application. Messages are hints: no result backend, early acks, no countdowns; the ledger has the rest."""

import functools
from typing import Any

from celery import Celery, bootsteps, signals
from celery.worker.consumer import Consumer as CeleryConsumer

from orchestrator.failpoints import arm
from orchestrator.hints import (
    DRIVE_QUEUE,
    DRIVE_TASK,
    PREPARE_QUEUE,
    PREPARE_TASK,
    TICK_QUEUE,
    TICK_TASK,
    broker_url,
)
from orchestrator.log import configure, get_logger
from orchestrator.settings import Settings
from workers.runtime import StopPipe
from workers.watchdog import Watchdog

TICK_SECONDS = 2.0
RECONNECT_SECONDS = 2.0
"""At most between two tries to reach the broker; Celery's own tries end up 30 s apart."""

settings = Settings.read()
if settings.failpoints:
    arm(settings.failpoints)
    get_logger(__name__).warning("failpoints_armed", points=settings.failpoints)
pipe = StopPipe()
watchdog = Watchdog(settings.redis_url, settings.database_url, pipe)


class Consumer(CeleryConsumer):
    """Celery's, back within seconds once the broker is, however long that was away."""

    def ensure_connected(self, conn: Any) -> Any:
        """As Celery's, with shorter waits, which it has no setting for."""
        conn.ensure_connection = functools.partial(
            conn.ensure_connection, interval_start=0.5, interval_step=0.5, interval_max=RECONNECT_SECONDS
        )
        return super().ensure_connected(conn)


app = Celery("rebuild", broker=broker_url(settings.redis_url), include=["workers.tasks"])
app.conf.update(
    task_ignore_result=True,
    task_acks_late=False,
    task_default_queue=TICK_QUEUE,
    task_routes={
        TICK_TASK: {"queue": TICK_QUEUE},
        PREPARE_TASK: {"queue": PREPARE_QUEUE},
        DRIVE_TASK: {"queue": DRIVE_QUEUE},
    },
    worker_consumer="workers.app:Consumer",
    worker_prefetch_multiplier=1,
    worker_hijack_root_logger=False,
    worker_redirect_stdouts=False,
    worker_send_task_events=False,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    broker_connection_retry_on_startup=True,
    broker_connection_retry=True,
    broker_connection_max_retries=None,
    broker_transport_options={"socket_timeout": 10, "socket_connect_timeout": 5, "health_check_interval": 10},
    beat_schedule={"tick": {"task": TICK_TASK, "schedule": TICK_SECONDS, "options": {"expires": 5}}},
)


@signals.setup_logging.connect
def _logging(**_: Any) -> None:
    """Celery leaves the log handlers to us: one pipeline in every process."""
    configure(settings.log_level, settings.log_format)


@signals.worker_shutting_down.connect
def _shut(**_: Any) -> None:
    """Warm shutdown reaches the children, which stop claiming and leave."""
    watchdog.stop()
    pipe.shut()


@signals.worker_process_init.connect
def _in_child(**_: Any) -> None:
    pipe.in_child()


class Guarded(bootsteps.StartStopStep):
    """From its pool's start on a worker is looked after, though it may have no broker yet, until its pool ends. A new
    drive worker is hinted at at once, whether or not a beat runs."""

    requires = ("celery.worker.components:Pool",)

    def start(self, parent: Any) -> None:
        """See above."""
        watchdog.start(list(parent.app.amqp.queues.consume_from), parent.concurrency)

    def stop(self, _: Any) -> None:
        """See above."""
        watchdog.stop()
        watchdog.wait_for_stand_in()


app.steps["worker"].add(Guarded)


@signals.worker_ready.connect
def _ready(**_: Any) -> None:
    watchdog.consuming()
