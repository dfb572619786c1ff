"""`retry` and `resolve`: what they send, what they show first, and what they leave with."""

import csv
import io
import json

import pytest

from tests.cli.conftest import Rebuildctl
from tests.cli.fake_api import PLAN_ID, FakeApi, counts, plan_document, problem_document, unresolved_job
from tests.cli.test_terminal import Terminal


def decisions(api: FakeApi) -> dict[str, dict[str, object]]:
    """What was sent, by server."""
    return {r[1].split("/")[5]: r[3] for r in api.requests if r[0] == "POST"}


def test_retry_sends_the_servers_and_the_reason(api: FakeApi, rebuildctl: Rebuildctl) -> None:
    api.play("running")
    assert rebuildctl("retry", PLAN_ID, "--server", "s-1", "--server", "s-2", "--reason", "fixed the image").code == 0
    assert rebuildctl("retry", PLAN_ID).code == 0
    first, second = api.sent("POST", f"/v1/plans/{PLAN_ID}/retry")
    assert (first[3], second[3]) == ({"servers": ["s-1", "s-2"], "reason": "fixed the image"}, {})


def test_retry_waits_for_the_plans_end(api: FakeApi, rebuildctl: Rebuildctl) -> None:
    api.play("running", "running", plan_document("failed", counts=counts(succeeded=3, failed=1)))
    assert rebuildctl("retry", PLAN_ID, "--wait").code == 1
    api.play("running", "succeeded")
    assert json.loads(rebuildctl("retry", PLAN_ID, "--wait", "-o", "json").out)["status"] == "succeeded"


def test_a_refused_retry_names_each_server_with_2(api: FakeApi, rebuildctl: Rebuildctl) -> None:
    fault = {"path": "s-2", "code": "not_retryable", "message": "is rebuilding"}
    api.failures = [problem_document(409, "not_retryable", "1 server can't be retried.", fault)]
    result = rebuildctl("retry", PLAN_ID, "--server", "s-2")
    assert result.code == 2
    assert result.err.splitlines() == ["s-2: is rebuilding", "1 server can't be retried. (not_retryable)"]


def test_resolve_takes_each_servers_present_attempt_and_says_which(api: FakeApi, rebuildctl: Rebuildctl) -> None:
    api.play("running")
    api.jobs = [unresolved_job("s-1", 1), unresolved_job("s-2", 3), unresolved_job("s-3", 1)]
    result = rebuildctl("resolve", PLAN_ID, "s-2", "s-1", "s-2", "--decision", "applied", "--reason", "seen booting")
    assert result.code == 0
    assert result.out.splitlines() == [
        "s-2 (web-s-2): attempt 3 settled as applied, now rebuilding",
        "s-1 (web-s-1): attempt 1 settled as applied, now rebuilding",
    ]
    assert decisions(api) == {
        "s-2": {"decision": "applied", "attempt": 3, "reason": "seen booting"},
        "s-1": {"decision": "applied", "attempt": 1, "reason": "seen booting"},
    }


def test_resolve_all_takes_every_unresolved_server_over_all_pages_and_no_other(
    api: FakeApi, rebuildctl: Rebuildctl
) -> None:
    api.play("failed")
    api.jobs = [unresolved_job(f"s-{i}") for i in range(20)] + [unresolved_job("s-x", state="stuck")]
    result = rebuildctl("resolve", PLAN_ID, "--all", "--decision", "give_up")
    assert result.code == 0
    assert [line.split()[0] for line in result.out.splitlines()] == [f"s-{i}" for i in range(20)], "in their order"
    assert decisions(api).keys() == {f"s-{i}" for i in range(20)}


def test_resolve_goes_on_after_a_refused_server_and_leaves_with_1(api: FakeApi, rebuildctl: Rebuildctl) -> None:
    api.play("running")
    api.jobs = [unresolved_job("s-1"), unresolved_job("s-2"), unresolved_job("s-3", 0)]
    fault = {"path": "marker", "code": "positive", "message": "the server carries the call's marker"}
    api.refusals["s-1"] = problem_document(409, "evidence_positive", "The call took effect.", fault)
    result = rebuildctl("resolve", PLAN_ID, "s-1", "s-0", "s-3", "s-2", "--decision", "not_applied")
    assert result.code == 1
    assert result.out.splitlines() == [
        "s-1 (web-s-1): attempt 1 not settled: evidence_positive: The call took effect.",
        "s-0: not settled: not_found: The plan has no server of that id.",
        "s-3 (web-s-3): not settled: no_attempt: No call was made for it in this plan.",
        "s-2 (web-s-2): attempt 1 settled as not_applied, now pending",
    ]
    assert result.err.splitlines() == ["  marker: the server carries the call's marker"]


def test_an_attempt_that_was_looked_at_is_sent_though_there_is_a_newer_one(
    api: FakeApi, rebuildctl: Rebuildctl
) -> None:
    api.play("running")
    api.jobs = [unresolved_job("s-1", 2)]
    result = rebuildctl("resolve", PLAN_ID, "s-1", "--decision", "applied", "--attempt", "1")
    assert (result.code, decisions(api)["s-1"]["attempt"]) == (1, 1)
    assert "attempt_mismatch" in result.out


def test_resolves_json_is_one_document_with_an_item_for_each_server(api: FakeApi, rebuildctl: Rebuildctl) -> None:
    api.play("running")
    api.jobs = [unresolved_job("s-1"), unresolved_job("s-2")]
    api.refusals["s-2"] = problem_document(409, "wrong_state", "The server is rebuilding.")
    result = rebuildctl("resolve", PLAN_ID, "s-1", "s-2", "--decision", "give_up", "-o", "json")
    assert result.code == 1
    settled, refused = json.loads(result.out)["items"]
    assert settled == {
        "server_id": "s-1", "name": "web-s-1", "decision": "give_up", "attempt": 1, "settled": True,
        "job": api.jobs[0], "problem": None,
    }  # fmt: skip
    assert settled["job"]["state"] == "failed"
    assert (refused["settled"], refused["job"]) == (False, None)
    assert refused["problem"] == {"code": "wrong_state", "detail": "The server is rebuilding.", "errors": []}
    (row,) = csv.DictReader(
        io.StringIO(rebuildctl("resolve", PLAN_ID, "s-2", "--decision", "give_up", "-o", "csv").out)
    )
    assert (row["server_id"], row["settled"], row["code"]) == ("s-2", "False", "wrong_state")


def test_nothing_unresolved_is_no_error(api: FakeApi, rebuildctl: Rebuildctl) -> None:
    api.play("running")
    result = rebuildctl("resolve", PLAN_ID, "--all", "--decision", "applied")
    assert (result.code, result.out) == (0, "The plan has no unresolved servers.\n")
    result = rebuildctl("resolve", PLAN_ID, "--all", "--decision", "applied", "-o", "json")
    assert (result.code, json.loads(result.out)) == (0, {"items": [], "next": None})


@pytest.mark.parametrize(
    "arguments",
    [
        ("--decision", "applied"), ("s-1",), ("s-1", "--decision", "maybe"), ("s-1", "--all", "--decision", "applied"),
        ("--all", "--attempt", "1", "--decision", "applied"), ("s-1", "--attempt", "0", "--decision", "applied"),
    ],
)  # fmt: skip
def test_bad_usage_of_resolve_is_2_and_reaches_no_api(
    api: FakeApi, rebuildctl: Rebuildctl, arguments: tuple[str, ...]
) -> None:
    assert rebuildctl("resolve", PLAN_ID, *arguments).code == 2
    assert api.requests == []


def test_a_token_that_may_not_decide_is_7_at_the_first_server(api: FakeApi, rebuildctl: Rebuildctl) -> None:
    api.play("running")
    api.jobs = [unresolved_job(f"s-{i}") for i in range(30)]
    for job in api.jobs:
        api.refusals[job["server_id"]] = problem_document(403, "not_allowed", "The role viewer may not act on plans.")
    result = rebuildctl("resolve", PLAN_ID, "--all", "--decision", "applied")
    assert (result.code, result.out) == (7, "")
    assert len(decisions(api)) < 30


def test_an_api_that_goes_away_ends_the_rest_with_6(api: FakeApi, rebuildctl: Rebuildctl) -> None:
    api.play("running")
    api.jobs = [unresolved_job(f"s-{i:02}") for i in range(30)]
    resolve = api.resolve

    def resolve_and_break(server_id: str, body: dict[str, object]) -> object:
        api.failures = ["drop"] * 100
        return resolve(server_id, body)

    api.resolve = resolve_and_break  # type: ignore[method-assign,assignment]
    result = rebuildctl("resolve", PLAN_ID, "--all", "--decision", "applied")
    assert result.code == 6
    lines = result.out.splitlines()
    assert len(lines) == 30
    assert lines[0].endswith("settled as applied, now rebuilding")
    assert lines[-1].endswith("not tried: the API is out of reach")
    assert len(decisions(api)) < 30


def test_an_unknown_plan_is_said_to_be_unknown(api: FakeApi, rebuildctl: Rebuildctl) -> None:
    result = rebuildctl("resolve", PLAN_ID, "s-1", "--decision", "applied")
    assert (result.code, result.out) == (2, "")
    assert "There is no plan of that id." in result.err


def test_a_jobs_evidence_is_shown_with_its_attempts(api: FakeApi, rebuildctl: Rebuildctl) -> None:
    api.play("running")
    api.jobs = [unresolved_job("s-1", 2)]
    out = rebuildctl("jobs", PLAN_ID, "s-1").out
    assert "unknown/server_error" in out
    assert out.count("Nothing shows that the call took effect.") == 2


def test_a_wait_that_ends_with_unresolved_servers_says_what_to_do(api: FakeApi, rebuildctl: Rebuildctl) -> None:
    api.play(plan_document("failed", counts=counts(succeeded=3, unresolved=1)))
    err = rebuildctl("wait", PLAN_ID).err
    assert f"rebuildctl jobs {PLAN_ID} --state unresolved" in err
    assert f"rebuildctl resolve {PLAN_ID} SERVER --decision" in err
    assert "retry" not in err


async def test_on_a_terminal_the_evidence_is_shown_and_nothing_is_decided_without_a_yes(api: FakeApi) -> None:
    api.play("running")
    api.jobs = [unresolved_job("s-1", 2), unresolved_job("s-2")]
    arguments = ("resolve", PLAN_ID, "--all", "--decision", "not_applied")
    async with Terminal(arguments) as terminal:
        await terminal.sees("s-1  web-s-1 unresolved: unknown_answer")
        await terminal.sees("attempt 2, sent ")
        await terminal.sees("unknown/server_error, HTTP 502, request id req-2")
        await terminal.sees("before it: status=ACTIVE, image=old-image")
        await terminal.sees("actions: none")
        await terminal.sees("finding: nothing: Nothing shows that the call took effect.")
        await terminal.sees("Settle these 2 servers as not_applied")
        assert decisions(api) == {}
        terminal.types("n\n")
        assert await terminal.ends() == 1
        await terminal.sees("Nothing was settled.")
    assert decisions(api) == {}
    async with Terminal(arguments) as terminal:
        await terminal.sees("[y/N]")
        terminal.types("y\n")
        assert await terminal.ends() == 0
        await terminal.sees("s-2 (web-s-2): attempt 1 settled as not_applied, now pending")
    assert decisions(api)["s-1"] == {"decision": "not_applied", "attempt": 2}


async def test_yes_shows_the_evidence_and_does_not_ask(api: FakeApi) -> None:
    api.play("running")
    api.jobs = [unresolved_job("s-1")]
    async with Terminal(("resolve", PLAN_ID, "s-1", "--decision", "applied", "--yes")) as terminal:
        assert await terminal.ends() == 0
        await terminal.sees("before it: status=ACTIVE")
        await terminal.sees("attempt 1 settled as applied, now rebuilding")
        assert "[y/N]" not in terminal.text
