"""Controls: a plan's pace, single servers, and the emergency stop of a cloud."""

from typing import Any

import pytest
from sqlalchemy import text

from orchestrator.domain.states import JobState, PlanStatus
from tests.api.conftest import Api, plan_file, server_id
from tests.api.plant import column, holds, move, ready_plan, running_plan

ONE, TWO, THREE = (server_id(i) for i in range(3))
PENDING, CHECKING, FAILED = JobState.PENDING, JobState.CHECKING, JobState.FAILED


async def events(api: Api, plan_id: str, kind: str) -> list[dict[str, Any]]:
    found = (await api.get(f"/v1/plans/{plan_id}/events", limit=1000)).json["items"]
    return [e for e in found if e["type"] == kind]


async def outage(api: Api, server: str) -> list[tuple[str | None]]:
    async with api.engine.connect() as conn:
        rows = await conn.execute(text("SELECT acknowledged_by FROM outages WHERE server_id = :s"), {"s": server})
        return [tuple(r) for r in rows]


# A plan's pace


async def test_a_plans_pace_changes_and_the_event_says_from_what_to_what(api: Api) -> None:
    plan_id = await running_plan(api, {ONE: PENDING, TWO: PENDING})
    epoch = await column(api, plan_id, "go_epoch")
    plan = f"/v1/plans/{plan_id}"
    answer = await api.call("PATCH", plan, {"max_in_flight": 4, "rate": "90/m", "reason": "slowly"}, role="operator")
    assert (answer.status, answer.json["max_in_flight"]) == (200, 4)
    assert await column(api, plan_id, "rate") == 1.5
    assert await column(api, plan_id, "go_epoch") == epoch + 1, "a lower limit takes back what is claimed"
    (event,) = await events(api, plan_id, "plan.changed")
    assert (event["actor"], event["reason"]["message"]) == ("operator", "slowly")
    assert event["data"] == {"old": {"max_in_flight": 10, "rate": "4/s"}, "new": {"max_in_flight": 4, "rate": "90/m"}}
    assert (await api.call("PATCH", plan, {"max_in_flight": 4, "rate": "1.5/s"})).status == 200
    assert len(await events(api, plan_id, "plan.changed")) == 1, "what is so already is no change"
    assert (await api.call("PATCH", plan, {"max_in_flight": 20, "rate": "4/s"})).status == 200
    assert await column(api, plan_id, "rate") is None, "the cloud's own rate is no rate of the plan's"
    assert await column(api, plan_id, "go_epoch") == epoch + 1


@pytest.mark.parametrize(
    ("body", "path", "code"),
    [({"max_in_flight": 501}, "max_in_flight", "above_cloud"), ({"rate": "5/s"}, "rate", "above_cloud"),
     ({"rate": "fast"}, "rate", "invalid_value"), ({"max_in_flight": 0}, "max_in_flight", "greater_than_equal"),
     ({"reason": "none"}, "", "missing"), ({"priority": 1}, "priority", "unknown_field")],
)  # fmt: skip
async def test_a_pace_that_cannot_be_is_refused_with_the_field(
    api: Api, body: dict[str, Any], path: str, code: str
) -> None:
    plan_id = await running_plan(api, {ONE: PENDING, TWO: PENDING})
    answer = await api.call("PATCH", f"/v1/plans/{plan_id}", body)
    assert (answer.status, [(e["path"], e["code"]) for e in answer.json["errors"]]) == (422, [(path, code)])
    assert not await events(api, plan_id, "plan.changed")


async def test_the_pace_of_a_plan_that_is_not_prepared_or_has_ended_stays(api: Api) -> None:
    preparing = (await api.post("/v1/plans", plan_file())).json["id"]
    ended = (await ready_plan(api, first=10))["id"]
    assert (await api.post(f"/v1/plans/{ended}/cancel")).status == 200
    for plan_id in (preparing, ended):
        answer = await api.call("PATCH", f"/v1/plans/{plan_id}", {"max_in_flight": 1})
        assert (answer.status, answer.json["code"]) == (409, "wrong_state")
    assert (await api.call("PATCH", f"/v1/plans/{ended}", {"max_in_flight": 1}, role="submitter")).status == 403


# Single servers


@pytest.mark.parametrize("state", [PENDING, CHECKING])
async def test_a_server_that_was_not_sent_is_left_out_and_is_free_for_others(api: Api, state: JobState) -> None:
    plan_id = await running_plan(api, {ONE: state, TWO: PENDING})
    path = f"/v1/plans/{plan_id}/jobs/{ONE}/skip"
    answer = await api.post(path, {"reason": "it is being moved"}, role="operator")
    assert (answer.status, answer.json["state"], answer.json["reason"]["code"]) == (200, "skipped", "skipped_by")
    assert answer.json["reason"]["message"] == "operator left it out: it is being moved"
    assert await holds(api) == [TWO]
    assert (await api.post(path)).status == 200
    assert len(await events(api, plan_id, "job.skipped")) == 1, "saying it again changes nothing"


async def test_only_what_was_not_sent_is_left_out_and_only_by_operators(api: Api) -> None:
    plan_id = await running_plan(api, {ONE: JobState.REBUILDING, TWO: PENDING})
    answer = await api.post(f"/v1/plans/{plan_id}/jobs/{ONE}/skip")
    assert (answer.status, answer.json["code"]) == (409, "wrong_state")
    assert (await api.post(f"/v1/plans/{plan_id}/jobs/{TWO}/skip", role="submitter")).status == 403
    assert (await api.post(f"/v1/plans/{plan_id}/jobs/{THREE}/skip")).status == 404
    await move(api, plan_id, PlanStatus.RUNNING, PlanStatus.CANCELLING)
    assert (await api.post(f"/v1/plans/{plan_id}/jobs/{TWO}/skip")).status == 409


async def test_a_server_of_a_saved_preview_can_be_left_out(api: Api) -> None:
    plan_id = (await ready_plan(api))["id"]
    assert (await api.post(f"/v1/plans/{plan_id}/jobs/{TWO}/skip")).status == 200
    assert (await api.post(f"/v1/plans/{plan_id}/start")).status == 200
    assert await holds(api) == [ONE, THREE]


@pytest.mark.parametrize("state", [FAILED, JobState.STUCK, JobState.UNRESOLVED])
async def test_an_acknowledged_server_keeps_no_place_and_counts_as_before(api: Api, state: JobState) -> None:
    plan_id = await running_plan(api, {ONE: state, TWO: PENDING})
    before = (await api.get(f"/v1/plans/{plan_id}")).json["counts"]
    path = f"/v1/plans/{plan_id}/jobs/{ONE}/acknowledge"
    assert await outage(api, ONE) == [(None,)]
    for reason in ("the host is broken", "again"):
        answer = await api.post(path, {"reason": reason}, role="operator")
        assert (answer.status, answer.json["state"]) == (200, state)
    assert await outage(api, ONE) == [("operator",)]
    (event,) = await events(api, plan_id, "job.acknowledged")
    assert (event["server_id"], event["actor"], event["reason"]["message"]) == (ONE, "operator", "the host is broken")
    assert (await api.get(f"/v1/plans/{plan_id}")).json["counts"] == before


async def test_a_retry_forgets_the_acknowledgement_and_other_servers_have_none(api: Api) -> None:
    plan_id = await running_plan(api, {ONE: FAILED, TWO: PENDING})
    refused = await api.post(f"/v1/plans/{plan_id}/jobs/{TWO}/acknowledge")
    assert (refused.status, refused.json["code"]) == (409, "wrong_state")
    assert (await api.post(f"/v1/plans/{plan_id}/jobs/{ONE}/acknowledge")).status == 200
    assert (await api.post(f"/v1/plans/{plan_id}/retry")).status == 200
    assert await outage(api, ONE) == [(None,)]
    assert (await api.post(f"/v1/plans/{plan_id}/jobs/{ONE}/acknowledge")).status == 409, "it is pending again"


# Clouds


async def test_a_paused_cloud_shows_who_and_why_on_it_and_on_its_running_plans(api: Api) -> None:
    plan_id = await running_plan(api, {ONE: PENDING, TWO: PENDING})
    saved = (await ready_plan(api, first=10))["id"]
    async with api.engine.begin() as conn:
        await conn.execute(
            text("INSERT INTO clouds (name, project) SELECT 'alpha', id FROM projects "
                 "ON CONFLICT (name) DO UPDATE SET project = excluded.project")
        )  # fmt: skip
    answer = await api.post("/v1/clouds/alpha/pause", {"reason": "storage is failing"}, role="operator")
    assert answer.status == 200
    project = answer.json["project"]
    assert (project["paused"], project["paused_reason"], project["paused_by"]) == (
        True,
        "storage is failing",
        "operator",
    )
    assert (await api.post("/v1/clouds/alpha/pause", {"reason": "again"})).json["project"] == project, "the first stays"
    shown = next(c for c in (await api.get("/v1/clouds")).json["items"] if c["name"] == "alpha")
    assert shown["project"] == project
    plan = (await api.get(f"/v1/plans/{plan_id}")).json
    assert (plan["status"], plan["reason"]["code"]) == ("running", "cloud_paused")
    assert plan["reason"]["message"] == "operator has paused its cloud: storage is failing"
    (event,) = await events(api, plan_id, "plan.cloud_paused")
    assert (event["actor"], event["reason"]["message"]) == ("operator", "storage is failing")
    assert not await events(api, saved, "plan.cloud_paused"), "only what is driven is told"

    for _ in range(2):
        answer = await api.post("/v1/clouds/alpha/resume", role="operator")
        assert (answer.status, answer.json["project"]["paused"]) == (200, False)
    assert len(await events(api, plan_id, "plan.cloud_resumed")) == 1
    assert (await api.get(f"/v1/plans/{plan_id}")).json["reason"] is None


async def test_a_cloud_without_a_project_or_a_name_is_refused_and_so_is_who_may_not(api: Api) -> None:
    answer = await api.post("/v1/clouds/beta/pause")
    assert (answer.status, answer.json["code"]) == (409, "never_signed_in")
    assert (await api.post("/v1/clouds/no-such/pause")).status == 404
    assert (await api.post("/v1/clouds/beta/pause", role="submitter")).status == 403
