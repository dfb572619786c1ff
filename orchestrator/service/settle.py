"""A person's word on a call whose effect couldn't be told, or on a rebuild that shows no end."""

import asyncio
from dataclasses import replace
from enum import StrEnum
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.clouds.config import load_cloud
from orchestrator.clouds.factory import open_cloud, pace_key
from orchestrator.clouds.look import look
from orchestrator.clouds.pacing import Limiter
from orchestrator.domain.decide import FailurePolicy, Happened, Reason, Tried, decide
from orchestrator.domain.evidence import Finding, Weighed, weigh
from orchestrator.domain.lifecycle import JobEvent, PlanEvent, plan_moves
from orchestrator.domain.states import JobState, PlanStatus
from orchestrator.errors import CloudError, Conflict, Fault, NotFound
from orchestrator.ledger.drive import ClaimedJob
from orchestrator.ledger.engine import transaction
from orchestrator.ledger.plans import PlanRecord, plan_now, plan_record
from orchestrator.ledger.settle import job_to_settle, tell_driver
from orchestrator.ledger.transitions import AttemptAnswer, JobChange, PlanMove, lock_plans, move_jobs, move_plan
from orchestrator.service.deps import Deps
from orchestrator.service.reads import get_job
from orchestrator.service.roles import Principal, Right
from orchestrator.service.views import JobDetailView

LOOK_PATIENCE = 20.0
"""Seconds for the look that a person's "not applied" waits for: the pace may be stopped for longer than a request."""


class ResolveDecision(StrEnum):
    """What a person says of a call."""

    APPLIED = "applied"
    """It took effect: watch it as a rebuild."""
    NOT_APPLIED = "not_applied"
    """It had no effect: the server may be sent again."""
    GIVE_UP = "give_up"
    """Whatever it was: failed, and the server is free for others."""


EVENTS = {
    ResolveDecision.APPLIED: JobEvent.FOUND_APPLIED,
    ResolveDecision.NOT_APPLIED: JobEvent.NOT_APPLIED,
    ResolveDecision.GIVE_UP: JobEvent.GIVE_UP,
}


async def resolve(
    deps: Deps, principal: Principal, plan_id: UUID, server_id: str, *, decision: ResolveDecision, attempt: int,
    reason: str | None = None,
) -> JobDetailView:  # fmt: skip
    """Settles an unresolved job, or gives up a stuck one. `attempt`: the number of the attempt that was looked at.

    `not_applied` looks once more, and refuses where anything speaks for an effect. Raises `NotFound`, `NotAllowed`,
    and `Conflict`: `wrong_state`, `attempt_mismatch`, `evidence_positive` (itemised), `evidence_unavailable`.
    """
    principal.need(Right.OPERATE)
    async with deps.engine.connect() as conn:
        plan, job = await find_job(conn, principal, plan_id, server_id)
    _check(job, decision, attempt)
    weighed = await _look_once_more(deps, plan, job) if decision is ResolveDecision.NOT_APPLIED else None
    async with transaction(deps.engine) as conn:
        locked = (await lock_plans(conn, [plan_id]))[plan_id]
        plan, job = await find_job(conn, principal, plan_id, server_id)
        _check(job, decision, attempt)
        await _settle(conn, principal, plan, job, decision, weighed, reason)
        if decision is ResolveDecision.NOT_APPLIED and locked.status is PlanStatus.FAILED:
            await _run_on(conn, principal, plan)
        await tell_driver(conn, plan_id)
    await deps.hints.drive()
    return await get_job(deps, principal, plan_id, server_id)


async def find_job(
    conn: AsyncConnection, principal: Principal, plan_id: UUID, server_id: str
) -> tuple[PlanRecord, ClaimedJob]:
    """The job of a server in a plan. Raises `NotFound`, and `NotAllowed` for another cloud's."""
    plan = await plan_record(conn, plan_id)
    if plan is None:
        raise NotFound("There is no plan of that id.")
    principal.need_cloud(plan.cloud)
    job = await job_to_settle(conn, plan_id, server_id)
    if job is None:
        raise NotFound("The plan has no server of that id.")
    return plan, job


def _check(job: ClaimedJob, decision: ResolveDecision, attempt: int) -> None:
    if job.state is JobState.STUCK and decision is not ResolveDecision.GIVE_UP:
        raise Conflict(
            "The job is stuck: its call was accepted, so only give_up can settle it by hand.", code="wrong_state"
        )
    if job.state not in (JobState.UNRESOLVED, JobState.STUCK):
        raise Conflict(
            f"The job is {job.state}; only an unresolved or stuck one is settled by hand.", code="wrong_state"
        )
    if job.attempt != attempt:
        raise Conflict(
            f"The job is at attempt {job.attempt}, not {attempt}: look at it again.", code="attempt_mismatch"
        )


async def _look_once_more(deps: Deps, plan: PlanRecord, job: ClaimedJob) -> Weighed:
    """What the cloud shows now. Raises `Conflict` where that speaks against "not applied", or can't be had."""
    try:
        async with asyncio.timeout(LOOK_PATIENCE):
            weighed = await _look(deps, plan, job)
    except (CloudError, TimeoutError) as e:
        said = e.message if isinstance(e, CloudError) else f"It didn't come to it within {LOOK_PATIENCE:g} s."
        raise Conflict(
            f"The cloud can't be looked at, so that the call had no effect can't be confirmed: {said}",
            code="evidence_unavailable",
        ) from None
    if weighed.traces:
        raise Conflict(
            f"Not so: {weighed.says}",
            code="evidence_positive",
            errors=[Fault(path=str(e["kind"]), code="evidence", message=str(e["value"])) for e in weighed.evidence],
        )
    if weighed.finding in (Finding.UNSEEN, Finding.GONE):
        raise Conflict(
            f"{weighed.says} So that the call had no effect can't be confirmed now.", code="evidence_unavailable"
        )
    return weighed


async def _look(deps: Deps, plan: PlanRecord, job: ClaimedJob) -> Weighed:
    """One look, at the pace that the project's workers read at. Raises `CloudError`."""
    config = await asyncio.to_thread(load_cloud, plan.cloud)
    cloud = open_cloud(config, deps.tokens)
    try:
        project = await cloud.sign_in()
        cloud.pace_reads(Limiter(deps.paces, pace_key(project, "read"), config.settings.read_rate))
        return weigh(job.case(cloud.user_id), await look(cloud, job.server_id))
    finally:
        await cloud.close()


async def _settle(
    conn: AsyncConnection, principal: Principal, plan: PlanRecord, job: ClaimedJob, decision: ResolveDecision,
    weighed: Weighed | None, reason: str | None,
) -> None:  # fmt: skip
    said = reason or f"{principal.name} says: {decision.value.replace('_', ' ')}."
    event = EVENTS[decision]
    fingerprint = "given_up" if decision is ResolveDecision.GIVE_UP else None
    happened = Happened(event=event, reason=Reason(code=f"resolved_{decision}", message=said), fingerprint=fingerprint)
    # From here on it is watched for as long as a call that was just accepted.
    tried = Tried(policy=FailurePolicy(timeout=plan.timeout_seconds))
    decided = decide(job.state, happened, await plan_now(conn), tried)
    if event is JobEvent.NOT_APPLIED and plan.status in (PlanStatus.CANCELLING, PlanStatus.CANCELLED):
        decided = replace(decided, state=JobState.CANCELLED)
    evidence = [{"kind": "person", "value": f"{principal.name}: {decision} ({said})"}]
    effect = None if decision is ResolveDecision.GIVE_UP else decision.value
    answer = AttemptAnswer(
        number=job.attempt, effect=effect, evidence=[*(weighed.evidence if weighed else ()), *evidence]
    )
    await move_jobs(
        conn, plan.deployment or "",
        [JobChange(plan_id=job.plan_id, ord=job.ord, server_id=job.server_id, expected=job.state, decision=decided,
                   actor=principal.name, answer=answer, data={"decision": decision.value, "attempt": job.attempt})],
    )  # fmt: skip


async def _run_on(conn: AsyncConnection, principal: Principal, plan: PlanRecord) -> None:
    """A finished plan goes on with the job that is pending again."""
    (status,) = plan_moves(PlanStatus(plan.status), PlanEvent.RETRY)
    reason = Reason(code="resolved", message="A server's call was found not applied; it is its turn again.")
    await move_plan(conn, PlanMove(plan_id=plan.id, expected=PlanStatus(plan.status), status=status,
                                   actor=principal.name, reason=reason))  # fmt: skip
