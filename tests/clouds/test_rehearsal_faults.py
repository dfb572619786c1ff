"""Faults that leave a client with an answer that is wrong, and what the cloud itself says of them."""

from typing import Any

import aiohttp
import pytest

from orchestrator.rehearsal import Fault, FaultKind, RehearsalConfig
from tests.clouds.rehearsed import Caller, rehearsed

THREE = RehearsalConfig(servers=3, rebuild_seconds=1.0)


def _order(caller: Caller, kind: FaultKind, **more: Any) -> None:
    caller.running.cloud.fail(Fault(kind=kind, servers=frozenset({"node-00001"}), times=1, **more))


async def test_a_rebuild_may_succeed_with_another_image_than_was_asked_for() -> None:
    async with rehearsed(THREE) as caller:
        _order(caller, FaultKind.WRONG_IMAGE)
        before = await caller.server(caller.ids[0])
        status, _, request_id = await caller.rebuild(caller.ids[0], caller.images[1])
        assert status == 202
        caller.clock.pass_by(5)
        after = await caller.server(caller.ids[0])
        assert (after["status"], after["OS-EXT-STS:task_state"]) == ("ACTIVE", None)
        assert after["OS-SRV-USG:launched_at"] > before["OS-SRV-USG:launched_at"]
        assert after["image"]["id"] == caller.images[2]
        events = (await caller.action(caller.ids[0], request_id))["events"]
        assert {e["result"] for e in events} == {"Success"}


async def test_a_call_that_is_sent_twice_on_the_way_takes_effect_once_and_is_answered_409() -> None:
    async with rehearsed(THREE) as caller:
        _order(caller, FaultKind.DUPLICATED)
        status, shown, request_id = await caller.rebuild(caller.ids[0], caller.images[1])
        assert status == 409
        assert shown["conflictingRequest"]["message"] == (
            f"Cannot 'rebuild' instance {caller.ids[0]} while it is in task_state rebuilding"
        )
        path = f"/servers/{caller.ids[0]}/os-instance-actions"
        actions = (await caller("GET", path))[1]["instanceActions"]
        (taken,) = [a["request_id"] for a in actions if a["action"] == "rebuild"]
        assert taken != request_id
        account = caller.running.account.servers[caller.ids[0]]
        assert (account.received, account.accepted, account.faults) == (1, 1, {"duplicated": 1})


async def test_an_answer_may_break_off_in_the_middle() -> None:
    async with rehearsed(THREE) as caller:
        _order(caller, FaultKind.TRUNCATED)
        url = f"{caller.running.url}/compute/v2.1/servers/{caller.ids[0]}/action"
        body = {"rebuild": {"imageRef": caller.images[1]}}
        headers = {"X-Auth-Token": caller.token, "OpenStack-API-Version": "compute 2.73"}
        async with caller.session.post(url, json=body, headers=headers) as answer:
            assert answer.status == 202
            assert "x-openstack-request-id" in answer.headers
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.read()
        account = caller.running.account.servers[caller.ids[0]]
        assert (account.accepted, account.answers) == (1, {"truncated": 1})
        caller.clock.pass_by(5)
        assert (await caller.server(caller.ids[0]))["status"] == "ACTIVE"


async def test_an_answer_may_be_a_page_of_something_in_between() -> None:
    async with rehearsed(THREE) as caller:
        _order(caller, FaultKind.HTML)
        status, shown, request_id = await caller.rebuild(caller.ids[0], caller.images[1])
        assert (status, request_id) == (200, "")
        assert shown.startswith("<html>")
        assert caller.running.account.servers[caller.ids[0]].accepted == 1


async def test_a_fault_that_the_rate_limit_forestalled_did_not_strike() -> None:
    config = RehearsalConfig(servers=3, rebuild_seconds=1.0, write_rate=1.0, rate_tolerance=0.0)
    async with rehearsed(config) as caller:
        await caller.rebuild(caller.ids[1], caller.images[1])
        _order(caller, FaultKind.TRUNCATED)
        assert (await caller.rebuild(caller.ids[0], caller.images[1]))[0] == 429
        assert caller.running.account.faults == {}


async def test_all_servers_are_shown_as_they_are_in_one_answer() -> None:
    async with rehearsed(THREE) as caller:
        caller.running.cloud.fail(Fault(kind=FaultKind.VANISHED, servers=frozenset({"node-00002"})))
        _, _, request_id = await caller.rebuild(caller.ids[0], caller.images[1], metadata={"rebuild-attempt": "plan/2"})
        servers = (await caller("GET", "/rehearsal/servers"))[1]["servers"]
        assert list(servers) == caller.ids
        assert servers[caller.ids[0]] == {
            "id": caller.ids[0],
            "name": "node-00001",
            "status": "REBUILD",
            "task_state": "rebuilding",
            "image": caller.images[1],
            "launched_at": caller.running.cloud.servers[caller.ids[0]].launched_at,
            "metadata": {"rebuild-attempt": "plan/2"},
            "rebuilds": [request_id],
        }
        assert caller.running.account.servers[caller.ids[0]].attempts == ["plan/2"]
