"""A rebuild from the POST to its evidence."""

import asyncio
from datetime import datetime

import pytest

from tests.clouds.contract.target import Answer, Api, Document, next_second

ALWAYS = {
    "id", "name", "status", "tenant_id", "user_id", "metadata", "hostId", "image", "flavor", "created", "updated",
    "addresses", "accessIPv4", "accessIPv6", "links", "OS-DCF:diskConfig", "progress", "adminPass",
}  # fmt: skip
STATES = {
    "OS-EXT-STS:task_state",
    "OS-EXT-STS:vm_state",
    "OS-EXT-STS:power_state",
    "OS-SRV-USG:launched_at",
    "OS-EXT-AZ:availability_zone",
}
ANSWERS = [
    ("2.1", set(), STATES | {"user_data", "locked", "key_name", "tags"}),
    ("2.56", {"locked", "description", "tags", "key_name"}, STATES | {"user_data"}),
    ("2.57", {"user_data"}, STATES),
    ("2.73", {"user_data", "locked_reason", "server_groups"}, STATES),
    ("2.75", STATES | {"user_data"}, {"OS-EXT-SRV-ATTR:hostname"}),
    ("2.93", STATES | {"user_data", "OS-EXT-SRV-ATTR:hostname"}, set()),
]


@pytest.mark.parametrize(("version", "there", "not_there"), ANSWERS, ids=[a[0] for a in ANSWERS])
async def test_the_202_shows_the_server_as_its_microversion_does(
    api: Api, server: Document, other_image: str, *, version: str, there: set[str], not_there: set[str]
) -> None:
    answer = await api.rebuild(server["id"], version=version, imageRef=other_image)
    assert answer.status == 202
    assert answer.headers["Location"] == f"{api.target.compute}/servers/{server['id']}"
    shown = answer.json["server"]
    assert shown.keys() >= ALWAYS | there
    assert not shown.keys() & not_there
    assert (shown["id"], shown["status"], shown["progress"]) == (server["id"], "REBUILD", 0)
    assert shown["image"]["id"] == other_image
    if version in ("2.75", "2.93"):
        assert shown["OS-EXT-STS:task_state"] == "rebuilding"
        assert shown["OS-EXT-STS:vm_state"] == "active"


async def test_a_rebuild_ends_active_with_a_later_launched_at(api: Api, server: Document, other_image: str) -> None:
    await next_second()
    answer = await api.rebuild(server["id"], imageRef=other_image)
    assert answer.status == 202
    after = await api.when(server["id"], "ACTIVE")
    assert after["image"]["id"] == other_image
    assert after["OS-SRV-USG:launched_at"] > server["OS-SRV-USG:launched_at"]
    assert "T" in after["OS-SRV-USG:launched_at"]
    assert after["OS-SRV-USG:launched_at"].endswith(".000000")
    kept = ("id", "created", "hostId", "flavor", "name", "metadata")
    assert {k: after[k] for k in kept} == {k: server[k] for k in kept}
    assert "fault" not in after


async def test_a_rebuild_shows_rebuild_and_its_own_task_states_in_order(
    api: Api, server: Document, other_image: str
) -> None:
    known = ["rebuilding", "rebuild_block_device_mapping", "rebuild_spawning", None]
    await api.rebuild(server["id"], imageRef=other_image)
    seen: list[str | None] = []
    while not seen or seen[-1] is not None:
        shown = await api.server(server["id"])
        task = shown["OS-EXT-STS:task_state"]
        assert shown["status"] == ("ACTIVE" if task is None else "REBUILD")
        assert shown["OS-EXT-STS:vm_state"] == "active"
        assert shown["progress"] == 0
        if not seen or seen[-1] != task:
            seen.append(task)
        await asyncio.sleep(0.01)
    assert seen == [t for t in known if t in seen]
    assert len(seen) > 1


async def test_the_request_id_of_the_post_is_the_actions(api: Api, server: Document, other_image: str) -> None:
    answer = await api.rebuild(server["id"], imageRef=other_image)
    action = await api.ended(server["id"], answer.request_id)
    assert action["action"] == "rebuild"
    assert action["request_id"] == answer.request_id
    assert action["instance_uuid"] == server["id"]
    assert action["user_id"] == server["user_id"]
    assert action["project_id"] == server["tenant_id"]
    assert action["message"] is None
    assert [e["event"] for e in action["events"]] == ["compute_rebuild_instance", "rebuild_server"]
    assert {e["result"] for e in action["events"]} == {"Success"}
    assert action["start_time"].endswith(".000000")
    assert datetime.fromisoformat(action["updated_at"]) >= datetime.fromisoformat(action["start_time"])


@pytest.mark.parametrize(
    ("version", "events", "host", "updated"),
    [
        ("2.1", False, False, False),
        ("2.50", False, False, False),
        ("2.51", True, False, False),
        ("2.58", True, False, True),
        ("2.62", True, True, True),
    ],
)
async def test_an_action_shows_more_with_the_microversion(
    api: Api, server: Document, other_image: str, version: str, *, events: bool, host: bool, updated: bool
) -> None:
    answer = await api.rebuild(server["id"], imageRef=other_image)
    await api.ended(server["id"], answer.request_id)
    shown = await api.action(server["id"], answer.request_id, version=version)
    assert ("events" in shown) == events
    assert all(("hostId" in e) == host for e in shown.get("events", []))
    assert ("updated_at" in shown) == updated


async def test_actions_are_listed_newest_first_in_pages_from_2_58(api: Api, server: Document, other_image: str) -> None:
    for _ in range(2):
        await next_second()
        latest = await api.rebuild(server["id"], imageRef=other_image)
        await api.ended(server["id"], latest.request_id)
    path = f"/servers/{server['id']}/os-instance-actions"
    whole = (await api("GET", path)).json["instanceActions"]
    assert whole[0]["request_id"] == latest.request_id
    assert "events" not in whole[0]
    page = (await api("GET", f"{path}?limit=1")).json
    assert [a["request_id"] for a in page["instanceActions"]] == [latest.request_id]
    assert page["links"] == [{"rel": "next", "href": f"{api.target.compute}{path}?limit=1&marker={latest.request_id}"}]
    following = (await api("GET", page["links"][0]["href"])).json["instanceActions"]
    assert following == whole[1:2]
    below = (await api("GET", f"{path}?limit=1", version="2.57")).json
    assert len(below["instanceActions"]) == len(whole)
    assert "links" not in below


async def test_an_unknown_action_is_404(api: Api, server: Document) -> None:
    unknown = "req-00000000-0000-4000-8000-000000000000"
    answer = await api("GET", f"/servers/{server['id']}/os-instance-actions/{unknown}")
    assert answer.refusal == (404, "itemNotFound", f"Action {unknown} not found")


async def test_a_refused_post_leaves_no_action(api: Api, server: Document) -> None:
    answer = await api.rebuild(server["id"], imageRef="00000000-0000-4000-8000-000000000000")
    assert answer.refusal == (400, "badRequest", "Cannot find image for rebuild")
    look = await api("GET", f"/servers/{server['id']}/os-instance-actions/{answer.request_id}")
    assert look.status == 404


async def test_a_rebuild_to_the_image_it_has_is_done_as_any_other(api: Api, server: Document) -> None:
    await next_second()
    answer = await api.rebuild(server["id"], imageRef=server["image"]["id"])
    assert answer.status == 202
    after = await api.when(server["id"], "ACTIVE")
    assert after["OS-SRV-USG:launched_at"] > server["OS-SRV-USG:launched_at"]


async def test_name_and_metadata_are_there_at_the_post_and_replace_all(
    api: Api, server: Document, other_image: str
) -> None:
    answer = await api.rebuild(server["id"], imageRef=other_image, name="contract renamed", metadata={"wave": "1"})
    shown = answer.json["server"]
    assert (shown["name"], shown["metadata"]) == ("contract renamed", {"wave": "1"})
    after = await api.when(server["id"], "ACTIVE")
    assert (after["name"], after["metadata"]) == ("contract renamed", {"wave": "1"})


async def test_absent_metadata_is_kept_and_empty_metadata_removes_all(
    api: Api, server: Document, other_image: str
) -> None:
    assert server["metadata"]
    kept = await api.rebuild(server["id"], imageRef=other_image)
    assert kept.json["server"]["metadata"] == server["metadata"]
    await api.at_rest(server["id"])
    removed = await api.rebuild(server["id"], imageRef=other_image, metadata={})
    assert removed.json["server"]["metadata"] == {}


async def test_the_password_and_user_data_given_are_echoed(api: Api, server: Document, other_image: str) -> None:
    answer = await api.rebuild(server["id"], imageRef=other_image, adminPass="given", user_data="eA==")
    assert answer.json["server"]["adminPass"] == "given"
    assert answer.json["server"]["user_data"] == "eA=="
    await api.at_rest(server["id"])
    cleared = await api.rebuild(server["id"], imageRef=other_image, user_data=None)
    assert cleared.json["server"]["user_data"] is None


async def _while_rebuilding(api: Api, server: Document, image: str, action: Document) -> Answer:
    """The answer to an action that arrives while a rebuild is under way; on a fast cloud that takes a few tries."""
    for _ in range(5):
        await api.at_rest(server["id"])
        assert (await api.rebuild(server["id"], imageRef=image)).status == 202
        answer = await api.act(server["id"], action)
        if answer.status == 409:
            return answer
    raise AssertionError("five rebuilds were each over before the next call arrived")


@pytest.mark.parametrize(
    ("verb", "name"), [("rebuild", "rebuild"), ("os-stop", "stop"), ("pause", "pause"), ("reboot", "reboot")]
)
async def test_what_wipes_or_stops_is_409_while_rebuilding(
    api: Api, server: Document, other_image: str, verb: str, name: str
) -> None:
    body = {"rebuild": {"imageRef": other_image}, "reboot": {"type": "SOFT"}}.get(verb)
    status, kind, message = (await _while_rebuilding(api, server, other_image, {verb: body})).refusal
    assert (status, kind) == (409, "conflictingRequest")
    tasks = ("rebuilding", "rebuild_block_device_mapping", "rebuild_spawning")
    start = f"Cannot '{name}' instance {server['id']} while it is in task_state "
    assert message in [start + task for task in tasks]


async def test_lock_unlock_rename_and_metadata_are_allowed_while_rebuilding(
    api: Api, server: Document, other_image: str
) -> None:
    assert (await api.rebuild(server["id"], imageRef=other_image)).status == 202
    path = f"/servers/{server['id']}"
    answers = await asyncio.gather(
        api("PUT", path, {"server": {"name": "contract busy"}}),
        api("POST", f"{path}/metadata", {"metadata": {"contract": "busy"}}),
    )
    assert [a.status for a in answers] == [200, 200]
    assert (await api.act(server["id"], {"lock": None})).status == 202
    assert (await api.act(server["id"], {"unlock": None})).status == 202


async def test_a_rebuilding_server_is_listed_as_rebuild_and_under_active_too(
    api: Api, server: Document, other_image: str
) -> None:
    for _ in range(5):
        await api.at_rest(server["id"])
        await api.rebuild(server["id"], imageRef=other_image)
        both = await asyncio.gather(
            *(api("GET", f"/servers/detail?name=^{server['name']}$&status={s}") for s in ("REBUILD", "ACTIVE"))
        )
        listed = [[s["status"] for s in answer.json["servers"]] for answer in both]
        if listed[0]:
            break
    assert listed == [["REBUILD"], ["REBUILD"]]


async def test_a_rebuild_shows_up_in_changes_since(api: Api, server: Document, other_image: str) -> None:
    await next_second()
    await api.rebuild(server["id"], imageRef=other_image)
    after = await api.when(server["id"], "ACTIVE")
    assert after["updated"] > server["updated"]
    answer = await api("GET", f"/servers?changes-since={after['updated']}")
    assert server["id"] in [s["id"] for s in answer.json["servers"]]


async def test_a_shutoff_server_is_rebuilt_and_ends_shutoff(api: Api, server: Document, other_image: str) -> None:
    await api.act(server["id"], {"os-stop": None})
    stopped = await api.when(server["id"], "SHUTOFF")
    assert "progress" not in stopped
    await next_second()
    answer = await api.rebuild(server["id"], imageRef=other_image, version="2.75")
    assert answer.status == 202
    shown = answer.json["server"]
    assert (shown["status"], shown["OS-EXT-STS:vm_state"], shown["OS-EXT-STS:power_state"]) == ("REBUILD", "stopped", 4)
    after = await api.when(server["id"], "SHUTOFF")
    assert after["OS-SRV-USG:launched_at"] > stopped["OS-SRV-USG:launched_at"]
    action = await api.ended(server["id"], answer.request_id)
    assert action["message"] is None
    events = ["compute_stop_instance", "compute_rebuild_instance", "rebuild_server"]
    assert [e["event"] for e in action["events"]] == events


async def test_an_image_id_in_upper_case_is_taken_and_stays_as_it_was_sent(
    api: Api, server: Document, other_image: str
) -> None:
    answer = await api.rebuild(server["id"], imageRef=other_image.upper())
    assert answer.status == 202
    assert (await api.at_rest(server["id"]))["image"]["id"] == other_image.upper()
    assert (await api.rebuild(server["id"], imageRef=other_image)).status == 202
    assert (await api.at_rest(server["id"]))["image"]["id"] == other_image


async def test_the_projects_id_may_be_left_out_of_the_url_of_a_post(
    api: Api, server: Document, other_image: str
) -> None:
    root = api.target.compute.rsplit("/", 1)[0]
    answer = await api("POST", f"{root}/servers/{server['id']}/action", {"rebuild": {"imageRef": other_image}})
    assert answer.status == 202


async def test_json_under_another_content_type_is_taken(api: Api, server: Document, other_image: str) -> None:
    body = {"rebuild": {"imageRef": other_image}}
    headers = {"Content-Type": "text/plain"}
    answer = await api("POST", f"/servers/{server['id']}/action", body, headers=headers)
    assert answer.status == 202
