"""Locks, power, names, metadata and tags: what they refuse, and which of them `updated` tells of."""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

import pytest

from tests.clouds.contract.target import Answer, Api, Document, next_second

Change = Callable[[Api, str], Awaitable[Answer]]


def _call(method: str, path: str, body: object = None) -> Change:
    async def change(api: Api, server_id: str) -> Answer:
        return await api(method, f"/servers/{server_id}{path}", body)

    return change


async def _moved(api: Api, server: Document, change: Change) -> bool:
    """Whether a change moves `updated`; changes-since must tell the same."""
    await next_second()
    before = (await api.server(server["id"]))["updated"]
    assert (await change(api, server["id"])).status < 300
    moved = bool((await api.server(server["id"]))["updated"] != before)
    second_later = datetime.fromisoformat(before) + timedelta(seconds=1)
    listed = await api("GET", f"/servers?changes-since={second_later:%Y-%m-%dT%H:%M:%SZ}")
    assert (server["id"] in [s["id"] for s in listed.json["servers"]]) == moved
    return moved


@pytest.mark.parametrize(
    "change",
    [
        _call("POST", "/metadata", {"metadata": {"contract": "1"}}),
        _call("PUT", "/metadata", {"metadata": {"contract": "1"}}),
        _call("PUT", "/metadata/contract", {"meta": {"contract": "1"}}),
        _call("POST", "/action", {"lock": None}),
        _call("POST", "/action", {"unlock": None}),
        _call("PUT", "", {"server": {"name": "contract renamed"}}),
    ],
    ids=["merge metadata", "replace metadata", "set a key", "lock", "unlock of an unlocked one", "rename"],
)
async def test_updated_moves_with(api: Api, server: Document, change: Change) -> None:
    assert await _moved(api, server, change)


@pytest.mark.parametrize(
    "change",
    [
        _call("PUT", "/tags", {"tags": ["contract"]}),
        _call("DELETE", "/tags"),
        _call("DELETE", "/metadata/contract"),
    ],
    ids=["tags", "no tags", "delete a metadata key"],
)
async def test_updated_does_not_move_with(api: Api, server: Document, change: Change) -> None:
    await api("POST", f"/servers/{server['id']}/metadata", {"metadata": {"contract": "1"}})
    assert not await _moved(api, server, change)


async def test_metadata_is_merged_by_post_and_replaced_by_put(api: Api, server: Document) -> None:
    path = f"/servers/{server['id']}/metadata"
    merged = {**server["metadata"], "contract": "1"}
    assert (await api("POST", path, {"metadata": {"contract": "1"}})).json == {"metadata": merged}
    assert (await api("GET", path)).json == {"metadata": merged}
    assert (await api("GET", f"{path}/contract")).json == {"meta": {"contract": "1"}}
    assert (await api("PUT", path, {"metadata": {"only": "this"}})).json == {"metadata": {"only": "this"}}
    assert (await api("DELETE", f"{path}/only")).status == 204
    gone = await api("DELETE", f"{path}/only")
    assert gone.refusal == (404, "itemNotFound", "Metadata item was not found")


async def test_bad_metadata_is_400(api: Api, server: Document) -> None:
    path = f"/servers/{server['id']}/metadata"
    assert (await api("POST", path, {})).refusal == (400, "badRequest", "'metadata' is a required property")
    mismatch = await api("PUT", f"{path}/k", {"meta": {"z": "1"}})
    assert mismatch.refusal == (400, "badRequest", "Request body and URI mismatch")


async def test_tags_come_with_2_26(api: Api, server: Document) -> None:
    path = f"/servers/{server['id']}/tags"
    assert (await api("PUT", path, {"tags": ["b", "a"]})).status == 200
    assert (await api("GET", path)).json == {"tags": ["a", "b"]}
    assert (await api.server(server["id"]))["tags"] == ["a", "b"]
    below = await api("GET", path, version="2.25")
    assert below.refusal == (404, "itemNotFound", "The resource could not be found.")
    assert (await api("PUT", path, {"tags": []})).json == {"tags": []}


async def test_a_tag_with_a_comma_or_slash_is_400(api: Api, server: Document) -> None:
    answer = await api("PUT", f"/servers/{server['id']}/tags", {"tags": ["a,b"]})
    message = "Invalid input for field/attribute 0. Value: a,b. 'a,b' does not match '^[^,/]*$'"
    assert answer.refusal == (400, "badRequest", message)


async def test_a_locked_server_refuses_its_owner_all_but_names_tags_and_unlock(
    api: Api, server: Document, other_image: str
) -> None:
    server_id = server["id"]
    assert (await api.act(server_id, {"lock": {"locked_reason": "contract"}})).status == 202
    shown = await api.server(server_id)
    assert (shown["locked"], shown["locked_reason"]) == (True, "contract")
    locked = (409, "conflictingRequest", f"Instance {server_id} is locked")
    for action in ({"rebuild": {"imageRef": other_image}}, {"os-stop": None}, {"pause": None}):
        assert (await api.act(server_id, action)).refusal == locked
    assert (await api("DELETE", f"/servers/{server_id}")).refusal == locked
    assert (await api("POST", f"/servers/{server_id}/metadata", {"metadata": {"k": "v"}})).refusal == locked
    assert (await api("PUT", f"/servers/{server_id}", {"server": {"name": server["name"]}})).status == 200
    assert (await api("PUT", f"/servers/{server_id}/tags", {"tags": server["tags"]})).status == 200
    assert (await api.act(server_id, {"unlock": None})).status == 202
    shown = await api.server(server_id)
    assert (shown["locked"], shown["locked_reason"]) == (False, None)


async def test_a_second_lock_changes_neither_the_reason_nor_updated(api: Api, server: Document) -> None:
    await api.act(server["id"], {"lock": {"locked_reason": "first"}})
    assert not await _moved(api, server, _call("POST", "/action", {"lock": {"locked_reason": "second"}}))
    assert (await api.server(server["id"]))["locked_reason"] == "first"


async def test_locking_and_unlocking_are_actions(api: Api, server: Document) -> None:
    answer = await api.act(server["id"], {"lock": None})
    action = await api.action(server["id"], answer.request_id)
    assert action["action"] == "lock"
    assert [(e["event"], e["result"]) for e in action["events"]] == [("api_lock", "Success")]


async def _refused(api: Api, server: Document, action: Document, name: str, state: str) -> None:
    message = f"Cannot '{name}' instance {server['id']} while it is in vm_state {state}"
    assert (await api.act(server["id"], action)).refusal == (409, "conflictingRequest", message)


async def test_stop_and_start(api: Api, server: Document) -> None:
    await _refused(api, server, {"os-start": None}, "start", "active")
    stop = await api.act(server["id"], {"os-stop": None})
    assert stop.status == 202
    shown = await api.when(server["id"], "SHUTOFF")
    assert (shown["OS-EXT-STS:vm_state"], shown["OS-EXT-STS:power_state"]) == ("stopped", 4)
    await _refused(api, server, {"os-stop": None}, "stop", "stopped")
    await _refused(api, server, {"pause": None}, "pause", "stopped")
    assert (await api.act(server["id"], {"os-start": None})).status == 202
    await api.when(server["id"], "ACTIVE")
    action = await api.action(server["id"], stop.request_id)
    assert action["action"] == "stop"
    assert [(e["event"], e["result"]) for e in action["events"]] == [("compute_stop_instance", "Success")]


async def test_a_paused_server_can_be_neither_rebuilt_nor_stopped(api: Api, server: Document, other_image: str) -> None:
    await _refused(api, server, {"unpause": None}, "unpause", "active")
    assert (await api.act(server["id"], {"pause": None})).status == 202
    await api.when(server["id"], "PAUSED")
    await _refused(api, server, {"rebuild": {"imageRef": other_image}}, "rebuild", "paused")
    await _refused(api, server, {"os-stop": None}, "stop", "paused")
    assert (await api.act(server["id"], {"unpause": None})).status == 202
    await api.when(server["id"], "ACTIVE")


async def test_a_member_may_not_reset_a_state(api: Api, server: Document) -> None:
    answer = await api.act(server["id"], {"os-resetState": {"state": "error"}})
    message = "Policy doesn't allow os_compute_api:os-admin-actions:reset_state to be performed."
    assert answer.refusal == (403, "forbidden", message)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"server": {"name": ""}}, "Invalid input for field/attribute name. Value: . '' is too short"),
        (
            {"server": {"x": 1}},
            (
                "Invalid input for field/attribute server. Value: {'x': 1}. "
                "Additional properties are not allowed ('x' was unexpected)"
            ),
        ),
    ],
)
async def test_a_bad_rename_is_400(api: Api, server: Document, body: Document, message: str) -> None:
    assert (await api("PUT", f"/servers/{server['id']}", body)).refusal == (400, "badRequest", message)
