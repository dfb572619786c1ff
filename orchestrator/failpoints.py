"""Named points at which a test can make a process crash, stop, stall or fail. Nothing when off: one comparison.

`REBUILD_FAILPOINTS` arms them, as entries separated by `;`:

    send.after_commit=crash            os._exit at the first hit
    record.before_commit=crash@7       … at the seventh
    send.before_write=stop~/tmp/once   SIGSTOP, and only for whoever can make that file: once, over all processes
    ledger.moved=delay(0.5)@3+         stalls the process for half a second, from the third hit on
    gate.before_commit=raise           raises `FailpointHit`, which is an OSError: as a lost connection would

They are for tests and drills. An armed process says so in its log.
"""

import os
import re
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import RebuildError

POINTS: Mapping[str, str] = {
    "prepare.before_publish": "A plan is prepared; nothing of it is written.",
    "prepare.after_publish": "A plan was published; nobody was told.",
    "tick.before_commit": "A tick has moved what is due, uncommitted.",
    "lease.taken": "A project's lease was taken; nothing was read.",
    "lease.before_renew": "The lease is about to be renewed.",
    "takeover.before_write": "What another driver left was read; nothing was decided.",
    "takeover.done": "What another driver left was adopted.",
    "claim.before_commit": "Jobs are claimed, uncommitted.",
    "claim.after_commit": "Jobs are claimed; nobody in memory has them.",
    "check.before": "Claimed jobs are about to be checked.",
    "check.ready": "A job was checked and waits for its permit.",
    "gate.before_commit": "Intents are written, uncommitted.",
    "gate.after_commit": "Intents are committed; nothing was sent.",
    "send.before_write": "Between the last look at the lease and the first byte.",
    "send.after_answer": "The cloud has answered; nothing was recorded.",
    "record.before_commit": "Transitions are written, uncommitted.",
    "record.after_commit": "Transitions are committed; nobody in memory knows.",
    "ledger.moved": "Jobs have moved in the ledger, uncommitted.",
    "watch.before_poll": "The project is about to be polled.",
    "watch.before_look": "A server is about to get a look of its own.",
    "resolve.before_look": "Evidence for an open call is about to be gathered.",
    "resolve.settled": "An open call was settled; nothing was recorded.",
    "reconcile.before_write": "After a failover: what the cloud knows was read; nothing was written.",
    "hooks.begun": "Tries of hooks and their tokens are committed; nobody was called.",
    "hooks.before_commit": "Outcomes of hooks and what follows are written, uncommitted.",
    "hooks.after_commit": "Outcomes of hooks are committed; nobody in memory knows.",
    "slice.end": "A drive process is about to leave its slice.",
}
"""Every point there is, and what has happened when it is reached."""


class FailpointsInvalid(RebuildError, ValueError):
    """REBUILD_FAILPOINTS can't be read."""

    code = "failpoints_invalid"


class FailpointHit(RebuildError, OSError):
    """A failpoint raised, on purpose."""

    code = "failpoint"


@dataclass
class _Armed:
    action: str
    seconds: float
    hit: int
    onwards: bool
    once: Path | None
    hits: int = 0

    def strike(self, name: str) -> None:
        self.hits += 1
        if self.hits < self.hit or (self.hits > self.hit and not self.onwards) or not self._first():
            return
        match self.action:
            case "crash":
                os._exit(70)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "delay":
                time.sleep(self.seconds)
            case _:
                raise FailpointHit(f"Failpoint {name}.")

    def _first(self) -> bool:
        if self.once is None:
            return True
        try:
            os.close(os.open(self.once, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            return False
        return True


_armed: dict[str, _Armed] | None = None
_ENTRY = re.compile(
    r"(?P<name>[\w.]+)=(?P<action>crash|stop|raise|delay\((?P<seconds>\d+(\.\d+)?)\))"
    r"(@(?P<hit>[1-9]\d*)(?P<onwards>\+)?)?(~(?P<once>/[^;~@]*[^;~@/\s]))?"
)


def failpoint(name: str) -> None:
    """Does here what was armed for this point; nothing where nothing was."""
    if _armed is not None and (armed := _armed.get(name)) is not None:
        armed.strike(name)


def arm(spec: str) -> None:
    """Arms the points that `spec` names, and no others. Raises `FailpointsInvalid`."""
    global _armed  # noqa: PLW0603  one switch for the process, so that "off" costs one comparison
    found: dict[str, _Armed] = {}
    for entry in filter(None, (part.strip() for part in spec.split(";"))):
        match = _ENTRY.fullmatch(entry)
        if match is None:
            raise FailpointsInvalid(
                f"REBUILD_FAILPOINTS: {entry!r} is not NAME=crash|stop|raise|delay(S)[@N[+]][~FILE], in this order; "
                "FILE is an absolute path without ~ and @"
            )
        if match["name"] not in POINTS:
            raise FailpointsInvalid(
                f"REBUILD_FAILPOINTS: there is no point {match['name']!r}; see orchestrator/failpoints.py"
            )
        if match["name"] in found:
            raise FailpointsInvalid(f"REBUILD_FAILPOINTS: {match['name']!r} is armed twice; only one would strike")
        found[match["name"]] = _Armed(
            action=match["action"].partition("(")[0],
            seconds=float(match["seconds"] or 0),
            hit=int(match["hit"] or 1),
            onwards=match["onwards"] is not None,
            once=Path(match["once"]) if match["once"] else None,
        )
    _armed = found or None
