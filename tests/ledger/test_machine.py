"""Whatever happens in whatever order: the ledger stays whole, and no server is sent for twice without a reason."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.causes import Cause
from orchestrator.domain.decide import Decision, Happened, decide
from orchestrator.domain.gate import Finish, Halt, NextWave, Start, gate
from orchestrator.domain.lifecycle import JobEvent, PlanEvent, plan_moves
from orchestrator.domain.states import HOLDING_JOB_STATES, JobState, PlanStatus
from orchestrator.errors import LeaseLost
from orchestrator.ledger import drive
from orchestrator.ledger.engine import open_engine
from orchestrator.ledger.leases import acquire, guard, renew
from orchestrator.ledger.plans import plan_now
from orchestrator.ledger.second_gate import commit_intents
from orchestrator.ledger.settle import tell_driver
from orchestrator.ledger.transitions import JobChange, lock_plans, move_jobs
from tests.ledger.machine import FAR, Plan, agrees
from tests.ledger.machine_people import People
from tests.ledger.plant import DEPLOYMENT, change, column, intent
from tests.parts import Databases
from workers.driver.desk import Waits
from workers.driver.gates import carry_out

S, P, E = JobState, PlanStatus, JobEvent
CAUSES = [None, Cause.BUSY, Cause.TOKEN, Cause.SERVER_ERROR, Cause.BAD_REQUEST]
HOW = ["right"] * 3 + ["fence", "epoch", "deployment"]
"""How the driver comes to the second gate: with the right to send, or wrong in one thing."""
EARLY_ENDS = {E.SKIP, E.REFUSE, E.GONE, E.CALL_DRAIN, E.FOUND_APPLIED, E.GIVE_UP, E.CHECK_FAILED}
TAKEN_OVER = {S.CHECKING: E.POSTPONE, S.SENDING: E.UNKNOWN, S.VERIFYING: E.VERIFIED}
"""What a new driver does with what another has left (workers/driver/project.py)."""

INTERFERENCE = ["pause"] * 4 + ["start"] * 4 + ["expire"] * 2 + [
    "cancel", "pause_the_project", "renew", "another_asks", "rest",
]  # fmt: skip
"""Kept to one rule: it would stop everything if each came as often as the driver's own steps."""


class Ledger(People):
    """The project's driver, besides its people; and what comes between the two."""

    @rule(data=st.data(), how=st.sampled_from(INTERFERENCE))
    def interfere(self, data: st.DataObject, how: str) -> None:
        match how:
            case "pause":
                plan = self.pick(data)
                if plan_moves(plan.status, PlanEvent.PAUSE):
                    self.move(plan, P.PAUSED, bump=True)
            case "start":
                if any(p.status is P.PREPARING for p in self.plans):
                    self.start_plan(self.pick(data, P.PREPARING))
            case "cancel":
                self.cancel(self.pick(data))
            case "pause_the_project":
                self.pause_project(paused=True)
            case "another_asks":
                self.another_driver_asks()
            case "rest":
                if movable := self.movable(resting=True):
                    self.happens(*data.draw(st.sampled_from(movable)), None, final=False)
            case _:
                self.let_the_lease_expire(renewed=how == "renew")

    # --- the driver ---

    @rule(data=st.data(), room=st.integers(1, 4), how=st.sampled_from(HOW), times=st.integers(1, 8))
    def drive(self, data: st.DataObject, room: int, how: str, times: int) -> None:
        """The driver's usual way: it claims, sends what it may, and records what happens."""
        for _ in range(2):
            if self.driven():
                self.claim(data, room)
        if self.checking():
            self.intends(self.checking(), how)
        self.happen(data, times)

    def driven(self) -> bool:
        return not self.expired and any(p.status in (P.RUNNING, P.CANCELLING) for p in self.plans)

    def claim(self, data: st.DataObject, room: int) -> None:
        """As workers/driver/claim.py does it: what the gate says is carried out, at most once a step."""
        plan = self.pick(data, P.RUNNING, P.CANCELLING)
        swept = [i for i, j in enumerate(plan.jobs) if j.state is S.PENDING] if plan.status is P.CANCELLING else []
        for ord_ in swept:
            plan.jobs[ord_].state = S.CANCELLED
        plan.events += len(swept)
        wanted = plan.answer()

        async def work(conn: AsyncConnection) -> list[int]:
            await guard(conn, self.mine.lease, self.mine.fence, unexpired=True)
            await lock_plans(conn, [plan.id])
            if plan.status is P.CANCELLING:
                jobs = await drive.sweepable_jobs(conn, plan.id)
                assert [o for o, _ in jobs] == swept
                await move_jobs(conn, DEPLOYMENT, [change(plan.id, o, s, S.PENDING, S.CANCELLED) for o, s in jobs])
            row = (await drive.plans_of(conn, self.mine.project))[plan.id]
            figures = (await drive.figures(conn, [row]))[plan.id]
            answer = gate(figures, datetime.now(UTC))
            assert (answer.reason.code if isinstance(answer, Halt) else answer) == wanted
            if not isinstance(answer, Start):
                await carry_out(conn, row, figures, answer, waits=Waits(), approval_seconds=60.0)
                return []
            limit = min(room, answer.places)
            jobs = await drive.pending_jobs(conn, DEPLOYMENT, plan.id, wave=answer.wave, limit=limit)
            moves = [change(plan.id, j.ord, j.server_id, S.PENDING, S.CHECKING) for j in jobs]
            assert len(await move_jobs(conn, DEPLOYMENT, moves)) == len(jobs)
            return [j.ord for j in jobs]

        claimed = self.run(work)
        if isinstance(wanted, Start):
            assert len(claimed) == min(room, wanted.places, plan.startable()), "it goes on whenever it may"
            for ord_ in claimed:
                plan.jobs[ord_].moved(E.CLAIM, Decision(state=S.CHECKING))
            plan.events += len(claimed)
            assert not claimed or plan.in_flight <= plan.max_in_flight
        else:
            self.carried_out(plan, wanted)

    def carried_out(self, plan: Plan, answer: Any) -> None:
        if isinstance(answer, str):
            plan.moves(P.HALTED, bump=True)
        elif isinstance(answer, Finish):
            plan.moves(answer.status)
        elif isinstance(answer, NextWave):
            plan.moves(P.RUNNING)
        waves = self.run(lambda conn: column(conn, "SELECT wave FROM jobs WHERE plan_id = :p ORDER BY ord", p=plan.id))
        for job, wave in zip(plan.jobs, waves, strict=True):
            assert wave == job.wave or (wave < job.wave and job.state is S.PENDING)
            job.wave = wave
        (plan.current_wave,) = self.run(
            lambda conn: column(conn, "SELECT current_wave FROM plans WHERE id = :p", p=plan.id)
        )

    def checking(self) -> list[tuple[Plan, int]]:
        return [(p, i) for p in self.plans for i, j in enumerate(p.jobs) if j.state is S.CHECKING]

    @precondition(lambda self: self.checking())
    @rule(data=st.data(), how=st.sampled_from(HOW))
    def intend(self, data: st.DataObject, how: str) -> None:
        """The second gate lets through what may be sent, and nothing else, whatever the driver believes."""
        some = st.lists(st.sampled_from(self.checking()), min_size=1, unique_by=lambda x: (x[0].id, x[1]))
        self.intends(data.draw(some), how)

    def intends(self, some: list[tuple[Plan, int]], how: str) -> None:
        mine = self.mine
        if how == "fence":
            mine = replace(mine, fence=mine.fence - 1)
        if how == "deployment":
            mine = replace(mine, deployment="other.test")
        epochs = {p.id: p.epoch - (how == "epoch") for p in self.plans}
        intents = [intent(p.id, i, p.jobs[i].server, p.jobs[i].attempts + 1) for p, i in some]
        passing = how == "right" and not self.paused
        expected = {(p.id, i) for p, i in some if passing and p.status is P.RUNNING}
        try:
            through = self.run(lambda conn: commit_intents(conn, mine, intents, epochs))
        except LeaseLost:
            assert how == "fence" or self.expired
            return
        assert how != "fence"
        assert not self.expired
        assert through == expected
        for plan, ord_ in some:
            job = plan.jobs[ord_]
            if (plan.id, ord_) in through:
                assert job.may_be_sent, f"{job} would be wiped twice"
                job.moved(E.INTEND, Decision(state=S.SENDING))
                job.attempts, job.may_be_sent = job.attempts + 1, False
                plan.events += 1

    def movable(self, *, resting: bool = False) -> list[tuple[Plan, int, JobEvent]]:
        """What may happen to pending jobs (`resting`) or to others; what ends a job early is there once, the rest
        several times."""
        return [
            (p, i, e) for p in self.plans if p.started for i, j in enumerate(p.jobs) for e in p.events_of(j)
            if (j.state is S.PENDING) is resting for _ in range(1 if e in EARLY_ENDS else 8)
        ]  # fmt: skip

    @precondition(lambda self: self.movable())
    @rule(data=st.data(), times=st.integers(1, 8))
    def happen(self, data: st.DataObject, times: int) -> None:
        """Things happen to jobs, and their driver records them."""
        for _ in range(times):
            if movable := self.movable():
                self.happens(*data.draw(st.sampled_from(movable)), data.draw(st.sampled_from(CAUSES)),
                             final=data.draw(st.booleans()))  # fmt: skip

    @precondition(lambda self: self.movable())
    @rule(data=st.data())
    def a_driver_without_its_lease_records(self, data: st.DataObject) -> None:
        plan, ord_, event = data.draw(st.sampled_from(self.movable()))
        try:
            self.record(plan, ord_, Happened(event=event), fence=self.mine.fence - 1)
        except LeaseLost:
            return
        raise AssertionError("it recorded")

    def happens(self, plan: Plan, ord_: int, event: JobEvent, cause: Cause | None, *, final: bool) -> None:
        late = plan.jobs[ord_].state is S.UNRESOLVED and event is E.NOT_APPLIED
        self.record(plan, ord_, Happened(event=event, cause=cause, final=final, fingerprint="f" if final else "g"))
        if late:  # a person's word: a finished plan runs on
            if plan.status is P.FAILED:
                self.move(plan, P.RUNNING)
            self.run(lambda conn: tell_driver(conn, plan.id))
            plan.epoch += 1

    def record(self, plan: Plan, ord_: int, happened: Happened, *, fence: int | None = None) -> None:
        job = plan.jobs[ord_]
        wrong = next(s for s in S if s is not job.state)

        async def work(conn: AsyncConnection) -> Decision:
            await guard(conn, self.mine.lease, self.mine.fence if fence is None else fence)
            await lock_plans(conn, [plan.id])
            decision = decide(job.state, happened, await plan_now(conn) + FAR, job.tried(plan.policy))
            if (
                job.state is S.UNRESOLVED
                and happened.event is E.NOT_APPLIED
                and plan.status in (P.CANCELLING, P.CANCELLED)
            ):
                decision = replace(decision, state=S.CANCELLED)
            right = JobChange(plan_id=plan.id, ord=ord_, server_id=job.server, expected=job.state, decision=decision)
            assert not await move_jobs(conn, DEPLOYMENT, [replace(right, expected=wrong)])
            assert await move_jobs(conn, DEPLOYMENT, [right])
            return decision

        plan.job_moves(job, happened.event, self.run(work))

    @precondition(lambda self: any(j.waits for p in self.plans for j in p.jobs))
    @rule()
    def waits_end(self) -> None:
        self.run(lambda conn: conn.execute(text("UPDATE jobs SET due_at = now() WHERE due_at IS NOT NULL")))
        for plan in self.plans:
            for job in plan.jobs:
                job.waits = False

    def let_the_lease_expire(self, *, renewed: bool) -> None:
        self.run(lambda conn: conn.execute(text("UPDATE leases SET expires_at = now() - interval '1 s'")))
        self.expired = not renewed
        if renewed:
            assert self.run(lambda conn: renew(conn, self.mine.lease, self.mine.fence, 600))

    @precondition(lambda self: self.expired)
    @rule()
    def another_driver_asks(self) -> None:
        """It gets the lease only when it has expired, and then takes over what the first has left."""
        fence = self.run(lambda conn: acquire(conn, self.mine.lease, "other", 600))
        assert (fence is None) is (not self.expired)
        if fence is None:
            return
        assert fence > self.mine.fence
        assert not self.run(lambda conn: renew(conn, self.mine.lease, self.mine.fence, 600))
        self.mine, self.expired = replace(self.mine, fence=fence), False
        jobs = self.run(lambda conn: drive.moving_jobs(conn, self.mine.project))
        there = {(p.id, i): p for p in self.plans for i in range(len(p.jobs))}
        assert {j.key for j in jobs} == {
            (p.id, i) for p in self.plans if p.started
            for i, j in enumerate(p.jobs) if j.state in HOLDING_JOB_STATES - {S.PENDING}
        }, "nothing that moves is left without a driver"  # fmt: skip
        for job in jobs:
            if event := TAKEN_OVER.get(job.state):
                self.record(there[job.key], job.ord, Happened(event=event))

    @invariant()
    def the_ledger_is_what_the_model_says(self) -> None:
        if self.changed:
            self.run(lambda conn: agrees(conn, self.plans))
            self.changed = False


@pytest.mark.timeout(600)
def test_the_ledger_stays_whole_whatever_happens_in_whatever_order(databases: Databases) -> None:
    url = databases.create()
    with asyncio.Runner() as runner:
        opened = open_engine(url, name="test")
        engine = runner.run(opened.__aenter__())
        try:
            machine = type("Machine", (Ledger,), {"runner": runner, "engine": engine})
            run_state_machine_as_test(
                machine,
                settings=settings(max_examples=40, stateful_step_count=40, deadline=None, derandomize=True,
                                  database=None, suppress_health_check=list(HealthCheck)),
            )  # fmt: skip
        finally:
            runner.run(opened.__aexit__(None, None, None))
    databases.drop(url)
