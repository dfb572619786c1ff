"""The circuit breaker: a cloud in trouble gets no more calls, so that trouble leaves few of them in doubt."""

import time
from dataclasses import dataclass

from orchestrator.domain.decide import Reason

CALLS_IN_A_ROW = 5
"""So many calls in a row without an answer that proves anything, and sending stops."""
READS_IN_A_ROW = 3
"""Likewise reads."""
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 60.0
"""Seconds until one call is tried, doubled each time that it fails."""


@dataclass
class Breaker:
    """Open: nothing is sent; reads go on, and tell when the cloud answers again. Then one call is let through alone,
    and its answer closes the breaker, or opens it for twice as long."""

    _calls: int = 0
    _reads: int = 0
    _pause: float = FIRST_PAUSE
    _until: float = 0.0
    _reason: Reason | None = None

    @property
    def reason(self) -> Reason | None:
        """Why nothing is sent; None while it is closed."""
        return self._reason

    def most(self, under_way: int) -> float:
        """How many calls may be sent now: any number, one alone to try, or none."""
        if self._reason is None:
            return float("inf")
        ready = not self._reads and time.monotonic() >= self._until
        return 1 if ready and not under_way else 0

    def call_failed(self, what: str) -> None:
        """A call got no answer that proves anything."""
        self._calls += 1
        if self._reason is not None:
            if time.monotonic() >= self._until:  # the one that was tried; others were under way before
                self._pause = min(LONGEST_PAUSE, 2 * self._pause)
                self._open(what)
            else:
                self._say(what)
        elif self._calls >= CALLS_IN_A_ROW:
            self._open(what)

    def call_worked(self) -> None:
        """A call got an answer from the cloud itself, whatever it said."""
        self._calls, self._pause, self._reason = 0, FIRST_PAUSE, None

    def read_failed(self, what: str) -> None:
        """The project could not be read."""
        self._reads += 1
        if self._reason is not None:
            self._say(what)
        elif self._reads >= READS_IN_A_ROW:
            self._open(what)

    def read_worked(self) -> None:
        """The project was read. What only reads opened, a read closes."""
        self._reads = 0
        if self._calls == 0:
            self._reason = None

    def _open(self, what: str) -> None:
        self._until = time.monotonic() + self._pause
        self._say(what)

    def _say(self, what: str) -> None:
        self._reason = Reason(
            code="cloud_trouble",
            message=f"Nothing is sent until the cloud answers again; what is in flight is watched. Last: {what}",
        )
