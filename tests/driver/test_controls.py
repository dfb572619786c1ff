"""Controls at a busy service: what they stop, and how soon, by the cloud's own clock and account."""

import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from uuid import UUID

import pytest
from sqlalchemy import text

from orchestrator.rehearsal import RehearsalConfig, Running, serve_in_thread
from orchestrator.service import clouds, servers
from orchestrator.service.change import change
from tests.driver.people import OPERATOR, People, people
from tests.driver.site import Site
from tests.parts import eventually

__all__ = ["people"]

WITHIN = 2.0
"""Seconds from the answer to the last call that may still be accepted."""


@pytest.fixture(scope="module")
def cloud() -> Iterator[Running]:
    """A fleet that is rebuilt slowly, so that many are in flight."""
    with serve_in_thread(RehearsalConfig(servers=1300, rebuild_seconds=8.0)) as running:
        yield running


async def begun(site: Site, ids: Sequence[str], least: int, **rollout: object) -> UUID:
    """A plan for these servers, once so many of them were accepted."""
    document = {"targets": {"servers": ids}, "rollout": {"waves": [{"size": "100%"}], "max_in_flight": 1000, **rollout}}
    plan = await site.submit(document)
    await eventually(lambda: sum(site.accepted(i) for i in ids) >= least, deadline=60, message=f"{least} are accepted")
    return plan


async def settled(site: Site, plan: UUID) -> None:
    """Waits until nothing of the plan is claimed or being sent."""

    async def none() -> bool:
        states = await site.states(plan)
        return not states["checking"] + states["sending"]

    await eventually(none, deadline=30, message="nothing is claimed")


async def stopped_in_time(site: Site, plan: UUID, act: Callable[[], Awaitable[object]]) -> int:
    """Acts, and holds the last accepted call against the answer's time; how many servers were accepted."""
    await act()
    answered = time.time()
    await settled(site, plan)
    last = site.cloud.account.last_rebuild_at
    assert last is not None
    assert last <= answered + WITHIN
    states = await site.states(plan)
    assert states["pending"] + states["cancelled"] > 0, "it was stopped before its end"
    return sum(site.accepted(i) for i in await site.jobs(plan))


async def test_a_pause_stops_sending_at_once_and_a_resume_goes_on(site: Site, people: People) -> None:
    ids = site.named(*range(1, 401))
    plan = await begun(site, ids, 100)
    sent = await stopped_in_time(site, plan, lambda: people.pause(plan))
    assert 100 <= sent < 400
    await people.resume(plan)
    assert await site.ended(plan, within=90) == "succeeded"
    assert [site.accepted(i) for i in ids] == [1] * 400
    await site.assert_ledger_is_sound(plan)


async def test_a_cancel_stops_sending_at_once_and_what_is_in_flight_ends(site: Site, people: People) -> None:
    ids = site.named(*range(401, 801))
    plan = await begun(site, ids, 100)
    sent = await stopped_in_time(site, plan, lambda: people.cancel(plan))
    assert await site.ended(plan) == "cancelled"
    assert await site.states(plan) == {"succeeded": sent, "cancelled": 400 - sent}
    await site.assert_ledger_is_sound(plan)


async def test_a_paused_cloud_is_sent_nothing_by_any_plan_until_it_is_resumed(site: Site, people: People) -> None:
    ids, others = site.named(*range(801, 1001)), site.named(*range(1001, 1201))
    deps, plan = people.deps, await begun(site, ids, 20, rate="50/s")
    other = await begun(site, others, 20, rate="50/s")

    async def stop() -> None:
        await clouds.stop_cloud(deps.engine, deps.clouds, OPERATOR, "rehearsal", reason="storage is failing")

    sent = await stopped_in_time(site, plan, stop)
    await settled(site, other)
    assert sent < 200
    seen = await people.see(other)
    assert (seen.status, seen.reason and seen.reason.code) == ("running", "cloud_paused")
    before = sum(site.received(i) for i in [*ids, *others])
    await eventually(lambda: site.cloud.account.in_flight == 0, deadline=30, message="what is in flight ends")
    assert sum(site.received(i) for i in [*ids, *others]) == before
    await clouds.release_cloud(deps.engine, deps.clouds, OPERATOR, "rehearsal", reason=None)
    assert [await site.ended(p, within=90) for p in (plan, other)] == ["succeeded"] * 2
    assert not site.cloud.account.accepted_twice


async def test_fewer_and_more_at_once_take_effect_while_it_runs(site: Site, people: People) -> None:
    account, ids = site.cloud.account, site.named(*range(1201, 1261))
    plan = await begun(site, ids, 12, max_in_flight=20)
    await change(people.deps, OPERATOR, plan, max_in_flight=6, reason="slowly")
    await eventually(lambda: account.in_flight <= 6, deadline=30, message="no more than the new limit", every=0.02)
    account.highest_in_flight = 0
    sent = sum(site.accepted(i) for i in ids)
    await eventually(lambda: sum(site.accepted(i) for i in ids) >= sent + 6, deadline=40, message="it goes on")
    assert account.highest_in_flight <= 6
    await change(people.deps, OPERATOR, plan, max_in_flight=40)
    await eventually(lambda: account.in_flight > 6, deadline=10, message="more than the old limit")
    assert await site.ended(plan, within=90) == "succeeded"
    assert account.highest_in_flight <= 40
    async with site.engine.connect() as conn:
        rows = await conn.execute(
            text("SELECT data->'new'->>'max_in_flight' FROM events WHERE plan_id = :p AND type = 'plan.changed' "
                 "ORDER BY seq"), {"p": plan}
        )  # fmt: skip
        assert list(rows.scalars()) == ["6", "40"]


async def test_a_skipped_server_is_never_sent(site: Site, people: People) -> None:
    ids = site.named(*range(1261, 1281))
    plan = await begun(site, ids, 1, max_in_flight=1)
    last = ids[-1]
    job = await servers.skip(people.deps, OPERATOR, plan, last, reason="it is being moved")
    assert job.state == "skipped"
    await change(people.deps, OPERATOR, plan, max_in_flight=30)
    assert await site.ended(plan, within=60) == "succeeded"
    assert site.received(last) == 0
    assert await site.states(plan) == {"succeeded": 19, "skipped": 1}
    await site.assert_ledger_is_sound(plan)
