"""Cloning plans and rolling them back, as far as the API itself goes: no worker runs here."""

import json
from typing import Any

from sqlalchemy import text

from orchestrator.domain.states import JobState, PlanStatus
from orchestrator.ledger.engine import transaction
from tests.api.conftest import Api, plan_file, server_id
from tests.api.plant import column, move, ready_plan, running_plan


async def applied(api: Api, plan_id: str, images: dict[str, str | None]) -> None:
    """The newest calls of these servers took effect, and this is the image that each had before."""
    async with transaction(api.engine) as conn:
        for server, image in images.items():
            await conn.execute(
                text("""
                UPDATE attempts a SET effect = 'applied', baseline = a.baseline || CAST(:baseline AS jsonb)
                FROM jobs j WHERE j.plan_id = a.plan_id AND j.ord = a.ord AND j.plan_id = :plan
                  AND j.server_id = :server"""),
                {"plan": plan_id, "server": server, "baseline": json.dumps({"image": image})},
            )


async def targets(api: Api, plan_id: str) -> Any:
    return (await api.get(f"/v1/plans/{plan_id}/spec")).json["targets"]["servers"]


async def test_a_clone_has_the_same_content_and_is_held(api: Api) -> None:
    servers = [{"find": "web-1", "image": "other"}, server_id(2)]
    document = plan_file(
        servers, labels={"team": "web"}, rebuild={"user_data": {"text": "secret"}}, hold_expires="2h", priority=0
    )
    plan = (await api.post("/v1/plans", document, role="submitter")).json
    answer = await api.post(f"/v1/plans/{plan['id']}/clone", {"reason": "again"}, role="operator")
    assert answer.status == 200
    copy = answer.json
    assert answer.headers["Location"] == f"/v1/plans/{copy['id']}"
    assert copy["id"] != plan["id"]
    assert (copy["status"], copy["created_by"], copy["labels"], copy["digest"]) == (
        "preparing", "operator", {"team": "web"}, None,
    )  # fmt: skip
    one, other = [(await api.get(f"/v1/plans/{p['id']}/spec")).json for p in (plan, copy)]
    assert other == {**one, "hold": True}
    assert await column(api, copy["id"], "hold") is True
    assert await column(api, copy["id"], "user_data") == b"secret"
    (event,) = (await api.get(f"/v1/plans/{copy['id']}/events")).json["items"]
    assert event["reason"] == {"code": "cloned", "message": "again"}
    assert event["data"] == {"servers": 2, "clone_of": plan["id"]}


async def test_a_name_that_was_found_is_searched_again_in_a_clone(api: Api) -> None:
    plan = await ready_plan(api, servers=2)
    async with transaction(api.engine) as conn:
        await conn.execute(text("UPDATE jobs SET find = 'web-0' WHERE ord = 0"))
    copy = (await api.post(f"/v1/plans/{plan['id']}/clone")).json
    assert await targets(api, copy["id"]) == [{"find": "web-0"}, server_id(1)]


async def test_the_same_key_makes_one_copy_and_another_request_is_refused_under_it(api: Api) -> None:
    plan = await ready_plan(api)
    path, key = f"/v1/plans/{plan['id']}/clone", {"Idempotency-Key": "k"}
    first, second = [(await api.post(path, headers=key)).json["id"] for _ in range(2)]
    assert first == second
    other = await ready_plan(api, first=10)
    answer = await api.post(f"/v1/plans/{other['id']}/clone", headers=key)
    assert (answer.status, answer.json["code"]) == (422, "idempotency_key_reused")


async def test_who_may_clone_and_roll_back(api: Api) -> None:
    server = server_id(1)
    plan_id = await running_plan(api, {server: JobState.SUCCEEDED})
    await applied(api, plan_id, {server: "old"})
    statuses = {
        role: [(await api.post(f"/v1/plans/{plan_id}/{action}", role=role)).status for action in ("clone", "rollback")]
        for role in ("viewer", "approver", "submitter", "operator")
    }
    assert statuses == {
        "viewer": [403, 403], "approver": [403, 403], "submitter": [200, 403], "operator": [200, 200],
    }  # fmt: skip


async def test_a_rollback_names_the_servers_that_the_plan_changed_with_the_images_that_they_had(api: Api) -> None:
    states = {
        server_id(0): JobState.SUCCEEDED, server_id(1): JobState.FAILED, server_id(2): JobState.SUCCEEDED,
        server_id(3): JobState.FAILED, server_id(4): JobState.REBUILDING, server_id(5): JobState.PENDING,
    }  # fmt: skip
    plan_id = await running_plan(api, states)
    await applied(api, plan_id, {server_id(0): "old", server_id(1): "older", server_id(2): None, server_id(4): "old"})
    answer = await api.post(f"/v1/plans/{plan_id}/rollback", {"reason": "it does not boot"})
    back = answer.json
    assert (answer.status, back["status"], back["rollback_of"]) == (200, "preparing", plan_id)
    assert await targets(api, back["id"]) == [
        {"id": server_id(0), "image": "old"},
        {"id": server_id(1), "image": "older"},
        server_id(2),
    ], "one whose call had no effect, and one under way, stay as they are"
    assert await column(api, back["id"], "hold") is False
    (event,) = (await api.get(f"/v1/plans/{back['id']}/events")).json["items"]
    assert "what was on the disks is gone" in event["reason"]["message"]
    assert event["data"]["no_previous_image"] == 1
    assert "1 are still under way" in event["reason"]["message"]
    noted = (await api.get(f"/v1/plans/{plan_id}/events")).json["items"][-1]
    assert (noted["type"], noted["actor"], noted["reason"]["message"]) == (
        "plan.rollback", "admin", "it does not boot",
    )  # fmt: skip
    assert noted["data"]["plan_id"] == back["id"]

    some = (await api.post(f"/v1/plans/{plan_id}/rollback", {"servers": [server_id(1)], "hold": True})).json
    assert await targets(api, some["id"]) == [{"id": server_id(1), "image": "older"}]
    assert await column(api, some["id"], "hold") is True
    copy = (await api.post(f"/v1/plans/{some['id']}/clone")).json
    assert copy["rollback_of"] == plan_id, "else a server without an image to go back to would get the plan's"


async def test_what_a_rollback_is_refused_for(api: Api) -> None:
    held = await ready_plan(api, first=20)
    answer = await api.post(f"/v1/plans/{held['id']}/rollback")
    assert (answer.status, answer.json["code"]) == (409, "never_started")
    plan_id = await running_plan(api, {server_id(0): JobState.SUCCEEDED, server_id(1): JobState.FAILED})
    answer = await api.post(f"/v1/plans/{plan_id}/rollback")
    assert (answer.status, answer.json["code"]) == (409, "nothing_to_roll_back")
    await applied(api, plan_id, {server_id(0): "old"})
    answer = await api.post(f"/v1/plans/{plan_id}/rollback", {"servers": [server_id(0), server_id(1)]})
    assert (answer.status, answer.json["code"]) == (409, "not_changed")
    assert [e["path"] for e in answer.json["errors"]] == [server_id(1)]
    assert (await api.post(f"/v1/plans/{plan_id}/rollback", {"servers": []})).status == 422
    assert (await api.post("/v1/plans/00000000-0000-7000-8000-000000000000/rollback")).status == 404
    assert len((await api.get("/v1/plans")).json["items"]) == 2, "nothing was made"


async def test_resuming_after_drift_acknowledges_nothing(api: Api) -> None:
    plan_id = await running_plan(api, {server_id(0): JobState.PENDING, server_id(1): JobState.PENDING})
    await move(api, plan_id, PlanStatus.RUNNING, PlanStatus.HALTED)
    async with transaction(api.engine) as conn:
        await conn.execute(text("UPDATE plans SET reason_code = 'drift'"))
    assert (await api.post(f"/v1/plans/{plan_id}/resume")).json["status"] == "running"
    assert await column(api, plan_id, "acknowledged_at") is None
    async with api.engine.connect() as conn:
        assert (await conn.execute(text("SELECT bool_or(resumed) FROM waves"))).scalar_one() is False
