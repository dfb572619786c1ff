"""What one run does, drawn from its seed: the fleet, the settings, what goes wrong in the cloud, and what is killed."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from orchestrator.rehearsal import FaultKind

LEASE_SECONDS = 9.0
STUCK_AFTER = "18s"
"""The plan's timeout where some rebuild never ends: longer than a takeover, which must not make others stuck."""


class Deed(StrEnum):
    """Something that is done to the service, or to the cloud, in the midst of a run."""

    KILL_DRIVE = "kill_drive"
    """kill -9 of a drive worker with its children."""
    KILL_DRIVE_CHILD = "kill_drive_child"
    """kill -9 of the drive process alone; Celery makes another."""
    KILL_WORKERS = "kill_workers"
    """kill -9 of all workers at once."""
    KILL_CONTROL = "kill_control"
    """kill -9 of the worker that ticks."""
    KILL_PREPARE = "kill_prepare"
    """kill -9 of the worker that prepares."""
    KILL_BEAT = "kill_beat"
    """kill -9 of beat."""
    KILL_API = "kill_api"
    """kill -9 of the API."""
    KILL_VALKEY = "kill_valkey"
    """kill -9 of Valkey; it comes back with its append-only file."""
    FLUSH_VALKEY = "flush_valkey"
    """All of Valkey's data are gone: hints, and the limiter's state."""
    KILL_POSTGRES = "kill_postgres"
    """kill -9 of the postmaster; it recovers from its log."""
    FAILOVER = "failover"
    """PostgreSQL dies; what answers at its address is a copy that lacks the last commits, on a new timeline."""
    FREEZE_DRIVE = "freeze_drive"
    """SIGSTOP of the drive process for longer than its lease, then SIGCONT."""
    LEAVE_DRIVE = "leave_drive"
    """TERM to a drive worker: a warm shutdown."""
    STORM = "storm"
    """The cloud answers 429 to everything for a while."""
    OUTAGE = "outage"
    """The cloud answers 503 to everything for a while, or cuts connections."""
    REVOKE = "revoke"
    """The cloud takes back all tokens."""


DOUBTFUL = frozenset({Deed.KILL_DRIVE, Deed.KILL_DRIVE_CHILD, Deed.KILL_WORKERS, Deed.FREEZE_DRIVE, Deed.FAILOVER,
                      Deed.OUTAGE, Deed.KILL_POSTGRES})  # fmt: skip
"""After these a call may be in doubt though nothing went wrong with its own server."""

WEIGHTS: Mapping[Deed, float] = {
    Deed.KILL_DRIVE: 5, Deed.KILL_DRIVE_CHILD: 5, Deed.KILL_WORKERS: 2, Deed.KILL_CONTROL: 2, Deed.KILL_PREPARE: 2,
    Deed.KILL_BEAT: 1, Deed.KILL_API: 2, Deed.KILL_VALKEY: 4, Deed.FLUSH_VALKEY: 3, Deed.KILL_POSTGRES: 4,
    Deed.FAILOVER: 2, Deed.FREEZE_DRIVE: 2, Deed.LEAVE_DRIVE: 1, Deed.STORM: 2, Deed.OUTAGE: 3, Deed.REVOKE: 3,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Act:
    """One deed and its time."""

    deed: Deed
    share: float
    """It is done once this share of the fleet's rebuilds was accepted; 0: when the plan is submitted."""
    pause: float = 0.0
    """Seconds later than that."""
    away: float = 0.5
    """Seconds until what was killed is started again, or the trouble ends."""


@dataclass(frozen=True, kw_only=True)
class Mishap:
    """A fault of the rehearsal cloud for some of the fleet's servers."""

    kind: FaultKind
    numbers: Sequence[int]
    """Of servers, from 1."""
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Script:
    """One run."""

    seed: int
    servers: int = 30
    write_rate: int = 30
    rebuild_seconds: float = 0.8
    resend: str = "after_quiescence"
    marker: bool = True
    timeout: str = "120s"
    drives: int = 1
    """How many drive workers."""
    with_api: bool = True
    """Whether the plan is submitted through an API process; else it is written as the API writes it."""
    with_beat: bool = True
    with_control: bool = True
    """Whether a worker takes beat's ticks. Without it drive processes alone tick, as they do anyway."""
    mishaps: Sequence[Mishap] = ()
    acts: Sequence[Act] = ()
    failpoint: str = ""
    """Where the first process that gets there crashes: `NAME@HIT`."""


# Kinds of mishaps with how they are ordered. A 500 comes with and without the request's id; slow ones stay below the
# quiescence period, since longer than any server-side timeout is what the period promises to be.
_WIRE: Sequence[tuple[FaultKind, Mapping[str, Any]]] = (
    (FaultKind.DROP_BEFORE, {"times": 1}),
    (FaultKind.DROP_AFTER, {"times": 1}),
    (FaultKind.ERROR_BEFORE, {"times": 1, "status": 500}),
    (FaultKind.ERROR_BEFORE, {"times": 1, "status": 500, "request_id": False}),
    (FaultKind.ERROR_AFTER, {"times": 1, "status": 500}),
    (FaultKind.ERROR_AFTER, {"times": 1, "status": 500, "request_id": False}),
    (FaultKind.ERROR_AFTER, {"times": 1}),
    (FaultKind.ERROR_BEFORE, {"times": 1, "status": 503}),
    (FaultKind.SLOW_BEFORE, {"times": 1, "delay": 1.5}),
    (FaultKind.SLOW_AFTER, {"times": 1, "delay": 3.0}),
    (FaultKind.DUPLICATED, {"times": 1}),
    (FaultKind.TRUNCATED, {"times": 1}),
    (FaultKind.HTML, {"times": 1}),
)
_HOST: Sequence[tuple[FaultKind, Mapping[str, Any]]] = (
    (FaultKind.SPAWN_FAILS, {"times": 1}),
    (FaultKind.WRONG_IMAGE, {"times": 1}),
    (FaultKind.IMAGE_GONE, {"times": 1}),
    (FaultKind.NO_VALID_HOST, {"times": 1}),
    (FaultKind.VANISHED, {"lasts": 4.0}),
)
_FOR_EVER: Sequence[tuple[FaultKind, Mapping[str, Any]]] = (
    (FaultKind.STUCK, {"times": 1}),
    (FaultKind.COMPUTE_DIES, {"times": 1}),
)


def script_of(seed: int) -> Script:
    """The script of a seed: the same one every time."""
    rng = random.Random(seed)
    rate = rng.randint(25, 45)
    servers = max(40, min(120, round(rate * rng.uniform(1.5, 3.0))))
    chosen = rng.sample(_WIRE, rng.randint(2, 6)) + rng.sample(_HOST, rng.randint(0, 3))
    for_ever = rng.random() < 0.2
    if for_ever:
        chosen.append(rng.choice(_FOR_EVER))
    numbers = rng.sample(range(1, servers + 1), servers)
    mishaps = [
        Mishap(kind=kind, numbers=[numbers.pop() for _ in range(rng.randint(1, 3))], more=more) for kind, more in chosen
    ]
    deeds = _deeds(rng)
    acts = [
        Act(deed=deed, share=rng.choice((0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)), pause=rng.uniform(0.0, 0.6),
            away=_away(rng, deed))
        for deed in deeds
    ]  # fmt: skip
    return Script(
        seed=seed,
        servers=servers,
        write_rate=rate,
        rebuild_seconds=round(rng.uniform(0.5, 1.5), 2),
        resend="never" if seed % 2 else "after_quiescence",
        marker=rng.random() < 0.85,
        timeout=STUCK_AFTER if for_ever else "120s",
        drives=2 if rng.random() < 0.3 else 1,
        with_api=Deed.KILL_API in deeds or rng.random() < 0.3,
        with_beat=Deed.KILL_BEAT in deeds or rng.random() < 0.3,
        with_control=bool({Deed.KILL_CONTROL, Deed.KILL_BEAT} & set(deeds)) or rng.random() < 0.4,
        mishaps=mishaps,
        acts=sorted(acts, key=lambda a: (a.share, a.pause)),
    )


def _deeds(rng: random.Random) -> list[Deed]:
    drawn: list[Deed] = []
    for _ in range(rng.randint(1, 3)):
        left = [d for d in WEIGHTS if d not in drawn]
        drawn += rng.choices(left, [WEIGHTS[d] for d in left])
    return drawn


def _away(rng: random.Random, deed: Deed) -> float:
    match deed:
        case Deed.FREEZE_DRIVE:
            return LEASE_SECONDS + rng.uniform(0.5, 2.0)
        case Deed.STORM | Deed.OUTAGE:
            return rng.uniform(0.5, 3.0)
        case _:
            return rng.choice((0.0, rng.uniform(0.1, 1.5)))
