"""Plans from submit to end, with real workers, PostgreSQL, Valkey and a cloud over HTTP."""

import asyncio

from sqlalchemy import text

from orchestrator.rehearsal import Fault, FaultKind
from tests.driver.site import NEW, Site
from tests.parts import eventually


async def test_every_server_is_rebuilt_once_and_a_second_plan_skips_them_all(site: Site) -> None:
    ids = site.named(*range(10, 40))
    before = {i: dict(site.cloud.cloud.servers[i].metadata) for i in ids}
    plan, status = await site.run({"targets": {"servers": ids}, "rebuild": {"metadata": {"release": "11"}}})
    assert status == "succeeded"
    jobs = await site.jobs(plan)
    assert {state for state, _ in jobs.values()} == {"succeeded"}
    assert [site.accepted(i) for i in ids] == [1] * 30
    site.assert_cloud_agrees(jobs)
    assert {i: dict(site.cloud.cloud.servers[i].metadata) for i in ids} == {
        i: m | {"release": "11", "rebuild-attempt": f"{plan}/1"} for i, m in before.items()
    }
    await site.assert_ledger_is_sound(plan)

    again, status = await site.run({"targets": {"servers": ids}, "rebuild": {"metadata": {"release": "11"}}})
    assert status == "succeeded"
    assert await site.states(again) == {"skipped": 30}
    assert [site.received(i) for i in ids] == [1] * 30
    await site.assert_ledger_is_sound(again)


async def test_what_cannot_be_rebuilt_is_refused_with_its_reason(site: Site) -> None:
    servers = site.cloud.cloud.servers.values()
    unknown = "00000000-0000-4000-8000-000000000001"
    special = [s.id for s in servers if s.locked or s.volume or s.vm_state != "active"]
    plan, status = await site.run({"targets": {"servers": [*special, unknown]}})
    assert status == "failed"
    found = {reason or state for state, reason in (await site.jobs(plan)).values()}
    assert found == {"locked", "wrong_state", "volume_booted", "unknown_server", "succeeded"}
    assert await site.states(plan) == {"refused": 4, "succeeded": 2}
    stopped = next(s for s in servers if s.id in special and s.vm_state == "stopped")
    assert site.accepted(stopped.id) == 1
    await site.assert_ledger_is_sound(plan)


async def test_active_with_the_new_image_proves_nothing(site: Site) -> None:
    """A rebuild that failed early ends ACTIVE with the new image; it is failed, and the next plan rebuilds it."""
    early, well = site.named(41, 42)
    site.cloud.cloud.fail(Fault(kind=FaultKind.IMAGE_GONE, servers=frozenset({early}), times=1))
    plan, status = await site.run({"targets": {"servers": [early, well]}})
    assert status == "failed"
    assert (await site.jobs(plan))[early] == ("failed", "rebuild_failed_early")
    images = {i.name: i.id for i in site.cloud.cloud.images.values()}
    assert site.cloud.cloud.servers[early].image == images[NEW]

    plan, status = await site.run({"targets": {"servers": [early, well]}})
    assert status == "succeeded"
    assert await site.jobs(plan) == {early: ("succeeded", None), well: ("skipped", "already_there")}
    assert (site.accepted(early), site.accepted(well)) == (2, 1)


async def test_failures_on_the_host_and_before_it_are_told_apart(site: Site) -> None:
    spawn, nohost = site.named(43, 44)
    site.cloud.cloud.fail(
        Fault(kind=FaultKind.SPAWN_FAILS, servers=frozenset({spawn})),
        Fault(kind=FaultKind.NO_VALID_HOST, servers=frozenset({nohost})),
    )
    plan, status = await site.run({"targets": {"servers": [spawn, nohost]}})
    assert status == "failed"
    assert await site.jobs(plan) == {
        spawn: ("failed", "rebuild_failed_on_host"),
        nohost: ("failed", "rebuild_not_scheduled"),
    }
    assert (site.accepted(spawn), site.accepted(nohost)) == (1, 1)
    await site.assert_ledger_is_sound(plan)


async def test_a_failed_canary_leaves_every_other_server_untouched(site: Site) -> None:
    ids = site.named(*range(45, 55))
    site.cloud.cloud.fail(Fault(kind=FaultKind.SPAWN_FAILS, servers=frozenset(ids[:1])))
    document = {"targets": {"servers": ids}, "rollout": {"waves": [{"size": 1}, {"size": "100%"}]}}
    plan, status = await site.run(document)
    assert status == "halted"
    assert (await site.status(plan))[1] == "wave_max_errors"
    assert await site.states(plan) == {"failed": 1, "pending": 9}
    assert [site.received(i) for i in ids[1:]] == [0] * 9


async def test_a_token_revoked_under_way_costs_nobody_a_rebuild(site: Site) -> None:
    ids = site.named(*range(60, 80))
    plan = await site.submit({"targets": {"servers": ids}, "rollout": {"rate": "20/s", "waves": [{"size": "100%"}]}})

    async def under_way() -> bool:
        return sum(site.accepted(i) for i in ids) >= 3

    await eventually(under_way, deadline=30, message="the plan is under way")
    assert site.cloud.revoke_tokens() >= 1
    assert await site.ended(plan) == "succeeded"
    assert [site.accepted(i) for i in ids] == [1] * 20
    await site.assert_ledger_is_sound(plan)


async def test_being_told_to_slow_down_is_no_try_and_no_failure(site: Site) -> None:
    ids = site.named(*range(80, 95))
    site.cloud.cloud.fail(Fault(kind=FaultKind.STORM, times=6, delay=0.3))
    plan, status = await site.run({"targets": {"servers": ids}}, within=90)
    assert status == "succeeded"
    assert [site.accepted(i) for i in ids] == [1] * 15
    async with site.engine.connect() as conn:
        refusals = await conn.execute(text("SELECT max(refusals) FROM jobs WHERE plan_id = :id"), {"id": plan})
        assert refusals.scalar_one() == 0


async def test_cancelling_stops_new_calls_and_lets_those_in_flight_finish(site: Site) -> None:
    ids = site.named(*range(95, 125))
    plan = await site.submit({"targets": {"servers": ids}, "rollout": {"rate": "10/s", "waves": [{"size": "100%"}]}})
    await eventually(lambda: any(site.accepted(i) for i in ids), deadline=30, message="the first call")
    await site.cancel(plan)
    assert await site.ended(plan) == "cancelled"
    states = await site.states(plan)
    assert set(states) == {"succeeded", "cancelled"}
    assert states["succeeded"] == sum(site.accepted(i) for i in ids) > 0
    await site.assert_ledger_is_sound(plan)


async def test_faults_that_preparing_finds_are_itemised(site: Site) -> None:
    server = site.named(126)
    cases = {
        "image": {"image": "no-such-image", "targets": {"servers": server}},
        "targets.servers[0].find": {"targets": {"servers": [{"find": "no-such-name"}]}},
        "targets": {"targets": {"select": {"name": "no-such-*"}}},
        "targets.max": {"targets": {"select": {"name": "node-*"}, "max": 3}},
        "cloud": {"cloud": "wrong-password", "targets": {"servers": server}},
    }
    plans = {path: await site.submit(document) for path, document in cases.items()}
    for path, plan in plans.items():
        assert await site.ended(plan) == "rejected"
        _, _, faults = await site.status(plan)
        assert faults is not None
        assert [f["path"] for f in faults] == [path]
        assert "not-this-one" not in str(faults)


async def test_a_cloud_out_of_reach_leaves_the_plan_waiting_and_says_so(site: Site) -> None:
    plan = await site.submit({"cloud": "away", "targets": {"servers": site.named(126)}})

    async def waits() -> bool:
        status, reason, _ = await site.status(plan)
        return (status, reason) == ("preparing", "cloud_unreachable")

    await eventually(waits, deadline=30, message="the plan says why it waits")


async def test_two_plans_at_once_for_the_same_servers_rebuild_them_once(site: Site) -> None:
    ids = site.named(*range(127, 133))
    one, two = await asyncio.gather(
        site.submit({"targets": {"servers": ids}}), site.submit({"targets": {"servers": ids}})
    )
    ends = {await site.ended(one), await site.ended(two)}
    assert ends <= {"succeeded", "rejected"}
    assert "succeeded" in ends
    assert [site.accepted(i) for i in ids] == [1] * 6


async def test_names_and_overrides_reach_the_cloud(site: Site) -> None:
    plain, special = site.named(134, 135)
    document = {
        "targets": {
            "servers": [plain, {"id": special, "image": "base-2026.12", "rebuild": {"metadata": {"own": "1"}}}]
        },
        "rebuild": {"name": "{name}-new", "metadata": {"role": None}},
    }
    plan, status = await site.run(document)
    assert status == "succeeded"
    servers = site.cloud.cloud.servers
    assert servers[plain].name == "node-00134-new"
    assert "role" not in servers[plain].metadata
    assert servers[special].metadata["own"] == "1"
    images = {i.id: i.name for i in site.cloud.cloud.images.values()}
    assert [images[servers[i].image] for i in (plain, special)] == [NEW, "base-2026.12"]
    await site.assert_ledger_is_sound(plan)
