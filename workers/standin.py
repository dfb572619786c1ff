"""A stand-in: a drive process beside Celery's, for as long as no message can reach those.

Celery starts no task without its broker. A worker whose drive processes died would then drive nothing until the broker
is back, however long that takes. So the watchdog runs this program meanwhile: the same slice, under the same leases.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence

from orchestrator.failpoints import arm
from orchestrator.log import configure, get_logger
from orchestrator.settings import Settings
from workers.driver.slice import run_slice
from workers.runtime import TOKENS, StopPipe, process_name, run

log = get_logger(__name__)


class StandIn:
    """The parent's side: starts the program, and tells it to leave. It leaves by itself when its parent is gone."""

    def __init__(self, argv: Sequence[str] = (sys.executable, "-m", "workers.standin")) -> None:
        self._argv = argv
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Of the running program."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        """Starts it, unless it runs."""
        if self.pid is None:
            self._process = subprocess.Popen(self._argv, stdin=subprocess.PIPE)
            log.warning("stand_in_started", pid=self._process.pid, message="No broker, and a drive process is free.")

    def dismiss(self) -> None:
        """Tells it to stop, as a warm shutdown does: what is being sent is finished, and its leases are given back."""
        if self.pid is not None and self._process and self._process.stdin and not self._process.stdin.closed:
            log.info("stand_in_dismissed", pid=self.pid)
            self._process.stdin.close()  # for its parent's death; pool processes may have copies of this end
            self._process.terminate()

    def wait(self, seconds: float) -> None:
        """Waits until it has left."""
        if self._process:
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                log.warning("stand_in_stays", pid=self._process.pid)


def main() -> None:
    """Drives until standard input ends, or a signal comes."""
    settings = Settings.read()
    configure(settings.log_level, settings.log_format)
    if settings.failpoints:
        arm(settings.failpoints)

    async def work(stop: asyncio.Event) -> None:
        await run_slice(settings.database_url, settings.redis_url, TOKENS, stop, api_url=settings.api_url)

    log.info("stand_in_drives", name=process_name(os.getpid()))
    run(work, StopPipe(sys.stdin.fileno()))


if __name__ == "__main__":
    main()
