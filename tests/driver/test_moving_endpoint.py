"""The cloud's compute service moves while plans run: the catalogue names another address from then on."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

import pytest
from sqlalchemy import text

from orchestrator.rehearsal import RehearsalConfig, Running, serve_in_thread
from tests.driver.front import Front, Fronts, Leaves, fronts
from tests.driver.site import Site
from tests.parts import eventually

pytestmark = pytest.mark.timeout(150)


@dataclass
class Nova:
    """A compute service that moves; its Keystone stays where it is."""

    cloud: Running
    fronts: Fronts
    front: Front

    def move(self, leaves: Leaves) -> tuple[Front, Front]:
        """It is elsewhere from now on: where it was, and where it is."""
        old, self.front = self.front, self.fronts.open(self.cloud.url)
        self.cloud.keystone.compute_root = self.front.url
        old.leave(leaves)
        return old, self.front


@pytest.fixture(scope="module")
def nova() -> Iterator[Nova]:
    with serve_in_thread(RehearsalConfig(servers=400, rebuild_seconds=0.6)) as running, fronts() as opened:
        front = opened.open(running.url)
        running.keystone.compute_root = front.url
        yield Nova(running, opened, front)


@pytest.fixture(scope="module")
def cloud(nova: Nova) -> Running:
    return nova.cloud


async def classifications(site: Site, plan: UUID) -> set[str | None]:
    """What the answers to the plan's calls were taken for."""
    async with site.engine.connect() as conn:
        rows = await conn.execute(text("SELECT classification FROM attempts WHERE plan_id = :id"), {"id": plan})
        return set(rows.scalars())


async def trouble(site: Site) -> str:
    async with site.engine.connect() as conn:
        rows = await conn.execute(text("SELECT trouble_message FROM projects"))
        return str(rows.scalar_one() or "")


NUMBERS = {Leaves.NOBODY: range(10, 70), Leaves.A_404: range(80, 140), Leaves.A_410: range(150, 210),
           Leaves.DEATH: range(220, 280)}  # fmt: skip


@pytest.mark.parametrize("leaves", NUMBERS, ids=str)
async def test_a_plan_goes_on_where_its_cloud_has_moved_to(site: Site, nova: Nova, leaves: Leaves) -> None:
    """Nobody tells the driver."""
    ids = site.named(*NUMBERS[leaves])
    rollout = {"rate": "10/s", "max_in_flight": 200, "waves": [{"size": "100%"}]}
    plan = await site.submit(
        {"cloud": "resending", "targets": {"servers": ids}, "rollout": rollout, "failure": {"attempts": 1}}
    )
    await eventually(lambda: sum(site.accepted(i) for i in ids) >= 10, deadline=60, message="ten calls were accepted")
    here, there = await asyncio.to_thread(nova.move, leaves)
    arrived = here.requests
    assert await site.ended(plan, within=90) == "succeeded", await site.jobs(plan)
    assert [site.accepted(i) for i in ids] == [1] * len(ids)
    assert there.requests > 0
    if leaves is not Leaves.DEATH:  # no call was in doubt
        assert [site.received(i) for i in ids] == [1] * len(ids)
        assert "unknown" not in {str(c).partition("/")[0] for c in await classifications(site, plan)}
    if leaves in (Leaves.A_404, Leaves.A_410):
        assert here.requests > arrived, "somebody asked in vain"
    assert await trouble(site) == ""
    await site.assert_ledger_is_sound(plan)


@pytest.mark.parametrize("leaves", [Leaves.NOBODY, Leaves.A_404], ids=str)
async def test_a_new_plan_finds_a_cloud_that_moved_while_nothing_ran(site: Site, nova: Nova, leaves: Leaves) -> None:
    """The processes that prepare and drive it still have a token, and with it the old catalogue."""
    first, second = ((290, 295), (300, 305)) if leaves is Leaves.NOBODY else ((310, 315), (320, 325))
    plan, status = await site.run({"targets": {"servers": site.named(*range(*first))}})
    assert status == "succeeded"
    await site.undriven()
    await asyncio.to_thread(nova.move, leaves)
    plan, status = await site.run({"targets": {"servers": site.named(*range(*second))}}, within=90)
    assert status == "succeeded", await site.jobs(plan)
    assert [site.received(i) for i in site.named(*range(*second))] == [1] * 5
    await site.assert_ledger_is_sound(plan)
