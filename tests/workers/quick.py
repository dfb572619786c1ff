"""The workers' application as it is in production, but for less patience with a deaf consumer, and a way to hang it."""

import time
from typing import Any

from celery.worker.control import control_command

from tests.workers.site import SILENT_SECONDS
from workers.app import app as app
from workers.app import watchdog
from workers.watchdog import Limits

watchdog.limits = Limits(silent=SILENT_SECONDS)


@control_command(args=[("seconds", float)])
def hang(_: Any, seconds: float) -> None:
    """Blocks the main thread: nothing is received, and no signal is minded."""
    time.sleep(seconds)
