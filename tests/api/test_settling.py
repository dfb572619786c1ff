"""A person's word: settling unresolved servers, giving up stuck ones, retrying failed ones."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.clouds.config import load_cloud
from orchestrator.clouds.factory import pace_key
from orchestrator.clouds.pacing import Limiter, make_redis
from orchestrator.clouds.sign_in import TokenCache
from orchestrator.domain.evidence import MARKER
from orchestrator.domain.states import JobState, PlanStatus
from orchestrator.rehearsal import RehearsalConfig, Running, serve
from orchestrator.service import settle
from tests.api.conftest import Api, server_id
from tests.api.plant import column, holds, move, ready_plan, running_plan

ONE, TWO, THREE = (server_id(i) for i in range(3))
PENDING, FAILED, REFUSED = JobState.PENDING, JobState.FAILED, JobState.REFUSED
REBUILDING, STUCK, UNRESOLVED = JobState.REBUILDING, JobState.STUCK, JobState.UNRESOLVED


@pytest.fixture
async def cloud(api: Api, clouds_yaml: Path) -> AsyncIterator[Running]:
    """A cloud that can be looked at, as `rehearsal`."""
    async with serve(RehearsalConfig(servers=3)) as running:
        add_cloud(clouds_yaml, "rehearsal", running.cloud_entry({"write_rate": "4/s"}))
        yield running


def add_cloud(clouds_yaml: Path, name: str, entry: dict[str, Any]) -> None:
    document = yaml.safe_load(clouds_yaml.read_text())
    document["clouds"][name] = entry
    clouds_yaml.write_text(yaml.safe_dump(document))


def job(plan_id: str, server: str = ONE) -> str:
    return f"/v1/plans/{plan_id}/jobs/{server}"


def word(decision: str, attempt: int = 1, **more: Any) -> dict[str, Any]:
    return {"decision": decision, "attempt": attempt, **more}


async def rebuildctl(api: Api, *arguments: str) -> tuple[int, Any]:
    """A run of rebuildctl against the real API: its exit code and its document."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "orchestrator.cli", *arguments, "--output", "json", stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "REBUILD_API_URL": api.url, "REBUILD_TOKEN": api.tokens["operator"]},
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, json.loads(out)


async def state_of(api: Api, plan_id: str, server: str = ONE) -> str:
    return str((await api.get(job(plan_id, server))).json["state"])


async def test_applied_is_watched_as_a_rebuild_and_stands_in_the_evidence_and_the_history(api: Api) -> None:
    plan_id = await running_plan(api, {ONE: UNRESOLVED, TWO: PENDING})
    answer = await api.post(job(plan_id) + "/resolve", word("applied", reason="seen booting"), role="operator")
    assert (answer.status, answer.json["state"]) == (200, "rebuilding")
    assert answer.json["reason"]["message"] == "seen booting"
    evidence = answer.json["attempt_log"][-1]["evidence"]
    assert evidence[-1]["kind"] == "person"
    assert evidence[-1]["value"] == "operator: applied (seen booting)"
    assert evidence[-1]["at"]
    event = next(e for e in answer.json["events"] if e["to"] == "rebuilding")
    assert (event["from"], event["actor"]) == ("unresolved", "operator")
    assert event["data"] == {"decision": "applied", "attempt": 1}
    assert ONE in await holds(api)
    plan = (await api.get(f"/v1/plans/{plan_id}")).json
    assert (plan["status"], plan["counts"]["rebuilding"], plan["counts"]["unresolved"]) == ("running", 1, 0)
    assert await column(api, plan_id, "due") is True


@pytest.mark.parametrize("state", [UNRESOLVED, STUCK])
async def test_giving_up_fails_the_job_and_lets_its_server_go(api: Api, state: JobState) -> None:
    plan_id = await running_plan(api, {ONE: state, TWO: PENDING})
    answer = await api.post(job(plan_id) + "/resolve", word("give_up"))
    assert (answer.status, answer.json["state"]) == (200, "failed")
    assert await holds(api) == [TWO]


async def test_what_a_person_decides_about_is_an_unresolved_job_or_a_stuck_one_to_give_up(api: Api) -> None:
    plan_id = await running_plan(api, {ONE: STUCK, TWO: REBUILDING, THREE: PENDING})
    for server, decision in ((ONE, "applied"), (ONE, "not_applied"), (TWO, "give_up"), (THREE, "give_up")):
        answer = await api.post(job(plan_id, server) + "/resolve", word(decision))
        assert (answer.status, answer.json["code"]) == (409, "wrong_state"), (server, decision)
    assert [await state_of(api, plan_id, s) for s in (ONE, TWO, THREE)] == ["stuck", "rebuilding", "pending"]


async def test_a_decision_about_another_attempt_than_the_newest_is_refused(api: Api) -> None:
    plan_id = await running_plan(api, {ONE: UNRESOLVED, TWO: PENDING})
    answer = await api.post(job(plan_id) + "/resolve", word("give_up", attempt=2))
    assert (answer.status, answer.json["code"]) == (409, "attempt_mismatch")
    assert await state_of(api, plan_id) == "unresolved"


async def test_of_two_decisions_at_once_one_holds(api: Api) -> None:
    plan_id = await running_plan(api, {ONE: UNRESOLVED, TWO: PENDING})
    path = job(plan_id) + "/resolve"
    answers = await asyncio.gather(*(api.post(path, word(d)) for d in ("applied", "give_up") * 3))
    assert sorted(a.status for a in answers) == [200, 409, 409, 409, 409, 409]
    (held,) = (a for a in answers if a.status == 200)
    assert await state_of(api, plan_id) == held.json["state"]
    assert (await api.get(f"/v1/plans/{plan_id}")).json["counts"]["total"] == 2


async def test_not_applied_is_refused_while_the_cloud_can_not_be_looked_at(api: Api) -> None:
    plan_id = await running_plan(api, {ONE: UNRESOLVED, TWO: PENDING})
    answer = await api.post(job(plan_id) + "/resolve", word("not_applied"))
    assert (answer.status, answer.json["code"]) == (409, "evidence_unavailable")
    assert await state_of(api, plan_id) == "unresolved"


async def test_not_applied_is_refused_with_the_evidence_where_the_cloud_shows_an_effect(
    api: Api, cloud: Running
) -> None:
    servers = list(cloud.cloud.servers)[:2]
    plan_id = await running_plan(api, {servers[0]: UNRESOLVED, servers[1]: PENDING}, cloud="rehearsal")
    cloud.cloud.servers[servers[0]].metadata[MARKER] = f"{plan_id}/1"
    answer = await api.post(job(plan_id, servers[0]) + "/resolve", word("not_applied"))
    assert (answer.status, answer.json["code"]) == (409, "evidence_positive")
    assert {e["path"]: e["message"] for e in answer.json["errors"]}["marker"] == f"{plan_id}/1"
    assert await state_of(api, plan_id, servers[0]) == "unresolved"


@pytest.mark.parametrize(
    ("status", "state", "then"),
    [(PlanStatus.RUNNING, "pending", "running"), (PlanStatus.FAILED, "pending", "running"),
     (PlanStatus.CANCELLED, "cancelled", "cancelled")],
)  # fmt: skip
async def test_not_applied_without_a_trace_is_tried_again_and_in_a_cancelled_plan_is_cancelled(
    api: Api, cloud: Running, status: PlanStatus, state: str, then: str
) -> None:
    server, other = list(cloud.cloud.servers)[:2]
    plan_id = await running_plan(api, {server: UNRESOLVED, other: FAILED}, cloud="rehearsal")
    if status is PlanStatus.CANCELLED:
        await move(api, plan_id, PlanStatus.RUNNING, PlanStatus.CANCELLING)
        await move(api, plan_id, PlanStatus.CANCELLING, status)
    elif status is not PlanStatus.RUNNING:
        await move(api, plan_id, PlanStatus.RUNNING, status)
    answer = await api.post(job(plan_id, server) + "/resolve", word("not_applied"))
    assert (answer.status, answer.json["state"]) == (200, state)
    kinds = [e["kind"] for e in answer.json["attempt_log"][-1]["evidence"]]
    assert kinds[-1] == "person"
    assert {"server", "actions"} <= set(kinds), "what the last look showed is kept"
    plan = (await api.get(f"/v1/plans/{plan_id}")).json
    assert plan["status"] == then
    assert (await holds(api) == [server]) is (state == "pending")
    if then == "running":
        assert plan["finished_at"] is None


async def test_the_look_waits_for_the_pace_that_the_workers_read_at(
    api: Api, cloud: Running, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cloud that told the workers to slow down isn't asked by the API meanwhile, and no request waits for an hour."""
    monkeypatch.setattr(settle, "LOOK_PATIENCE", 1.5)
    server, other = list(cloud.cloud.servers)[:2]
    plan_id = await running_plan(api, {server: UNRESOLVED, other: PENDING}, cloud="rehearsal")
    project = await TokenCache().get(load_cloud("rehearsal"))
    key = pace_key(project.project, "read")
    async with make_redis(redis_url) as redis:
        await Limiter(redis, key, 10.0).throttled(3600.0, 0)
        answer = await api.post(job(plan_id, server) + "/resolve", word("not_applied"))
        assert (answer.status, answer.json["code"]) == (409, "evidence_unavailable")
        assert await state_of(api, plan_id, server) == "unresolved"
        await redis.delete(f"rebuild:pace:{{{key}}}")
    assert (await api.post(job(plan_id, server) + "/resolve", word("not_applied"))).status == 200


@pytest.mark.parametrize(
    ("body", "path"),
    [({"attempt": 1}, "decision"), ({"decision": "applied"}, "attempt"), (word("maybe"), "decision"),
     (word("applied", 0), "attempt"), (word("applied", 40_000), "attempt"),
     ({"decision": "applied", "attempt": "1"}, "attempt"), ({"decision": "applied", "attempt": True}, "attempt"),
     (word("applied", reason=""), "reason"), (word("applied", digest="d"), "digest"), (None, "decision")],
)  # fmt: skip
async def test_a_faulty_decision_is_refused_with_the_path_of_the_fault(
    api: Api, body: dict[str, Any] | None, path: str
) -> None:
    plan_id = await running_plan(api, {ONE: UNRESOLVED, TWO: PENDING})
    answer = await api.post(job(plan_id) + "/resolve", body)
    assert (answer.status, answer.json["errors"][0]["path"]) == (422, path)
    assert await state_of(api, plan_id) == "unresolved"


async def test_only_operators_and_admins_decide_and_retry(api: Api) -> None:
    plan_id = await running_plan(api, {ONE: UNRESOLVED, TWO: FAILED})
    for role in ("viewer", "submitter", "approver"):
        for path, body in ((job(plan_id) + "/resolve", word("applied")), (f"/v1/plans/{plan_id}/retry", {})):
            answer = await api.post(path, body, role=role)
            assert (answer.status, answer.json["code"]) == (403, "not_allowed"), (role, path)
    made = (await api.post("/v1/tokens", {"name": "b", "role": "operator", "clouds": ["beta"]})).json
    mine = {"Authorization": f"Bearer {made['token']}"}
    assert (await api.post(job(plan_id) + "/resolve", word("applied"), headers=mine)).status == 403
    assert (await api.post(f"/v1/plans/{plan_id}/retry", headers=mine)).status == 403
    assert [await state_of(api, plan_id, s) for s in (ONE, TWO)] == ["unresolved", "failed"]
    assert (await api.post(job(plan_id) + "/resolve", word("applied"), role="operator")).status == 200
    assert (await api.post(f"/v1/plans/{plan_id}/retry", role="operator")).status == 200


async def test_a_server_or_plan_that_is_not_there_is_a_404(api: Api) -> None:
    plan_id = await running_plan(api, {ONE: UNRESOLVED, TWO: PENDING})
    unknown = "01990000-0000-7000-8000-000000000000"
    for path in (job(plan_id, THREE), job(unknown), job("x"), job(plan_id, "a%00b")):
        assert (await api.post(path + "/resolve", word("applied"))).status == 404, path
    for plan in (unknown, "x"):
        assert (await api.post(f"/v1/plans/{plan}/retry")).status == 404


@pytest.mark.parametrize("status", [PlanStatus.RUNNING, PlanStatus.FAILED, PlanStatus.HALTED])
async def test_retry_sends_every_failed_server_again_and_the_plan_runs(api: Api, status: PlanStatus) -> None:
    plan_id = await running_plan(api, {ONE: FAILED, TWO: UNRESOLVED, THREE: REFUSED})
    assert await holds(api) == [TWO]
    if status is not PlanStatus.RUNNING:
        await move(api, plan_id, PlanStatus.RUNNING, status)
    answer = await api.post(f"/v1/plans/{plan_id}/retry", {"reason": "the image is mended"}, role="operator")
    assert (answer.status, answer.json["status"], answer.json["finished_at"]) == (200, "running", None)
    assert answer.json["counts"]["pending"] == 1
    detail = (await api.get(job(plan_id))).json
    assert (detail["state"], detail["reason"]) == ("pending", {"code": "retried", "message": "the image is mended"})
    event = next(e for e in detail["events"] if e["to"] == "pending")
    assert (event["from"], event["actor"], event["reason"]["message"]) == ("failed", "operator", "the image is mended")
    assert [await state_of(api, plan_id, s) for s in (TWO, THREE)] == ["unresolved", "refused"]
    assert await holds(api) == [ONE, TWO]
    assert await column(api, plan_id, "due") is True


async def test_retry_of_named_servers_takes_those_alone_and_refused_ones_too(api: Api) -> None:
    plan_id = await running_plan(api, {ONE: FAILED, TWO: FAILED, THREE: REFUSED})
    answer = await api.post(f"/v1/plans/{plan_id}/retry", {"servers": [THREE, ONE]})
    assert answer.status == 200
    assert [await state_of(api, plan_id, s) for s in (ONE, TWO, THREE)] == ["pending", "failed", "pending"]


async def test_retry_names_every_server_that_it_can_not_take_and_takes_none(api: Api) -> None:
    plan_id = await running_plan(api, {ONE: FAILED, TWO: REBUILDING, THREE: UNRESOLVED})
    answer = await api.post(f"/v1/plans/{plan_id}/retry", {"servers": [ONE, TWO, THREE, server_id(9)]})
    assert (answer.status, answer.json["code"]) == (409, "not_retryable")
    assert [e["path"] for e in answer.json["errors"]] == [TWO, THREE, server_id(9)]
    assert await state_of(api, plan_id) == "failed"


async def test_retry_takes_nothing_that_another_plan_holds(api: Api) -> None:
    plan_id = await running_plan(api, {ONE: FAILED, TWO: FAILED})
    other = await ready_plan(api, ids=[TWO, THREE])
    assert (await api.post(f"/v1/plans/{other['id']}/start")).status == 200
    answer = await api.post(f"/v1/plans/{plan_id}/retry")
    assert (answer.status, answer.json["code"]) == (409, "servers_held")
    assert [e["path"] for e in answer.json["errors"]] == [TWO]
    assert other["id"] in answer.json["errors"][0]["message"]
    assert [await state_of(api, plan_id, s) for s in (ONE, TWO)] == ["failed", "failed"]
    assert await holds(api) == [TWO, THREE]
    assert (await api.post(f"/v1/plans/{plan_id}/retry", {"servers": [ONE]})).status == 200


async def test_retry_without_anything_to_retry_says_so(api: Api) -> None:
    plan_id = await running_plan(api, {ONE: UNRESOLVED, TWO: PENDING})
    answer = await api.post(f"/v1/plans/{plan_id}/retry")
    assert (answer.status, answer.json["code"]) == (409, "nothing_to_retry")
    empty = await api.post(f"/v1/plans/{plan_id}/retry", {"servers": []})
    assert (empty.status, empty.json["errors"][0]["path"]) == (422, "servers")
    held = await ready_plan(api, first=10)
    assert (await api.post(f"/v1/plans/{held['id']}/retry")).status == 409


async def test_rebuildctl_settles_all_that_it_can_and_retries_them(api: Api) -> None:
    plan_id = await running_plan(api, {ONE: UNRESOLVED, TWO: UNRESOLVED, THREE: STUCK})
    code, page = await rebuildctl(api, "resolve", plan_id, "--all", "--decision", "not_applied")
    assert (code, [i["problem"]["code"] for i in page["items"]]) == (1, ["evidence_unavailable"] * 2)
    code, page = await rebuildctl(api, "resolve", plan_id, THREE, ONE, TWO, "--decision", "give_up", "--reason", "old")
    assert (code, [i["job"]["state"] for i in page["items"]]) == (0, ["failed"] * 3)
    assert await holds(api) == []
    code, plan = await rebuildctl(api, "retry", plan_id, "--server", TWO, "--reason", "again")
    assert (code, plan["status"], plan["counts"]["pending"], plan["counts"]["failed"]) == (0, "running", 1, 2)
    assert await holds(api) == [TWO]
