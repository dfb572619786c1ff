"""Nova's and Glance's JSON becomes plain data, whatever a microversion leaves out, and without secrets."""

from datetime import UTC, datetime
from typing import Any

import pytest

from orchestrator.clouds.parse import parse_action, parse_image, parse_json, parse_objects, parse_server, parse_time
from orchestrator.errors import CloudAnswerInvalid

FULL: dict[str, Any] = {
    "id": "01ec849d-c246-4bc1-a596-cf1fb3e05a92",
    "name": "srv-0049",
    "status": "ERROR",
    "tenant_id": "p1",
    "user_id": "u1",
    "metadata": {"role": "lab"},
    "hostId": "fa0f",
    "image": {"id": "83721e8e-16d3-47f5-9d18-09047298e8d2", "links": []},
    "flavor": {"vcpus": 1, "ram": 64},
    "created": "2026-11-24T14:02:20Z",
    "updated": "2026-11-24T14:02:50Z",
    "addresses": {"net": [{"addr": "10.0.0.1", "version": 4}]},
    "links": [{"rel": "self", "href": "http://127.0.0.1:8774/v2.1/p1/servers/x"}],
    "OS-DCF:diskConfig": "MANUAL",
    "progress": 0,
    "OS-EXT-AZ:availability_zone": "nova",
    "key_name": None,
    "OS-SRV-USG:launched_at": "2026-11-24T14:02:50.000000",
    "OS-EXT-STS:task_state": "rebuild_spawning",
    "OS-EXT-STS:vm_state": "error",
    "locked": True,
    "tags": ["blue"],
    "fault": {"code": 500, "created": "2026-11-23T10:19:23Z", "message": "No valid host was found."},
    "adminPass": "hunter2",
    "OS-EXT-SRV-ATTR:user_data": "aHVudGVyMg==",
    "user_data": "aHVudGVyMg==",
}


def test_a_server_in_full() -> None:
    server = parse_server(FULL)
    assert (server.status, server.task_state, server.vm_state) == ("ERROR", "rebuild_spawning", "error")
    assert (server.image, server.volume_booted) == ("83721e8e-16d3-47f5-9d18-09047298e8d2", False)
    assert server.launched_at == server.updated == datetime(2026, 11, 24, 14, 2, 50, tzinfo=UTC)
    assert (server.tags, server.locked, server.zone, server.host) == (("blue",), True, "nova", "fa0f")
    assert (server.fault_code, server.fault_message) == (500, "No valid host was found.")
    assert (server.project_id, server.user_id, server.disk_config) == ("p1", "u1", "MANUAL")


def test_secrets_are_dropped_on_sight() -> None:
    assert "hunter2" not in repr(parse_server(FULL))
    assert "aHVudGVyMg" not in repr(parse_server(FULL))


def test_a_server_of_the_oldest_microversion_lacks_fields() -> None:
    server = parse_server({"id": "x", "status": "active", "image": {"id": "i"}})
    assert (server.status, server.task_state, server.launched_at, server.tags, server.locked) == (
        "ACTIVE",
        None,
        None,
        (),
        False,
    )


def test_an_empty_image_means_booted_from_a_volume() -> None:
    assert parse_server({"id": "x", "status": "ACTIVE", "image": ""}).volume_booted
    assert parse_server({"id": "x", "status": "ACTIVE", "image": ""}).image is None


def test_the_hypervisor_hosts_name_is_preferred_where_it_is_shown() -> None:
    server = parse_server({**FULL, "OS-EXT-SRV-ATTR:host": "compute-7"})
    assert (server.host, server.host_id) == ("compute-7", "fa0f")


@pytest.mark.parametrize("raw", [{}, {"id": "x"}, {"id": 7, "status": "ACTIVE"}, {"id": "", "status": "ACTIVE"}])
def test_what_has_no_id_or_status_is_no_server(raw: dict[str, Any]) -> None:
    with pytest.raises(CloudAnswerInvalid):
        parse_server(raw)


def test_an_action_with_events_shows_whether_it_ended() -> None:
    step = {"event": "compute_rebuild_instance", "start_time": "2026-11-23T10:11:49.000000"}
    raw = {"request_id": "req-1", "action": "rebuild", "start_time": "2026-11-23T10:11:49.000000", "message": None}
    running = parse_action({**raw, "events": [{**step, "finish_time": None, "result": None}]})
    assert not running.final
    done = parse_action({**raw, "events": [{**step, "finish_time": "2026-11-23T10:11:50.000000", "result": "Success"}]})
    assert done.succeeded
    assert done.start_time == datetime(2026, 11, 23, 10, 11, 49, tzinfo=UTC)
    assert parse_action({**raw, "message": "Error"}).failed
    assert parse_action(raw).events == ()


def test_an_image_has_its_status_in_lower_case() -> None:
    image = parse_image({"id": "i", "name": "Debian", "status": "ACTIVE", "min_disk": 5, "min_ram": None})
    assert (image.status, image.min_disk, image.min_ram) == ("active", 5, 0)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-11-23T10:11:49Z", datetime(2026, 11, 23, 10, 11, 49, tzinfo=UTC)),
        ("2026-11-23T10:11:49.000000", datetime(2026, 11, 23, 10, 11, 49, tzinfo=UTC)),
        ("2026-11-23T12:11:49+02:00", datetime(2026, 11, 23, 10, 11, 49, tzinfo=UTC)),
        ("yesterday", None),
        (None, None),
        (7, None),
    ],
)
def test_times_are_aware_and_in_utc(text: object, time: datetime | None) -> None:
    assert parse_time(text) == time


@pytest.mark.parametrize("body", [b"<html></html>", b'{"servers": [', b"[]", b"", b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(CloudAnswerInvalid):
        parse_json(body)


@pytest.mark.parametrize("value", [{}, {"servers": {}}, {"servers": [1]}])
def test_a_list_of_something_else_is_refused(value: dict[str, Any]) -> None:
    with pytest.raises(CloudAnswerInvalid):
        parse_objects(value, "servers")
