"""Disruption budgets in the driver: who is out, over all plans of the project, and how many more may be."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.budget import Candidate, choose, group_of, key_of, places, rooms
from orchestrator.domain.gate import PlanFigures, Start
from orchestrator.ledger import budgets, drive
from orchestrator.ledger.budgets import PreparedGroup
from orchestrator.ledger.drive import ClaimedJob, DrivenPlan
from orchestrator.ledger.leases import guard
from orchestrator.ledger.transitions import lock_plans
from workers.driver.census import Census
from workers.driver.desk import Desk, LivePlan

CENSUS_SECONDS = 10.0
"""A budget is kept by a census that is at most this old."""


def census_keys(plans: Collection[LivePlan]) -> frozenset[str] | None:
    """The metadata that the plans' budgets go by; None: none of them has a budget."""
    found = [p.spec.rollout.max_unavailable for p in plans]
    pers = [b.per for b in found if b is not None]
    return frozenset(k for per in pers if (k := key_of(per)) is not None) if pers else None


@dataclass(kw_only=True)
class Budgets:
    """The budgets of a project's plans within one claiming transaction."""

    census: Census | None
    """None: it is not there yet, or too old: no plan with a budget may start anything."""
    pers: Mapping[UUID, str]
    limits: Mapping[UUID, Mapping[str, int]]
    idle: frozenset[str]
    """Servers that are out though nothing is under way for them: to start on one costs nothing."""
    out: set[str] = field(default_factory=set)
    """All that are out; claims of this transaction are added."""

    def room(self, plan_id: UUID) -> dict[str, int] | None:
        """How many more servers of each group may be out for this plan; None: it has no budget."""
        per = self.pers.get(plan_id)
        if per is None:
            return None
        if self.census is None:
            return {}
        grouped = ((i, g) for i in self.out if (g := self.census.group(i, per)) is not None)
        return rooms(self.limits.get(plan_id, {}), grouped)

    def with_rooms(self, figures: Mapping[UUID, PlanFigures]) -> dict[UUID, PlanFigures]:
        """The figures with what room their budgets leave."""
        return {i: replace(f, rooms=self.room(i)) for i, f in figures.items()}


async def read_budgets(conn: AsyncConnection, desk: Desk, plans: Sequence[DrivenPlan]) -> Budgets:
    """Who is out, as the ledger and the census have it; nothing is read where no plan has a budget."""
    pers = {p.id: b.per for p in plans if (b := desk.plans[p.id].spec.rollout.max_unavailable) is not None}
    if not pers:
        return Budgets(census=None, pers={}, limits={}, idle=frozenset())
    limits = await budgets.group_places(conn, list(pers))
    by_ledger = await budgets.servers_out(conn, desk.own.project, desk.own.deployment)
    census = desk.mirror.fresh_census(CENSUS_SECONDS)
    broken = (census.broken if census else set()) - by_ledger.acknowledged
    idle = by_ledger.idle | broken
    return Budgets(census=census, pers=pers, limits=limits, idle=frozenset(idle - by_ledger.moving),
                   out=set(idle | by_ledger.moving))  # fmt: skip


async def claim_some(
    conn: AsyncConnection, desk: Desk, found: Budgets, plan: DrivenPlan, start: Start, n: int
) -> list[ClaimedJob]:
    """Up to `n` jobs of the plan, locked, within its budget."""
    room = found.room(plan.id)
    if room is None:
        jobs = await drive.pending_jobs(conn, desk.own.deployment, plan.id, wave=start.wave, limit=n)
    else:
        jobs = await budgets.pending_within(conn, desk.own.deployment, plan.id, wave=start.wave, limit=n, rooms=room,
                                            out=found.idle)  # fmt: skip
        by_place = {j.ord: j for j in jobs}
        candidates = [Candidate(ord=j.ord, wave=j.wave or 0, server_id=j.server_id, group=j.budget_group) for j in jobs]
        jobs = [by_place[c.ord] for c in choose(candidates, n, room, found.idle)]
    found.out.update(j.server_id for j in jobs)
    return jobs


async def regroup(desk: Desk, jobs: Sequence[ClaimedJob]) -> set[tuple[UUID, int]]:
    """Jobs whose server has moved to another group since it was counted: the ledger learns of it, and they wait for
    their new group's room. Which they are."""
    moved: list[tuple[UUID, int, str]] = []
    new: dict[UUID, dict[str, PreparedGroup]] = {}
    for job in jobs:
        plan, view = desk.plans.get(job.plan_id), desk.mirror.view(job.server_id)
        budget = plan.spec.rollout.max_unavailable if plan else None
        if budget is None or view is None or view.server is None or view.server.status == "UNKNOWN":
            continue
        s = view.server
        group = group_of(budget.per, zone=s.zone, host=s.host or s.host_id, metadata=s.metadata)
        if group != job.budget_group:
            moved.append((job.plan_id, job.ord, group))
            groups = new.setdefault(job.plan_id, {})
            if group not in groups:
                size = desk.mirror.census.size(budget.per, group) if desk.mirror.census else 1
                groups[group] = PreparedGroup(name=group, size=size, places=places(budget.limit, size))
    if moved:
        async with desk.engine.begin() as conn:
            await guard(conn, desk.own.lease, desk.own.fence)
            await lock_plans(conn, new)
            for plan_id in sorted(new):
                await budgets.add_groups(conn, plan_id, list(new[plan_id].values()))
            await budgets.regroup(conn, moved)
    return {(plan_id, ord_) for plan_id, ord_, _ in moved}
