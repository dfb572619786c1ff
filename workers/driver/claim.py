"""Claiming: all plans of the project in one transaction, as many jobs as the gate allows and permits will cover."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.decide import Decision
from orchestrator.domain.gate import Start, Wait, gate, outcome
from orchestrator.domain.states import FINAL_PLAN_STATUSES, IN_FLIGHT_JOB_STATES, JobState, PlanStatus
from orchestrator.failpoints import failpoint
from orchestrator.ledger import drive
from orchestrator.ledger.drift import drift_checked
from orchestrator.ledger.drive import ClaimedJob, DrivenPlan
from orchestrator.ledger.leases import guard
from orchestrator.ledger.transitions import JobChange, lock_plans, move_jobs, move_plan
from orchestrator.log import get_logger
from workers.driver import drift
from workers.driver.budgets import Budgets, claim_some, read_budgets
from workers.driver.desk import Desk
from workers.driver.gates import carry_out, finish_reason, move_of, with_limits

log = get_logger(__name__)

AHEAD_SECONDS = 2.0
"""How much of the rate is claimed and checked ahead of its permits."""
PULSE_SECONDS = 0.5
"""How often the plans' rows are looked at: a pause or a cancellation is seen within this."""
GATHER_SECONDS = 0.05
"""What changes within this is answered together."""
PART_FREE = 0.25
"""How much of the queue must be free before more is claimed: a transaction for a handful of jobs is dear."""
NOTHING_YET = 5.0
"""Seconds after which the gate is asked again though nothing is known to have changed."""
WITH_BUDGET = 1.5
"""The same where a disruption budget is kept: servers come back, and people acknowledge outages of other plans."""


GATED = (PlanStatus.RUNNING, PlanStatus.BAKING, PlanStatus.CANCELLING)
"""Plans that the gate is asked about."""


async def claim_forever(desk: Desk, reload: Callable[[Desk], Awaitable[None]]) -> None:
    """Claims whenever something may have changed and a part of the queue is free, until cancelled."""
    heard: list[drive.Pulse] | None = None
    known: object = None
    paused = False
    looked_at = asked_at = float("-inf")
    while True:
        if time.monotonic() > looked_at + PULSE_SECONDS:
            looked_at = time.monotonic()
            async with desk.engine.connect() as conn:
                pulses, paused = await drive.pulse(conn, desk.own.project)
            statuses = [(p.id, p.status, p.go_epoch, p.rate, p.max_in_flight) for p in pulses]
            if statuses != known or desk.reload_wanted:
                desk.reload_wanted = False
                await reload(desk)
                known = statuses
            if desk.orphans:
                await _return_orphans(desk)
            if pulses != heard:
                desk.woken.set()
            heard = pulses
        ahead = int(desk.limiter.learned_rate * AHEAD_SECONDS) + 1
        if desk.breaker.reason:
            ahead = 1  # the one that is tried when the cloud answers again
        room = ahead - len(desk.ready) - len(desk.unchecked)
        patience = WITH_BUDGET if desk.mirror.census else NOTHING_YET
        due = desk.woken.is_set() or time.monotonic() > asked_at + patience or _time_has_come(desk)
        if room >= ahead * PART_FREE and due and not (desk.stopping or paused or desk.reconciling):
            desk.woken.clear()
            asked_at, desk.waits.next = time.monotonic(), None
            desk.orphans = True  # until its COMMIT is answered
            if await claim(desk, room):
                desk.filled.set()
            desk.orphans = False
            failpoint("claim.after_commit")
        await asyncio.sleep(GATHER_SECONDS)


def _time_has_come(desk: Desk) -> bool:
    return desk.waits.next is not None and desk.lease.now() >= desk.waits.next


async def _return_orphans(desk: Desk) -> None:
    """Puts back what is `checking` by a claim whose COMMIT got no answer. Such a transaction may still end: this one
    waits for it at the plans' rows."""
    own = desk.own
    async with desk.engine.begin() as conn:
        await guard(conn, own.lease, own.fence)
        await lock_plans(conn, desk.plans)
        lost = [j for j in await drive.lost_claims(conn, own.project) if j.key not in desk.claimed]
        changes = [
            JobChange(plan_id=j.plan_id, ord=j.ord, server_id=j.server_id, expected=JobState.CHECKING,
                      decision=Decision(state=JobState.PENDING))
            for j in lost
        ]  # fmt: skip
        await move_jobs(conn, own.deployment, changes)
    desk.orphans = False
    desk.woken.set()
    if lost:
        log.warning("orphans_returned", project=own.project, jobs=len(lost))


async def claim(desk: Desk, room: int) -> int:
    """Asks the gate for every plan, carries out what it says, and claims up to `room` jobs; how many came."""
    own = desk.own
    again = False
    async with desk.engine.begin() as conn:
        await guard(conn, own.lease, own.fence, unexpired=True)
        await lock_plans(conn, desk.plans)
        rows = await drive.plans_of(conn, own.project)  # read under the locks: waves and limits may have moved
        await _settle_ended(conn, rows)
        now = desk.lease.now()
        plans = [p for p in rows.values() if p.id in desk.plans and p.status in GATED and drift.known(desk, p, now)]
        found = await read_budgets(conn, desk, plans)
        figures = found.with_rooms(drift.with_drift(desk, plans, with_limits(desk, await drive.figures(conn, plans))))
        shares: list[tuple[DrivenPlan, Start]] = []
        for plan in plans:
            if plan.status is PlanStatus.CANCELLING:
                again |= await _sweep(conn, desk, plan)
                figures |= found.with_rooms(with_limits(desk, await drive.figures(conn, [plan])))
            answer = gate(figures[plan.id], now)
            again |= await carry_out(conn, plan, figures[plan.id], answer, waits=desk.waits,
                                     approval_seconds=desk.plans[plan.id].settings.approval.expires,
                                     drifted=drift.listed(desk, plan))  # fmt: skip
            if plan.check_drift and plan.status is PlanStatus.RUNNING and not isinstance(answer, Wait):
                await drift_checked(conn, plan.id)
            if isinstance(answer, Start) and plan.status is PlanStatus.RUNNING and answer.places:
                shares.append((plan, answer))
        taken = sum(f.in_flight for f in figures.values())
        room = min(room, max(0, desk.settings.max_in_flight - taken))
        claimed = await _claim_all(conn, desk, found, shares, {p.id: _priority(desk, p) for p in plans}, room)
        failpoint("claim.before_commit")
    desk.claimed.update(j.key for j in claimed)
    desk.unchecked.extend(claimed)
    if again or len(claimed) == room:
        desk.woken.set()
    return len(claimed)


async def _claim_all(
    conn: AsyncConnection, desk: Desk, found: Budgets, shares: list[tuple[DrivenPlan, Start]],
    priorities: dict[object, int], room: int,
) -> list[ClaimedJob]:  # fmt: skip
    """Claims what the plans are given of the room. What one has no use for, since its budget leaves no room or its jobs
    wait for something, goes to the others."""
    claimed: list[ClaimedJob] = []
    while shares and room > 0:
        left: list[tuple[DrivenPlan, Start]] = []
        wanting: list[ClaimedJob] = []
        given = allot(shares, priorities, room)
        for plan, start, n in given:
            jobs = await claim_some(conn, desk, found, plan, start, n)
            wanting += jobs
            if len(jobs) == n and start.places > n:
                left.append((plan, replace(start, places=start.places - n)))
        changes = [
            JobChange(plan_id=j.plan_id, ord=j.ord, server_id=j.server_id, expected=JobState.PENDING,
                      decision=Decision(state=JobState.CHECKING))
            for j in wanting
        ]  # fmt: skip
        moved = await move_jobs(conn, desk.own.deployment, changes)
        claimed += [j for j in wanting if j.key in moved]
        room -= len(wanting)
        unserved = {p.id for p, _ in shares} - {p.id for p, _, _ in given}
        shares = left + [s for s in shares if s[0].id in unserved]
    return claimed


async def _settle_ended(conn: AsyncConnection, rows: Mapping[UUID, DrivenPlan]) -> None:
    """Plans that have ended and were driven on for late jobs. A status says how the jobs ended: late evidence may have
    turned what failed a plan, and a failover a job that had succeeded. Once nothing is left to watch they are left."""
    ended = [p for p in rows.values() if p.status in FINAL_PLAN_STATUSES]
    figures = await drive.figures(conn, ended) if ended else {}
    for plan in ended:
        found = figures[plan.id]
        if found.count(*IN_FLIGHT_JOB_STATES):
            continue
        turned = outcome(found)
        if plan.status in (PlanStatus.SUCCEEDED, PlanStatus.FAILED) and turned is not plan.status:
            await move_plan(conn, move_of(plan, turned, reason=finish_reason(found, turned)))
            log.warning("ended_plan_turned", plan=str(plan.id), status=turned.value)
        if not found.count(JobState.STUCK, JobState.UNRESOLVED):
            await drive.leave_plan(conn, plan.id)


def allot(
    shares: list[tuple[DrivenPlan, Start]], priorities: dict[object, int], room: int
) -> list[tuple[DrivenPlan, Start, int]]:
    """Gives the room to the plans of the highest priority first, in equal parts among equals."""
    given: list[tuple[DrivenPlan, Start, int]] = []
    for priority in sorted({priorities[p.id] for p, _ in shares}, reverse=True):
        equals = sorted((s for s in shares if priorities[s[0].id] == priority), key=lambda s: s[1].places)
        for i, (plan, start) in enumerate(equals):
            part = min(start.places, -(-room // (len(equals) - i)))
            if part > 0:
                given.append((plan, start, part))
                room -= part
    return given


def _priority(desk: Desk, plan: DrivenPlan) -> int:
    return desk.plans[plan.id].spec.priority


async def _sweep(conn: AsyncConnection, desk: Desk, plan: DrivenPlan) -> bool:
    """Cancels pending jobs of a plan that is being cancelled, a batch at a time; True: there may be more."""
    jobs = await drive.sweepable_jobs(conn, plan.id)
    changes = [
        JobChange(plan_id=plan.id, ord=ord_, server_id=server, expected=JobState.PENDING,
                  decision=Decision(state=JobState.CANCELLED))
        for ord_, server in jobs
    ]  # fmt: skip
    await move_jobs(conn, desk.own.deployment, changes)
    return bool(jobs)
