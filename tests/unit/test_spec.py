"""The plan file: what is taken, with which defaults, and what comes back out."""

import base64
import hashlib
import json
import time
import tracemalloc
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.domain.spec import PlanSpec, UserData, parse_spec, server_document
from orchestrator.domain.units import Size

A, B, C = (f"9168b536-cd40-4630-b43f-b259807c6e8{n}" for n in "abc")
IMAGE = "3ed456f5-3d8f-4383-a6c9-312032afcd1a"


def plan(**fields: Any) -> dict[str, Any]:
    """The smallest plan, with other fields."""
    return {"name": "web tier", "cloud": "prod-eu", "image": IMAGE, "targets": {"servers": [A]}, **fields}


def test_the_smallest_plan_gets_the_defaults_of_a_careful_operator() -> None:
    spec = parse_spec(plan())
    assert [(w.name, w.size) for w in spec.rollout.waves] == [
        ("canary", Size.parse(1)), (None, Size.parse("5%")), (None, Size.parse("25%")), (None, Size.parse("100%"))
    ]  # fmt: skip
    assert spec.rollout.max_in_flight is None
    assert spec.failure.max_errors == Size.parse("5%")
    assert (spec.failure.same_cause, spec.failure.attempts, spec.failure.rebuild_again) == (3, 3, 0)
    assert (spec.failure.backoff.initial, spec.failure.backoff.max, spec.failure.timeout) == (10, 300, 1800)
    assert spec.failure.on_unresolved is None
    assert (spec.method, spec.skip_matching, spec.on_conflict, spec.hold) == ("rebuild", True, "reject", False)
    assert spec.rebuild.metadata is None
    assert not spec.rebuild.reimage_boot_volume


FULL = {
    "name": "web tier to 2026.11",
    "cloud": "prod-eu",
    "image": "ubuntu 24.04",
    "method": "rebuild",
    "targets": {
        "servers": [
            A.upper(),
            {"id": B},
            {
                "find": "web-7",
                "image": IMAGE,
                "rebuild": {"name": "{name}-{metadata.role}", "metadata": {"x": "1", "y": None}},
            },
        ],
        "select": {
            "name": "web-*",
            "metadata": {"role": "web"},
            "tags": ["blue"],
            "availability_zone": ["az1"],
            "image": IMAGE,
            "status": ["ACTIVE"],
        },
        "exclude": {"servers": [C], "metadata": {"do-not-touch": "true"}, "tags": ["pet"]},
        "max": 500,
    },
    "rebuild": {
        "name": "{name}",
        "metadata": {"release": "2026.11", "old-key": None},
        "metadata_mode": "merge",
        "user_data": {"text": "#cloud-config\nä\n"},
        "key_name": "ops",
        "reimage_boot_volume": True,
    },
    "rollout": {
        "waves": [
            {"name": "canary", "size": 1, "servers": [A], "approval": False, "max_errors": 0},
            {"size": "5%", "max_errors": "10%"},
            {"size": "100%"},
        ],
        "max_in_flight": 50,
        "rate": "100/m",
    },
    "failure": {
        "max_errors": "5%",
        "same_cause": 3,
        "attempts": 3,
        "rebuild_again": 0,
        "backoff": {"initial": "10s", "max": "5m"},
        "timeout": "30m",
        "on_unresolved": "continue",
        "drift_limit": 0,
    },
    "verify": [
        {"tcp": {"port": 22, "timeout": "2m", "interval": "5s", "successes": 1}},
        {"http": {"port": 80, "path": "/health", "status": 204, "address": "floating", "version": 6, "network": "web"}},
    ],
    "skip_matching": False,
    "on_conflict": "reject",
    "priority": 0,
    "notify": [],
    "labels": {"team": "web", "pipeline": "4711"},
    "hold": True,
    "hold_expires": "24h",
}


def test_every_field_that_works_today_is_taken() -> None:
    spec = parse_spec(FULL)
    assert spec.targets.servers[:2] == (A, B)
    assert list(spec.targets.rows()) == [
        (A, None, None),
        (B, None, None),
        (
            None,
            "web-7",
            {"image": IMAGE, "rebuild": {"name": "{name}-{metadata.role}", "metadata": {"x": "1", "y": None}}},
        ),
    ]
    assert spec.rebuild.metadata == {"release": "2026.11", "old-key": None}
    assert spec.user_data == "#cloud-config\nä\n".encode()
    assert spec.rollout.rate == 100 / 60


def test_the_document_of_a_plan_is_the_plan() -> None:
    spec = parse_spec(FULL)
    assert parse_spec(json.loads(json.dumps(spec.to_document()))) == spec


def test_the_document_says_the_defaults_so_that_later_ones_change_no_stored_plan() -> None:
    document = parse_spec(plan()).to_document()
    assert document["failure"]["timeout"] == "30m"
    assert document["rollout"]["waves"][1]["size"] == "5%"
    assert document["failure"]["backoff"] == {"initial": "10s", "max": "5m"}


def test_the_stored_document_has_no_explicit_servers_and_no_user_data() -> None:
    spec = parse_spec(FULL)
    stored = spec.without_servers()
    text = json.dumps(stored)
    assert "servers" not in stored["targets"]
    assert set(stored["targets"]) == {"select", "exclude", "max"}
    content = "#cloud-config\nä\n".encode()
    assert stored["rebuild"]["user_data"] == {"size": 17, "sha256": hashlib.sha256(content).hexdigest()}
    assert "cloud-config" not in text
    assert base64.b64encode(b"#cloud-config").decode()[:12] not in text


def test_a_stored_plan_reads_back_with_its_user_data() -> None:
    spec = parse_spec(FULL)
    again = PlanSpec.read_stored(json.loads(json.dumps(spec.without_servers())), spec.user_data)
    assert again.targets.servers == ()
    assert (again.rollout, again.failure, again.targets.select) == (spec.rollout, spec.failure, spec.targets.select)
    assert again.user_data == spec.user_data


def test_a_stored_plan_of_explicit_servers_only_reads_back() -> None:
    assert PlanSpec.read_stored(parse_spec(plan()).without_servers()).targets.servers == ()


@pytest.mark.parametrize("user_data", [None, b"another"])
def test_a_stored_plan_is_not_read_without_its_own_user_data(user_data: bytes | None) -> None:
    with pytest.raises(ValueError, match="missing or another"):
        PlanSpec.read_stored(parse_spec(FULL).without_servers(), user_data)


def test_job_rows_make_the_servers_of_the_file_again() -> None:
    spec = parse_spec(FULL)
    servers = [server_document(*row) for row in spec.targets.rows()]
    document = spec.to_document()
    assert servers == document["targets"]["servers"]
    assert server_document(B, None, {"image": "x"}) == {"id": B, "image": "x"}
    with pytest.raises(ValueError, match="a job has"):
        server_document(None, None, None)


def test_user_data_is_in_no_representation() -> None:
    spec = parse_spec(plan(rebuild={"user_data": {"text": "hunter2"}}))
    assert "hunter2" not in repr(spec)
    assert "hunter2" not in str(spec)


def test_user_data_in_base64_may_have_line_breaks() -> None:
    spec = parse_spec(plan(rebuild={"user_data": {"base64": "aGVs\nbG8=\n"}}))
    assert spec.user_data == b"hello"
    assert UserData(text="hello").encoded == "aGVsbG8="


def test_user_data_goes_up_to_what_nova_takes() -> None:
    fits = parse_spec(plan(rebuild={"user_data": {"text": "x" * 49149}})).rebuild.user_data
    assert fits is not None
    assert len(fits.encoded) <= 65535


def test_a_plan_can_not_be_changed() -> None:
    spec = parse_spec(plan())
    with pytest.raises(ValidationError):
        spec.cloud = "other"  # type: ignore[misc]


def test_the_schema_tells_the_files_own_rules() -> None:
    schema = PlanSpec.model_json_schema()
    assert schema["required"] == ["name", "cloud", "targets"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["hold_expires"]["default"] == "1d"
    assert schema["properties"]["image"]["type"] == "string"
    assert schema["$defs"]["Failure"]["properties"]["max_errors"]["default"] == "5%"
    assert "from" in schema["$defs"]["Window"]["properties"]
    json.dumps(schema)


def test_a_hundred_thousand_servers_are_read_well_within_a_second() -> None:
    raw = plan(targets={"servers": [str(UUID(int=i)) for i in range(100_000)]})
    best = min(_seconds(raw) for _ in range(3))
    assert best < 1


def test_a_hundred_thousand_servers_take_little_memory() -> None:
    raw = plan(targets={"servers": [str(UUID(int=i)) for i in range(100_000)]})
    tracemalloc.start()
    spec = parse_spec(raw)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(spec.targets.servers) == 100_000
    assert kept < 16 * 2**20


def _seconds(raw: Mapping[str, Any]) -> float:
    begun = time.process_time()
    parse_spec(raw)
    return time.process_time() - begun


texts = st.text(st.characters(min_codepoint=33, max_codepoint=0x7E), min_size=1, max_size=20)
metadata = st.dictionaries(st.from_regex(r"\A[a-z_.: -]{1,20}\Z"), st.none() | st.text("aé ", max_size=9), max_size=4)
durations = st.builds("{}{}".format, st.integers(1, 30), st.sampled_from("smhd"))
percents = st.integers(1, 1000).map(lambda n: f"{n / 10}%")
sizes = st.integers(1, 1000) | percents
rebuilds = st.fixed_dictionaries(
    {}, optional={"name": st.sampled_from(["{name}", "n-{id}", "{metadata.k}"]), "metadata": metadata}
)


@st.composite
def plans(draw: st.DrawFn) -> dict[str, Any]:
    ids = draw(st.lists(st.uuids().map(str), min_size=1, max_size=8, unique=True))
    servers = [
        draw(st.just(i) | st.fixed_dictionaries({"id": st.just(i)}, optional={"image": texts, "rebuild": rebuilds}))
        for i in ids
    ]
    counts = sorted(draw(st.lists(st.integers(1, 50), max_size=3)))
    waves = [{"size": n} for n in counts] + [{"size": "100%", "servers": draw(st.sampled_from([[], ids[:2]]))}]
    optional = {
        "rebuild": rebuilds,
        "failure": st.fixed_dictionaries(
            {}, optional={"max_errors": sizes, "timeout": durations, "attempts": st.integers(1, 9)}
        ),
        "labels": st.dictionaries(st.from_regex(r"\A[a-z0-9]{1,9}\Z"), texts, max_size=3),
        "skip_matching": st.booleans(),
        "hold": st.booleans(),
        "hold_expires": durations,
    }
    rollout = {"waves": waves, "rate": f"{draw(st.integers(1, 5000))}/{draw(st.sampled_from('sm'))}"}
    return plan(targets={"servers": servers}, rollout=rollout, **draw(st.fixed_dictionaries({}, optional=optional)))


@given(plans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_plan_survives_being_written_and_read(raw: dict[str, Any]) -> None:
    spec = parse_spec(raw)
    again = parse_spec(json.loads(json.dumps(spec.to_document())))
    assert again == spec
    assert again.to_document() == spec.to_document()
