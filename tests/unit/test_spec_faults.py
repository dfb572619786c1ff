"""What a plan is refused for: every fault at once, each with its path, its code and the remedy."""

from collections.abc import Mapping
from typing import Any

import pytest

from orchestrator.domain.spec import Code, parse_spec
from orchestrator.domain.spec.faults import path_of
from orchestrator.domain.spec.parse import MAX_FAULTS
from orchestrator.domain.spec.supported import NOT_SUPPORTED_YET
from orchestrator.errors import SpecInvalid

A, B, C = (f"9168b536-cd40-4630-b43f-b259807c6e8{n}" for n in "abc")
WINDOW = {"days": ["sat"], "from": "01:00", "to": "05:00", "tz": "UTC"}
UD = {"user_data": {"text": "x"}}
BASE: dict[str, Any] = {"name": "web", "cloud": "prod-eu", "image": "img", "targets": {"servers": [A]}}


def faults(raw: Mapping[str, Any]) -> dict[str, str]:
    """Path → code of all faults of `raw`."""
    try:
        parse_spec(raw)
    except SpecInvalid as error:
        return {fault.path: fault.code for fault in error.errors}
    return {}


def message(raw: Mapping[str, Any], path: str) -> str:
    """The message of the fault at `path`."""
    with pytest.raises(SpecInvalid) as caught:
        parse_spec(raw)
    return next(fault.message for fault in caught.value.errors if fault.path == path)


def test_all_faults_come_at_once() -> None:
    raw = {
        "nmae": "web",
        "cloud": 5,
        "targets": {"servers": ["web-1", A, A.upper(), {}], "select": {}, "max": "5"},
        "rebuild": {"adminPass": "x", "name": " x", "metadata": {"k": 5}},
        "rollout": {"waves": [{"size": 5}, {"size": "200%"}, {"servers": []}, {"size": 3}], "rate": "5"},
        "failure": {"attempts": 0, "backoff": {"initial": "5"}},
        "hooks": {"before": {"url": "ftp://x"}},
    }
    assert faults(raw) == {
        "nmae": "unknown_field",
        "name": "missing",
        "cloud": "wrong_type",
        "image": "missing",
        "targets.servers[0]": "invalid_value",
        "targets.servers[2]": "duplicate",
        "targets.servers[3]": "impossible",
        "targets.select": "too_short",
        "targets.max": "wrong_type",
        "rebuild.adminPass": "refused_field",
        "rebuild.name": "invalid_value",
        "rebuild.metadata.k": "wrong_type",
        "rollout.waves[1].size": "invalid_value",
        "rollout.waves[2]": "missing",
        "rollout.waves[3].size": "impossible",
        "rollout.rate": "invalid_value",
        "failure.attempts": "out_of_range",
        "failure.backoff.initial": "invalid_value",
        "hooks.before.url": "invalid_value",
    }


def with_(path: str, value: object) -> dict[str, Any]:
    """The smallest plan with `value` at `path`, whose parts are joined by dots."""
    raw: dict[str, Any] = {**BASE, "targets": dict(BASE["targets"])}
    *parents, last = path.split(".")
    place = raw
    for part in parents:
        place = place.setdefault(part, {})
    place[last] = value
    return raw


@pytest.mark.parametrize(
    ("path", "value", "code"),
    [
        ("name", "", "too_short"),
        ("name", "x" * 255, "too_long"),
        ("name", "a\nb", "invalid_value"),
        ("name", " a", "invalid_value"),
        ("name", 5, "wrong_type"),
        ("image", "", "too_short"),
        ("image", None, "wrong_type"),
        ("method", "redeploy", "invalid_value"),
        ("targets", {}, "missing"),
        ("targets", {"servers": []}, "missing"),
        ("targets", [A], "wrong_type"),
        ("targets.servers", A, "wrong_type"),
        ("targets.select.tags", [], "too_short"),
        ("targets.select.metadata", {}, "too_short"),
        ("targets.select.name", "", "too_short"),
        ("targets.exclude", None, "wrong_type"),
        ("targets.max", 0, "out_of_range"),
        ("targets.max", True, "wrong_type"),
        ("targets.max", 1.0, "wrong_type"),
        ("rebuild.name", "", "invalid_value"),
        ("rebuild.name", "x" * 255, "invalid_value"),
        ("rebuild.name", "web-🦊", "invalid_value"),
        ("rebuild.name", "web\t1", "invalid_value"),
        ("rebuild.name", "{zone}", "invalid_value"),
        ("rebuild.name", "{name", "invalid_value"),
        ("rebuild.name", "{metadata.}", "invalid_value"),
        ("rebuild.name", "{metadata.a/b}", "invalid_value"),
        ("rebuild.key_name", "", "too_short"),
        ("rebuild.metadata", [], "wrong_type"),
        ("rebuild.metadata_mode", "append", "invalid_value"),
        ("rebuild.reimage_boot_volume", "true", "wrong_type"),
        ("rollout.waves", [], "too_short"),
        ("rollout.waves", {"size": 1}, "wrong_type"),
        ("rollout.max_in_flight", 0, "out_of_range"),
        ("rollout.rate", "0/s", "invalid_value"),
        ("rollout.rate", 10, "wrong_type"),
        ("failure.max_errors", -1, "invalid_value"),
        ("failure.max_errors", "5", "invalid_value"),
        ("failure.same_cause", -1, "out_of_range"),
        ("failure.timeout", "0s", "out_of_range"),
        ("failure.timeout", 60, "wrong_type"),
        ("failure.on_unresolved", "stop", "invalid_value"),
        ("failure.backoff", {"initial": "10m"}, "impossible"),
        ("on_conflict", "wait", "invalid_value"),
        ("priority", 11, "out_of_range"),
        ("hold", "yes", "wrong_type"),
        ("hold", 1, "wrong_type"),
        ("hold_expires", "1w", "invalid_value"),
        ("labels", ["web"], "wrong_type"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_where_it_stands(path: str, value: object, code: str) -> None:
    assert faults(with_(path, value)).get(path) == code


@pytest.mark.parametrize(
    ("path", "value", "fault_path"),
    [
        ("targets.select.status", ["GONE"], "targets.select.status[0]"),
        ("targets.select.metadata", {"a": 1}, "targets.select.metadata.a"),
        ("rebuild.metadata", {"a/b": "v"}, 'rebuild.metadata["a/b"]'),
        ("rebuild.metadata", {"": "v"}, 'rebuild.metadata[""]'),
        ("rebuild.metadata", {"k": "v" * 256}, "rebuild.metadata.k"),
        ("rebuild.metadata", {"k": "🦊"}, "rebuild.metadata.k"),
        ("rebuild.metadata", {"k": "a\0b"}, "rebuild.metadata.k"),
        ("labels", {"a=b": "v"}, 'labels["a=b"]'),
        ("labels", {"team": 5}, "labels.team"),
        ("targets.exclude.servers", [A, "x"], "targets.exclude.servers[1]"),
        ("verify", [{"tcp": {}}], "verify[0].tcp.port"),
        ("schedule", {"windows": [{**WINDOW, "from": "25:00"}]}, "schedule.windows[0].from"),
        ("schedule", {"windows": [{**WINDOW, "tz": "Mars/Base"}]}, "schedule.windows[0].tz"),
        ("schedule", {"start_at": "2026-11-30T22:00:00"}, "schedule.start_at"),
        ("hooks", {"before": {"url": "https://user:pw@host/"}}, "hooks.before.url"),
        ("notify", [{"url": "https://x", "secret": "s3cret"}], "notify[0].secret"),
    ],
)  # fmt: skip
def test_a_fault_inside_a_collection_has_its_full_path(path: str, value: object, fault_path: str) -> None:
    assert fault_path in faults(with_(path, value))


@pytest.mark.parametrize("field", ["adminPass", "OS-DCF:diskConfig", "preserve_ephemeral", "admin_pass"])
@pytest.mark.parametrize("where", ["rebuild", "servers", "plan"])
def test_fields_of_the_call_that_plans_must_not_use_are_refused_with_the_reason(field: str, where: str) -> None:
    raw = {
        "rebuild": {**BASE, "rebuild": {field: "s3cret"}},
        "servers": {**BASE, "targets": {"servers": [{"id": A, "rebuild": {field: "s3cret"}}]}},
        "plan": {**BASE, field: "s3cret"},
    }[where]
    with pytest.raises(SpecInvalid) as caught:
        parse_spec(raw)
    (fault,) = caught.value.errors
    assert fault.code == "refused_field"
    assert field in fault.path
    assert "Leave it out" in fault.message or "key_name or user_data" in fault.message
    assert "s3cret" not in str(caught.value) + fault.message


@pytest.mark.parametrize(
    ("user_data", "code"),
    [
        ({}, "impossible"),
        ({"text": "a", "base64": "YQ=="}, "impossible"),
        ({"base64": "s3cret!"}, "invalid_value"),
        ({"base64": "YQ"}, "invalid_value"),
        ({"text": ""}, "too_short"),
        ({"text": "s3cret" * 10000}, "too_long"),
        ({"text": "s3cret \ud800"}, "invalid_value"),
    ],
)
def test_wrong_user_data_is_refused_and_never_quoted(user_data: dict[str, str], code: str) -> None:
    raw = with_("rebuild.user_data", user_data)
    assert faults(raw) == {"rebuild.user_data": code}
    assert "s3cret" not in message(raw, "rebuild.user_data")


def test_no_message_quotes_what_was_given() -> None:
    raw = {
        "name": 1,
        "cloud": ["s3cret"],
        "image": {"s3cret": 1},
        "targets": {"servers": ["s3cret"]},
        "rebuild": "s3cret",
    }
    with pytest.raises(SpecInvalid) as caught:
        parse_spec(raw)
    assert "s3cret" not in " ".join(f.message for f in caught.value.errors)


def test_a_duplicate_names_both_places_whatever_the_letters_case() -> None:
    raw = with_("targets.servers", [A, B, A.upper(), {"id": B}, {"find": "web-1"}, {"find": "web-1"}])
    assert faults(raw) == {
        "targets.servers[2]": "duplicate",
        "targets.servers[3]": "duplicate",
        "targets.servers[5]": "duplicate",
    }
    assert "[0]" in message(raw, "targets.servers[2]")
    assert "[4]" in message(raw, "targets.servers[5]")


def test_a_misspelt_field_is_answered_with_the_right_one() -> None:
    assert "did you mean max_in_flight?" in message(with_("rollout.max_inflight", 5), "rollout.max_inflight")
    assert "fields here are servers, select" in message(with_("targets.zzz", 5), "targets.zzz")
    assert "did you mean bake?" in message(
        with_("rollout.waves", [{"size": 1, "bakee": "5m"}]), "rollout.waves[0].bakee"
    )


@pytest.mark.parametrize("field", ["hold", "image", "rebuild", "labels", "skip_matching"])
def test_a_field_without_a_value_is_forgotten_not_meant(field: str) -> None:
    assert faults({**BASE, field: None}) == {field: "wrong_type"}


def test_null_removes_metadata_only_in_a_merge() -> None:
    assert faults(with_("rebuild", {"metadata": {"k": None}})) == {}
    assert faults(with_("rebuild", {"metadata": {"k": None}, "metadata_mode": "replace"})) == {"rebuild": "impossible"}
    raw = with_("rebuild", {"metadata": {}, "metadata_mode": "replace"})
    raw["targets"] = {"servers": [A, {"id": B, "rebuild": {"metadata": {"k": None}}}]}
    assert faults(raw) == {"targets.servers[1].rebuild.metadata.k": "impossible"}


def test_replace_needs_something_to_replace_with() -> None:
    assert faults(with_("rebuild", {"metadata_mode": "replace"})) == {"rebuild": "impossible"}
    assert faults(with_("rebuild", {"metadata_mode": "replace", "metadata": {}})) == {}


def test_more_named_servers_than_max_are_refused() -> None:
    assert faults({**BASE, "targets": {"servers": [A, B], "max": 1}}) == {"targets.max": "impossible"}
    assert faults({**BASE, "targets": {"servers": [A, B], "max": 2}}) == {}


def waves(*waves: dict[str, Any], **targets: Any) -> dict[str, Any]:
    """The smallest plan with these waves."""
    return {**BASE, "targets": {"servers": [A], **targets}, "rollout": {"waves": list(waves)}}


def test_wave_sizes_must_not_shrink_where_they_can_be_compared() -> None:
    assert faults(waves({"size": 1}, {"size": "1%"}, {"size": 1}, {"size": "1%"})) == {}
    assert faults(waves({"size": 2}, {"size": "10%"}, {"size": 1}, {"size": "5.5%"})) == {
        "rollout.waves[2].size": "impossible",
        "rollout.waves[3].size": "impossible",
    }


def test_a_wave_is_told_apart_by_name_and_by_its_own_servers() -> None:
    assert faults(waves({"name": "a", "size": 1, "servers": [A]}, {"name": "a", "servers": [A.upper()]})) == {
        "rollout.waves[1].name": "duplicate",
        "rollout.waves[1].servers[0]": "duplicate",
    }


def test_a_waves_own_servers_are_the_plans() -> None:
    assert faults(waves({"servers": [A, B]})) == {"rollout.waves[0].servers[1]": "impossible"}
    assert faults(waves({"servers": [A, B]}, select={"name": "*"})) == {}
    assert faults(waves({"servers": [A, B]}, servers=[A, {"find": "web-1"}])) == {}
    assert faults(waves({"servers": [A]}, exclude={"servers": [A]})) == {"rollout.waves[0].servers[0]": "impossible"}


@pytest.mark.parametrize(
    ("path", "value", "fault_path"),
    [
        ("method", "change_os", "method"),
        ("method", "reinstall_os", "method"),
        ("os", {"user_id": "u", "admin_pass": {"ref": "env:P"}}, "os"),
        ("targets.select.enterprise_project", "0", "targets.select.enterprise_project"),
        ("targets.servers", [A, {"id": B, "rebuild": UD}], "targets.servers[1].rebuild.user_data"),
        ("targets.servers", [{"id": B, "rebuild": {"key_name": "k"}}], "targets.servers[0].rebuild.key_name"),
        ("rebuild.user_data", {"ref": "env:UD"}, "rebuild.user_data.ref"),
        ("notify", [{"url": "https://x.example", "events": ["halted"]}], "notify"),
    ],
)  # fmt: skip
def test_a_right_field_of_a_later_version_is_refused_as_such(path: str, value: object, fault_path: str) -> None:
    raw = with_(path, value)
    codes = {"not_supported_yet"} | ({"missing", "impossible"} if path in ("method", "os") else set())
    found = faults(raw)
    with pytest.raises(SpecInvalid) as caught:
        parse_spec(raw)
    assert (fault_path, "not_supported_yet") in {(f.path, f.code) for f in caught.value.errors}
    assert set(found.values()) <= codes


def test_every_line_of_the_table_names_a_field_of_the_plan() -> None:
    from orchestrator.domain.spec import PlanSpec
    from orchestrator.domain.spec.faults import fields_at

    for line in NOT_SUPPORTED_YET:
        place = tuple(0 if part == "*" else part for part in line.path)
        assert place[-1] in fields_at(PlanSpec, place[:-1]), line.path


def test_nonsense_in_a_later_field_is_called_nonsense() -> None:
    assert faults(with_("method", "redeploy")) == {"method": "invalid_value"}
    assert faults(with_("priority", 11)) == {"priority": "out_of_range"}


def test_a_server_is_rebuilt_again_by_itself_twice_at_most() -> None:
    assert faults(with_("failure.rebuild_again", 2)) == {}
    assert faults(with_("failure.rebuild_again", 3)) == {"failure.rebuild_again": "out_of_range"}


def test_os_contradicts_the_rebuild_method() -> None:
    with pytest.raises(SpecInvalid) as caught:
        parse_spec(with_("os", {"user_id": "u", "admin_pass": {"ref": "env:P"}}))
    assert {(f.path, f.code) for f in caught.value.errors} == {("os", "impossible"), ("os", "not_supported_yet")}


def test_a_later_field_that_asks_for_what_happens_anyway_is_taken() -> None:
    raw = {
        **BASE,
        "failure": {"rebuild_again": 0, "drift_limit": 0},
        "notify": [],
        "priority": 0,
    }
    assert faults(raw) == {}


@pytest.mark.parametrize("raw", [[], "plan", None, 5])
def test_what_is_no_mapping_is_no_plan(raw: Any) -> None:
    assert faults(raw) == {"": "wrong_type"}


def test_nesting_without_end_is_just_an_unknown_field() -> None:
    deep: Any = {}
    for _ in range(900):
        deep = {"x": [deep]}
    assert faults({**BASE, "zzz": deep}) == {"zzz": "unknown_field"}


def test_a_flood_of_faults_is_cut_and_says_so() -> None:
    raw = {**BASE, "targets": {"servers": [f"web-{i}" for i in range(3000)]}}
    with pytest.raises(SpecInvalid) as caught:
        parse_spec(raw)
    assert len(caught.value.errors) == MAX_FAULTS
    assert caught.value.errors[-1].code == Code.MORE_FAULTS
    assert "2001 more" in caught.value.errors[-1].message


def test_one_fault_is_its_own_message() -> None:
    with pytest.raises(SpecInvalid, match=r"^rollout.rate: a rate is"):
        parse_spec(with_("rollout.rate", "fast"))


def test_a_path_reads_as_the_file_is_written() -> None:
    assert path_of(("rollout", "waves", 1, "size")) == "rollout.waves[1].size"
    assert path_of(("rebuild", "OS-DCF:diskConfig")) == 'rebuild["OS-DCF:diskConfig"]'
