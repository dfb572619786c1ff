"""A plan file means the text that stands in it, whatever YAML 1.1 would make of it."""

import io
import json
import sys
import time
from pathlib import Path

import click
import pytest

from orchestrator.cli.planfile import default_key, load_plan_file
from tests.cli.conftest import Rebuildctl
from tests.cli.fake_api import FakeApi


def read(tmp_path: Path, text: str, name: str = "plan.yaml") -> dict[str, object]:
    path = tmp_path / name
    path.write_text(text)
    return load_plan_file(str(path))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("01:00", "01:00"), ("22:30:15", "22:30:15"), ("on", "on"), ("no", "no"), ("Y", "Y"), ("0755", "0755"),
        ("0o17", "0o17"), ("0x1f", "0x1f"), ("1_000", "1_000"), ("2026-11-01", "2026-11-01"), ("2026.11", 2026.11),
        ("2026-11-24T10:00:00+01:00", "2026-11-24T10:00:00+01:00"), ("12e7", "12e7"), (".5", ".5"), (".inf", ".inf"),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None), ("7", 7), ("-3", -3), ("0", 0),
        ("5%", "5%"), ("10/s", "10/s"), ('"7"', "7"), ("'true'", "true"), ("=", "="), ("!!str 7", "7"),
    ],
)  # fmt: skip
def test_scalars_are_those_of_json(tmp_path: Path, written: str, meant: object) -> None:
    found = read(tmp_path, f"value: {written}\n")["value"]
    assert (found, type(found)) == (meant, type(meant))


def test_keys_are_text(tmp_path: Path) -> None:
    assert read(tmp_path, "on: 1\n8080: 2\ntrue: 3\n2026-01-01: 4\n") == {
        "on": 1,
        "8080": 2,
        "true": 3,
        "2026-01-01": 4,
    }


def test_anchors_and_merges_work(tmp_path: Path) -> None:
    text = "base: &b {size: 1, bake: 5m}\nwave:\n  <<: *b\n  size: 5%\n"
    assert read(tmp_path, text)["wave"] == {"size": "5%", "bake": "5m"}


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("name: a\nimage: b\nname: c\n", ":3:1", "'name' stands here twice"),
        ("name: a\n  image: b\n", ":2:8", "mapping values are not allowed"),
        ("- a\n", "", "a plan is a mapping"),
        ("", "", "a plan is a mapping"),
        ("a: 1\n---\nb: 2\n", ":2:1", "another document"),
        ("a: !!python/object/apply:os.system [true]\n", ":1:4", "could not determine a constructor"),
        ("[1, 2]: x\n", ":1:1", "a key must be plain text"),
    ],
)
def test_faults_are_named_with_line_and_column(tmp_path: Path, text: str, where: str, what: str) -> None:
    with pytest.raises(click.UsageError) as caught:
        read(tmp_path, text)
    assert caught.value.message.startswith(f"{tmp_path}/plan.yaml{where}: ")
    assert what in caught.value.message


def test_json_is_read_as_json_and_doubled_keys_are_refused(tmp_path: Path) -> None:
    assert read(tmp_path, '\ufeff{"a": 1e3, "b": "01:00"}', "plan.json") == {"a": 1000.0, "b": "01:00"}
    with pytest.raises(click.UsageError, match="'a' stands twice"):
        read(tmp_path, '{"a": 1, "a": 2}', "plan.json")


def test_ten_thousand_servers_of_yaml_are_read_within_seconds(tmp_path: Path) -> None:
    servers = "".join(f"    - 3ed456f5-3d8f-4383-a6c9-{i:012d}\n" for i in range(10_000))
    began = time.monotonic()
    assert len(read(tmp_path, f"name: x\ntargets:\n  servers:\n{servers}")["targets"]["servers"]) == 10_000  # type: ignore[index]
    assert time.monotonic() - began < 10


def test_the_plan_comes_from_stdin_for_a_dash(
    api: FakeApi, rebuildctl: Rebuildctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.play("running")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"name: from stdin\nschedule: {from: 01:00}\n")))
    assert rebuildctl("submit", "-").code == 0
    ((_, _, _, body),) = api.sent("POST", "/v1/plans")
    assert body == {"name": "from stdin", "schedule": {"from": "01:00"}}


CI = {
    "github": {"GITHUB_REPOSITORY": "org/fleet", "GITHUB_RUN_ID": "17", "GITHUB_JOB": "roll"},
    "gitlab": {"CI_PROJECT_PATH": "org/fleet", "CI_PIPELINE_ID": "17", "CI_JOB_NAME": "röll out"},
    "jenkins": {"BUILD_TAG": "jenkins-fleet-17"},
}


@pytest.mark.usefixtures("api")
@pytest.mark.parametrize("system", CI)
def test_a_ci_job_that_runs_again_has_the_same_key(monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    for name, value in CI[system].items():
        monkeypatch.setenv(name, value)
    key, shown = default_key("plan.yaml", b"{}")
    assert shown is not None
    assert key.isascii()
    assert default_key("plan.yaml", b"{}")[0] == key
    assert default_key("other.yaml", b"{}")[0] != key
    assert default_key("plan.yaml", b'{"hold": true}')[0] != key
    for name in CI[system]:
        with monkeypatch.context() as patch:
            patch.setenv(name, "another")
            assert default_key("plan.yaml", b"{}")[0] != key, name


@pytest.mark.usefixtures("api")
def test_two_submits_outside_ci_are_two_plans() -> None:
    assert default_key("plan.yaml", b"{}") != default_key("plan.yaml", b"{}")


def test_the_key_of_the_command_line_is_sent(api: FakeApi, rebuildctl: Rebuildctl, plan_file: str) -> None:
    api.play("running")
    assert rebuildctl("submit", plan_file, "--idempotency-key", "k-1").code == 0
    ((_, _, headers, body),) = api.sent("POST", "/v1/plans")
    assert headers["Idempotency-Key"] == "k-1"
    assert json.dumps(body) == json.dumps(load_plan_file(plan_file))
