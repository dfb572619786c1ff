"""What stands on stdout and what on stderr; scripts parse the first."""

import csv
import io
import json
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import Rebuildctl
from tests.cli.fake_api import PLAN_ID, TOKEN, FakeApi, counts, plan_document

ENDED = plan_document("succeeded", counts=counts(succeeded=3, skipped=1), finished_at="2026-11-24T10:02:01Z")


def test_json_is_one_document_and_the_plan_as_the_api_gives_it(
    api: FakeApi, rebuildctl: Rebuildctl, plan_file: str
) -> None:
    api.play("preparing", "running", ENDED)
    for arguments in (("submit", plan_file, "--wait", "-o", "json"), ("--output", "json", "status", PLAN_ID)):
        result = rebuildctl(*arguments)
        assert json.loads(result.out) == ENDED
    api.play("running")
    for arguments in (("submit", plan_file), ("start", PLAN_ID), ("cancel", PLAN_ID)):
        assert json.loads(rebuildctl(*arguments, "--output", "json").out) == plan_document("running")


def test_progress_goes_to_stderr_beside_a_document(api: FakeApi, rebuildctl: Rebuildctl, plan_file: str) -> None:
    api.play("preparing", "running", ENDED)
    result = rebuildctl("submit", plan_file, "--wait", "-o", "json")
    lines = result.err.splitlines()
    assert lines[:2] == [f"Plan {PLAN_ID}", ENDED["url"]], "the id and the address come first"
    assert lines[-1] == "succeeded in 2m00s: 4 servers: 3 succeeded, 1 skipped"


def test_progress_is_plain_lines_of_80_columns_without_colour(
    api: FakeApi, rebuildctl: Rebuildctl, plan_file: str
) -> None:
    many = counts(pending=81234, rebuilding=5000, sending=250, succeeded=13516, failed=12, stuck=3, unresolved=4)
    api.play("preparing", plan_document("running", counts=many), plan_document("halted", counts=many))
    result = rebuildctl("submit", plan_file, "--wait")
    assert result.code == 1
    progress = [line for line in result.out.splitlines() if " running: " in line]
    assert progress
    assert "13516/100019 done, 5250 in flight, 12 failed" in progress[0]
    assert all(len(line) <= 80 for line in result.out.splitlines() if line[2:3] == ":")
    assert "\x1b" not in result.out + result.err


def test_yaml_and_csv_say_the_same(api: FakeApi, rebuildctl: Rebuildctl) -> None:
    api.play(ENDED)
    assert yaml.safe_load(rebuildctl("status", PLAN_ID, "-o", "yaml").out)["counts"] == ENDED["counts"]
    (row,) = csv.DictReader(io.StringIO(rebuildctl("status", PLAN_ID, "-o", "csv").out))
    assert (row["id"], row["status"], row["total"], row["succeeded"]) == (PLAN_ID, "succeeded", "4", "3")


def test_jobs_are_read_over_all_pages(api: FakeApi, rebuildctl: Rebuildctl) -> None:
    api.play("running")
    api.jobs = [
        {"server_id": f"s-{i}", "name": f"web-{i}", "state": "failed" if i % 2 else "succeeded"} for i in range(7)
    ]
    assert json.loads(rebuildctl("jobs", PLAN_ID, "-o", "json").out) == {"items": api.jobs, "next": None}
    assert len(json.loads(rebuildctl("jobs", PLAN_ID, "--state", "failed", "-o", "json").out)["items"]) == 3
    assert len(json.loads(rebuildctl("jobs", PLAN_ID, "--limit", "3", "-o", "json").out)["items"]) == 3
    table = rebuildctl("jobs", PLAN_ID).out.splitlines()
    assert (table[0].split()[:3], len(table)) == (["SERVER", "ID", "NAME"], 8)


def test_a_servers_name_can_not_drive_the_terminal(api: FakeApi, rebuildctl: Rebuildctl) -> None:
    api.play("running")
    api.jobs = [{"server_id": "s-1", "name": "web\x1b[2J\x9b31m\u202e", "state": "failed"}]
    out = rebuildctl("jobs", PLAN_ID).out
    assert "web?[2J?31m?" in out


def test_followed_events_are_one_line_of_json_each(api: FakeApi, rebuildctl: Rebuildctl) -> None:
    api.play("running")
    api.events = [{"seq": n, "type": "job.succeeded", "to": "succeeded", "server_id": "s"} for n in range(1, 5)]
    assert [
        json.loads(line) for line in rebuildctl("events", PLAN_ID, "-f", "-o", "json").out.splitlines()
    ] == api.events
    assert json.loads(rebuildctl("events", PLAN_ID, "-o", "json").out)["items"] == api.events


def test_nothing_to_list_is_said_and_is_no_error(api: FakeApi, rebuildctl: Rebuildctl) -> None:
    assert rebuildctl("status").out == "There are no such plans.\n"
    assert json.loads(rebuildctl("status", "-o", "json").out) == {"items": [], "next": None}


def test_no_traceback_reaches_a_user(rebuildctl: Rebuildctl, monkeypatch: pytest.MonkeyPatch, api: FakeApi) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("orchestrator.cli.plans._show_plan", broken)
    result = rebuildctl("status", PLAN_ID)
    assert (result.code, result.out) == (70, "")
    assert result.err == "ZeroDivisionError: by zero (REBUILD_DEBUG=1 shows where)\n"
    monkeypatch.setenv("REBUILD_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        rebuildctl("status", PLAN_ID)


def test_the_state_folders_token_goes_to_its_own_api_alone(
    api: FakeApi, rebuildctl: Rebuildctl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "env").write_text(f"REBUILD_API_URL={api.url}\nREBUILD_TOKEN={TOKEN}\n")
    monkeypatch.delenv("REBUILD_API_URL")
    monkeypatch.delenv("REBUILD_TOKEN")
    assert rebuildctl("status").code == 0
    (state / "env").write_text(f"REBUILD_API_URL=http://127.0.0.1:9\nREBUILD_TOKEN={TOKEN}\n")
    monkeypatch.setenv("REBUILD_API_URL", api.url)
    assert rebuildctl("status").code == 7
    assert all(r[2].get("Authorization") is None for r in api.requests[1:])
