"""Approving, rejecting and promoting over HTTP: who may, when, and what saying it twice does."""

import asyncio
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import text

from orchestrator.domain.decide import Reason
from orchestrator.domain.states import JobState, PlanStatus
from orchestrator.ledger.engine import transaction
from orchestrator.ledger.transitions import PlanMove, lock_plans, move_plan
from orchestrator.ledger.waves import begin_bake
from tests.api.conftest import Api, running_api, server_id
from tests.api.plant import column, holds, move, ready_plan, stand


def change(path: Path, before: str, after: str) -> None:
    """Edits a file."""
    path.write_text(path.read_text().replace(before, after))


async def at_gate(api: Api, *, role: str = "operator", status: PlanStatus = PlanStatus.AWAITING_APPROVAL) -> str:
    """The path of a plan whose canary has succeeded, and which bakes or awaits an approval."""
    plan = await ready_plan(api, role=role)
    assert (await api.post(f"/v1/plans/{plan['id']}/start")).status == 200
    await stand(api, plan["id"], 0, server_id(0), JobState.SUCCEEDED)
    async with transaction(api.engine) as conn:
        await conn.execute(text("UPDATE waves SET approval = true, bake_seconds = 600 WHERE index = 0"))
    await move(api, plan["id"], PlanStatus.RUNNING, status)
    return f"/v1/plans/{plan['id']}"


async def before_start(api: Api, *, servers: int = 3, first: int = 0) -> str:
    """The path of a held plan whose cloud wants an approval before a start."""
    plan = await ready_plan(api, servers=servers, first=first)
    async with transaction(api.engine) as conn:
        await conn.execute(text("UPDATE plans SET approve_first = true WHERE id = :id"), {"id": plan["id"]})
    return f"/v1/plans/{plan['id']}"


async def test_an_approver_lets_the_next_wave_begin_and_may_say_so_twice(api: Api) -> None:
    path = await at_gate(api)
    asked = (await api.get(path)).json
    assert asked["waves"][0]["approval"] == {"needed": True, "approved_by": None, "approved_at": None}
    approved = await api.post(f"{path}/approve", {"reason": "looks well"}, role="approver")
    assert (approved.status, approved.json["status"]) == (200, "running")
    assert approved.json["waves"][0]["approval"]["approved_by"] == "approver"
    again = await api.post(f"{path}/approve", role="approver")
    assert (again.status, again.json["status"]) == (200, "running")
    events = (await api.get(f"{path}/events")).json["items"]
    said = [e for e in events if e["from"] == "awaiting_approval"]
    assert [(e["actor"], e["reason"]["message"]) for e in said] == [("approver", "looks well")]


@pytest.mark.parametrize("action", ["approve", "reject"])
async def test_only_approvers_and_admins_decide_at_a_gate(api: Api, action: str) -> None:
    path = await at_gate(api, role="submitter")
    for role in ("viewer", "submitter", "operator"):
        answer = await api.post(f"{path}/{action}", role=role)
        assert (answer.status, answer.json["code"]) == (403, "not_allowed"), role
    assert (await api.get(path)).json["status"] == "awaiting_approval"
    assert (await api.post(f"{path}/{action}", role="admin")).status == 200


async def test_an_approver_never_decides_about_its_own_plan_and_an_admin_does(api: Api) -> None:
    path = await at_gate(api, role="admin")
    async with transaction(api.engine) as conn:
        await conn.execute(text("UPDATE plans SET created_by = 'approver'"))
    for action in ("approve", "reject"):
        assert (await api.post(f"{path}/{action}", role="approver")).status == 403
    assert (await api.get(path)).json["status"] == "awaiting_approval"
    async with transaction(api.engine) as conn:
        await conn.execute(text("UPDATE plans SET created_by = 'admin'"))
    assert (await api.post(f"{path}/approve", role="admin")).json["status"] == "running"


async def test_a_cloud_may_want_somebody_else_than_even_an_admin(
    database_url: str, redis_url: str, clouds_yaml: Path
) -> None:
    change(clouds_yaml, "write_rate: 4/s", "write_rate: 4/s, approval: {by_other: true}")
    async with running_api(database_url, redis_url) as api:
        path = await at_gate(api, role="admin")
        assert (await api.post(f"{path}/approve", role="admin")).status == 403
        assert (await api.post(f"{path}/approve", role="approver")).json["status"] == "running"


async def test_two_approvals_at_once_are_one(api: Api) -> None:
    path = await at_gate(api)
    answers = await asyncio.gather(
        *(api.post(f"{path}/approve", role=role) for role in ("approver", "admin", "approver"))
    )
    assert [a.status for a in answers] == [200] * 3
    events = (await api.get(f"{path}/events")).json["items"]
    assert sum(e["from"] == "awaiting_approval" for e in events) == 1


async def test_a_rejected_plan_is_halted_and_cannot_be_approved_until_it_asks_again(api: Api) -> None:
    path = await at_gate(api)
    rejected = (await api.post(f"{path}/reject", {"reason": "too late"}, role="approver")).json
    assert rejected["status"] == "halted"
    assert rejected["reason"] == {"code": "approval_rejected", "message": "approver rejected it: too late"}
    assert (await api.post(f"{path}/reject", role="approver")).status == 200
    assert (await api.post(f"{path}/approve", role="approver")).status == 409
    resumed = await api.post(f"{path}/resume", role="operator")
    assert resumed.json["status"] == "running"
    assert await column(api, rejected["id"], "acknowledged_at") is None, "nothing had failed"


async def test_an_approval_that_came_too_late_is_refused(api: Api) -> None:
    path = await at_gate(api)
    async with transaction(api.engine) as conn:
        await conn.execute(text("UPDATE plans SET expires_at = now() - interval '1 s'"))
    answer = await api.post(f"{path}/approve", role="approver")
    assert (answer.status, answer.json["code"]) == (409, "approval_expired")


@pytest.mark.parametrize("action", ["approve", "reject", "promote"])
async def test_a_plan_that_waits_at_no_gate_says_so(api: Api, action: str) -> None:
    plan = await ready_plan(api)
    path = f"/v1/plans/{plan['id']}"
    for status in ("ready", "running"):
        answer = await api.post(f"{path}/{action}")
        assert (answer.status, answer.json["code"]) == (409, "conflict")
        assert status in answer.json["detail"]
        await api.post(f"{path}/start")


async def test_a_promotion_ends_the_bake_and_is_an_operators(api: Api) -> None:
    path = await at_gate(api, status=PlanStatus.BAKING)
    plan_id = path.rpartition("/")[2]
    async with transaction(api.engine) as conn:
        until = (await conn.execute(text("SELECT now() + interval '10 min'"))).scalar_one()
        await begin_bake(conn, UUID(plan_id), 0, until)
    baking = (await api.get(path)).json
    assert (baking["waves"][0]["status"], baking["waves"][0]["bake_until"] is not None) == ("baking", True)
    for role in ("viewer", "submitter", "approver"):
        assert (await api.post(f"{path}/promote", role=role)).status == 403
    promoted = await api.post(f"{path}/promote", role="operator")
    assert (promoted.status, promoted.json["status"]) == (200, "running")
    assert promoted.json["waves"][0]["bake_until"] < baking["waves"][0]["bake_until"]
    assert (await api.post(f"{path}/promote", role="operator")).status == 200


async def test_a_retry_while_a_wave_bakes_has_it_bake_and_ask_anew(api: Api) -> None:
    plan = await ready_plan(api)
    await api.post(f"/v1/plans/{plan['id']}/start")
    await stand(api, plan["id"], 0, server_id(0), JobState.FAILED)
    async with transaction(api.engine) as conn:
        await conn.execute(
            text("UPDATE waves SET bake_until = now() + interval '1 h', approved_by = 'a', approved_at = now()")
        )
    await move(api, plan["id"], PlanStatus.RUNNING, PlanStatus.BAKING)
    retried = (await api.post(f"/v1/plans/{plan['id']}/retry")).json
    assert (retried["status"], retried["waves"][0]["bake_until"]) == ("running", None)
    assert retried["waves"][0]["approval"]["approved_by"] is None


async def test_a_retry_at_a_gate_runs_first_but_never_passes_the_one_before_the_start(api: Api) -> None:
    plan = await ready_plan(api)
    await api.post(f"/v1/plans/{plan['id']}/start")
    await stand(api, plan["id"], 0, server_id(0), JobState.FAILED)
    await move(api, plan["id"], PlanStatus.RUNNING, PlanStatus.AWAITING_APPROVAL)
    assert (await api.post(f"/v1/plans/{plan['id']}/retry")).json["status"] == "running"
    path = await before_start(api, first=10)
    await api.post(f"{path}/start")
    await stand(api, path.rpartition("/")[2], 0, server_id(10), JobState.REFUSED)
    for body in ({}, {"servers": [server_id(10)]}):
        assert (await api.post(f"{path}/retry", body)).status == 409
    assert (await api.get(path)).json["status"] == "awaiting_approval"
    assert server_id(10) not in await holds(api)


async def test_a_start_that_needs_an_approval_waits_for_it_and_holds_nothing(api: Api) -> None:
    path = await before_start(api)
    for _ in range(2):
        started = await api.post(f"{path}/start", role="operator")
        assert (started.status, started.json["status"]) == (200, "awaiting_approval")
    assert started.json["expires_at"] is not None
    assert started.json["started_at"] is None
    assert await holds(api) == []
    assert (await api.post(f"{path}/pause")).json["status"] == "paused"
    assert (await api.post(f"{path}/resume")).json["status"] == "awaiting_approval"
    approved = await api.post(f"{path}/approve", role="approver")
    assert approved.json["status"] == "running"
    assert len(await holds(api)) == 3
    assert (await api.post(f"{path}/approve", role="approver")).json["status"] == "running"


async def test_a_rejection_before_the_start_ends_the_plan(api: Api) -> None:
    path = await before_start(api)
    await api.post(f"{path}/start", role="operator")
    assert (await api.post(f"{path}/reject", role="approver")).json["status"] == "rejected"
    assert (await api.post(f"{path}/reject", role="approver")).status == 200
    assert (await api.post(f"{path}/approve", role="approver")).status == 409
    assert await holds(api) == []


async def test_a_plan_whose_servers_are_held_when_it_is_approved_is_rejected_itemised(api: Api) -> None:
    path, other = await before_start(api), await ready_plan(api, first=2)
    await api.post(f"{path}/start", role="operator")
    await api.post(f"/v1/plans/{other['id']}/start")
    rejected = (await api.post(f"{path}/approve", role="approver")).json
    assert (rejected["status"], rejected["reason"]["code"]) == ("rejected", "servers_held")
    (fault,) = rejected["errors"]
    assert server_id(2) in fault["message"]
    assert other["id"] in fault["message"]
    assert await holds(api) == [server_id(i) for i in (2, 3, 4)]


@pytest.mark.parametrize(("on_conflict", "status"), [("queue", "scheduled"), ("skip", "running")])
async def test_start_queues_or_leaves_out_what_others_hold(api: Api, on_conflict: str, status: str) -> None:
    first, second = await ready_plan(api), await ready_plan(api, first=2)
    async with transaction(api.engine) as conn:
        await conn.execute(
            text("UPDATE plans SET spec = jsonb_set(spec, '{on_conflict}', to_jsonb(CAST(:v AS text)))"),
            {"v": on_conflict},
        )
    await api.post(f"/v1/plans/{first['id']}/start")
    for _ in range(2):
        started = await api.post(f"/v1/plans/{second['id']}/start")
        assert (started.status, started.json["status"]) == (200, status)
    jobs = (await api.get(f"/v1/plans/{second['id']}/jobs")).json["items"]
    if on_conflict == "skip":
        assert [(j["state"], j["reason"] and j["reason"]["code"]) for j in jobs] == [
            ("skipped", "held"), ("pending", None), ("pending", None),
        ]  # fmt: skip
    else:
        assert first["id"] in started.json["reason"]["message"]
        assert len(await holds(api)) == 3
        cancelled = await api.post(f"/v1/plans/{second['id']}/cancel")
        assert (cancelled.json["status"], cancelled.json["counts"]["cancelled"]) == ("cancelled", 3)


async def test_a_plan_that_was_paused_at_its_gate_first_runs_what_was_retried_since(api: Api) -> None:
    plan = await ready_plan(api)
    path = f"/v1/plans/{plan['id']}"
    await api.post(f"{path}/start")
    await stand(api, plan["id"], 0, server_id(0), JobState.FAILED)
    await move(api, plan["id"], PlanStatus.RUNNING, PlanStatus.AWAITING_APPROVAL)
    await api.post(f"{path}/pause")
    assert (await api.post(f"{path}/retry")).json["status"] == "paused"
    assert (await api.post(f"{path}/resume")).json["status"] == "running"


async def test_a_halt_for_failures_is_still_acknowledged_by_a_resume(api: Api) -> None:
    path = await at_gate(api)
    plan_id = path.rpartition("/")[2]
    async with transaction(api.engine) as conn:
        await lock_plans(conn, [UUID(plan_id)])
        why = Reason(code="max_errors", message="too many")
        await move_plan(conn, PlanMove(plan_id=UUID(plan_id), expected=PlanStatus.AWAITING_APPROVAL,
                                       status=PlanStatus.HALTED, actor="test", reason=why))  # fmt: skip
    await api.post(f"{path}/resume")
    assert await column(api, plan_id, "acknowledged_at") is not None


async def test_the_likely_end_counts_the_bakes_that_are_left_and_the_start_time(api: Api) -> None:
    plan = await ready_plan(api)
    path = f"/v1/plans/{plan['id']}"

    async def likely_end() -> datetime:
        return datetime.fromisoformat((await api.get(path)).json["eta"]["finish_at"])

    at_once = await likely_end()
    async with transaction(api.engine) as conn:
        await conn.execute(text("UPDATE waves SET bake_seconds = 3600 WHERE index = 0"))
    baked = await likely_end()
    assert timedelta(minutes=59) < baked - at_once < timedelta(minutes=61)
    async with transaction(api.engine) as conn:
        await conn.execute(text("UPDATE plans SET start_at = now() + interval '2 h'"))
    assert timedelta(minutes=118) < await likely_end() - baked < timedelta(minutes=122)
    assert (await api.get(path)).json["start_at"] is not None
