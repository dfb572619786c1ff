"""Saved previews that the cloud overtook, copies of plans, and plans taken back: with real workers and a cloud over
HTTP, through the use cases behind the API."""

import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from orchestrator.clouds.pacing import make_redis
from orchestrator.errors import Conflict
from orchestrator.rehearsal import RehearsalImage
from orchestrator.rehearsal.state import Task, VmState
from orchestrator.service import actions, copies, reads
from orchestrator.service.clouds import CloudBook
from orchestrator.service.deps import Deps
from orchestrator.service.roles import Principal, Role
from tests.driver.site import NEW, OLD, Site
from tests.parts import eventually

ADMIN = Principal(token_id=uuid4(), name="anna", role=Role.ADMIN)
ONE_WAVE = {"waves": [{"size": "100%", "max_errors": "100%"}], "max_in_flight": 200}


@dataclass(frozen=True)
class People:
    """What a person does, and sees."""

    deps: Deps
    site: Site

    async def ready(self, document: Mapping[str, Any]) -> UUID:
        """A saved preview."""
        plan = await self.site.submit({"hold": True, **document})
        await self.stands(plan, "ready")
        return plan

    async def stands(self, plan: UUID, *statuses: str) -> str:
        async def there() -> str | None:
            status, code, faults = await self.site.status(plan)
            assert status in statuses, (status, code, faults)
            return status

        return await eventually(there, deadline=60, every=0.1, message=f"plan {plan} stands at {statuses}")

    async def start(self, plan: UUID) -> None:
        await actions.start(self.deps, ADMIN, plan)

    async def event(self, plan: UUID, kind: str) -> Any:
        async with self.site.engine.connect() as conn:
            row = await conn.execute(
                text("SELECT reason_message, data, actor FROM events WHERE plan_id = :id AND type = :type"),
                {"id": plan, "type": kind},
            )
        return row.one()

    async def verdicts(self, plan: UUID) -> dict[str, tuple[str, str | None, str | None]]:
        """Server id → (verdict, reason's code, its message)."""
        page = await reads.list_jobs(self.deps, ADMIN, plan, limit=1000)
        return {
            str(j.server_id): (
                str(j.verdict),
                j.reason.code if j.reason else None,
                j.reason.message if j.reason else "",
            )
            for j in page.items
        }


@pytest.fixture
async def people(site: Site, urls: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[People]:
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", site.workers.env["OS_CLIENT_CONFIG_FILE"])
    paces = make_redis(urls[1])
    yield People(Deps(engine=site.engine, hints=site.hints, clouds=CloudBook(), paces=paces, api_url="http://t"), site)
    await paces.aclose()


def image_id(site: Site, name: str) -> str:
    return next(i.id for i in site.cloud.cloud.images.values() if i.name == name)


def new_image(site: Site, name: str, **given: Any) -> str:
    image = RehearsalImage(name=name, **given)
    site.cloud.cloud.images[image.id] = image
    return image.id


def behind_its_back(site: Site, *, image: str, metadata: str, status: str) -> None:
    """Somebody else changes one server's image, one's metadata and one's status."""
    servers = site.cloud.cloud.servers
    servers[image].image = image_id(site, "base-2026.12")
    servers[image].forget_view()
    servers[metadata].metadata = {**servers[metadata].metadata, "owner": "another"}
    servers[metadata].forget_view()
    servers[status].vm_state = VmState.PAUSED
    servers[status].forget_view()


async def test_what_changed_since_the_preview_halts_the_start_before_anything_is_sent(
    site: Site, people: People
) -> None:
    ids = site.named(*range(10, 40))
    waves = {"waves": [{"size": 2}, {"size": "100%"}]}
    plan = await people.ready({"targets": {"servers": ids}, "rollout": waves})
    behind_its_back(site, image=ids[3], metadata=ids[0], status=ids[29])
    await people.start(plan)
    assert await site.ended(plan) == "halted"
    assert (await site.status(plan))[1] == "drift"
    assert [site.received(i) for i in ids] == [0] * 30
    halted = await people.event(plan, "plan.halted")
    assert "3 of 30 servers changed" in halted.reason_message
    assert f"{ids[0]}: its metadata was changed" in halted.reason_message
    assert halted.data["drifted"] == 3
    assert {s["server_id"]: s["what"] for s in halted.data["servers"]} == {
        ids[0]: "its metadata was changed",
        ids[3]: f"its image is {image_id(site, 'base-2026.12')}, no longer {image_id(site, OLD)}",
        ids[29]: "its status is PAUSED, no longer ACTIVE",
    }

    await actions.resume(people.deps, ADMIN, plan)
    await people.stands(plan, "failed")
    jobs = await site.jobs(plan)
    assert {i for i, job in jobs.items() if job == ("refused", "drift")} == {ids[0], ids[3], ids[29]}
    assert await site.states(plan) == {"refused": 3, "succeeded": 27}
    assert [site.received(i) for i in (ids[0], ids[3], ids[29])] == [0] * 3
    async with site.engine.connect() as conn:
        resumed = await conn.execute(text("SELECT bool_or(resumed) FROM waves WHERE plan_id = :id"), {"id": plan})
        assert resumed.scalar_one() is False, "nothing had failed: the canary keeps its threshold"

    await actions.retry(people.deps, ADMIN, plan, servers=[ids[0], ids[3]])
    assert await site.ended(plan) == "failed"
    assert await site.states(plan) == {"refused": 1, "succeeded": 29}
    await site.assert_ledger_is_sound(plan)


async def test_drift_within_the_limit_leaves_those_servers_out_and_goes_on(site: Site, people: People) -> None:
    ids = site.named(*range(40, 50))
    failure = {"max_errors": "100%", "same_cause": 0, "drift_limit": "30%"}
    plan = await people.ready({"targets": {"servers": ids}, "failure": failure})
    behind_its_back(site, image=ids[0], metadata=ids[1], status=ids[2])
    await people.start(plan)
    assert await site.ended(plan) == "failed"
    assert (await site.jobs(plan))[ids[1]] == ("refused", "drift")
    assert await site.states(plan) == {"refused": 3, "succeeded": 7}
    site.assert_cloud_agrees(await site.jobs(plan))


async def test_a_plan_that_nothing_overtook_starts_as_it_was_shown(site: Site, people: People) -> None:
    ids = site.named(50, 51)
    plan = await people.ready({"targets": {"servers": ids}})
    shown = await reads.get_plan(people.deps, ADMIN, plan)
    assert shown.eta is not None
    with pytest.raises(Conflict, match="digest"):
        await actions.start(people.deps, ADMIN, plan, digest="sha256:another")
    await actions.start(people.deps, ADMIN, plan, digest=shown.digest)
    assert await site.ended(plan) == "succeeded"
    assert (await reads.get_plan(people.deps, ADMIN, plan)).digest == shown.digest


async def test_what_the_plan_in_front_did_is_no_drift_for_the_one_that_queued_behind_it(
    site: Site, people: People
) -> None:
    ids = site.named(*range(117, 121))
    rebuild = {"metadata": {"release": "11"}}
    slowly = {"rate": "1/s", "waves": [{"size": "100%"}]}
    front = await site.submit({"targets": {"servers": ids[:3]}, "rebuild": rebuild, "rollout": slowly})
    await people.stands(front, "running")
    queued = {"targets": {"servers": ids}, "image": "base-2026.12", "on_conflict": "queue"}
    behind = await site.submit(queued)
    await people.stands(behind, "scheduled")
    assert await site.ended(front) == "succeeded"
    assert await site.ended(behind) == "succeeded"
    assert [site.accepted(i) for i in ids] == [2, 2, 2, 1]


async def test_a_server_that_was_deleted_has_drifted_though_a_list_only_leaves_it_out(
    site: Site, people: People
) -> None:
    ids = site.named(*range(90, 116))
    plan = await people.ready({"targets": {"servers": ids}})
    server = site.cloud.cloud.servers[ids[7]]
    server.vm_state, server.deleted_at = VmState.DELETED, time.time()
    server.forget_view()
    await people.start(plan)
    assert await site.ended(plan) == "halted"
    assert (await people.event(plan, "plan.halted")).data == {
        "drifted": 1, "servers": [{"server_id": ids[7], "what": "the server is gone"}],
    }  # fmt: skip
    assert [site.received(i) for i in ids] == [0] * 26
    await actions.resume(people.deps, ADMIN, plan)
    await people.stands(plan, "failed")
    assert (await site.jobs(plan))[ids[7]] == ("refused", "unknown_server")
    assert await site.states(plan) == {"refused": 1, "succeeded": 25}


async def test_a_scheduled_plan_is_looked_at_when_its_time_has_come(site: Site, people: People) -> None:
    ids = site.named(53, 54, 58)
    start_at = (datetime.now(UTC) + timedelta(hours=2)).isoformat()
    plan = await site.submit({"targets": {"servers": ids}, "schedule": {"start_at": start_at}})
    await people.stands(plan, "scheduled")
    behind_its_back(site, image=ids[0], metadata=ids[1], status=ids[2])
    async with site.engine.begin() as conn:
        await conn.execute(text("UPDATE plans SET start_at = now() WHERE id = :id"), {"id": plan})
    assert await site.ended(plan) == "halted"
    assert (await people.event(plan, "plan.halted")).data["drifted"] == 3
    assert [site.received(i) for i in ids] == [0] * 3
    site.cloud.cloud.servers[ids[2]].vm_state = VmState.ACTIVE
    site.cloud.cloud.servers[ids[2]].forget_view()
    await actions.cancel(people.deps, ADMIN, plan)
    assert await site.ended(plan) == "cancelled"


async def test_outside_its_windows_a_plan_waits_and_is_looked_at_when_one_opens(site: Site, people: People) -> None:
    (server_id,) = site.named(52)
    tomorrow = (datetime.now(UTC) + timedelta(days=2)).strftime("%a").lower()
    window = {"days": [tomorrow], "from": "01:00", "to": "05:00", "tz": "UTC"}
    plan = await people.ready({"targets": {"servers": [server_id]}, "schedule": {"windows": [window]}})
    behind_its_back(site, image=server_id, metadata=server_id, status=server_id)
    await people.start(plan)

    async def waits() -> bool:
        return (await site.status(plan))[:2] == ("running", "window_closed")

    await eventually(waits, deadline=30, message="it waits for its window")
    async with site.engine.connect() as conn:
        looked = text("SELECT check_drift FROM plans WHERE id = :id")
        assert (await conn.execute(looked, {"id": plan})).scalar_one() is True
    await actions.cancel(people.deps, ADMIN, plan)
    assert await site.ended(plan) == "cancelled"


async def test_a_preview_refuses_what_is_busy_too_small_or_held(site: Site, people: People) -> None:
    busy, holder, plain = site.named(55, 56, 57)
    huge = new_image(site, "huge", min_disk=site.cloud.cloud.config.disk + 1)
    hungry = new_image(site, "hungry", min_ram=1_000_000)
    holding = await people.ready({"targets": {"servers": [holder]}})
    async with site.engine.begin() as conn:  # as a plan that was started and paused before its first call
        deployment = (await conn.execute(text("SELECT deployment FROM projects LIMIT 1"))).scalar_one()
        await conn.execute(
            text("INSERT INTO holds (deployment, server_id, plan_id) VALUES (:d, :s, :p)"),
            {"d": deployment, "s": holder, "p": holding},
        )
    server = site.cloud.cloud.servers[busy]
    server.task = Task.POWERING_OFF
    server.forget_view()
    plan = await people.ready(
        {"targets": {"servers": [busy, holder, plain, {"id": site.named(58)[0], "image": huge},
                                 {"id": site.named(59)[0], "image": hungry}]}}
    )  # fmt: skip
    found = await people.verdicts(plan)
    assert {i: v[:2] for i, v in found.items()} == {
        busy: ("refuse", "busy"), holder: ("refuse", "held"), plain: ("rebuild", None),
        site.named(58)[0]: ("refuse", "flavor_too_small"), site.named(59)[0]: ("refuse", "flavor_too_small"),
    }  # fmt: skip
    assert str(holding) in (found[holder][2] or "")
    assert "disk" in (found[site.named(58)[0]][2] or "")
    assert "memory" in (found[site.named(59)[0]][2] or "")
    for on_conflict, expected in (("skip", ("skip", "held")), ("queue", ("rebuild", None))):
        other = await people.ready({"targets": {"servers": [holder]}, "on_conflict": on_conflict})
        assert (await people.verdicts(other))[holder][:2] == expected
    server.task = None
    server.forget_view()
    async with site.engine.begin() as conn:
        await conn.execute(text("DELETE FROM holds WHERE plan_id = :p"), {"p": holding})


async def test_a_clone_is_held_and_shows_what_the_plan_would_do_now(site: Site, people: People) -> None:
    first, second = site.named(60, 61)
    document = {
        "targets": {"servers": [{"find": "node-00060", "rebuild": {"metadata": {"own": "1"}}}, second]},
        "rebuild": {"metadata": {"release": "11"}, "user_data": {"text": "#!/bin/sh\n"}},
        "labels": {"team": "web"},
    }
    plan, status = await site.run(document)
    assert status == "succeeded"
    site.cloud.cloud.servers[second].metadata = {"release": "10"}
    site.cloud.cloud.servers[second].forget_view()
    copy = await copies.clone(people.deps, ADMIN, plan, reason="once more", idempotency_key="k1")
    assert copy.id == (await copies.clone(people.deps, ADMIN, plan, idempotency_key="k1")).id
    await people.stands(copy.id, "ready")
    assert {i: v[:2] for i, v in (await people.verdicts(copy.id)).items()} == {
        first: ("skip", "already_there"), second: ("rebuild", None),
    }  # fmt: skip
    specs = [await reads.get_spec(people.deps, ADMIN, i) for i in (plan, copy.id)]
    assert {**specs[0], "hold": True} == specs[1]
    made = await people.event(copy.id, "plan.preparing")
    assert (made.reason_message, made.data["clone_of"], made.actor) == ("once more", str(plan), "anna")
    await people.start(copy.id)
    assert await site.ended(copy.id) == "succeeded"
    assert (site.accepted(first), site.accepted(second)) == (1, 2)


async def test_a_rollback_returns_every_server_to_the_image_that_it_had(site: Site, people: People) -> None:
    """Servers of two images, one of which is deleted later; one was already there, one boots from a volume."""
    ids = site.named(*range(70, 80))
    other, doomed, there = ids[:3], ids[3], ids[4]
    volume = next(s.id for s in site.cloud.cloud.servers.values() if s.volume)
    gone = new_image(site, "doomed")
    for server_id, image in [*((i, image_id(site, "base-2026.12")) for i in other), (doomed, gone),
                             (there, image_id(site, NEW))]:  # fmt: skip
        site.cloud.cloud.servers[server_id].image = image
        site.cloud.cloud.servers[server_id].forget_view()
    before = {i: site.cloud.cloud.servers[i].image for i in ids}
    plan, status = await site.run(
        {"targets": {"servers": [*ids, volume]}, "labels": {"team": "web"},
         "rebuild": {"name": "{name}-b", "metadata": {"release": "11"}, "reimage_boot_volume": True}}
    )  # fmt: skip
    assert status == "succeeded"
    assert (await site.jobs(plan))[volume] == ("succeeded", None)
    del site.cloud.cloud.images[gone]

    with pytest.raises(Conflict) as refused:
        await copies.rollback(people.deps, ADMIN, plan, servers=[ids[0], *site.named(81)])
    assert refused.value.reason_code == "not_changed"

    back = await copies.rollback(people.deps, ADMIN, plan, reason="it does not boot", hold=True)
    assert (back.rollback_of, back.name, back.labels) == (plan, "rollback of test", {"team": "web"})
    await people.stands(back.id, "ready")
    found = await people.verdicts(back.id)
    assert {i: v[:2] for i, v in found.items() if v[0] == "refuse"} == {
        doomed: ("refuse", "image_gone"),
        volume: ("refuse", "no_previous_image"),
    }
    assert gone in (found[doomed][2] or "")
    made = await people.event(back.id, "plan.preparing")
    assert "what was on the disks is gone" in made.reason_message
    await people.start(back.id)
    assert await site.ended(back.id) == "failed", "two could not be taken back"
    now = {i: site.cloud.cloud.servers[i].image for i in ids}
    assert {i: image for i, image in now.items() if i != doomed} == {
        i: image for i, image in before.items() if i != doomed
    }
    assert now[doomed] == image_id(site, NEW)
    assert site.cloud.cloud.servers[ids[0]].name.endswith("-b"), "the name stays the server's own"
    assert site.cloud.cloud.servers[ids[0]].metadata["release"] == "11"
    assert (await people.event(plan, "plan.rollback")).data["plan_id"] == str(back.id)
    await site.assert_ledger_is_sound(back.id)


async def test_a_rollback_takes_back_only_what_the_plan_changed(site: Site, people: People) -> None:
    """It runs right away unless held; a server that was skipped, and one that was cancelled, are not touched."""
    skipped, rebuilt = site.named(85, 86)
    site.cloud.cloud.servers[skipped].image = image_id(site, NEW)
    site.cloud.cloud.servers[skipped].forget_view()
    never = await people.ready({"targets": {"servers": [rebuilt]}})
    with pytest.raises(Conflict) as refused:
        await copies.rollback(people.deps, ADMIN, never)
    assert refused.value.reason_code == "never_started"
    plan, status = await site.run({"targets": {"servers": [skipped, rebuilt]}})
    assert status == "succeeded"
    assert await site.states(plan) == {"skipped": 1, "succeeded": 1}
    back = await copies.rollback(people.deps, ADMIN, plan)
    assert await site.ended(back.id) == "succeeded"
    assert list(await site.jobs(back.id)) == [rebuilt]
    assert site.cloud.cloud.servers[rebuilt].image == image_id(site, OLD)
    assert site.cloud.cloud.servers[skipped].image == image_id(site, NEW)
