"""The call's body, and what needs no call."""

import base64
import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.clouds.protocol import Server
from orchestrator.domain.request import (
    RequestInvalid,
    body_sha256,
    build_body,
    build_call,
    matches_request,
    render_name,
    wanted_metadata,
)
from orchestrator.domain.spec import Overrides, RebuildSpec

IMAGE = "3ed456f5-3d8f-4383-a6c9-312032afcd1a"
SERVER = Server(
    id="9168b536-cd40-4630-b43f-b259807c6e8a",
    name="web-1",
    status="ACTIVE",
    image=IMAGE,
    metadata={"role": "web", "old-key": "x"},
    key_name="ops",
)


def rebuild(**fields: Any) -> RebuildSpec:
    return RebuildSpec.model_validate(fields)


def own(**fields: Any) -> Overrides:
    return Overrides.model_validate({"rebuild": fields})


def sent(spec: RebuildSpec, overrides: Overrides | None = None, server: Server = SERVER) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(build_body(spec, overrides, server, IMAGE))
    assert list(body) == ["rebuild"]
    inner: dict[str, Any] = body["rebuild"]
    return inner


def test_a_plan_that_asks_for_nothing_else_sends_the_image_only() -> None:
    assert build_body(rebuild(), None, SERVER, IMAGE) == b'{"rebuild": {"imageRef": "%s"}}' % IMAGE.encode()


def test_the_fields_have_one_order_so_that_equal_calls_have_equal_bytes() -> None:
    spec = rebuild(user_data={"text": "hi"}, key_name="k", metadata={"a": "1"}, name="{name}")
    request = sent(spec)
    assert list(request) == ["imageRef", "name", "metadata", "key_name", "user_data"]
    assert base64.b64decode(request["user_data"]) == b"hi"
    body = build_body(spec, None, SERVER, IMAGE)
    assert body == build_body(spec, None, SERVER, IMAGE)
    assert body_sha256(body) == hashlib.sha256(body).hexdigest()


def test_merged_metadata_goes_with_the_servers_own_because_the_cloud_replaces_all() -> None:
    assert sent(rebuild(metadata={"release": "2", "old-key": None}))["metadata"] == {"role": "web", "release": "2"}


def test_removing_a_key_that_is_not_there_is_no_fault() -> None:
    assert sent(rebuild(metadata={"gone": None}))["metadata"] == dict(SERVER.metadata)


def test_replaced_metadata_goes_alone() -> None:
    assert sent(rebuild(metadata={"release": "2"}, metadata_mode="replace"))["metadata"] == {"release": "2"}
    assert sent(rebuild(metadata={}, metadata_mode="replace"))["metadata"] == {}


def test_metadata_that_the_plan_does_not_mention_is_not_sent() -> None:
    assert "metadata" not in sent(rebuild(name="x"))


def test_a_servers_own_changes_are_laid_over_the_plans() -> None:
    spec = rebuild(name="{name}", metadata={"release": "2", "wave": "1"}, key_name="k")
    request = sent(spec, own(name="special", metadata={"wave": "9"}))
    assert request["name"] == "special"
    assert request["metadata"] == {"role": "web", "old-key": "x", "release": "2", "wave": "9"}
    assert request["key_name"] == "k"
    assert sent(rebuild(), own(metadata={"a": "1"}))["metadata"] == {"role": "web", "old-key": "x", "a": "1"}


def test_an_own_image_alone_changes_no_other_field() -> None:
    assert sent(rebuild(name="n"), Overrides(image="other")) == {"imageRef": IMAGE, "name": "n"}


def test_a_name_template_is_filled_with_what_the_server_has() -> None:
    assert render_name("{name}-{metadata.role}-{id}", SERVER) == f"web-1-web-{SERVER.id}"


def test_what_is_filled_in_is_not_read_as_a_template_again() -> None:
    assert render_name("{name}", replace(SERVER, name="{id}")) == "{id}"


@pytest.mark.parametrize(
    ("template", "server", "code"),
    [
        ("{metadata.rack}", SERVER, "name_needs_metadata"),
        ("{name}{name}", replace(SERVER, name="x" * 128), "name_invalid"),
        ("{metadata.role}", replace(SERVER, metadata={"role": ""}), "name_invalid"),
        ("a{metadata.role}", replace(SERVER, metadata={"role": " "}), "name_invalid"),
        ("a{metadata.role}", replace(SERVER, metadata={"role": "\n."}), "name_invalid"),
        ("{name}", replace(SERVER, name="🦊"), "name_invalid"),
    ],
)
def test_a_name_that_the_cloud_would_refuse_is_not_sent(template: str, server: Server, code: str) -> None:
    with pytest.raises(RequestInvalid) as caught:
        build_body(rebuild(name=template), None, server, IMAGE)
    assert caught.value.reason_code == code


def test_more_items_than_the_quota_are_not_sent_unless_the_server_shows_a_greater_quota() -> None:
    full = replace(SERVER, metadata={f"k{i}": "v" for i in range(128)})
    with pytest.raises(RequestInvalid) as caught:
        build_body(rebuild(metadata={"one-more": "v"}), None, full, IMAGE)
    assert caught.value.reason_code == "metadata_too_many"
    build_body(rebuild(metadata={"one-more": "v"}), None, full, IMAGE, metadata_items=129)
    larger = replace(SERVER, metadata={f"k{i}": "v" for i in range(200)})
    assert len(sent(rebuild(metadata={"k0": "w"}), None, larger)["metadata"]) == 200


@pytest.mark.parametrize("metadata", [{"a/b": "v"}, {"k": "🦊"}, {"k": "v" * 256}])
def test_metadata_of_the_server_that_the_cloud_would_refuse_is_not_sent(metadata: dict[str, str]) -> None:
    with pytest.raises(RequestInvalid) as caught:
        build_body(rebuild(metadata={"x": "1"}), None, replace(SERVER, metadata=metadata), IMAGE)
    assert caught.value.reason_code == "metadata_invalid"
    build_body(rebuild(name="x"), None, replace(SERVER, metadata=metadata), IMAGE)


def test_a_body_longer_than_nova_takes_is_not_sent() -> None:
    fat = replace(SERVER, metadata={f"{i:0255d}": "v" * 255 for i in range(128)})
    with pytest.raises(RequestInvalid) as caught:
        build_body(rebuild(metadata={f"{0:0255d}": "w"}, user_data={"text": "x" * 49000}), None, fat, IMAGE)
    assert caught.value.reason_code == "request_too_long"
    assert "xxx" not in caught.value.message


@pytest.mark.parametrize(
    ("spec", "server", "expected"),
    [
        ({}, SERVER, True),
        ({}, replace(SERVER, status="SHUTOFF"), True),
        ({}, replace(SERVER, status="ERROR"), False),
        ({}, replace(SERVER, task_state="rebuilding"), False),
        ({}, replace(SERVER, image="other"), False),
        ({}, replace(SERVER, image=IMAGE.upper()), True),
        ({}, replace(SERVER, image=None, volume_booted=True), False),
        ({"name": "{name}"}, SERVER, True),
        ({"name": "web-2"}, SERVER, False),
        ({"name": "{metadata.none}"}, SERVER, False),
        ({"metadata": {"role": "web"}}, SERVER, True),
        ({"metadata": {"role": "db"}}, SERVER, False),
        ({"metadata": {"old-key": None}}, SERVER, False),
        ({"metadata": {"gone": None}}, SERVER, True),
        ({"metadata": {"role": "web"}, "metadata_mode": "replace"}, SERVER, False),
        ({"metadata": {"role": "web", "old-key": "x"}, "metadata_mode": "replace"}, SERVER, True),
        ({"key_name": "ops"}, SERVER, True),
        ({"key_name": "dev"}, SERVER, False),
    ],
)
def test_a_server_matches_when_all_that_is_asked_for_shows(
    spec: dict[str, Any], server: Server, expected: bool
) -> None:
    assert matches_request(rebuild(**spec), None, server, IMAGE) is expected


def test_a_servers_own_name_must_match_too() -> None:
    assert not matches_request(rebuild(), own(name="other"), SERVER, IMAGE)
    assert matches_request(rebuild(name="other"), own(name="web-1"), SERVER, IMAGE)


keys = st.sampled_from(["a", "b", "c", "d"])


@given(st.dictionaries(keys, st.text(max_size=3)), st.dictionaries(keys, st.none() | st.text(max_size=3)))
def test_a_merge_leaves_the_rest_alone_and_a_second_one_changes_nothing(
    before: dict[str, str], changes: dict[str, str | None]
) -> None:
    spec = RebuildSpec.model_construct(metadata=changes, metadata_mode="merge")
    after = wanted_metadata(spec, None, replace(SERVER, metadata=before))
    assert after is not None
    assert {k: v for k, v in after.items() if k not in changes} == {k: v for k, v in before.items() if k not in changes}
    assert {k: after.get(k) for k in changes} == changes
    assert wanted_metadata(spec, None, replace(SERVER, metadata=after)) == after


MARKER = "rebuild-attempt"


def test_the_marker_goes_along_with_all_that_the_server_has() -> None:
    call = build_call(rebuild(), None, SERVER, IMAGE, marker="plan/1")
    sent = json.loads(call.body)["rebuild"]["metadata"]
    assert sent == {"role": "web", "old-key": "x", MARKER: "plan/1"}
    assert (call.marker, call.marker_left_out) == ("plan/1", None)
    replacing = build_call(rebuild(metadata={"a": "b"}, metadata_mode="replace"), None, SERVER, IMAGE, marker="plan/1")
    assert json.loads(replacing.body)["rebuild"]["metadata"] == {"a": "b", MARKER: "plan/1"}


def test_without_room_for_the_marker_it_is_left_out_and_that_is_said() -> None:
    full = replace(SERVER, metadata={f"k{i}": "v" for i in range(128)})
    call = build_call(rebuild(), None, full, IMAGE, marker="plan/1")
    assert "metadata" not in json.loads(call.body)["rebuild"]
    assert call.marker is None
    assert "129 metadata items" in (call.marker_left_out or "")
    again = replace(full, metadata={**{f"k{i}": "v" for i in range(127)}, MARKER: "plan/1"})
    assert build_call(rebuild(), None, again, IMAGE, marker="plan/2").marker == "plan/2"
    small = build_call(rebuild(), None, SERVER, IMAGE, marker="plan/1", metadata_items=2)
    assert small.marker is None


def test_a_cloud_without_markers_gets_none() -> None:
    assert build_call(rebuild(), None, SERVER, IMAGE, marker=None).body == build_body(rebuild(), None, SERVER, IMAGE)


def test_a_marker_of_an_earlier_rebuild_makes_no_difference_to_what_a_plan_asks_for() -> None:
    marked = replace(SERVER, metadata={"role": "web", MARKER: "plan/7"})
    spec = rebuild(metadata={"role": "web"}, metadata_mode="replace")
    assert matches_request(spec, None, marked, IMAGE)


def test_a_plan_cannot_set_the_marker_itself() -> None:
    with pytest.raises(ValueError, match="rebuild-attempt"):
        rebuild(metadata={MARKER: "mine"})
