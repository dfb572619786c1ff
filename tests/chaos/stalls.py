"""How long this process, and with it the rehearsal cloud, could not run: the machine's doing, not the service's."""

import threading
import time
from typing import Self

_EVERY = 0.005


class Stalls:
    """Measures in a thread of its own, between entering and leaving."""

    def __init__(self) -> None:
        self.longest = 0.0
        """Seconds."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._measure, name="stalls", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _measure(self) -> None:
        last = time.monotonic()
        while not self._over.wait(_EVERY):
            now = time.monotonic()
            self.longest = max(self.longest, now - last - _EVERY)
            last = now
