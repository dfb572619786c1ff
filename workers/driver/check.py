"""Checking: the last look at a server before its disk is wiped."""

import hashlib
from collections.abc import Sequence

from orchestrator.domain.request import RequestInvalid, build_body, matches_request
from sqlalchemy.ext.asyncio import AsyncEngine

from orchestrator.clouds.config import CloudSettings
from orchestrator.clouds.protocol import Server
from orchestrator.domain.causes import Cause
from orchestrator.domain.decide import Happened, Reason
from orchestrator.domain.lifecycle import JobEvent
from orchestrator.domain.spec import PlanSpec
from orchestrator.domain.states import JobState
from orchestrator.errors import CloudError
from orchestrator.ledger.drive import ClaimedJob
from orchestrator.ledger.prepare import last_rebuild_states
from orchestrator.log import get_logger
from workers.driver.desk import Checked, Desk
from workers.driver.mirror import FEW, FRESH_SECONDS, View

log = get_logger(__name__)

REBUILDABLE = frozenset({"ACTIVE", "SHUTOFF", "ERROR"})
"""Statuses that Nova rebuilds from (nova-facts, 4)."""
STANDING = frozenset({"PAUSED", "SUSPENDED", "RESCUE", "SHELVED", "SHELVED_OFFLOADED", "DELETED", "SOFT_DELETED"})
"""Statuses that won't change by themselves; all others pass."""


def refusal(server: Server | None, project_id: str, settings: CloudSettings, spec: PlanSpec) -> Reason | None:
    """Why a server can't or must not be rebuilt, whatever the plan says; None: nothing speaks against it."""
    if server is None or server.status in ("DELETED", "SOFT_DELETED"):
        return Reason(code="unknown_server", message="The cloud has no such server in this project.")
    if server.project_id is not None and server.project_id != project_id:
        return Reason(code="other_project", message="The server belongs to another project.")
    if server.locked:
        return Reason(code="locked", message="The server is locked; unlock it first (openstack server unlock).")
    for key, value in settings.protect.metadata.items():
        if server.metadata.get(key) == value:
            return Reason(code="protected", message=f"The cloud's settings protect servers with {key}={value}.")
    for tag in settings.protect.tags:
        if tag in server.tags:
            return Reason(code="protected", message=f"The cloud's settings protect servers tagged {tag}.")
    if server.status == "ERROR" and not settings.error_rebuild:
        return Reason(code="error_status", message="The server is in ERROR, which this cloud can't rebuild.")
    if server.status in STANDING:
        message = f"The server is {server.status}; only ACTIVE, SHUTOFF and ERROR can be rebuilt."
        return Reason(code="wrong_state", message=message)
    if server.volume_booted and not spec.rebuild.reimage_boot_volume:
        return Reason(code="volume_booted", message=(
            "The server boots from a volume, which a plain rebuild leaves as it is; "
            "consent to losing the volume's data with rebuild.reimage_boot_volume: true."))  # fmt: skip
    return None


def busy(server: Server) -> Reason | None:
    """What the server is at just now; None: it is free."""
    if server.task_state is None and server.status in REBUILDABLE:
        return None
    doing = server.task_state or server.status
    return Reason(code="busy", message=f"The server is at something else ({doing}).")


def baseline_of(view: View) -> dict[str, object]:
    """What the ledger keeps of a server right before its call."""
    server = view.server
    if server is None:
        return {}
    return {
        "status": server.status,
        "image": server.image,
        "launched_at": server.launched_at.isoformat() if server.launched_at else None,
        "metadata": dict(server.metadata),
        "name": server.name,
        "date": view.date.isoformat(),
    }


async def check_batch(desk: Desk, jobs: Sequence[ClaimedJob], project_id: str) -> None:
    """Checks claimed jobs against fresh views: they become ready, skipped, refused, or pending again."""
    try:
        await _freshen(desk, [j.server_id for j in jobs])
    except CloudError as e:
        log.warning("check_postponed", project=desk.own.project, jobs=len(jobs), error=e.message)
        for job in jobs:
            await _let_go(desk, job, Happened(event=JobEvent.POSTPONE, retry_after=5.0,
                                              reason=Reason(code=e.code, message=e.message)))  # fmt: skip
        return
    candidates = [job for job in jobs if await _passes(desk, job, project_id)]
    done = await _already_there(desk, candidates)
    for job in candidates:
        if job.server_id in done:
            await _let_go(desk, job, Happened(event=JobEvent.SKIP, reason=ALREADY_THERE))
        else:
            await _make_ready(desk, job)


ALREADY_THERE = Reason(code="already_there", message="The server already is as the plan wants it.")


async def _freshen(desk: Desk, server_ids: Sequence[str]) -> None:
    mirror = desk.mirror
    mirror.wanted.update(server_ids)
    if any(mirror.age(i) > FRESH_SECONDS / 2 for i in server_ids):
        stale = [i for i in server_ids if mirror.view(i) is None]
        if len(stale) > FEW:
            await mirror.read_all()
        elif len(server_ids) > FEW or not stale:
            await mirror.read_changes()
        for i in server_ids:  # a list that leaves a server out proves nothing: ask for it by its id
            if mirror.age(i) > FRESH_SECONDS / 2:
                await mirror.read_one(i)


async def _passes(desk: Desk, job: ClaimedJob, project_id: str) -> bool:
    view, plan = desk.mirror.view(job.server_id), desk.plans.get(job.plan_id)
    if plan is None or view is None:
        await _let_go(desk, job, Happened(event=JobEvent.POSTPONE))
        return False
    if reason := refusal(view.server, project_id, desk.settings, plan.spec):
        await _let_go(desk, job, Happened(event=JobEvent.REFUSE, reason=reason))
        return False
    assert view.server is not None  # noqa: S101  refusal() has said so
    if reason := busy(view.server):
        waited = job.busy_since and (desk.lease.now() - job.busy_since).total_seconds() > plan.policy.timeout
        event = JobEvent.REFUSE if waited else JobEvent.POSTPONE
        await _let_go(desk, job, Happened(event=event, cause=Cause.BUSY, reason=reason))
        return False
    return True


async def _already_there(desk: Desk, jobs: Sequence[ClaimedJob]) -> set[str]:
    """Servers that match the plan and whose last rebuild succeeded by the ledger. A retry never skips."""
    alike = []
    for job in jobs:
        view, plan = desk.mirror.view(job.server_id), desk.plans[job.plan_id]
        if job.attempt == 0 and plan.spec.skip_matching and view and view.server and matches_request(
            plan.spec.rebuild, job.overrides, view.server, job.target_image
        ):  # fmt: skip
            alike.append(job.server_id)
    return await _last_succeeded(desk.engine, desk.own.deployment, alike)


async def _last_succeeded(engine: AsyncEngine, deployment: str, server_ids: Sequence[str]) -> set[str]:
    if not server_ids:
        return set()
    async with engine.connect() as conn:
        states = await last_rebuild_states(conn, deployment, server_ids)
    return {i for i, state in states.items() if state is JobState.SUCCEEDED}


async def _make_ready(desk: Desk, job: ClaimedJob) -> None:
    view, plan = desk.mirror.view(job.server_id), desk.plans[job.plan_id]
    assert view is not None  # noqa: S101  _passes() has said so
    assert view.server is not None  # noqa: S101  _passes() has said so
    try:
        body = build_body(plan.spec.rebuild, job.overrides, view.server, job.target_image,
                          user_data=plan.row.user_data)  # fmt: skip
    except RequestInvalid as e:
        await _let_go(desk, job, Happened(event=JobEvent.REFUSE, reason=Reason(code=e.code, message=e.message)))
        return
    desk.ready.append(
        Checked(job=job, server=view.server, baseline=baseline_of(view), body=body,
                body_sha256=hashlib.sha256(body).hexdigest(), reimage=view.server.volume_booted,
                epoch=plan.row.go_epoch)
    )  # fmt: skip
    desk.filled.set()


async def _let_go(desk: Desk, job: ClaimedJob, happened: Happened) -> None:
    desk.claimed.discard(job.key)
    await desk.happen(job, JobState.CHECKING, happened)
