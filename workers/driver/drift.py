"""Drift: before the first send of a plan that was prepared earlier, all that has changed since, found in bulk."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

from orchestrator.domain.drift import drift
from orchestrator.domain.gate import PlanFigures
from orchestrator.domain.states import PlanStatus
from orchestrator.domain.windows import standing
from orchestrator.errors import CloudError
from orchestrator.ledger.drift import prepared_servers
from orchestrator.ledger.drive import DrivenPlan
from orchestrator.log import get_logger
from workers.driver.desk import Desk, Drifted

log = get_logger(__name__)

PAUSE_SECONDS = 0.2
AGAIN_SECONDS = 5.0
"""After a look that the cloud did not let happen."""
STALE_SECONDS = 60.0
"""A look that nothing followed for so long is made anew."""
LISTED = 1000
"""How many changed servers the halted plan's event names."""
ASKED_BY_ID = 500
"""So many servers that the list left out are asked for by id; the rest count as gone until their own check."""
PART = 1000
"""Servers compared before the loop may do something else."""


async def drift_forever(desk: Desk) -> None:
    """Looks, for each plan that waits for it, until cancelled. Other plans go on meanwhile."""
    while True:
        for plan_id, plan in list(desk.plans.items()):
            open_now = standing(plan.windows, desk.lease.now()).open
            wanted = plan.running and plan.row.check_drift and plan_id not in desk.drifts
            if wanted and open_now and not (desk.stopping or desk.reconciling):
                try:
                    await _look(desk, plan_id)
                except CloudError as e:
                    log.warning("drift_look_postponed", plan=str(plan_id), error=e.message)
                    desk.breaker.read_failed(e.message)
                    await asyncio.sleep(AGAIN_SECONDS)
        for gone in desk.drifts.keys() - desk.plans.keys():
            del desk.drifts[gone]
        await asyncio.sleep(PAUSE_SECONDS)


async def _look(desk: Desk, plan_id: UUID) -> None:
    async with desk.engine.connect() as conn:
        prepared = await prepared_servers(conn, plan_id)
    began, mirror = time.monotonic(), desk.mirror
    ids = [server_id for server_id, _ in prepared]
    if prepared:
        mirror.wanted.update(ids)
        await mirror.read_all()
        hidden = [i for i in ids if (v := mirror.view(i)) is None or v.server is None or v.seen_at < began]
        await mirror.read_patiently(hidden[:ASKED_BY_ID])
    changed: list[tuple[str, str]] = []
    for i, (server_id, before) in enumerate(prepared):
        view = mirror.view(server_id)
        if what := drift(before, view.server if view else None):
            changed.append((server_id, what))
        if i % PART == PART - 1:
            await asyncio.sleep(0)
    desk.drifts[plan_id] = Drifted(looked_at=began, changed=changed)
    desk.woken.set()
    log.info("drift_looked_for", plan=str(plan_id), servers=len(prepared), changed=len(changed))


def known(desk: Desk, plan: DrivenPlan, now: datetime) -> bool:
    """Whether the gate may be asked about a plan: not while what changed is still to be found. Outside its windows it
    only waits, and is looked at when one opens."""
    if not plan.check_drift or plan.status is not PlanStatus.RUNNING:
        return True
    if not standing(desk.plans[plan.id].windows, now).open:
        return True
    found = desk.drifts.get(plan.id)
    if found is not None and time.monotonic() > found.looked_at + STALE_SECONDS:
        del desk.drifts[plan.id]
        return False
    return found is not None


def with_drift(
    desk: Desk, plans: Sequence[DrivenPlan], figures: Mapping[UUID, PlanFigures]
) -> dict[UUID, PlanFigures]:  # fmt: skip
    """The figures with how many servers changed, for plans that have not sent anything yet."""
    drifts = {p.id: (found, p.drift_limit) for p in plans if p.check_drift and (found := desk.drifts.get(p.id))}
    return {
        i: replace(f, drifted=len(drifts[i][0].changed), drift_limit=drifts[i][1] or 0) if i in drifts else f
        for i, f in figures.items()
    }


def listed(desk: Desk, plan: DrivenPlan) -> dict[str, Any] | None:
    """What the event of a plan that drift has halted says of the servers."""
    found = desk.drifts.get(plan.id)
    if found is None:
        return None
    shown = [{"server_id": server_id, "what": what} for server_id, what in found.changed[:LISTED]]
    return {"drifted": len(found.changed), "servers": shown}
