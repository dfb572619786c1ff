"""Pipelines branch on these codes."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from orchestrator.domain.states import PlanStatus
from tests.cli.conftest import Rebuildctl
from tests.cli.fake_api import OTHER_ID, PLAN_ID, FakeApi, counts, plan_document, problem_document
from tests.parts import eventually


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (PlanStatus.SUCCEEDED, 0), (PlanStatus.FAILED, 1), (PlanStatus.HALTED, 1), (PlanStatus.REJECTED, 2),
        (PlanStatus.EXPIRED, 2), (PlanStatus.CANCELLED, 5),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["wait", "submit"])
def test_a_waited_for_plan_gives_its_end_as_the_code(
    api: FakeApi, rebuildctl: Rebuildctl, plan_file: str, command: str, end: str, code: int
) -> None:
    api.play("preparing", "running", "running", end)
    arguments = ("wait", PLAN_ID) if command == "wait" else ("submit", plan_file, "--wait")
    assert rebuildctl(*arguments).code == code


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("running", 3),
        ("preparing", 3),
        ("ready", 3),
        ("scheduled", 3),
        ("baking", 3),
        ("paused", 4),
        ("awaiting_approval", 4),
    ],
)
def test_a_wait_that_times_out_says_whether_a_person_is_needed(
    api: FakeApi, rebuildctl: Rebuildctl, status: str, code: int
) -> None:
    api.play(status)
    result = rebuildctl("wait", PLAN_ID, "--timeout", "1s")
    assert result.code == code
    assert PLAN_ID in result.err


def test_a_held_plan_is_waited_for_until_it_is_ready(api: FakeApi, rebuildctl: Rebuildctl, tmp_path: Path) -> None:
    api.play("preparing", "preparing", "ready")
    path = tmp_path / "held.json"
    path.write_text('{"name": "x", "hold": true}')
    assert rebuildctl("submit", str(path), "--wait").code == 0


def test_the_gravest_of_several_plans_makes_the_code(api: FakeApi, rebuildctl: Rebuildctl) -> None:
    api.play("succeeded")
    api.play("running", "cancelled", plan_id=OTHER_ID)
    result = rebuildctl("wait", PLAN_ID, OTHER_ID, "--output", "json")
    assert result.code == 5
    assert [p["status"] for p in json.loads(result.out)["items"]] == ["succeeded", "cancelled"]


def test_an_api_out_of_reach_is_6(rebuildctl: Rebuildctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REBUILD_API_URL", "http://127.0.0.1:9")
    result = rebuildctl("status")
    assert result.code == 6
    assert "127.0.0.1:9" in result.err


def test_an_address_that_is_none_is_6(rebuildctl: Rebuildctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REBUILD_API_URL", "file:///etc/passwd")
    assert rebuildctl("status").code == 6


def test_a_wait_outlives_a_restarting_api(api: FakeApi, rebuildctl: Rebuildctl) -> None:
    api.play(*["running"] * 20, "succeeded")
    looks = iter(range(100))
    look = api.look

    def look_and_break(plan_id: str) -> dict[str, object]:
        if next(looks) == 3:
            api.failures += ["drop", 503, "drop", 502]
        return look(plan_id)

    api.look = look_and_break  # type: ignore[method-assign]
    assert rebuildctl("wait", PLAN_ID).code == 0
    assert api.failures == []


def test_a_wait_gives_up_an_api_that_stays_away(api: FakeApi, rebuildctl: Rebuildctl) -> None:
    look = api.look

    def look_and_leave(plan_id: str) -> dict[str, object]:
        api.failures += [503] * 10_000
        return look(plan_id)

    api.play("running")
    api.look = look_and_leave  # type: ignore[method-assign]
    result = rebuildctl("wait", PLAN_ID, "--output", "json")
    assert result.code == 6
    assert json.loads(result.out)["id"] == PLAN_ID, "the plan as it was last seen is still the document"
    assert f"rebuildctl wait {PLAN_ID}" in result.err


@pytest.mark.parametrize(("status", "code"), [(401, 7), (403, 7), (404, 2), (409, 2), (422, 2), (500, 6), (503, 6)])
def test_a_refused_request_gives_the_code_of_its_kind(
    api: FakeApi, rebuildctl: Rebuildctl, plan_file: str, status: int, code: int
) -> None:
    api.failures = [problem_document(status, "some_code", "It can't be.")] * 200
    result = rebuildctl("start", PLAN_ID)
    assert result.code == code
    assert "It can't be." in result.err
    assert "some_code" in result.err
    assert result.out == ""


def test_a_wrong_token_is_7(api: FakeApi, rebuildctl: Rebuildctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REBUILD_TOKEN", "rbt_wrong")
    assert rebuildctl("status").code == 7


def test_every_fault_of_a_plan_stands_on_a_line_of_its_own(
    api: FakeApi, rebuildctl: Rebuildctl, plan_file: str
) -> None:
    faults = [
        {"path": "rollout.waves[1].size", "code": "invalid_value", "message": "must grow"},
        {"path": "image", "code": "missing", "message": "must be given"},
    ]
    api.failures = [problem_document(422, "invalid_spec", "The plan has faults.", *faults)]
    result = rebuildctl("submit", plan_file)
    assert result.code == 2
    assert result.err.splitlines()[:2] == ["rollout.waves[1].size: must grow", "image: must be given"]


def test_a_rejected_plan_says_why_item_by_item(api: FakeApi, rebuildctl: Rebuildctl, plan_file: str) -> None:
    fault = {"path": "targets.servers[3]", "code": "not_found", "message": "no such server"}
    reason = {"code": "targets_invalid", "message": "1 target can't be found"}
    api.play("preparing", plan_document("rejected", reason=reason, errors=[fault]))
    result = rebuildctl("submit", plan_file, "--wait")
    assert result.code == 2
    assert "targets.servers[3]: no such server" in result.err.splitlines()


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",), ("status", "--nonsense"), ("wait",), ("wait", "not-an-id"), ("wait", PLAN_ID, "--timeout", "2x"),
        ("submit", "/no/such/file.yaml"), ("--output", "xml", "status"), ("worker", "--queues", "other"),
    ],
)  # fmt: skip
def test_bad_usage_is_2_and_reaches_no_api(api: FakeApi, rebuildctl: Rebuildctl, arguments: tuple[str, ...]) -> None:
    result = rebuildctl(*arguments)
    assert result.code == 2
    assert result.err
    assert api.requests == []


def test_a_clean_preview_is_0_and_starts_nothing(api: FakeApi, rebuildctl: Rebuildctl, plan_file: str) -> None:
    api.play("preparing", plan_document("ready", counts=counts(pending=3, skipped=1)))
    result = rebuildctl("preview", plan_file)
    assert result.code == 0
    assert "3 to rebuild, 1 to skip, 0 refused, of 4 servers" in result.out
    assert f"rebuildctl start {PLAN_ID} --digest d1" in result.out
    (submitted,) = api.sent("POST", "/v1/plans")
    assert submitted[3]["hold"] is True
    assert not api.sent("POST", f"/v1/plans/{PLAN_ID}/start")


@pytest.mark.parametrize(("command", "after"), [("approve", "running"), ("reject", "halted"), ("promote", "running")])
def test_a_word_at_a_gate_is_said_with_its_reason(
    api: FakeApi, rebuildctl: Rebuildctl, command: str, after: str
) -> None:
    api.play(after)
    result = rebuildctl(command, PLAN_ID, "--reason", "CHG-7")
    assert result.code == 0
    assert f"{after}: " in result.out
    (said,) = api.sent("POST", f"/v1/plans/{PLAN_ID}/{command}")
    assert said[3] == {"reason": "CHG-7"}


def test_a_preview_with_refused_servers_is_8_and_names_them(
    api: FakeApi, rebuildctl: Rebuildctl, plan_file: str
) -> None:
    api.play("preparing", plan_document("ready", counts=counts(pending=3, refused=1)))
    reason = {"code": "locked", "message": "the server is locked"}
    api.jobs = [{"server_id": "s-1", "name": "web-1", "state": "refused", "reason": reason}]
    result = rebuildctl("preview", plan_file)
    assert result.code == 8
    assert "web-1 refused: locked: the server is locked" in result.out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_stops_the_waiting_and_not_the_plan(api: FakeApi, number: signal.Signals) -> None:
    api.play("running")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "orchestrator.cli", "wait", PLAN_ID,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=dict(os.environ),
    )  # fmt: skip
    try:
        await eventually(lambda: len(api.sent("GET", f"/v1/plans/{PLAN_ID}")) >= 2, deadline=20)
        process.send_signal(number)
        _, err = await asyncio.wait_for(process.communicate(), 20)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 130
    assert err.decode().strip() == f"Stopped waiting; the plan goes on. Wait again: rebuildctl wait {PLAN_ID}"
    assert not api.sent("POST", f"/v1/plans/{PLAN_ID}/cancel")
