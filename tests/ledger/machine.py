"""The ledger driven through its own functions step by step, with a model in memory that says what must come of it."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.decide import Decision, FailurePolicy, Tried
from orchestrator.domain.gate import PLACES, Finish, GateAnswer, NextWave, Replenish, Start
from orchestrator.domain.lifecycle import JobEvent, job_moves
from orchestrator.domain.states import FINAL_JOB_STATES, FINISHED_JOB_STATES, HOLDING_JOB_STATES, JobState, PlanStatus
from tests.ledger.plant import column

S, P, E = JobState, PlanStatus, JobEvent

BY_OTHER_RULES = {E.CLAIM, E.INTEND, E.RETRY}
"""Events that have rules of their own."""
BAD = {S.FAILED, S.STUCK}
"""What counts as a failure."""
PROVES_NO_EFFECT = {E.NOT_SENT, E.TURNED_AWAY, E.NOT_APPLIED}
FAR = timedelta(hours=1)
"""Decisions are made as if so much later: every wait that they give is one that real time does not end."""


@dataclass
class Job:
    """What one job must look like."""

    server: str
    wave: int
    state: JobState = S.PENDING
    attempts: int = 0
    refusals: int = 0
    rebuilt_again: int = 0
    waits: bool = False
    may_be_sent: bool = True
    """No call of it is out whose effect isn't excluded, ended with consent, or given up and retried."""
    cause: str = "unknown"
    """What it failed of."""
    acknowledged: bool = False
    """It is as it was when its halted plan was resumed."""

    def tried(self, policy: FailurePolicy) -> Tried:
        return Tried(refusals=self.refusals, rebuilt_again=self.rebuilt_again, policy=policy)

    def moved(self, event: JobEvent, decision: Decision) -> None:
        """It has moved as decided."""
        if event in PROVES_NO_EFFECT or (event is E.REBUILD_FAILED and decision.rebuilt_again is not None):
            self.may_be_sent = True
        elif event is E.FOUND_APPLIED:
            self.may_be_sent = False
        self.state, self.waits = decision.state, decision.due_at is not None
        self.cause, self.acknowledged = decision.fingerprint or "unknown", False
        self.refusals = self.refusals if decision.refusals is None else decision.refusals
        self.rebuilt_again = self.rebuilt_again if decision.rebuilt_again is None else decision.rebuilt_again


@dataclass
class Plan:
    """What one plan must look like."""

    id: UUID
    jobs: list[Job]
    max_in_flight: int
    max_errors: int | None
    policy: FailurePolicy
    status: PlanStatus = P.PREPARING
    epoch: int = 0
    current_wave: int = 0
    waves: int = 1
    acknowledged: int = 0
    acknowledged_unresolved: int = 0
    same_cause: int = 0
    wave_errors: list[int | None] = field(default_factory=list)
    """Each wave's own `max_errors`."""
    halt_on_unresolved: list[bool] = field(default_factory=list)
    resumed: set[int] = field(default_factory=set)
    events: int = 1

    @property
    def started(self) -> bool:
        return self.status is not P.PREPARING

    def count(self, *states: JobState, wave: int | None = None) -> int:
        return sum(j.state in states for j in self.jobs if wave is None or j.wave == wave)

    @property
    def in_flight(self) -> int:
        return self.count(*PLACES)

    def startable(self) -> int:
        """Pending jobs of the waves so far whose wait is over."""
        return sum(j.state is S.PENDING and not j.waits and j.wave <= self.current_wave for j in self.jobs)

    def job_moves(self, job: Job, event: JobEvent, decision: Decision) -> None:
        """A job has moved as decided. One that was acknowledged, and isn't any more what it was, hides no other."""
        if job.acknowledged and job.state in BAD and decision.state not in BAD:
            self.acknowledged -= 1
        if job.acknowledged and job.state is S.UNRESOLVED:
            self.acknowledged_unresolved -= 1
        job.moved(event, decision)
        self.events += 1

    def acknowledge(self) -> None:
        """It is resumed after a halt."""
        self.acknowledged, self.acknowledged_unresolved = self.count(*BAD), self.count(S.UNRESOLVED)
        for job in self.jobs:
            job.acknowledged = job.state in {*BAD, S.UNRESOLVED}
        self.resumed.add(self.current_wave)

    def moves(self, status: PlanStatus, *, bump: bool = False) -> None:
        self.status, self.events, self.epoch = status, self.events + 1, self.epoch + bump

    def events_of(self, job: Job) -> list[JobEvent]:
        """What may happen to a job besides what has its own rule."""
        found = [e for e in E if job_moves(job.state, e) and e not in BY_OTHER_RULES]
        if self.status is not P.CANCELLING:
            found = [e for e in found if e is not E.CANCEL]
        if job.state in FINAL_JOB_STATES or self.status is P.CANCELLED:
            found = [e for e in found if job.state not in FINAL_JOB_STATES]
        return found

    def halts(self) -> str | None:
        """The code of the reason to halt for."""
        wave = self.current_wave
        in_waves = wave < self.waves
        own = self.wave_errors[wave] if in_waves and wave not in self.resumed else None
        if own is not None and self.count(*BAD, wave=wave) > own:
            return "wave_max_errors"
        failures = self.count(*BAD) - self.acknowledged
        if self.max_errors is not None and failures > self.max_errors:
            return "max_errors"
        causes = Counter(j.cause for j in self.jobs if j.state in BAD and not j.acknowledged)
        commonest = max(causes.values(), default=0)
        if self.same_cause and len(self.jobs) >= 3 and failures > 0 and commonest >= self.same_cause:
            return "same_cause"
        fresh = self.count(S.UNRESOLVED) - self.acknowledged_unresolved
        if in_waves and self.halt_on_unresolved[wave] and min(fresh, self.count(S.UNRESOLVED, wave=wave)) > 0:
            return "unresolved"
        return None

    def answer(self) -> GateAnswer | str:
        """What the gate must say; where it must halt, the code of the reason."""
        unfinished = [j for j in self.jobs if j.state not in FINISHED_JOB_STATES]
        if self.status is P.CANCELLING:
            return Start(wave=self.current_wave, places=0) if unfinished else Finish(status=P.CANCELLED)
        if code := self.halts():
            return code
        if any(j.wave <= self.current_wave for j in unfinished):
            return Start(wave=self.current_wave, places=max(0, self.max_in_flight - self.in_flight))
        if self.current_wave >= self.waves - 1:
            bad = self.count(S.FAILED, S.REFUSED, S.STUCK, S.UNRESOLVED)
            return Finish(status=P.FAILED if bad else P.SUCCEEDED)
        wave = self.current_wave
        if self.count(S.SUCCEEDED, wave=wave) or wave in self.resumed:
            return NextWave(wave=wave + 1)
        if self.count(S.FAILED, S.STUCK, S.UNRESOLVED, wave=wave):
            return "wave_without_success"
        return Replenish(wave=wave, places=max(1, sum(j.wave == wave for j in self.jobs)))


async def agrees(conn: AsyncConnection, plans: list[Plan]) -> None:
    """The ledger is what the model says, its counters are what counting gives, and its events are dense."""
    rows = await column(conn, "SELECT plan_id, ord, state, attempts, wave FROM jobs ORDER BY plan_id, ord")
    jobs = [(p.id, i, j.state.value, j.attempts, j.wave) for p in plans for i, j in enumerate(p.jobs)]
    assert rows == sorted(jobs)

    kept = await column(conn, "SELECT plan_id, wave, state, n FROM job_counts WHERE n <> 0")
    assert sorted(kept) == sorted((*k, n) for k, n in Counter((p, w, s) for p, _, s, _, w in rows).items())
    sizes = await column(conn, "SELECT plan_id, index, size FROM waves WHERE size > 0")
    assert sorted(sizes) == sorted((*k, n) for k, n in Counter((p, w) for p, _, _, _, w in rows).items())

    holds = await column(conn, "SELECT plan_id, server_id FROM holds")
    holding = [(p.id, j.server) for p in plans if p.started for j in p.jobs if j.state in HOLDING_JOB_STATES]
    assert sorted(holds) == sorted(holding)

    told = await column(
        conn,
        """SELECT p.id, p.status, p.go_epoch, p.acknowledged_failures, p.acknowledged_unresolved,
                  p.event_seq, count(*), min(e.seq), max(e.seq),
                  array_agg(e.seq ORDER BY e.at, e.seq) = array_agg(e.seq ORDER BY e.seq)
           FROM plans p JOIN events e ON e.plan_id = p.id GROUP BY p.id ORDER BY p.id""",
    )
    plan_rows = [(p.id, p.status.value, p.epoch, p.acknowledged, p.acknowledged_unresolved, p.events, p.events, 1,
                  p.events, True) for p in plans]  # fmt: skip
    assert told == sorted(plan_rows)

    sent = await column(conn, "SELECT plan_id, ord, count(*) FROM attempts GROUP BY 1, 2")
    assert sorted(sent) == sorted((p, o, n) for p, o, _, n, _ in rows if n)
