"""Plans made of plans: clone, and rollback."""

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils.compat import uuid7

from orchestrator.domain.decide import Reason
from orchestrator.domain.rollback import DATA_IS_GONE, rollback_spec
from orchestrator.domain.states import IN_FLIGHT_JOB_STATES, JobState
from orchestrator.errors import Conflict, Fault, NotFound
from orchestrator.ledger.copies import ChangedServer, Source, changed_servers, source_plan, target_rows
from orchestrator.ledger.engine import transaction
from orchestrator.ledger.events import NewEvent, append_events
from orchestrator.ledger.holds import CONFLICTS_SHOWN
from orchestrator.ledger.plans import job_counts
from orchestrator.ledger.sql import to_json
from orchestrator.ledger.submit import NewPlan, insert_plan
from orchestrator.ledger.transitions import lock_plans
from orchestrator.service.deps import Deps
from orchestrator.service.roles import Principal, Right
from orchestrator.service.submit import earlier_plan, view_of
from orchestrator.service.views import PlanView

STILL_OPEN = (*sorted(IN_FLIGHT_JOB_STATES), JobState.STUCK, JobState.UNRESOLVED)
"""Jobs that a rollback leaves to the plan itself."""


async def clone(
    deps: Deps, principal: Principal, plan_id: UUID, *, reason: str | None = None, idempotency_key: str | None = None
) -> PlanView:
    """A new plan of the same content, always held: it shows what that would do now. Its servers, verdicts and digest
    are found anew; what was named one by one is named again, and what was selected is selected again."""
    principal.need(Right.SUBMIT)
    sha256 = _digest("clone", plan_id, {})
    if earlier := await _earlier(deps, principal, idempotency_key, sha256):
        return earlier
    async with deps.engine.connect() as conn:
        source = await _source(conn, principal, plan_id)
        targets = await target_rows(conn, plan_id)
    principal.need_targets(len(targets))
    spec = {**source.spec, "hold": True}
    if principal.max_targets is not None and spec.get("targets", {}).get("select") is not None:
        most = spec["targets"].get("max") or principal.max_targets
        spec["targets"] = {**spec["targets"], "max": min(most, principal.max_targets)}
    why = Reason(code="cloned", message=reason or f"A copy of plan {plan_id} ({source.name}).")
    plan = NewPlan(
        id=uuid7(), name=source.name, cloud=source.cloud, spec=spec, user_data=source.user_data, labels=source.labels,
        hold=True, created_by=principal.name, idempotency_key=idempotency_key, body_sha256=sha256, targets=targets,
        rollback_of=source.rollback_of, reason=why, data={"clone_of": str(plan_id)},
    )  # fmt: skip
    return await _insert(deps, principal, plan, None)


async def rollback(
    deps: Deps, principal: Principal, plan_id: UUID, *, servers: Sequence[str] | None = None, hold: bool = False,
    reason: str | None = None, idempotency_key: str | None = None,
) -> PlanView:  # fmt: skip
    """A new plan that takes the servers that this plan changed, or these of them, back to the images that they had
    before; with `hold` a preview of it. What was on their disks is gone.

    Raises `Conflict`: `never_started`, `not_changed` (itemised), `nothing_to_roll_back`.
    """
    principal.need(Right.OPERATE)
    wanted = None if servers is None else list(dict.fromkeys(servers))
    sha256 = _digest("rollback", plan_id, {"servers": wanted, "hold": hold})
    if earlier := await _earlier(deps, principal, idempotency_key, sha256):
        return earlier
    async with deps.engine.connect() as conn:
        source = await _source(conn, principal, plan_id)
        if not source.started:
            raise Conflict("The plan was never started: there is nothing to take back.", code="never_started")
        changed = await changed_servers(conn, plan_id, wanted)
        counts = (await job_counts(conn, [plan_id]))[plan_id]
    _check_changed(changed, wanted)
    principal.need_targets(len(changed))
    images = [c.image for c in changed if c.image]
    ids = [c.server_id for c in changed]
    spec = await asyncio.to_thread(rollback_spec, source.spec, source.name, ids, images, hold=hold)
    unknown = len(changed) - len(images)
    said = f"Takes {len(images)} servers of plan {plan_id} back to the images that they had. {DATA_IS_GONE}"
    if unknown:
        said += f" Of {unknown} more no earlier image is known."
    open_now = sum(wave.get(s, 0) for wave in counts.values() for s in STILL_OPEN)
    if open_now and wanted is None:
        said += f" {open_now} are still under way, stuck or unresolved, and stay as they are."
    plan = NewPlan(
        id=uuid7(), name=spec.name, cloud=spec.cloud, spec=spec.without_servers(), user_data=None,
        labels=dict(spec.labels), hold=hold, created_by=principal.name, idempotency_key=idempotency_key,
        body_sha256=sha256,
        targets=[(c.server_id, None, to_json({"image": c.image}) if c.image else None) for c in changed],
        rollback_of=plan_id, reason=Reason(code="rollback", message=said),
        data={"rollback_of": str(plan_id), "no_previous_image": unknown, "reason": reason},
    )  # fmt: skip
    why = Reason(code="rollback", message=reason or f"Rolled back by {principal.name}.")
    note = NewEvent(plan_id=plan_id, type="plan.rollback", actor=principal.name, reason=why,
                    data={"plan_id": str(plan.id), "servers": len(changed), "hold": hold})  # fmt: skip
    return await _insert(deps, principal, plan, note)


def _check_changed(changed: Sequence[ChangedServer], wanted: Sequence[str] | None) -> None:
    there = {c.server_id for c in changed}
    wrong = [
        Fault(path=s, code="not_changed", message="was not changed by the plan, or is still under way")
        for s in wanted or ()
        if s not in there
    ]
    if wrong:
        raise Conflict(
            f"{len(wrong)} of these servers can't be rolled back: the plan did not change them, or is still at them. "
            "Nothing was done.",
            code="not_changed",
            errors=wrong[:CONFLICTS_SHOWN],
        )
    if not changed:
        raise Conflict("The plan has changed no server yet.", code="nothing_to_roll_back")


async def _source(conn: AsyncConnection, principal: Principal, plan_id: UUID) -> Source:
    source = await source_plan(conn, plan_id)
    if source is None:
        raise NotFound("There is no plan of that id.")
    principal.need_cloud(source.cloud)
    return source


async def _insert(deps: Deps, principal: Principal, plan: NewPlan, note: NewEvent | None) -> PlanView:
    """Writes the plan, and a line in the history of the one that it comes from."""
    try:
        async with transaction(deps.engine) as conn:
            if note is not None:
                await lock_plans(conn, [note.plan_id])
            await insert_plan(conn, plan)
            if note is not None:
                await append_events(conn, [note])
            view = await view_of(deps, conn, plan.id)
    except IntegrityError:
        earlier = await _earlier(deps, principal, plan.idempotency_key, plan.body_sha256)
        if earlier is None:
            raise
        return earlier
    await deps.hints.prepare(plan.id)
    return view


async def _earlier(deps: Deps, principal: Principal, key: str | None, sha256: str) -> PlanView | None:
    return None if key is None else await earlier_plan(deps, principal, key, sha256)


def _digest(action: str, plan_id: UUID, body: Mapping[str, Any]) -> str:
    """What an Idempotency-Key is held to: the same action on the same plan with the same content."""
    return hashlib.sha256(json.dumps([action, str(plan_id), dict(body)]).encode()).hexdigest()
