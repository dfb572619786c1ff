"""A person's actions on a plan: start, pause, resume, cancel, retry.

Each locks the plan's row, moves it as the life cycle allows, and hints to the drivers after the commit. Asking for what
already is so changes nothing and is no error, so that a request whose answer was lost can be repeated.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.clouds.config import Approval
from orchestrator.domain.decide import Happened, Reason, Tried, decide
from orchestrator.domain.lifecycle import JobEvent, PlanEvent, plan_moves
from orchestrator.domain.states import JobState, PlanStatus
from orchestrator.errors import Conflict, Fault, NotFound
from orchestrator.ledger.acknowledging import acknowledge_failures
from orchestrator.ledger.begin import begin
from orchestrator.ledger.engine import transaction
from orchestrator.ledger.events import status_before_pause
from orchestrator.ledger.holds import CONFLICTS_SHOWN, HeldElsewhere, take_holds
from orchestrator.ledger.outages import forget_acknowledgements
from orchestrator.ledger.plans import (
    PlanRecord,
    cancel_pending_jobs,
    expire_at,
    job_counts,
    plan_now,
    plan_record,
)
from orchestrator.ledger.settle import Retryable, jobs_to_retry, note_retries, tell_driver
from orchestrator.ledger.transitions import JobChange, PlanMove, lock_plans, move_jobs, move_plan
from orchestrator.ledger.waves import reopen_wave
from orchestrator.service.deps import Deps
from orchestrator.service.roles import Principal, Right
from orchestrator.service.show import plan_views
from orchestrator.service.views import PlanView

STARTED = (PlanStatus.RUNNING, PlanStatus.SCHEDULED, PlanStatus.AWAITING_APPROVAL)
"""Where `start` leaves a plan, as far as it can go."""
WITHOUT_FAILURE = ("approval_rejected", "approval_expired", "drift")
"""Why a plan was halted though nothing had failed: there is nothing to acknowledge, and its thresholds stay."""
RETRY_BATCH = 1000
"""Jobs that move in one statement."""


async def start(
    deps: Deps, principal: Principal, plan_id: UUID, *, digest: str | None = None, reason: str | None = None
) -> PlanView:
    """Runs a saved preview: takes its holds and lets the driver have it, or waits for what must come first: an
    approval, its start time, or servers that other plans hold (`on_conflict: queue`).

    Raises `Conflict`: `digest_mismatch` where the plan isn't the one that was looked at, `servers_held` (itemised)
    where other plans hold some of its servers; then it has taken nothing and stays ready.
    """
    async with transaction(deps.engine) as conn:
        plan = await lock_plan(conn, principal, plan_id)
        principal.need_to_run(plan.created_by)
        if digest is not None and digest != plan.digest:
            raise Conflict(
                f"The plan's digest is {plan.digest or 'not there yet'}, not the one given: look at it again.",
                code="digest_mismatch",
            )
        if plan.status not in STARTED:
            seconds = (await approval_settings(deps, plan.cloud)).expires
            await _start(conn, principal, plan, reason, approval_seconds=seconds)
    await deps.hints.drive()
    return await view(deps, plan_id)


async def pause(deps: Deps, principal: Principal, plan_id: UUID, *, reason: str | None = None) -> PlanView:
    """Stops sending; what is in flight goes on."""
    async with transaction(deps.engine) as conn:
        plan = await lock_plan(conn, principal, plan_id)
        principal.need(Right.OPERATE)
        if plan.status != PlanStatus.PAUSED:
            (status,) = allowed(plan, PlanEvent.PAUSE, "pause", "it pauses while it is running, baking or waiting")
            await move(conn, principal, plan, status, code="paused", reason=reason, stop_sending=True)
    await deps.hints.drive()
    return await view(deps, plan_id)


async def resume(deps: Deps, principal: Principal, plan_id: UUID, *, reason: str | None = None) -> PlanView:
    """Goes on where a pause or a halt stopped it. After a halt the failures so far are acknowledged: they count no
    more, and the current wave may end without a success. Where an approval was refused, or came too late, it is asked
    for again."""
    async with transaction(deps.engine) as conn:
        plan = await lock_plan(conn, principal, plan_id)
        principal.need(Right.OPERATE)
        if plan.status != PlanStatus.RUNNING:
            moves = allowed(plan, PlanEvent.RESUME, "resume", "only a paused or halted plan does")
            status = moves[0]
            if plan.status == PlanStatus.PAUSED:
                before = await status_before_pause(conn, plan.id)
                status = before if before in moves else status
                if status is PlanStatus.AWAITING_APPROVAL:
                    status = await _ask_again(deps, conn, plan)
            elif plan.reason_code not in WITHOUT_FAILURE:
                await _acknowledge(conn, plan)
            await move(conn, principal, plan, status, code="resumed", reason=reason)
    await deps.hints.drive()
    return await view(deps, plan_id)


async def cancel(deps: Deps, principal: Principal, plan_id: UUID, *, reason: str | None = None) -> PlanView:
    """Stops new work and lets what is in flight finish; where nothing was started the plan is cancelled at once."""
    async with transaction(deps.engine) as conn:
        plan = await lock_plan(conn, principal, plan_id)
        principal.need_to_run(plan.created_by)
        if plan.status not in (PlanStatus.CANCELLING, PlanStatus.CANCELLED):
            (status,) = allowed(plan, PlanEvent.CANCEL, "be cancelled", "it has ended")
            untouched = plan.started_at is None
            if untouched:
                await cancel_pending_jobs(conn, plan.id, actor=principal.name, reason=reason_of("cancelled", reason))
            await move(conn, principal, plan, status, code="cancelled", reason=reason, stop_sending=True)
            if untouched and status is PlanStatus.CANCELLING:
                await _end_cancelling(conn, principal, plan_id, reason)
    await deps.hints.drive()
    return await view(deps, plan_id)


async def retry(
    deps: Deps, principal: Principal, plan_id: UUID, *, servers: Sequence[str] | None = None, reason: str | None = None
) -> PlanView:
    """Another attempt for the servers that failed, or for these, failed or refused: recorded, under the same plan.

    A failed job's call had ended or was given up, so nothing of it is still to come. Raises `Conflict`, and has done
    nothing then: `not_retryable` (itemised), `servers_held` (itemised), `nothing_to_retry`.
    """
    async with transaction(deps.engine) as conn:
        plan = await lock_plan(conn, principal, plan_id)
        principal.need(Right.OPERATE)
        (status,) = allowed(plan, PlanEvent.RETRY, "be retried", "nothing of it has failed, or it was never started "
                             "or was cancelled")  # fmt: skip
        if plan.started_at is None:
            raise Conflict(f"The plan is {plan.status} and was never started: there is nothing to retry.")
        jobs = await jobs_to_retry(conn, plan_id, servers)
        _check_retryable(jobs, servers)
        _free(await take_holds(conn, plan.deployment or "", plan_id, [j.server_id for j in jobs]))
        await note_retries(conn, plan_id, [j.ord for j in jobs])
        await forget_acknowledgements(conn, plan.deployment or "", [j.server_id for j in jobs])
        why = Reason(code="retried", message=reason or f"Retried by {principal.name}.")
        now = await plan_now(conn)
        for part in (jobs[i : i + RETRY_BATCH] for i in range(0, len(jobs), RETRY_BATCH)):
            changes = [
                JobChange(plan_id=plan_id, ord=j.ord, server_id=j.server_id, expected=j.state, actor=principal.name,
                          decision=decide(j.state, Happened(event=JobEvent.RETRY, reason=why), now, Tried()))
                for j in part
            ]  # fmt: skip
            await move_jobs(conn, plan.deployment or "", changes)
        await reopen_wave(conn, plan_id)
        await move(conn, principal, plan, status, code="retried", reason=f"{len(jobs)} servers are retried.")
        await tell_driver(conn, plan_id)
    await deps.hints.drive()
    return await view(deps, plan_id)


def _check_retryable(jobs: Sequence[Retryable], servers: Sequence[str] | None) -> None:
    states = {j.server_id: j.state for j in jobs}
    wrong = [
        Fault(path=s, code="not_retryable", message=f"is {states[s]}" if s in states else "is none of the plan's")
        for s in servers or ()
        if states.get(s) not in (JobState.FAILED, JobState.REFUSED)
    ]
    if wrong:
        raise Conflict(
            f"{len(wrong)} of these servers can't be retried; only failed and refused ones can. Nothing was done.",
            code="not_retryable",
            errors=wrong[:CONFLICTS_SHOWN],
        )
    if not jobs:
        raise Conflict("No server of the plan has failed.", code="nothing_to_retry")


def _free(held: Sequence[HeldElsewhere]) -> None:
    """Raises `Conflict` where other plans hold any of the servers."""
    if held:
        more = " or more" if len(held) == CONFLICTS_SHOWN else ""
        raise Conflict(
            f"Other plans hold {len(held)}{more} of its servers; nothing was started.",
            code="servers_held",
            errors=[
                Fault(path=h.server_id, code="held", message=f"is held by plan {h.plan_id} ({h.plan_name})")
                for h in held
            ],
        )


async def _start(
    conn: AsyncConnection, principal: Principal, plan: PlanRecord, reason: str | None, *, approval_seconds: float
) -> None:
    allowed(plan, PlanEvent.START, "start", "only a prepared plan that is held (ready) does")
    if plan.status != PlanStatus.READY or plan.deployment is None:
        raise Conflict(f"The plan is {plan.status}: it starts by itself.")
    if plan.expires_at is not None and plan.expires_at <= datetime.now(UTC):
        raise Conflict("This saved preview has expired; submit it again.", code="hold_expired")
    begun = await begin(conn, plan.id, actor=principal.name, reason=reason_of("started", reason),
                        approval_seconds=approval_seconds)  # fmt: skip
    _free(begun.held)


async def _ask_again(deps: Deps, conn: AsyncConnection, plan: PlanRecord) -> PlanStatus:
    """A plan was paused at a gate: it returns there, with the whole time for the approval, unless a server of its
    waves was retried since; then these come first."""
    counts = (await job_counts(conn, [plan.id]))[plan.id]
    waiting = sum(states.get(JobState.PENDING, 0) for wave, states in counts.items() if wave <= plan.current_wave)
    if waiting and plan.started_at is not None:
        return PlanStatus.RUNNING
    await expire_at(conn, plan.id, (await approval_settings(deps, plan.cloud)).expires)
    return PlanStatus.AWAITING_APPROVAL


async def approval_settings(deps: Deps, cloud: str) -> Approval:
    """What the cloud's settings want of approvals; those of a careful one where it isn't to be had any
    more."""
    settings = await deps.clouds.settings(cloud)
    return settings.approval if settings else Approval(by_other=True)


async def _acknowledge(conn: AsyncConnection, plan: PlanRecord) -> None:
    counts = (await job_counts(conn, [plan.id]))[plan.id]

    def how_many(*states: JobState) -> int:
        return sum(wave.get(state, 0) for wave in counts.values() for state in states)

    await acknowledge_failures(
        conn, plan.id, failures=how_many(JobState.FAILED, JobState.STUCK), unresolved=how_many(JobState.UNRESOLVED)
    )


async def _end_cancelling(conn: AsyncConnection, principal: Principal, plan_id: UUID, reason: str | None) -> None:
    """Nothing of it was ever held or sent, so no driver is needed to end it."""
    await move_plan(
        conn,
        PlanMove(plan_id=plan_id, expected=PlanStatus.CANCELLING, status=PlanStatus.CANCELLED, actor=principal.name,
                 reason=reason_of("cancelled", reason)),
    )  # fmt: skip


async def lock_plan(conn: AsyncConnection, principal: Principal, plan_id: UUID) -> PlanRecord:
    await lock_plans(conn, [plan_id])
    record = await plan_record(conn, plan_id)
    if record is None:
        raise NotFound("There is no plan of that id.")
    principal.need_cloud(record.cloud)
    return record


def allowed(plan: PlanRecord, event: PlanEvent, verb: str, why: str) -> tuple[PlanStatus, ...]:
    moves = plan_moves(PlanStatus(plan.status), event)
    if not moves:
        raise Conflict(f"The plan is {plan.status} and can't {verb} now: {why}.")
    return moves


async def move(
    conn: AsyncConnection, principal: Principal, plan: PlanRecord, status: PlanStatus, *, code: str,
    reason: str | None, stop_sending: bool = False, data: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """A person's move of a plan, recorded with who and why."""
    await move_plan(
        conn,
        PlanMove(plan_id=plan.id, expected=PlanStatus(plan.status), status=status, actor=principal.name,
                 reason=reason_of(code, reason), stop_sending=stop_sending, data=data),
    )  # fmt: skip


def reason_of(code: str, message: str | None) -> Reason | None:
    return Reason(code=code, message=message) if message else None


async def view(deps: Deps, plan_id: UUID) -> PlanView:
    async with deps.engine.connect() as conn:
        record = await plan_record(conn, plan_id)
        if record is None:
            raise NotFound("There is no plan of that id.")
        return (await plan_views(deps, conn, [record]))[0]
