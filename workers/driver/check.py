"""Checking: the last look at a server before its disk is wiped."""

import time
from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from orchestrator.domain.causes import Cause
from orchestrator.domain.decide import Happened, Reason
from orchestrator.domain.drift import Prepared, drift, drifted
from orchestrator.domain.evidence import MARKER, marked, marker_of
from orchestrator.domain.lifecycle import JobEvent
from orchestrator.domain.request import Call, RequestInvalid, body_sha256, build_call, matches_request
from orchestrator.domain.spec import Overrides
from orchestrator.domain.states import JobState
from orchestrator.domain.verdict import ALREADY_THERE, busy, refusal
from orchestrator.errors import CloudError
from orchestrator.failpoints import failpoint
from orchestrator.ledger.drive import ClaimedJob
from orchestrator.ledger.prepare import known_actions, last_rebuild_states
from orchestrator.ledger.reconcile import AttemptKey, LostAttempt, known_effects
from orchestrator.ledger.transitions import JobKey
from orchestrator.log import get_logger
from workers.driver.budgets import regroup
from workers.driver.desk import Checked, Desk
from workers.driver.hooks import call_drain
from workers.driver.mirror import FEW, FRESH_SECONDS, View
from workers.driver.reconcile import adopt

log = get_logger(__name__)


def baseline_of(view: View, call: Call, known: Sequence[str], user: str | None) -> dict[str, object]:
    """What the ledger keeps of a server right before its call; `known`: request ids of its rebuilds that are accounted
    for, by the ledger (asking the cloud for each server's would double the calls; its `date` bounds what is new)."""
    server = view.server
    if server is None:
        return {}
    return {
        "user": user,
        "marker": call.marker,
        "marker_left_out": call.marker_left_out,
        "rebuild_actions": list(known),
        "status": server.status,
        "image": server.image,
        "launched_at": server.launched_at.isoformat() if server.launched_at else None,
        "metadata": dict(server.metadata),
        "name": server.name,
        "date": view.date.isoformat(),
    }


def overrides_of(job: ClaimedJob) -> Overrides | None:
    """What the job's server gets otherwise than the plan says."""
    return Overrides.model_validate(job.overrides) if job.overrides else None


async def check_batch(desk: Desk, jobs: Sequence[ClaimedJob]) -> None:
    """Checks claimed jobs against fresh views: they become ready, skipped, refused, or pending again."""
    try:
        failpoint("check.before")
        await _check(desk, jobs)
    except (DBAPIError, OSError, TimeoutError) as e:
        # Those that were dealt with already have moved on, or won't pass the second gate: none is sent by mistake.
        log.warning("ledger_trouble", project=desk.own.project, error=str(e)[:200])
        for job in jobs:
            await _let_go(desk, job, Happened(event=JobEvent.POSTPONE, retry_after=1.0))


async def _check(desk: Desk, jobs: Sequence[ClaimedJob]) -> None:
    began = time.monotonic()
    try:
        await _freshen(desk, [j.server_id for j in jobs])
    except CloudError as e:
        log.warning("check_postponed", project=desk.own.project, jobs=len(jobs), error=e.message)
        desk.breaker.read_failed(e.message)
        for job in jobs:
            await _let_go(desk, job, Happened(event=JobEvent.POSTPONE, retry_after=5.0,
                                              reason=Reason(code=e.code, message=e.message)))  # fmt: skip
        return
    late = await _late_effects(desk, jobs)
    moved = await regroup(desk, jobs)
    candidates = [job for job in jobs if job.key not in late and await _passes(desk, job, elsewhere=job.key in moved)]
    done = await _already_there(desk, candidates)
    async with desk.engine.connect() as conn:
        known = await known_actions(conn, desk.own.deployment, [j.server_id for j in candidates])
    for job in candidates:
        if desk.lowered.get(job.plan_id, began) > began:  # it was claimed when more might be under way
            await _let_go(desk, job, Happened(event=JobEvent.POSTPONE))
        elif job.server_id in done:
            await _let_go(desk, job, Happened(event=JobEvent.SKIP, reason=ALREADY_THERE))
        else:
            await _make_ready(desk, job, known.get(job.server_id, ()))


async def _late_effects(desk: Desk, jobs: Sequence[ClaimedJob]) -> set[JobKey]:
    """Jobs whose server says that a call of theirs took effect though the ledger has it otherwise: the call was settled
    as not applied and came late, or its attempt was lost with the database. They are watched, not sent again."""
    says: dict[AttemptKey, ClaimedJob] = {}
    for job in jobs:
        view = desk.mirror.view(job.server_id)
        mine = marked(view.server.metadata.get(MARKER)) if view and view.server else None
        if mine is not None and mine[0] == job.plan_id:
            says[job.plan_id, job.ord, mine[1]] = job
    if not says:
        return set()
    async with desk.engine.connect() as conn:
        effects = await known_effects(conn, list(says))
    late = [
        (replace(job, state=JobState.CHECKING),
         LostAttempt(plan_id=job.plan_id, ord=job.ord, number=key[2], request_id=None, marker=marker_of(*key[::2])))
        for key, job in says.items() if effects.get(key) != "applied"
    ]  # fmt: skip
    if late:
        await adopt(desk, late, "The server carries the marker of a call that was thought to have had no effect.")
    keys = {job.key for job, _ in late}
    desk.claimed -= keys
    return keys


async def _freshen(desk: Desk, server_ids: Sequence[str]) -> None:
    mirror = desk.mirror
    if all(mirror.age(i) <= FRESH_SECONDS / 2 for i in server_ids):
        return
    mirror.wanted.update(server_ids)
    if mirror.unseen() > FEW:
        await mirror.read_all()
    elif len(server_ids) > FEW or all(mirror.view(i) for i in server_ids):
        await mirror.read_changes()
    for i in server_ids:  # a list that leaves a server out proves nothing: ask for it by its id
        if mirror.age(i) > FRESH_SECONDS / 2:
            await mirror.read_one(i)


async def _passes(desk: Desk, job: ClaimedJob, *, elsewhere: bool) -> bool:
    view, plan = desk.mirror.view(job.server_id), desk.plans.get(job.plan_id)
    if plan is None or not plan.running or view is None or elsewhere:
        await _let_go(desk, job, Happened(event=JobEvent.POSTPONE))
        return False
    if view.server is None and not desk.mirror.surely_gone(job.server_id):
        not_shown = Reason(code="not_shown", message="The cloud says 404 to the server; it is asked again.")
        await _let_go(desk, job, Happened(event=JobEvent.POSTPONE, retry_after=3.0, reason=not_shown))
        return False
    if changed := changed_since(job, view):
        await _let_go(desk, job, Happened(event=JobEvent.REFUSE, reason=drifted(changed)))
        return False
    if reason := refusal(view.server, plan.limits, reimage_boot_volume=plan.spec.rebuild.reimage_boot_volume):
        await _let_go(desk, job, Happened(event=JobEvent.REFUSE, reason=reason))
        return False
    assert view.server is not None  # noqa: S101  refusal() has said so
    if reason := busy(view.server):
        waited = job.busy_since and (desk.lease.now() - job.busy_since).total_seconds() > plan.policy.timeout
        event = JobEvent.REFUSE if waited else JobEvent.POSTPONE
        await _let_go(desk, job, Happened(event=event, cause=Cause.BUSY, reason=reason))
        return False
    return True


def changed_since(job: ClaimedJob, view: View) -> str | None:
    """What changed of a server since its plan was prepared, where that was earlier than started; a person's retry
    takes it as it is, and what its `before` hook does to it is meant."""
    passed = job.attempt or job.retries or job.drained_at
    if job.seen_status is None or job.seen_metadata is None or passed or view.server is None:
        return None
    before = Prepared(image=job.previous_image, name=job.name, status=job.seen_status, metadata=job.seen_metadata)
    return drift(before, view.server)


async def _already_there(desk: Desk, jobs: Sequence[ClaimedJob]) -> set[str]:
    """Servers that match the plan and whose last rebuild succeeded by the ledger. A retry never skips."""
    alike = []
    for job in jobs:
        view, plan = desk.mirror.view(job.server_id), desk.plans[job.plan_id]
        fresh = job.attempt == 0 and job.retries == 0
        if fresh and plan.spec.skip_matching and view and view.server and matches_request(
            plan.spec.rebuild, overrides_of(job), view.server, job.target_image
        ):  # fmt: skip
            alike.append(job.server_id)
    return await _last_succeeded(desk.engine, desk.own.deployment, alike)


async def _last_succeeded(engine: AsyncEngine, deployment: str, server_ids: Sequence[str]) -> set[str]:
    if not server_ids:
        return set()
    async with engine.connect() as conn:
        states = await last_rebuild_states(conn, deployment, server_ids)
    return {i for i, state in states.items() if state is JobState.SUCCEEDED}


async def _make_ready(desk: Desk, job: ClaimedJob, known: Sequence[str]) -> None:
    view, plan = desk.mirror.view(job.server_id), desk.plans[job.plan_id]
    assert view is not None  # noqa: S101  _passes() has said so
    assert view.server is not None  # noqa: S101  _passes() has said so
    marker = marker_of(job.plan_id, job.attempt + 1) if plan.settings.marker else None
    try:
        call = build_call(plan.spec.rebuild, overrides_of(job), view.server, job.target_image, marker=marker,
                          metadata_items=desk.metadata_items)  # fmt: skip
    except RequestInvalid as e:
        await _let_go(desk, job, Happened(event=JobEvent.REFUSE, reason=Reason(code=e.code, message=e.message)))
        return
    if await call_drain(desk, job):
        return
    failpoint("check.ready")
    baseline = baseline_of(view, call, known, desk.cloud.user_id)
    desk.ready.append(
        Checked(job=job, server=view.server, baseline=baseline, body=call.body, body_sha256=body_sha256(call.body),
                reimage=view.server.volume_booted, epoch=plan.row.go_epoch)
    )  # fmt: skip
    desk.filled.set()


async def _let_go(desk: Desk, job: ClaimedJob, happened: Happened) -> None:
    await desk.happen(job, JobState.CHECKING, happened)
