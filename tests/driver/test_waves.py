"""Gates between waves, start times and windows: with real workers, and held against the cloud's own account."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from orchestrator.errors import Conflict, NotAllowed
from orchestrator.rehearsal import Fault, FaultKind
from orchestrator.service import gates
from tests.driver.people import SUBMITTER, People, people, window
from tests.driver.site import Site
from tests.parts import eventually

__all__ = ["people"]


def gated(servers: Any, *, bake: str | None = None, approval: bool = True, **more: Any) -> dict[str, Any]:
    """A canary with a gate, and the rest."""
    canary = {"name": "canary", "size": 1, "approval": approval} | ({"bake": bake} if bake else {})
    waves = [canary, {"name": "rest", "size": "100%"}]
    return {"targets": {"servers": list(servers)}, "rollout": {"waves": waves}, **more}


async def moves(site: Site, plan: UUID) -> list[tuple[str, datetime]]:
    """The plan's own events, with their times."""
    async with site.engine.connect() as conn:
        rows = await conn.execute(
            text("SELECT type, at FROM events WHERE plan_id = :id AND server_id IS NULL ORDER BY seq"), {"id": plan}
        )
        return [(r.type, r.at) for r in rows]


async def test_a_canary_bakes_then_somebody_else_approves_then_the_rest_follows(site: Site, people: People) -> None:
    canary, *rest = site.named(*range(10, 16))
    plan = await site.submit(gated([canary, *rest], bake="2s"))
    baking = await people.wait(plan, "baking")
    assert baking.waves[0].bake_until is not None
    assert baking.waves[0].status == "baking"
    assert baking.eta is not None
    asked = await people.wait(plan, "awaiting_approval")
    assert asked.expires_at is not None
    assert (asked.waves[0].approval.needed, asked.waves[0].approval.approved_by) == (True, None)
    assert not asked.waves[1].approval.needed
    assert [site.received(i) for i in (canary, *rest)] == [1] + [0] * 5
    with pytest.raises(NotAllowed):
        await gates.approve(people.deps, SUBMITTER, plan)
    assert [site.received(i) for i in rest] == [0] * 5
    approved = await people.approve(plan)
    assert approved.waves[0].approval.approved_by == "anna"
    await people.approve(plan)
    assert await site.ended(plan) == "succeeded"
    at = dict(await moves(site, plan))
    assert at["plan.awaiting_approval"] - at["plan.baking"] >= timedelta(seconds=1.9)
    assert [site.accepted(i) for i in (canary, *rest)] == [1] * 6
    await site.assert_ledger_is_sound(plan)


async def test_a_failed_canary_neither_bakes_nor_asks_and_nothing_else_is_touched(site: Site, people: People) -> None:
    canary, *rest = site.named(*range(16, 22))
    site.cloud.cloud.fail(Fault(kind=FaultKind.SPAWN_FAILS, servers=frozenset([canary])))
    document = gated([canary, *rest], bake="1s")
    plan, status = await site.run(document)
    assert (status, (await site.status(plan))[1]) == ("halted", "wave_max_errors")
    assert [site.received(i) for i in (canary, *rest)] == [1] + [0] * 5
    assert not {"plan.baking", "plan.awaiting_approval"} & {t for t, _ in await moves(site, plan)}
    with pytest.raises(Conflict):
        await people.approve(plan)
    with pytest.raises(Conflict):
        await people.promote(plan)


async def test_a_promotion_ends_the_bake_and_a_pause_returns_to_it(site: Site, people: People) -> None:
    ids = site.named(*range(22, 26))
    plan = await site.submit(gated(ids, bake="1h", approval=False))
    baking = await people.wait(plan, "baking")
    assert (await people.pause(plan)).status == "paused"
    assert (await people.resume(plan)).status == "baking"
    assert (await people.see(plan)).waves[0].bake_until == baking.waves[0].bake_until
    assert sum(site.received(i) for i in ids) == 1
    await people.promote(plan)
    await people.promote(plan)
    assert await site.ended(plan) == "succeeded"
    await people.promote(plan)
    assert [site.accepted(i) for i in ids] == [1] * 4


async def test_a_rejection_halts_and_resuming_asks_again(site: Site, people: People) -> None:
    ids = site.named(*range(26, 30))
    plan = await site.submit(gated(ids))
    await people.wait(plan, "awaiting_approval")
    halted = await people.reject(plan)
    assert (halted.status, halted.reason and halted.reason.code) == ("halted", "approval_rejected")
    assert (await people.reject(plan)).status == "halted"
    with pytest.raises(Conflict):
        await people.approve(plan)
    await people.resume(plan)
    await people.wait(plan, "awaiting_approval")
    assert sum(site.received(i) for i in ids) == 1
    assert (await people.pause(plan)).status == "paused"
    assert (await people.resume(plan)).status == "awaiting_approval"
    await people.let_expire(plan)
    await people.wait(plan, "halted", code="approval_expired")
    await people.resume(plan)
    await people.wait(plan, "awaiting_approval")
    await people.approve(plan)
    assert await site.ended(plan) == "succeeded"
    assert [site.accepted(i) for i in ids] == [1] * 4
    await site.assert_ledger_is_sound(plan)


async def test_a_cloud_may_want_an_approval_before_a_plan_starts(site: Site, people: People) -> None:
    ids = site.named(*range(30, 33))
    document = {"cloud": "gated", "targets": {"servers": ids}}
    plans = [await site.submit(document) for _ in range(4)]
    for plan in plans:
        assert (await people.wait(plan, "awaiting_approval")).started_at is None
        assert await people.holds(plan) == 0
    rejected = await people.reject(plans[0])
    assert (rejected.status, rejected.reason and rejected.reason.code) == ("rejected", "approval_rejected")
    await people.let_expire(plans[1])
    await people.wait(plans[1], "expired", code="approval_expired")
    assert (await people.cancel(plans[2])).status == "cancelled"
    assert [site.received(i) for i in ids] == [0] * 3
    await people.approve(plans[3])
    await people.approve(plans[3])
    assert await site.ended(plans[3]) == "succeeded"
    assert [site.accepted(i) for i in ids] == [1] * 3


async def test_a_plan_starts_at_its_time_and_holds_nothing_before(site: Site, people: People) -> None:
    ids = site.named(*range(33, 36))
    start_at = datetime.now(UTC) + timedelta(seconds=4)
    schedule = {"schedule": {"start_at": start_at.isoformat()}}
    plan = await site.submit({"targets": {"servers": ids}, **schedule})
    scheduled = await people.wait(plan, "scheduled", code="scheduled")
    assert scheduled.start_at == start_at
    assert await people.holds(plan) == 0
    other = await site.submit({"targets": {"servers": site.named(36)}, **schedule})
    await people.wait(other, "scheduled")
    assert (await people.cancel(other)).status == "cancelled"
    assert await site.ended(plan) == "succeeded"
    async with site.engine.connect() as conn:
        first = await conn.execute(text("SELECT min(intended_at) FROM attempts WHERE plan_id = :id"), {"id": plan})
        assert first.scalar_one() >= start_at
    past = {"schedule": {"start_at": (start_at - timedelta(days=1)).isoformat()}}
    _, status = await site.run({"targets": {"servers": site.named(36)}, **past})
    assert status == "succeeded"
    assert [site.accepted(i) for i in site.named(*range(33, 37))] == [1] * 4


async def test_a_closed_window_starts_nothing_and_says_until_when(site: Site, people: People) -> None:
    (server,) = site.named(37)
    closed = window(timedelta(hours=2), timedelta(hours=3))
    plan = await site.submit({"targets": {"servers": [server]}, "schedule": {"windows": [closed]}})
    waiting = await people.wait(plan, "running", code="window_closed")
    assert waiting.reason is not None
    assert f"{closed['from']} UTC" in waiting.reason.message
    assert site.received(server) == 0
    await people.cancel(plan)
    assert await site.ended(plan) == "cancelled"


async def test_what_is_in_flight_when_a_window_closes_finishes(site: Site, people: People) -> None:
    """The window is closed in the ledger, and another driver reads it there."""
    ids = site.named(*range(40, 60))
    opened = window(timedelta(hours=-2), timedelta(hours=2))
    plan = await site.submit(
        {
            "targets": {"servers": ids},
            "rollout": {"waves": [{"size": "100%"}], "rate": "5/s"},
            "schedule": {"windows": [opened]},
        }
    )
    await eventually(lambda: sum(site.accepted(i) for i in ids) >= 4, deadline=30, message="some are sent")
    closed = window(timedelta(hours=2), timedelta(hours=3))
    change = (
        "UPDATE plans SET spec = jsonb_set(spec, '{schedule,windows,0,%s}', to_jsonb(CAST(:v AS text))) WHERE id = :id"
    )
    site.workers.kill("drive")
    for key in ("from", "to"):
        await people.site_execute(change % key, plan, v=closed[key])
    site.workers.start("drive")
    await people.wait(plan, "running", code="window_closed", within=60)

    async def in_flight() -> int:
        counts = (await people.see(plan)).counts
        return counts.total - counts.pending - counts.succeeded

    async def none_in_flight() -> bool:
        return await in_flight() == 0

    await eventually(none_in_flight, deadline=60, message="what was in flight has finished")
    sent = sum(site.accepted(i) for i in ids)
    counts = (await people.see(plan)).counts
    assert (counts.succeeded, counts.pending) == (sent, 20 - sent)
    assert counts.pending > 0
    site.workers.kill("drive")
    for key in ("from", "to"):
        await people.site_execute(change % key, plan, v=opened[key])
    site.workers.start("drive")
    assert await site.ended(plan, within=90) == "succeeded"
    assert [site.accepted(i) for i in ids] == [1] * 20
    await site.assert_ledger_is_sound(plan)
