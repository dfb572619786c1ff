"""Late answers of hooks: with their one-time token, and nothing else."""

import hashlib
from typing import Any

import pytest
from sqlalchemy import text

from tests.api.conftest import Api, server_id
from tests.api.plant import ready_plan

TOKEN = "the-token-of-the-newest-call"


async def called(api: Api, *, state: str = "waiting", seconds: int = 600) -> str:
    """A plan whose first server's `before` was called; the callback's path."""
    plan = await ready_plan(api)
    async with api.engine.begin() as conn:
        await conn.execute(
            text("""
            INSERT INTO hook_calls (plan_id, ord, phase, attempt, server_id, state, tries, token_sha256, deadline_at)
            VALUES (:plan, 0, 'before', 1, :server, :state, 1, :token, now() + make_interval(secs => :seconds))"""),
            {
                "plan": plan["id"], "server": server_id(0), "state": state, "seconds": seconds,
                "token": hashlib.sha256(TOKEN.encode()).hexdigest(),
            },
        )  # fmt: skip
    return f"/v1/plans/{plan['id']}/jobs/{server_id(0)}/hooks/before"


async def say(api: Api, path: str, body: Any, token: str = TOKEN) -> Any:
    return await api.call("POST", path, body, role="", headers={"Authorization": f"Bearer {token}"})


async def test_a_token_answers_once_and_what_it_said_is_shown(api: Api) -> None:
    path = await called(api)
    answer = await say(api, path, {"result": "ok", "message": "drained"})
    assert (answer.status, answer.json) == (200, {"phase": "before", "result": "ok"})
    again = await say(api, path, {"result": "failed"})
    assert (again.status, again.json["code"]) == (409, "hook_over")
    (hook,) = (await api.get(path.removesuffix("/hooks/before"), role="viewer")).json["hooks"]
    assert (hook["phase"], hook["state"], hook["message"]) == ("before", "waiting", "drained")


@pytest.mark.parametrize(("state", "seconds"), [("waiting", -1), ("done", 600), ("failed", 600)])
async def test_a_hook_whose_time_is_up_takes_no_answer(api: Api, state: str, seconds: int) -> None:
    path = await called(api, state=state, seconds=seconds)
    answer = await say(api, path, {"result": "ok"})
    assert (answer.status, answer.json["code"]) == (409, "hook_over")


async def test_no_other_token_and_no_other_hook_will_do(api: Api) -> None:
    path = await called(api)
    body = {"result": "ok"}
    for role in ("admin", "operator"):
        assert (await api.call("POST", path, body, role=role)).status == 401
    assert (await api.call("POST", path, body, role="")).status == 401
    for other in (path.replace("before", "release"), path.replace("before", "sideways"),
                  path.replace(server_id(0), server_id(1))):  # fmt: skip
        assert (await say(api, other, body)).status == 401
    assert (await say(api, path, body)).status == 200


@pytest.mark.parametrize(
    "body", [{}, {"result": "maybe"}, {"result": "ok", "more": 1}, {"result": "ok", "message": ""}]
)
async def test_a_faulty_answer_uses_the_token_not_up(api: Api, body: Any) -> None:
    path = await called(api)
    assert (await say(api, path, body)).status == 422
    assert (await say(api, path, {"result": "ok"})).status == 200
