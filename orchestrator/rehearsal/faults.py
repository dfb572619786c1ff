"""What can be made to go wrong: on the host after a rebuild was accepted, and on the wire around a call.

All faults are chosen here. `life.py` plays those of the host out, `gateway.py` those of the wire; a new kind is a
member, a place in one of the two sets, and a line where it is played out.
"""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Literal, Self


class FaultKind(StrEnum):
    """A way to fail."""

    SPAWN_FAILS = "spawn_fails"
    """202; the disk goes, the new guest fails: ERROR and a fault, the action "Error"."""
    IMAGE_GONE = "image_gone"
    """202; the host finds no image: back to ACTIVE with the new image's id, launched_at unmoved, the action "Error"."""
    NO_VALID_HOST = "no_valid_host"
    """202; ERROR at once with the old image's id again, the disk untouched."""
    STUCK = "stuck"
    """202; REBUILD for ever, until an admin's os-resetState."""
    COMPUTE_DIES = "compute_dies"
    """202; ERROR without a fault, the action never ends."""
    WRONG_IMAGE = "wrong_image"
    """202; ACTIVE, launched_at moved and the action "Success", but the server has another image than was asked for."""

    DROP_BEFORE = "drop_before"
    """The connection is cut and nothing happens."""
    DROP_AFTER = "drop_after"
    """It happens, and the connection is cut without an answer."""
    ERROR_BEFORE = "error_before"
    """500 (or `status`), and nothing happens."""
    ERROR_AFTER = "error_after"
    """It happens, and the answer is 503 (or `status`)."""
    DUPLICATED = "duplicated"
    """Something on the way sends the call twice: the first one happens, and the answer is that to the second."""
    TRUNCATED = "truncated"
    """It happens, and the answer breaks off in the middle of its body."""
    HTML = "html"
    """It happens, and the answer is 200 (or `status`) with a page of HTML, as a portal in between gives it."""
    SLOW_BEFORE = "slow_before"
    """It happens only after `delay`, even if the client has given up by then."""
    SLOW_AFTER = "slow_after"
    """It happens at once; the answer comes after `delay`."""
    VANISHED = "vanished"
    """The server is missing from lists and answers 404."""
    CELL_DOWN = "cell_down"
    """The server's cell doesn't answer: shown by id and status UNKNOWN only, and every other call about it is a 500."""
    OUTAGE = "outage"
    """The whole compute API answers 503 (or `status`; 0 cuts connections), for all calls."""
    STORM = "storm"
    """All calls get 429 with Retry-After `delay`."""


HOST_KINDS = frozenset(
    {
        FaultKind.SPAWN_FAILS,
        FaultKind.IMAGE_GONE,
        FaultKind.NO_VALID_HOST,
        FaultKind.STUCK,
        FaultKind.COMPUTE_DIES,
        FaultKind.WRONG_IMAGE,
    }
)
"""Decided when a rebuild is accepted; every other kind is decided when a call arrives."""

Calls = Literal["rebuild", "write", "read", "any"]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One order to fail."""

    kind: FaultKind
    servers: frozenset[str] = frozenset()
    """Ids or names; empty: all, and calls that name no server too."""
    calls: Calls = "rebuild"
    """Which calls a fault of the wire strikes; OUTAGE, STORM and VANISHED strike whatever this says."""
    times: int | None = None
    """How often, in all; None: each time."""
    share: float = 1.0
    """How often of the times that it could strike (0 to 1)."""
    lasts: float | None = None
    """Seconds from when it was ordered; None: until cleared."""
    delay: float = 1.0
    """Seconds: how slow, or the Retry-After of a storm."""
    status: int | None = None
    request_id: bool = True
    """Whether a 500 carries the request's id. Answers of 502 and above come from the gateway, which never does."""
    message: str = "rehearsal: no space left on device"
    """What the server's `fault` says after SPAWN_FAILS."""

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> Self:
        """From JSON with the fields' names. Raises `ValueError` that says what is wrong."""
        known = {f.name for f in fields(cls)}
        if unknown := set(document) - known:
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}")
        given = dict(document)
        if "kind" not in given:
            raise ValueError("kind is missing")
        given["kind"] = FaultKind(given["kind"])
        given["servers"] = frozenset(given.get("servers", ()))
        if given.get("calls", "any") not in ("rebuild", "write", "read", "any"):
            raise ValueError("calls is one of rebuild, write, read, any")
        return cls(**given)


@dataclass(slots=True)
class _Order:
    fault: Fault
    since: float
    left: int | None


_OF_SERVERS = frozenset({FaultKind.VANISHED, FaultKind.CELL_DOWN})
"""Standing faults of servers, asked for by whoever shows them."""
_EVERY_CALL = frozenset({FaultKind.OUTAGE, FaultKind.STORM})


class Faults:
    """The orders in force. Each call or rebuild meets at most one: the first that fits."""

    def __init__(self, rng: random.Random, *, fail_rate: float = 0.0):
        self._rng = rng
        self._fail_rate = fail_rate
        self._orders: list[_Order] = []

    def add(self, faults: Iterable[Fault], now: float) -> None:
        """Puts them in force, after those there are."""
        self._orders += [_Order(f, now, f.times) for f in faults]

    def clear(self) -> None:
        """Nothing more goes wrong, except by `fail_rate`."""
        self._orders.clear()

    def in_force(self, now: float) -> list[Fault]:
        """Those that can still strike."""
        return [o.fault for o in self._orders if self._live(o, now)]

    def for_host(self, server_id: str, name: str, now: float) -> Fault | None:
        """How the rebuild that is being accepted is to fail, if at all."""
        for order in self._orders:
            if order.fault.kind in HOST_KINDS and self._strikes(order, server_id, name, now):
                return order.fault
        if self._fail_rate and self._rng.random() < self._fail_rate:
            return Fault(kind=FaultKind.SPAWN_FAILS)
        return None

    def for_call(self, call: Calls, server_id: str | None, name: str | None, now: float) -> Fault | None:
        """What happens to a call of this kind, if anything. `rebuild` is a `write` too."""
        for order in self._orders:
            kind = order.fault.kind
            if kind in HOST_KINDS or kind in _OF_SERVERS:
                continue
            wanted = order.fault.calls
            fits = kind in _EVERY_CALL or wanted in ("any", call) or (wanted == "write" and call == "rebuild")
            if fits and self._strikes(order, server_id, name, now):
                return order.fault
        return None

    def vanished(self, now: float) -> frozenset[str]:
        """Ids and names of the servers that the cloud does not show."""
        return self._struck(FaultKind.VANISHED, now)

    def cell_down(self, now: float) -> frozenset[str]:
        """Ids and names of the servers whose cell doesn't answer."""
        return self._struck(FaultKind.CELL_DOWN, now)

    def _struck(self, kind: FaultKind, now: float) -> frozenset[str]:
        struck = [o.fault.servers for o in self._orders if o.fault.kind is kind and self._live(o, now)]
        return frozenset().union(*struck)

    @staticmethod
    def _live(order: _Order, now: float) -> bool:
        lasts = order.fault.lasts
        return order.left != 0 and (lasts is None or now < order.since + lasts)

    def _strikes(self, order: _Order, server_id: str | None, name: str | None, now: float) -> bool:
        fault = order.fault
        if not self._live(order, now):
            return False
        if fault.servers and server_id not in fault.servers and name not in fault.servers:
            return False
        if fault.share < 1.0 and self._rng.random() >= fault.share:
            return False
        if order.left is not None:
            order.left -= 1
        return True
