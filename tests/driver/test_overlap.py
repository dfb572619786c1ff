"""Two plans for one server: refused, queued or left out, as the later plan says."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from tests.driver.people import People, people
from tests.driver.site import Site
from tests.parts import eventually

__all__ = ["people"]


def overlapping(servers: Any, on_conflict: str, **more: Any) -> dict[str, Any]:
    """A plan that rebuilds whatever the servers are on."""
    return {"targets": {"servers": list(servers)}, "on_conflict": on_conflict, "skip_matching": False, **more}


async def holder(site: Site, people: People, servers: Any) -> UUID:
    """A plan that has these servers until it is approved, but for the first, which is rebuilt."""
    waves = [{"size": 1, "approval": True}, {"size": "100%"}]
    plan = await site.submit({"name": "holder", "targets": {"servers": list(servers)}, "rollout": {"waves": waves}})
    await people.wait(plan, "awaiting_approval")
    return plan


async def test_a_queued_plan_holds_nothing_and_runs_when_its_servers_are_free(site: Site, people: People) -> None:
    first, second, third = site.named(10, 11, 12)
    one = await holder(site, people, [first, second])
    two = await site.submit(overlapping([second, third], "queue"))
    queued = await people.wait(two, "scheduled", code="queued")
    assert queued.reason is not None
    assert str(one) in queued.reason.message
    assert second in queued.reason.message
    assert await people.holds(two) == 0
    assert site.received(third) == 0
    await people.approve(one)
    assert await site.ended(one) == "succeeded"

    async def over() -> bool:
        return (await people.see(two)).status == "succeeded"

    await eventually(over, deadline=60, message="the queued plan runs")
    assert [site.accepted(i) for i in (first, second, third)] == [1, 2, 1]
    await site.assert_ledger_is_sound(two)


async def test_queued_plans_that_cross_end_without_blocking_each_other(site: Site, people: People) -> None:
    a, b, c = site.named(13, 14, 15)
    blocker = await holder(site, people, [a, b, c])
    pairs = ((a, b), (b, c), (c, a))
    plans = [await site.submit(overlapping(pair, "queue", priority=0)) for pair in pairs]
    for plan in plans:
        await people.wait(plan, "scheduled", code="queued")
    await people.approve(blocker)
    for plan in plans:

        async def over(plan: UUID = plan) -> bool:
            return (await people.see(plan)).status == "succeeded"

        await eventually(over, deadline=90, message="every queued plan runs")
    assert [site.accepted(i) for i in (a, b, c)] == [3, 3, 3]


async def test_a_queued_plan_is_cancelled_at_once(site: Site, people: People) -> None:
    ids = site.named(16, 17)
    one = await holder(site, people, ids)
    two = await site.submit(overlapping(ids, "queue"))
    await people.wait(two, "scheduled", code="queued")
    assert (await people.cancel(two)).status == "cancelled"
    assert await site.states(two) == {"cancelled": 2}
    await people.cancel(one)
    assert await site.ended(one) == "cancelled"


async def test_held_servers_are_left_out_or_the_plan_is_rejected_and_both_say_who_has_them(
    site: Site, people: People
) -> None:
    first, second, free = site.named(18, 19, 20)
    one = await holder(site, people, [first, second])
    skipping, status = await site.run(overlapping([second, free], "skip"))
    assert status == "succeeded"
    assert await site.jobs(skipping) == {second: ("skipped", "held"), free: ("succeeded", None)}
    rejected, status = await site.run(overlapping([second, free], "reject"))
    assert status == "rejected"
    _, code, faults = await site.status(rejected)
    assert code == "servers_held"
    assert faults is not None
    assert [(f["code"], second in f["message"], str(one) in f["message"]) for f in faults] == [("held", True, True)]
    assert await people.holds(rejected) == 0
    assert [site.accepted(i) for i in (first, second, free)] == [1, 0, 1]
    await people.cancel(one)
    assert await site.ended(one) == "cancelled"
    await site.assert_ledger_is_sound(skipping)


async def test_a_scheduled_plan_whose_servers_are_held_at_its_time_is_rejected(site: Site, people: People) -> None:
    (server,) = site.named(21)
    at = datetime.now(UTC) + timedelta(seconds=60)
    later = await site.submit(overlapping([server], "reject", schedule={"start_at": at.isoformat()}))
    await people.wait(later, "scheduled")
    one = await holder(site, people, [*site.named(22), server])
    await people.site_execute("UPDATE plans SET start_at = now() WHERE id = :id", later)
    rejected = await people.wait(later, "rejected", code="servers_held")
    assert str(one) in rejected.errors[0].message
    await people.cancel(one)
    assert await site.ended(one) == "cancelled"
    assert site.received(server) == 0
