"""Disruption budgets, held against the cloud's own account: the fleet has 50 servers in each of three zones."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import text

from orchestrator.rehearsal import Fault, FaultKind
from orchestrator.service import servers
from tests.driver.people import OPERATOR, People, people
from tests.driver.site import Site
from tests.parts import eventually

__all__ = ["people"]


def zone(site: Site, name: str, first: int, last: int) -> list[str]:
    """Ids of the servers node-first to node-last that are in a zone."""
    return [i for i in site.named(*range(first, last + 1)) if site.cloud.cloud.servers[i].zone == name]


def within(servers: list[str], limit: int | str, **more: Any) -> Mapping[str, Any]:
    rollout = {"waves": [{"size": "100%", "max_errors": "100%"}], "max_in_flight": 100,
               "max_unavailable": {"per": "availability_zone", "limit": limit}}  # fmt: skip
    failure = {"max_errors": "100%", "same_cause": 0}
    return {"targets": {"servers": servers}, "rollout": rollout, "failure": failure, **more}


def put_on(site: Site, server_id: str, host: str) -> None:
    server = site.cloud.cloud.servers[server_id]
    server.host_id = host
    server.touch(site.cloud.cloud.now())


async def groups(site: Site, plan: UUID) -> list[tuple[str, int, int]]:
    async with site.engine.connect() as conn:
        rows = await conn.execute(
            text("SELECT name, size, places FROM budget_groups WHERE plan_id = :p ORDER BY name"), {"p": plan}
        )
        return [(r.name, r.size, r.places) for r in rows]


async def test_two_plans_in_one_zone_share_its_budget_and_other_zones_have_their_own(site: Site) -> None:
    account = site.cloud.account
    account.highest_by_zone.clear()
    one = await site.submit(within(zone(site, "az1", 1, 36) + zone(site, "az2", 1, 12), "6%"))
    two = await site.submit(within(zone(site, "az1", 37, 72), "6%"))
    assert [await site.ended(p) for p in (one, two)] == ["succeeded"] * 2
    assert await groups(site, one) == [("az1", 50, 3), ("az2", 50, 3)], "counted over the whole project, rounded down"
    assert account.highest_by_zone["az1"] == 3
    assert 0 < account.highest_by_zone["az2"] <= 3
    for plan in (one, two):
        await site.assert_ledger_is_sound(plan)
    assert not account.accepted_twice


async def test_a_failed_server_keeps_its_place_until_a_person_acknowledges_it(
    site: Site,
    people: People,
) -> None:
    first, *others = chosen = zone(site, "az2", 73, 82)
    site.cloud.cloud.fail(Fault(kind=FaultKind.SPAWN_FAILS, servers=frozenset({first})))
    plan = await site.submit(within(chosen, 1))

    async def failed() -> bool:
        return (await site.jobs(plan))[first][0] == "failed"

    await eventually(failed, deadline=30, message="the first server fails")
    _, status = await site.run(within(zone(site, "az1", 73, 82), 2))  # other work is claimed and done meanwhile
    assert status == "succeeded"
    assert (await site.status(plan))[0] == "running"
    assert [site.received(i) for i in others] == [0] * len(others)

    await servers.acknowledge(people.deps, OPERATOR, plan, first, reason="its host is being repaired")
    assert await site.ended(plan) == "failed"
    assert await site.states(plan) == {"failed": 1, "succeeded": len(others)}


async def test_a_fleet_with_broken_servers_can_be_mended_and_nothing_else_goes_first(site: Site) -> None:
    (broken,) = site.named(147)
    others = zone(site, "az3", 100, 110)
    assert site.cloud.cloud.servers[broken].vm_state == "error"
    assert site.cloud.cloud.servers[broken].zone == "az3"
    account = site.cloud.account
    account.highest_by_zone.clear()
    plan, status = await site.run(within([*others, broken], 1))
    assert status == "succeeded"
    async with site.engine.connect() as conn:
        rows = await conn.execute(
            text("SELECT server_id FROM events WHERE plan_id = :p AND to_state = 'checking' ORDER BY seq"), {"p": plan}
        )
        claimed = [r.server_id for r in rows]
    assert claimed[0] == broken, "it is out already, so it costs nothing; the others wait for it"
    assert account.highest_by_zone["az3"] == 1
    await site.assert_ledger_is_sound(plan)


async def test_a_server_that_moved_to_another_group_waits_for_room_there(site: Site) -> None:
    """Between preparing and the check a server was migrated: the ledger learns of its new group, with its places."""
    stays, moves = site.named(111, 112)
    put_on(site, stays, "a" * 56)
    put_on(site, moves, "a" * 56)
    document = within([stays, moves], "50%", hold=True)
    document["rollout"]["max_unavailable"]["per"] = "host"
    plan = await site.submit(document)

    async def ready() -> bool:
        return (await site.status(plan))[0] == "ready"

    await eventually(ready, deadline=30, message="the preview is ready")
    assert await groups(site, plan) == [("a" * 56, 2, 1)]
    put_on(site, moves, "b" * 56)
    await site.start(plan)
    assert await site.ended(plan) == "succeeded"
    assert await groups(site, plan) == [("a" * 56, 2, 1), ("b" * 56, 1, 1)]
    async with site.engine.connect() as conn:
        rows = await conn.execute(text("SELECT budget_group FROM jobs WHERE plan_id = :p ORDER BY ord"), {"p": plan})
        assert list(rows.scalars()) == ["a" * 56, "b" * 56]
    await site.assert_ledger_is_sound(plan)
