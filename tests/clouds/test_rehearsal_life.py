"""What only a rehearsal cloud can be made to show: failures on the host, administrators, deletions, odd servers."""

from typing import Any

from orchestrator.rehearsal import Fault, FaultKind, RehearsalConfig, RehearsalImage
from orchestrator.rehearsal.config import USERS
from tests.clouds.rehearsed import Caller, rehearsed

TEN = RehearsalConfig(servers=10, rebuild_seconds=10.0)


def _state(server: dict[str, Any]) -> tuple[str, str | None, str]:
    return server["status"], server["OS-EXT-STS:task_state"], server["OS-EXT-STS:vm_state"]


async def _course(caller: Caller, server_id: str, *seconds: float) -> list[tuple[str, str | None, str]]:
    """The server's state after each step of time."""
    seen = []
    for step in seconds:
        caller.clock.pass_by(step)
        seen.append(_state(await caller.server(server_id)))
    return seen


async def test_a_rebuild_goes_through_its_tasks_as_time_passes() -> None:
    async with rehearsed(TEN) as caller:
        server_id = caller.ids[0]
        before = await caller.server(server_id)
        await caller.rebuild(server_id, caller.images[1])
        assert await _course(caller, server_id, 0, 3.5, 1, 5, 1) == [
            ("REBUILD", "rebuilding", "active"),
            ("REBUILD", "rebuild_block_device_mapping", "active"),
            ("REBUILD", "rebuild_spawning", "active"),
            ("REBUILD", "rebuild_spawning", "active"),
            ("ACTIVE", None, "active"),
        ]
        after = await caller.server(server_id)
        assert after["OS-SRV-USG:launched_at"] == "2027-01-15T08:00:10.000000"
        assert after["updated"] == "2027-01-15T08:00:10Z"
        assert before["OS-SRV-USG:launched_at"] < after["OS-SRV-USG:launched_at"]


async def test_times_are_those_at_which_things_were_due_however_late_one_looks() -> None:
    async with rehearsed(TEN) as caller:
        await caller.rebuild(caller.ids[0], caller.images[1])
        caller.clock.pass_by(1800)
        assert (await caller.server(caller.ids[0]))["updated"] == "2027-01-15T08:00:10Z"


async def test_the_action_is_finished_a_moment_after_the_task_is_null() -> None:
    async with rehearsed(RehearsalConfig(servers=1, rebuild_seconds=10.0, action_lag=2.0)) as caller:
        _, _, request_id = await caller.rebuild(caller.ids[0], caller.images[1])
        assert await _course(caller, caller.ids[0], 11) == [("ACTIVE", None, "active")]
        events = (await caller.action(caller.ids[0], request_id))["events"]
        assert [(e["event"], e["result"]) for e in events] == [
            ("compute_rebuild_instance", None),
            ("rebuild_server", "Success"),
        ]
        caller.clock.pass_by(2)
        events = (await caller.action(caller.ids[0], request_id))["events"]
        assert events[0]["result"] == "Success"


async def test_a_failed_spawn_is_error_with_a_fault_and_the_new_image_and_the_next_rebuild_cures_it() -> None:
    async with rehearsed(TEN) as caller:
        server_id = caller.ids[0]
        before = await caller.server(server_id)
        caller.running.cloud.fail(Fault(kind=FaultKind.SPAWN_FAILS, servers=frozenset({"node-00001"}), times=1))
        _, _, request_id = await caller.rebuild(server_id, caller.images[1], metadata={"wave": "1"})
        assert await _course(caller, server_id, 9.7, 1) == [
            ("REBUILD", "rebuild_spawning", "error"),
            ("ERROR", None, "error"),
        ]
        after = await caller.server(server_id)
        assert after["fault"] == {
            "code": 500,
            "created": "2027-01-15T08:00:10Z",
            "message": "rehearsal: no space left on device",
        }
        assert after["image"]["id"] == caller.images[1]
        assert after["metadata"] == {"wave": "1"}
        assert after["OS-SRV-USG:launched_at"] == before["OS-SRV-USG:launched_at"]
        assert "progress" not in after
        action = await caller.action(server_id, request_id)
        assert action["message"] == "Error"
        assert [e["result"] for e in action["events"]] == ["Error", "Success"]
        _, page, _ = await caller("GET", "/servers/detail?status=ERROR")
        assert [s["fault"]["code"] for s in page["servers"]] == [500]
        assert (await caller.rebuild(server_id, caller.images[1]))[0] == 202
        assert await _course(caller, server_id, 11) == [("ACTIVE", None, "active")]
        assert "fault" not in await caller.server(server_id)


async def test_an_image_that_goes_early_leaves_it_active_with_the_new_id_and_only_the_action_tells() -> None:
    async with rehearsed(TEN) as caller:
        server_id = caller.ids[0]
        before = await caller.server(server_id)
        _, _, request_id = await caller.rebuild(server_id, caller.images[1])
        assert (await caller("DELETE", f"/rehearsal/images/{caller.images[1]}"))[0] == 204
        assert await _course(caller, server_id, 11) == [("ACTIVE", None, "active")]
        after = await caller.server(server_id)
        assert after["image"]["id"] == caller.images[1]
        assert after["OS-SRV-USG:launched_at"] == before["OS-SRV-USG:launched_at"]
        assert "fault" not in after
        action = await caller.action(server_id, request_id)
        assert (action["message"], action["events"][0]["result"]) == ("Error", "Error")
        assert caller.running.account.servers[server_id].wiped == 0


async def test_no_valid_host_rolls_the_image_back_and_no_host_ever_saw_it() -> None:
    images = (RehearsalImage(name="old"), RehearsalImage(name="for other hosts", runnable=False))
    async with rehearsed(RehearsalConfig(servers=2, images=images, rebuild_seconds=10.0)) as caller:
        _, _, request_id = await caller.rebuild(caller.ids[0], caller.images[1])
        assert await _course(caller, caller.ids[0], 1) == [("ERROR", None, "error")]
        after = await caller.server(caller.ids[0])
        assert after["image"]["id"] == caller.images[0]
        assert after["fault"]["message"] == "No valid host was found. There are not enough hosts available."
        action = await caller.action(caller.ids[0], request_id)
        assert [(e["event"], e["result"]) for e in action["events"]] == [("rebuild_server", "Error")]
        assert caller.running.account.servers[caller.ids[0]].wiped == 0


async def test_a_stuck_rebuild_ends_only_with_an_administrators_reset() -> None:
    async with rehearsed(TEN) as caller:
        server_id = caller.ids[0]
        caller.running.cloud.fail(Fault(kind=FaultKind.STUCK, servers=frozenset({server_id}), times=1))
        await caller.rebuild(server_id, caller.images[1])
        assert await _course(caller, server_id, 3000) == [("REBUILD", "rebuilding", "active")]
        assert (await caller.rebuild(server_id, caller.images[1]))[0] == 409
        assert caller.running.account.in_flight == 1
        await caller.sign_in(next(u for u in USERS if u.role == "admin"))
        reset = {"os-resetState": {"state": "active"}}
        assert (await caller("POST", f"/servers/{server_id}/action", reset))[0] == 202
        assert _state(await caller.server(server_id)) == ("ACTIVE", None, "active")
        assert (await caller.rebuild(server_id, caller.images[1]))[0] == 202
        assert await _course(caller, server_id, 11) == [("ACTIVE", None, "active")]
        assert caller.running.account.in_flight == 0


async def test_a_host_that_dies_leaves_error_without_fault_and_an_action_without_end() -> None:
    async with rehearsed(TEN) as caller:
        caller.running.cloud.fail(Fault(kind=FaultKind.COMPUTE_DIES))
        _, _, request_id = await caller.rebuild(caller.ids[0], caller.images[1])
        assert await _course(caller, caller.ids[0], 3000) == [("ERROR", None, "error")]
        assert "fault" not in await caller.server(caller.ids[0])
        action = await caller.action(caller.ids[0], request_id)
        assert (action["message"], action["events"][0]["finish_time"]) == (None, None)


async def test_fail_rate_fails_about_that_share() -> None:
    async with rehearsed(RehearsalConfig(servers=200, rebuild_seconds=1.0, fail_rate=0.25)) as caller:
        for server_id in caller.ids:
            assert (await caller.rebuild(server_id, caller.images[1]))[0] == 202
        caller.clock.pass_by(2)
        failed = caller.running.account.document()["failed"]
        assert 25 < failed < 75


async def test_a_deleted_server_is_404_and_absent_but_changes_since_and_its_actions_still_show_it() -> None:
    async with rehearsed(TEN) as caller:
        server_id = caller.ids[0]
        _, _, request_id = await caller.rebuild(server_id, caller.images[1])
        assert (await caller("DELETE", f"/servers/{server_id}"))[0] == 204
        assert _state(await caller.server(server_id)) == ("ACTIVE", "deleting", "active")
        caller.clock.pass_by(1)
        status, shown, _ = await caller("GET", f"/servers/{server_id}")
        assert (status, shown["itemNotFound"]["message"]) == (404, f"Instance {server_id} could not be found.")
        _, page, _ = await caller("GET", "/servers")
        assert server_id not in [s["id"] for s in page["servers"]]
        _, page, _ = await caller("GET", "/servers/detail?changes-since=2027-01-15T08:00:00Z")
        assert [(s["id"], s["status"]) for s in page["servers"]] == [(server_id, "DELETED")]
        assert (await caller.action(server_id, request_id))["message"] is None
        assert (await caller("GET", f"/servers?marker={server_id}"))[0] == 200
        assert caller.running.account.in_flight == 0


async def test_a_volume_booted_server_shows_no_image_and_below_2_93_takes_only_its_own() -> None:
    async with rehearsed(RehearsalConfig(servers=2, volume_booted=1, rebuild_seconds=1.0)) as caller:
        server_id, account = caller.ids[1], caller.running.cloud.account.servers[caller.ids[1]]
        assert (await caller.server(server_id))["image"] == ""
        status, shown, _ = await caller.rebuild(server_id, caller.images[1])
        assert status == 400
        assert shown["badRequest"]["message"].startswith(f"Image {caller.images[1]} is unacceptable: Unable to rebuild")
        assert (await caller.rebuild(server_id, caller.images[0]))[0] == 202
        assert await _course(caller, server_id, 2) == [("ACTIVE", None, "active")]
        assert account.wiped == 0
        assert (await caller.rebuild(server_id, caller.images[1], version="2.93"))[0] == 202
        assert await _course(caller, server_id, 2) == [("ACTIVE", None, "active")]
        assert account.wiped == 1
        assert (await caller.server(server_id))["image"] == ""


async def test_special_servers_are_as_many_as_asked_for_and_at_the_end() -> None:
    config = RehearsalConfig(servers=10, locked=1, error=2, shutoff=1, paused=1, volume_booted=1)
    async with rehearsed(config) as caller:
        servers = [await caller.server(i) for i in caller.ids]
        assert [s["status"] for s in servers] == ["ACTIVE"] * 5 + ["ERROR", "ERROR", "SHUTOFF", "PAUSED", "ACTIVE"]
        assert [s["name"] for s in servers if s["locked"]] == ["node-00005"]
        assert [s["name"] for s in servers if s["image"] == ""] == ["node-00010"]
        assert {s["OS-EXT-AZ:availability_zone"] for s in servers} == {"az1", "az2", "az3"}


async def test_an_image_that_is_not_active_or_too_big_is_refused() -> None:
    images = (
        RehearsalImage(name="old"),
        RehearsalImage(name="new", status="queued"),
        RehearsalImage(name="big", min_disk=50),
    )
    async with rehearsed(RehearsalConfig(servers=1, images=images)) as caller:
        _, queued, _ = await caller.rebuild(caller.ids[0], caller.images[1])
        assert queued["badRequest"]["message"] == f"Image {caller.images[1]} is not active."
        _, big, _ = await caller.rebuild(caller.ids[0], caller.images[2])
        assert big["badRequest"]["message"] == (
            "Flavor's disk is smaller than the minimum size specified in image metadata. "
            "Flavor disk is 21474836480 bytes, minimum size is 53687091200 bytes."
        )


async def test_an_administrator_rebuilds_a_locked_server_and_it_stays_locked() -> None:
    async with rehearsed(RehearsalConfig(servers=1, locked=1, rebuild_seconds=1.0)) as caller:
        assert (await caller.rebuild(caller.ids[0], caller.images[1]))[0] == 409
        await caller.sign_in(next(u for u in USERS if u.role == "admin"))
        assert (await caller.rebuild(caller.ids[0], caller.images[1]))[0] == 202
        caller.clock.pass_by(2)
        assert (await caller.server(caller.ids[0]))["locked"] is True


async def test_a_stranger_and_the_projects_reader_see_what_nova_lets_them() -> None:
    async with rehearsed(TEN) as caller:
        await caller.sign_in(next(u for u in USERS if u.name == "stranger"))
        assert (await caller.rebuild(caller.ids[0], caller.images[1]))[0] == 404
        assert (await caller("GET", "/servers"))[1] == {"servers": []}
        await caller.sign_in(next(u for u in USERS if u.role == "reader"))
        assert (await caller.rebuild(caller.ids[0], caller.images[1]))[0] == 202


async def test_a_key_pair_that_the_user_has_is_taken_and_shown() -> None:
    async with rehearsed(RehearsalConfig(servers=1, key_names=("ops",))) as caller:
        assert (await caller.rebuild(caller.ids[0], caller.images[1], key_name="other"))[0] == 400
        assert (await caller.rebuild(caller.ids[0], caller.images[1], key_name="ops"))[0] == 202
        assert (await caller.server(caller.ids[0]))["key_name"] == "ops"


async def test_preserving_an_ephemeral_disk_is_accepted_and_then_fails() -> None:
    async with rehearsed(TEN) as caller:
        assert (await caller.rebuild(caller.ids[0], caller.images[1], preserve_ephemeral="on"))[0] == 202
        caller.clock.pass_by(11)
        fault = (await caller.server(caller.ids[0]))["fault"]
        assert fault["code"] == 400
        assert fault["message"] == "The current driver does not support preserving ephemeral partitions."


async def test_a_character_beyond_the_bmp_in_metadata_is_500_and_changes_nothing() -> None:
    async with rehearsed(TEN) as caller:
        status, shown, _ = await caller.rebuild(caller.ids[0], caller.images[1], metadata={"k": "\U0001f600"})
        assert (status, "oslo_db.exception.DBError" in shown["computeFault"]["message"]) == (500, True)
        assert (await caller.server(caller.ids[0]))["status"] == "ACTIVE"


async def test_a_lower_maximum_of_microversions_is_kept_to() -> None:
    async with rehearsed(RehearsalConfig(servers=1, max_microversion="2.60")) as caller:
        assert (await caller("GET", "/servers"))[0] == 406
        _, _, headers = await caller("GET", "/servers", version="latest")
        assert headers["OpenStack-API-Version"] == "compute 2.60"


async def test_a_server_can_be_given_addresses_to_listen_on() -> None:
    """In Nova's shape, and without `updated` moving; a wrong one changes nothing."""
    async with rehearsed(TEN) as caller:
        server_id = caller.ids[0]
        before = await caller.server(server_id)
        own = before["addresses"]["private"][0]
        url = f"{caller.running.url}/rehearsal/servers/{server_id}/addresses"
        given = {"a": [{"addr": "127.0.0.5", "type": "fixed"}, {"addr": "::1", "type": "fixed"}],
                 "b": [{"addr": "127.0.0.6", "type": "floating"}]}  # fmt: skip
        async with caller.session.put(url, json={"addresses": given}) as response:
            assert response.status == 204
        after = await caller.server(server_id)
        assert {n: [(e["addr"], e["version"], e["OS-EXT-IPS:type"]) for e in listed]
                for n, listed in after["addresses"].items()} == {
            "a": [("127.0.0.5", 4, "fixed"), ("::1", 6, "fixed")], "b": [("127.0.0.6", 4, "floating")],
        }  # fmt: skip
        assert all(set(e) == set(own) for listed in after["addresses"].values() for e in listed)
        assert before["updated"] == after["updated"]
        for wrong in ({"a": [{"addr": "here", "type": "fixed"}]}, {"a": [{"addr": "::1", "type": "mine"}]}, []):
            async with caller.session.put(url, json={"addresses": wrong}) as response:
                assert response.status == 400
        assert (await caller.server(server_id))["addresses"] == after["addresses"]
