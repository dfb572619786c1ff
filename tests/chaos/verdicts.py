"""Holds the cloud's own account against the ledger. Every verdict is one sentence about what is wrong."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.rehearsal import FaultKind
from tests.chaos.ledger import JobRow, Snapshot
from tests.chaos.script import DOUBTFUL, Deed, Script

ENDED = frozenset({"succeeded", "failed"})
AT_REST = frozenset({"succeeded", "failed", "refused", "skipped", "stuck", "unresolved"})
KEEPS_HOLD = frozenset({"stuck", "unresolved"})
TAKEOVER_SECONDS = 20.0
UNCLEAR = frozenset({
    FaultKind.DROP_BEFORE, FaultKind.DROP_AFTER, FaultKind.ERROR_BEFORE, FaultKind.ERROR_AFTER, FaultKind.SLOW_BEFORE,
    FaultKind.SLOW_AFTER, FaultKind.TRUNCATED, FaultKind.HTML, FaultKind.OUTAGE, FaultKind.VANISHED,
    FaultKind.DUPLICATED,
})  # fmt: skip
"""After these the client can't know by the answer alone what became of its call."""
NEVER_END = frozenset({FaultKind.STUCK, FaultKind.COMPUTE_DIES})


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A driver that lost its life while it had the lease, and what followed."""

    deed: str
    at: float
    taken_at: float | None = None
    allowed: float = TAKEOVER_SECONDS
    """Longer where something else was away too, meanwhile."""

    @property
    def seconds(self) -> float | None:
        return None if self.taken_at is None else self.taken_at - self.at


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What there is to judge after a run."""

    script: Script
    ledger: Snapshot
    account: Mapping[str, Any]
    """`GET /rehearsal/account?all=1`"""
    servers: Mapping[str, Any]
    """`GET /rehearsal/servers`"""
    plan_id: str
    done: Sequence[Deed]
    losses: Sequence[Loss]
    drivers: frozenset[str]
    """Living drive processes, as leases name them."""
    stall: float = 0.0
    """The longest time, in seconds, for which the rehearsal cloud could not run: what arrived meanwhile counts as one
    burst, though it was sent at its pace."""


def judge(outcome: Outcome) -> list[str]:
    """Everything that is wrong."""
    found = [*_plan(outcome), *_bookkeeping(outcome), *_drivers(outcome), *_pace(outcome)]
    for server_id, job in outcome.ledger.jobs.items():
        found += [f"{job.name} ({job.state}): {said}" for said in _job(outcome, server_id, job)]
    return found


def _plan(outcome: Outcome) -> Iterator[str]:
    if outcome.ledger.status not in ENDED:
        yield f"the plan is {outcome.ledger.status}"
    if len(outcome.ledger.jobs) != outcome.script.servers:
        yield f"the ledger has {len(outcome.ledger.jobs)} jobs"


def _bookkeeping(outcome: Outcome) -> Iterator[str]:
    """Counters equal rows, events are dense and complete, holds are there exactly where one is kept."""
    ledger = outcome.ledger
    rows = Counter(job.state for job in ledger.jobs.values())
    if ledger.counted != rows:
        yield f"counters say {dict(ledger.counted)}, rows {dict(rows)}"
    if [seq for seq, _, _ in ledger.events] != list(range(1, ledger.event_seq + 1)):
        yield "events are not dense"
    last = {server: state for _, server, state in ledger.events if server is not None}
    states = {server: job.state for server, job in ledger.jobs.items() if job.state != "pending"}
    if last != states:
        wrong = sorted(s for s in last.keys() | states.keys() if last.get(s) != states.get(s))
        yield f"the last events do not give the states of {wrong[:3]}"
    keeps = {server for server, job in ledger.jobs.items() if job.state in KEEPS_HOLD}
    if ledger.held != keeps:
        yield f"holds are kept for {sorted(ledger.held - keeps)[:3]} and missing for {sorted(keeps - ledger.held)[:3]}"


def _drivers(outcome: Outcome) -> Iterator[str]:
    live = [lease for lease in outcome.ledger.leases if lease.live]
    for lease in live:
        if lease.holder not in outcome.drivers:
            yield f"the lease {lease.name} is live and its holder {lease.holder} is not"
    if outcome.ledger.due and not live:
        yield "something is left to be watched, and nobody drives"
    for loss in outcome.losses:
        if loss.seconds is not None and loss.seconds > loss.allowed:
            yield f"after {loss.deed} it took {loss.seconds:.1f} s until another driver had the lease"


def _pace(outcome: Outcome) -> Iterator[str]:
    most = outcome.account["busiest_second"]["writes"]
    if most > outcome.script.write_rate * (1.05 + outcome.stall) + 1:
        yield (
            f"{most} writes in one second, at a rate of {outcome.script.write_rate}/s (the cloud stood still for up to "
            f"{outcome.stall:.3f} s)"
        )


def _job(outcome: Outcome, server_id: str, job: JobRow) -> Iterator[str]:
    account, server = outcome.account["servers"][server_id], outcome.servers[server_id]
    accepted: int = account["accepted"]
    faults = set(account["faults"]) | _targeted(outcome.script, job)
    intents = outcome.ledger.attempts_of(server_id)
    if accepted > 1:
        yield f"rebuilt {accepted} times (attempts {account['attempts']})"
    if account["received"] > len(intents):
        yield f"{account['received']} calls arrived, and the ledger has {len(intents)} intents"
    known = {f"{outcome.plan_id}/{intent.number}" for intent in intents}
    for marker in account["attempts"]:
        if marker is not None and marker not in known:
            yield f"the rebuild {marker} was accepted, and the ledger has no such intent"
        if marker is None and outcome.script.marker:
            yield "a rebuild without our marker was accepted"
    if job.attempts != len(intents):
        yield f"the job counts {job.attempts} attempts, and the ledger has {len(intents)}"
    match job.state:
        case "succeeded":
            if accepted != 1:
                yield f"{accepted} rebuilds were accepted"
            if server["status"] not in ("ACTIVE", "SHUTOFF") or server["task_state"] is not None:
                yield f"the server is {server['status']} ({server['task_state']})"
            if server["image"] != job.target_image:
                yield f"the server has the image {server['image']}"
        case "failed" | "refused":
            if not faults:
                yield f"no fault was ordered for it, and it is {job.reason_code}: {job.reason_message}"
            if job.state == "refused" and accepted:
                yield "its rebuild was accepted"
        case "unresolved":
            if not faults & UNCLEAR and not DOUBTFUL & set(outcome.done) and not outcome.script.failpoint:
                yield f"nothing was unclear: {job.reason_message}"
            if accepted and "vanished" not in faults:
                yield f"its rebuild took effect, and was not found: {job.reason_message}"
            if not accepted and outcome.script.resend == "after_quiescence" and "vanished" not in faults:
                yield f"nothing arrived, and it was not sent again: {job.reason_message}"
        case "stuck":
            if not faults & NEVER_END:
                yield f"its rebuild has ended ({server['status']})"
        case "skipped":
            yield "nothing was there to be skipped"
        case _:
            yield "it is not at rest"


def _targeted(script: Script, job: JobRow) -> set[str]:
    """Kinds of faults that were ordered for the server."""
    return {m.kind for m in script.mishaps if job.name in {f"node-{n:05d}" for n in m.numbers}}
