"""What a process knows by itself of a pace: slots of its own, and how Redis' clock stands against its own."""

import math

JUMP = 0.020
"""Seconds by which Redis' clock must have moved, beyond what exchanges leave uncertain, to be another clock."""


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


class ServerClock:
    """Redis' clock against this process's monotonic one, from the tightest exchange of late.

    A stalled event loop makes an exchange look long, and its time says little: such samples are passed over.
    """

    def __init__(self) -> None:
        self._offset = 0.0
        self._width = float("inf")
        self._at = 0.0

    def sample(self, server: float, sent: float, received: float) -> bool:
        """Redis said `server` (seconds) between two local times; whether its clock is another than before."""
        width, offset = received - sent, server - (sent + received) / 2
        known = math.isfinite(self._width)
        grown = self._width + (received - self._at) * 1e-3
        moved = abs(offset - self._offset) - (width + grown) / 2
        if width <= grown or moved > 0.001:
            self._offset, self._width, self._at = offset, width, received
        return known and moved > JUMP

    def local(self, server: float) -> float:
        """The local time of a time of Redis."""
        return server - self._offset

    def server(self, local: float) -> float:
        """Redis' time of a local time."""
        return local + self._offset
