"""Starting, pausing, resuming and cancelling."""

import asyncio

import pytest
from sqlalchemy import text

from orchestrator.domain.states import JobState, PlanStatus
from orchestrator.hints import DRIVE_QUEUE
from orchestrator.ledger.engine import transaction
from tests.api.conftest import Api, plan_file, server_id
from tests.api.plant import column, holds, move, ready_plan


async def test_start_takes_the_holds_and_runs_exactly_the_plan_that_was_previewed(api: Api, redis_url: str) -> None:
    import redis

    plan = await ready_plan(api)
    path = f"/v1/plans/{plan['id']}/start"
    wrong = await api.post(path, {"digest": "b" * 64})
    assert (wrong.status, wrong.json["code"]) == (409, "digest_mismatch")
    started = await api.post(path, {"digest": "a" * 64, "reason": "go"})
    assert (started.status, started.json["status"]) == (200, "running")
    assert started.json["started_at"] is not None
    assert [w["status"] for w in started.json["waves"]] == ["running", "pending"]
    assert started.json["eta"]["limited_by"] in ("rate", "max_in_flight")
    assert started.json["rate"]["allowed_per_second"] == 4.0, "the cloud's own, while nothing was learned"
    assert await holds(api) == [server_id(i) for i in range(3)]
    assert await column(api, plan["id"], "due") is True
    again = await api.post(path)
    assert (again.status, again.json["status"]) == (200, "running")
    with redis.Redis.from_url(redis_url) as client:
        assert client.llen(DRIVE_QUEUE) >= 1


async def test_start_takes_nothing_where_another_plan_holds_a_server(api: Api) -> None:
    first, second = await ready_plan(api, first=0), await ready_plan(api, first=2)
    assert (await api.post(f"/v1/plans/{first['id']}/start")).status == 200
    answer = await api.post(f"/v1/plans/{second['id']}/start")
    assert (answer.status, answer.json["code"]) == (409, "servers_held")
    (fault,) = answer.json["errors"]
    assert fault["path"] == server_id(2)
    assert first["id"] in fault["message"]
    assert await holds(api) == [server_id(i) for i in range(3)]
    assert (await api.get(f"/v1/plans/{second['id']}")).json["status"] == "ready"


async def test_two_overlapping_plans_started_at_once_leave_one_running(api: Api) -> None:
    plans = [await ready_plan(api, servers=50, first=i * 25) for i in range(2)]
    answers = await asyncio.gather(*(api.post(f"/v1/plans/{p['id']}/start") for p in plans))
    assert sorted(a.status for a in answers) == [200, 409]
    assert len(await holds(api)) == 50


async def test_an_expired_preview_does_not_start(api: Api) -> None:
    plan = await ready_plan(api)
    async with transaction(api.engine) as conn:
        await conn.execute(text("UPDATE plans SET expires_at = now() - interval '1 s'"))
    answer = await api.post(f"/v1/plans/{plan['id']}/start")
    assert (answer.status, answer.json["code"]) == (409, "hold_expired")


@pytest.mark.parametrize("action", ["start", "pause", "resume"])
async def test_what_the_status_does_not_allow_is_refused_with_its_name(api: Api, action: str) -> None:
    plan = (await api.post("/v1/plans", plan_file())).json
    answer = await api.post(f"/v1/plans/{plan['id']}/{action}")
    assert answer.status == 409
    assert "preparing" in answer.json["detail"]


async def test_pause_stops_sending_and_resume_returns_where_it_was(api: Api) -> None:
    plan = await ready_plan(api)
    path = f"/v1/plans/{plan['id']}"
    await api.post(f"{path}/start")
    await move(api, plan["id"], PlanStatus.RUNNING, PlanStatus.BAKING)
    epoch = await column(api, plan["id"], "go_epoch")
    paused = await api.post(f"{path}/pause", {"reason": "lunch"})
    assert paused.json["status"] == "paused"
    assert paused.json["reason"] == {"code": "paused", "message": "lunch"}
    assert await column(api, plan["id"], "go_epoch") == epoch + 1
    assert (await api.post(f"{path}/pause")).status == 200
    assert await column(api, plan["id"], "go_epoch") == epoch + 1
    resumed = await api.post(f"{path}/resume")
    assert (resumed.json["status"], resumed.json["reason"]) == ("baking", None)


async def test_resuming_a_halted_plan_acknowledges_its_failures(api: Api) -> None:
    plan = await ready_plan(api)
    await api.post(f"/v1/plans/{plan['id']}/start")
    async with transaction(api.engine) as conn:
        await conn.execute(text("UPDATE job_counts SET state = 'failed' WHERE wave = 0"))
    await move(api, plan["id"], PlanStatus.RUNNING, PlanStatus.HALTED)
    resumed = await api.post(f"/v1/plans/{plan['id']}/resume")
    assert resumed.json["status"] == "running"
    assert await column(api, plan["id"], "acknowledged_failures") == 1
    async with api.engine.connect() as conn:
        rows = await conn.execute(text("SELECT index, resumed FROM waves ORDER BY 1"))
        assert [tuple(r) for r in rows] == [(0, True), (1, False)]


@pytest.mark.parametrize("ready", [False, True])
async def test_a_plan_that_was_never_started_is_cancelled_at_once_with_all_its_jobs(api: Api, ready: bool) -> None:
    plan = await ready_plan(api) if ready else (await api.post("/v1/plans", plan_file())).json
    path = f"/v1/plans/{plan['id']}"
    answer = await api.post(f"{path}/cancel", {"reason": "never mind"})
    assert (answer.status, answer.json["status"]) == (200, "cancelled")
    assert answer.json["finished_at"] is not None
    assert (answer.json["counts"]["cancelled"], answer.json["counts"]["pending"]) == (3, 0)
    jobs = (await api.get(f"{path}/jobs")).json["items"]
    assert {j["state"] for j in jobs} == {JobState.CANCELLED}
    events = (await api.get(f"{path}/events")).json["items"]
    assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
    assert sum(e["type"] == "job.cancelled" for e in events) == 3
    assert events[-1]["type"] == "plan.cancelled"
    assert (await api.post(f"{path}/cancel")).status == 200


async def test_a_running_plan_is_left_to_its_driver_to_cancel(api: Api) -> None:
    plan = await ready_plan(api)
    await api.post(f"/v1/plans/{plan['id']}/start")
    epoch = await column(api, plan["id"], "go_epoch")
    answer = await api.post(f"/v1/plans/{plan['id']}/cancel")
    assert answer.json["status"] == "cancelling"
    assert answer.json["counts"]["pending"] == 3
    assert await column(api, plan["id"], "go_epoch") == epoch + 1
    assert await column(api, plan["id"], "due") is True
    assert len(await holds(api)) == 3


async def test_a_finished_plan_can_not_be_cancelled(api: Api) -> None:
    plan = await ready_plan(api)
    await api.post(f"/v1/plans/{plan['id']}/start")
    await move(api, plan["id"], PlanStatus.RUNNING, PlanStatus.SUCCEEDED)
    answer = await api.post(f"/v1/plans/{plan['id']}/cancel")
    assert answer.status == 409
    assert "succeeded" in answer.json["detail"]


async def test_a_submitter_runs_its_own_plans_only(api: Api) -> None:
    own, other = await ready_plan(api, role="submitter"), await ready_plan(api, first=10)
    assert (await api.post(f"/v1/plans/{other['id']}/start", role="submitter")).status == 403
    assert (await api.post(f"/v1/plans/{other['id']}/cancel", role="submitter")).status == 403
    assert (await api.post(f"/v1/plans/{own['id']}/start", role="submitter")).status == 200
    assert (await api.post(f"/v1/plans/{own['id']}/pause", role="submitter")).status == 403
    assert (await api.post(f"/v1/plans/{own['id']}/cancel", role="submitter")).status == 200


@pytest.mark.parametrize(
    ("action", "field", "value", "taken"),
    [("pause", "digest", "d", "reason"), ("cancel", "servers", ["s"], "reason"), ("resume", "digest", None, "reason"),
     ("start", "servers", ["s"], "reason, digest"), ("retry", "digest", "d", "reason, servers")],
)  # fmt: skip
async def test_a_field_that_an_action_does_not_use_is_refused_with_those_that_it_does(
    api: Api, action: str, field: str, value: object, taken: str
) -> None:
    """`cancel` with `servers` would else cancel the whole plan for somebody who meant one server."""
    plan = await ready_plan(api)
    answer = await api.post(f"/v1/plans/{plan['id']}/{action}", {"reason": "r", field: value})
    assert (answer.status, answer.json["code"]) == (422, "invalid_request")
    (fault,) = answer.json["errors"]
    assert (fault["path"], fault["code"]) == (field, "unknown_field")
    assert fault["message"].endswith(f": {taken}")
    assert (await api.get(f"/v1/plans/{plan['id']}")).json["status"] == "ready"
