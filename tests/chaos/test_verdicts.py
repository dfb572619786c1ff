"""Every verdict can fail: a sound run is found sound, and each thing that may be wrong is said."""

import copy
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from orchestrator.rehearsal import FaultKind
from tests.chaos.ledger import AttemptRow, JobRow, LeaseRow, Snapshot
from tests.chaos.script import Mishap, Script
from tests.chaos.verdicts import Loss, Outcome, judge

NOW = datetime(2026, 11, 1, tzinfo=UTC)
STATES = {"a": "succeeded", "b": "failed", "c": "unresolved", "d": "stuck"}
KINDS = {"b": FaultKind.SPAWN_FAILS, "c": FaultKind.DROP_BEFORE, "d": FaultKind.STUCK}


def _sound() -> Outcome:
    """One job of each final state, and a fault for each that needs one."""
    jobs = {
        server: JobRow(server_id=server, name=f"node-0000{n}", state=state, reason_code=None, reason_message=None,
                       attempts=1, target_image="new")
        for n, (server, state) in enumerate(STATES.items(), start=1)
    }  # fmt: skip
    account = {
        server: {"accepted": int(server != "c"), "received": 1, "attempts": ["p/1"] if server != "c" else [],
                 "faults": {str(KINDS[server]): 1} if server in KINDS else {}}
        for server in STATES
    }  # fmt: skip
    attempt = AttemptRow(server_id="", number=1, classification=None, http_status=None, cloud_date=None)
    ledger = Snapshot(
        status="failed",
        due=True,
        event_seq=4,
        jobs=jobs,
        counted=dict.fromkeys(STATES.values(), 1),
        attempts=[replace(attempt, server_id=server) for server in STATES],
        events=[(n, server, state) for n, (server, state) in enumerate(STATES.items(), start=1)],
        held=frozenset({"c", "d"}),
        leases=[LeaseRow(name="drive:1", holder="host:7", live=True, acquired_at=NOW)],
    )
    mishaps = [Mishap(kind=kind, numbers=["abcd".index(server) + 1]) for server, kind in KINDS.items()]
    return Outcome(
        script=Script(seed=1, servers=4, write_rate=20, resend="never", mishaps=mishaps),
        ledger=ledger,
        account={"servers": account, "busiest_second": {"writes": 22}},
        servers={s: {"status": "ACTIVE", "task_state": None, "image": "new"} for s in STATES},
        plan_id="p",
        done=[],
        losses=[Loss(deed="kill_drive", at=100.0, taken_at=109.5)],
        drivers=frozenset({"host:7"}),
    )


def test_a_sound_run_is_found_sound() -> None:
    assert judge(_sound()) == []


def _ledger(**change: Any) -> Callable[[Outcome], Outcome]:
    return lambda o: replace(o, ledger=replace(o.ledger, **change))


def _account(server: str, **change: Any) -> Callable[[Outcome], Outcome]:
    def changed(outcome: Outcome) -> Outcome:
        account: dict[str, Any] = copy.deepcopy(dict(outcome.account))
        account["servers"][server].update(change)
        return replace(outcome, account=account)

    return changed


def _server(server: str, **change: Any) -> Callable[[Outcome], Outcome]:
    return lambda o: replace(o, servers={**o.servers, server: {**o.servers[server], **change}})


def _state(server: str, state: str) -> Callable[[Outcome], Outcome]:
    """The job's state, and everything that follows from it in the books."""

    def changed(outcome: Outcome) -> Outcome:
        ledger = outcome.ledger
        jobs = {**ledger.jobs, server: replace(ledger.jobs[server], state=state)}
        counted: dict[str, int] = {}
        for job in jobs.values():
            counted[job.state] = counted.get(job.state, 0) + 1
        held = {s for s, job in jobs.items() if job.state in ("stuck", "unresolved")}
        events = [(n, s, jobs[s].state) for n, s, _ in ledger.events if s is not None]
        return replace(outcome, ledger=replace(ledger, jobs=jobs, counted=counted, held=frozenset(held), events=events))

    return changed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_account("a", accepted=2, attempts=["p/1", "p/1"], received=1), "rebuilt 2 times"),
        (_account("a", accepted=0, attempts=[]), "0 rebuilds were accepted"),
        (_account("a", received=2), "2 calls arrived, and the ledger has 1 intents"),
        (_account("a", attempts=["p/2"]), "has no such intent"),
        (_account("a", attempts=[None]), "without our marker"),
        (_account("c", accepted=1, attempts=["p/1"]), "took effect, and was not found"),
        (_server("a", image="old"), "has the image old"),
        (_server("a", status="ERROR"), "the server is ERROR"),
        (_server("a", task_state="rebuilding"), "(rebuilding)"),
        (_state("a", "failed"), "no fault was ordered"),
        (_state("a", "refused"), "its rebuild was accepted"),
        (_state("a", "unresolved"), "nothing was unclear"),
        (_state("a", "stuck"), "its rebuild has ended"),
        (_state("a", "skipped"), "nothing was there to be skipped"),
        (_state("a", "rebuilding"), "not at rest"),
        (_state("c", "pending"), "not at rest"),
        (lambda o: replace(o, script=replace(o.script, resend="after_quiescence")), "was not sent again"),
        (_ledger(status="running"), "the plan is running"),
        (_ledger(counted={"succeeded": 4}), "counters say"),
        (_ledger(event_seq=5), "events are not dense"),
        (lambda o: _ledger(events=[*o.ledger.events[:3], (4, "d", "failed")])(o), "the last events"),
        (_ledger(held=frozenset({"a", "c", "d"})), "holds are kept for ['a']"),
        (_ledger(held=frozenset({"c"})), "missing for ['d']"),
        (lambda o: replace(o, drivers=frozenset()), "is live and its holder host:7 is not"),
        (_ledger(leases=[]), "nobody drives"),
        (lambda o: replace(o, losses=[Loss(deed="kill_drive", at=100.0, taken_at=120.5)]), "it took 20.5 s"),
        (lambda o: replace(o, script=replace(o.script, write_rate=19)), "22 writes in one second"),
        (lambda o: replace(o, script=replace(o.script, servers=5)), "the ledger has 4 jobs"),
    ],
)
def test_what_is_wrong_is_said(change: Callable[[Outcome], Outcome], said: str) -> None:
    assert said in " | ".join(judge(change(_sound())))
