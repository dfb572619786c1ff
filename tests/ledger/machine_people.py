"""What people do to the plans of the state machine (`test_machine`): start, resume, cancel, retry, pause."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from orchestrator.domain.decide import Decision, FailurePolicy
from orchestrator.domain.lifecycle import JobEvent, PlanEvent, plan_moves
from orchestrator.domain.states import HOLDING_JOB_STATES, JobState, PlanStatus
from orchestrator.ledger.acknowledging import acknowledge_failures
from orchestrator.ledger.drive import Ownership
from orchestrator.ledger.engine import transaction
from orchestrator.ledger.holds import take_holds
from orchestrator.ledger.plans import cancel_pending_jobs
from orchestrator.ledger.settle import jobs_to_retry, note_retries, tell_driver
from orchestrator.ledger.transitions import PlanMove, lock_plans, move_jobs, move_plan
from tests.ledger.machine import Job, Plan
from tests.ledger.plant import DEPLOYMENT, change, column, own, plant

S, P, E = JobState, PlanStatus, JobEvent
TABLES = "plans, jobs, job_counts, waves, attempts, holds, last_rebuilds, events, leases, clouds, projects"

Work = Callable[[AsyncConnection], Awaitable[Any]]


class Refused(Exception):
    """A use case that rolls back."""


class People(RuleBasedStateMachine):
    """One project with two plans that want some of the same servers, and the people who run them."""

    runner: asyncio.Runner
    engine: AsyncEngine
    changed = False
    """Something was written since the model was last compared."""

    def run(self, work: Work) -> Any:
        """Runs in one transaction, rolled back on any error."""

        self.changed = True

        async def inside() -> Any:
            async with transaction(self.engine) as conn:
                return await work(conn)

        return self.runner.run(inside())

    @initialize(
        sizes=st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=2, max_size=2),
        places=st.integers(1, 4), max_errors=st.sampled_from([None, 0, 1]), again=st.integers(0, 1),
        same_cause=st.sampled_from([0, 0, 2, 3]), wave_errors=st.lists(st.sampled_from([None, None, 0, 1]), min_size=3,
        max_size=3), halting=st.lists(st.booleans(), min_size=3, max_size=3),
    )  # fmt: skip
    def prepare(
        self, sizes: list[list[int]], places: int, max_errors: int | None, again: int, same_cause: int,
        wave_errors: list[int | None], halting: list[bool],
    ) -> None:  # fmt: skip
        self.plans: list[Plan] = []
        self.paused = False
        self.expired = False

        async def work(conn: AsyncConnection) -> Ownership:
            await conn.execute(text(f"TRUNCATE {TABLES} CASCADE"))
            first = 0
            for waves in sizes:
                servers = [f"s-{first + i}" for i in range(sum(waves))]
                spec = {"name": "web", "failure": {"same_cause": same_cause}}
                id_ = await plant(conn, servers, sizes=waves, running=False, spec=spec)
                wave_of = [w for w, n in enumerate(waves) for _ in range(n)]
                jobs = [Job(server=s, wave=w) for s, w in zip(servers, wave_of, strict=True)]
                policy = FailurePolicy(attempts=2, rebuild_again=again)
                self.plans.append(Plan(id=id_, jobs=jobs, waves=len(waves), max_in_flight=places,
                                       max_errors=max_errors, policy=policy, same_cause=same_cause,
                                       wave_errors=wave_errors, halt_on_unresolved=halting))  # fmt: skip
                first += sum(waves) - 1  # the next plan wants the last one's server too
            await conn.execute(
                text("UPDATE plans SET max_in_flight = :n, max_errors = :e"), {"n": places, "e": max_errors}
            )
            for i, (errors, halt) in enumerate(zip(wave_errors, halting, strict=True)):
                await conn.execute(
                    text("UPDATE waves SET max_errors = :e, on_unresolved = :u WHERE index = :i"),
                    {"e": errors, "u": "halt" if halt else "continue", "i": i},
                )
            return await own(conn)

        self.mine = self.run(work)
        self.start_plan(self.plans[0])
        for plan in self.plans:
            (plan.events,) = self.run(lambda c, p=plan: column(c, "SELECT event_seq FROM plans WHERE id = :p", p=p.id))

    def pick(self, data: st.DataObject, *statuses: PlanStatus) -> Plan:
        return data.draw(st.sampled_from([p for p in self.plans if p.status in (statuses or P)]))

    def held_by_others(self, plan: Plan, servers: set[str]) -> set[str]:
        return {
            j.server for other in self.plans if other is not plan and other.started
            for j in other.jobs if j.state in HOLDING_JOB_STATES and j.server in servers
        }  # fmt: skip

    def start_plan(self, plan: Plan) -> None:
        wanted = self.held_by_others(plan, {j.server for j in plan.jobs})

        async def work(conn: AsyncConnection) -> None:
            await lock_plans(conn, [plan.id])
            held = await take_holds(conn, DEPLOYMENT, plan.id)
            assert {h.server_id for h in held} == wanted
            if held:
                raise Refused
            assert await move_plan(conn, PlanMove(plan_id=plan.id, expected=plan.status, status=P.RUNNING, actor="me"))

        if self.accepted(work):
            plan.moves(P.RUNNING)

    def accepted(self, work: Work) -> bool:
        try:
            self.run(work)
        except Refused:
            return False
        return True

    def move(self, plan: Plan, status: PlanStatus, *, bump: bool = False, first: Work | None = None) -> None:
        async def work(conn: AsyncConnection) -> None:
            await lock_plans(conn, [plan.id])
            if first:
                await first(conn)
            wrong = next(s for s in P if s is not plan.status)
            step = PlanMove(plan_id=plan.id, expected=plan.status, status=status, actor="me", stop_sending=bump)
            assert not await move_plan(conn, replace(step, expected=wrong))
            assert await move_plan(conn, step)

        self.run(work)
        plan.moves(status, bump=bump)

    @precondition(lambda self: self.paused or any(plan_moves(p.status, PlanEvent.RESUME) for p in self.plans))
    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        if self.paused:
            self.pause_project(paused=False)
            return
        plan = self.pick(data, P.PAUSED, P.HALTED)
        if plan.status is P.PAUSED:
            self.move(plan, P.RUNNING)
        else:
            failures, unresolved = plan.count(S.FAILED, S.STUCK), plan.count(S.UNRESOLVED)
            self.move(plan, P.RUNNING, first=lambda conn: acknowledge_failures(
                conn, plan.id, failures=failures, unresolved=unresolved))  # fmt: skip
            plan.acknowledge()

    def cancel(self, plan: Plan) -> None:
        if not plan_moves(plan.status, PlanEvent.CANCEL):
            return
        if plan.started:
            self.move(plan, P.CANCELLING, bump=True)
            return
        self.move(plan, P.CANCELLING, bump=True,
                  first=lambda conn: cancel_pending_jobs(conn, plan.id, actor="me", reason=None))  # fmt: skip
        plan.events += len(plan.jobs)
        for job in plan.jobs:
            job.state = S.CANCELLED
        self.move(plan, P.CANCELLED)

    def retryable(self) -> list[Plan]:
        return [p for p in self.plans if plan_moves(p.status, PlanEvent.RETRY) and p.count(S.FAILED, S.REFUSED)]

    @precondition(lambda self: self.retryable())
    @rule(data=st.data(), refused_too=st.booleans())
    def retry(self, data: st.DataObject, refused_too: bool) -> None:
        plan = data.draw(st.sampled_from(self.retryable()))
        states = {S.FAILED, S.REFUSED} if refused_too else {S.FAILED}
        jobs = {i: j for i, j in enumerate(plan.jobs) if j.state in states}
        servers = {j.server for j in jobs.values()}
        if not jobs:
            return

        async def work(conn: AsyncConnection) -> None:
            await lock_plans(conn, [plan.id])
            found = await jobs_to_retry(conn, plan.id, sorted(servers) if refused_too else None)
            assert [r.ord for r in found] == sorted(jobs)
            held = await take_holds(conn, DEPLOYMENT, plan.id, sorted(servers))
            assert {h.server_id for h in held} == self.held_by_others(plan, servers)
            if held:
                raise Refused
            await note_retries(conn, plan.id, sorted(jobs))
            moves = [change(plan.id, o, j.server, j.state, S.PENDING) for o, j in jobs.items()]
            assert len(await move_jobs(conn, DEPLOYMENT, moves)) == len(jobs)
            (status,) = plan_moves(plan.status, PlanEvent.RETRY)
            assert await move_plan(conn, PlanMove(plan_id=plan.id, expected=plan.status, status=status, actor="me"))
            await tell_driver(conn, plan.id)

        if self.accepted(work):
            for job in jobs.values():
                plan.job_moves(job, E.RETRY, Decision(state=S.PENDING, refusals=0, rebuilt_again=0))
                job.may_be_sent = True
            plan.moves(plan_moves(plan.status, PlanEvent.RETRY)[0], bump=True)

    def pause_project(self, *, paused: bool) -> None:
        self.paused = paused
        self.run(lambda conn: conn.execute(text("UPDATE projects SET paused = :p"), {"p": self.paused}))
