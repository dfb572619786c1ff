"""The client's promises: what it repeats and what it never does, how it reads problems, how it follows events."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from aiohttp import web

from orchestrator.client import ApiProblem, ApiUnreachable, RebuildClient
from orchestrator.client.sse import parse_sse
from tests.cli.fake_api import PLAN_ID, TOKEN, FakeApi, fake_api, plan_document, problem_document


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with fake_api() as served:
        served.play("running")
        yield served


@pytest.fixture
async def client(api: FakeApi) -> AsyncIterator[RebuildClient]:
    async with RebuildClient(api.url, TOKEN, patience=5) as opened:
        yield opened


async def test_a_plan_is_typed_and_keeps_fields_of_the_future(client: RebuildClient) -> None:
    plan = await client.get_plan(PLAN_ID)
    assert (plan.status, plan.counts["total"], plan.waves[0].name) == ("running", 4, "canary")
    assert plan.rate is not None
    assert plan.rate.used_per_second == 9.8
    assert plan.created_at is not None
    assert plan.created_at.utcoffset() is not None
    assert plan.raw == plan_document("running")
    assert [wave.raw for wave in plan.waves] == plan_document("running")["waves"]
    assert not plan.is_final


@pytest.mark.parametrize("failure", ["drop", 502, 503, 504, 429])
async def test_a_get_is_tried_again(api: FakeApi, client: RebuildClient, failure: Any) -> None:
    api.failures = [failure, failure]
    assert (await client.get_plan(PLAN_ID)).id == PLAN_ID
    assert len(api.sent("GET", f"/v1/plans/{PLAN_ID}")) == 3


@pytest.mark.parametrize("failure", ["drop", 503])
async def test_a_submit_is_tried_again_only_with_a_key(api: FakeApi, client: RebuildClient, failure: Any) -> None:
    api.failures = [failure]
    with pytest.raises((ApiUnreachable, ApiProblem)):
        await client.submit({"name": "x"})
    assert len(api.sent("POST", "/v1/plans")) == 1
    api.failures = [failure]
    await client.submit({"name": "x"}, idempotency_key="k")
    assert [r[2].get("Idempotency-Key") for r in api.sent("POST", "/v1/plans")] == [None, "k", "k"]


async def test_an_action_whose_answer_is_lost_is_not_tried_again(api: FakeApi, client: RebuildClient) -> None:
    api.failures = ["drop"]
    with pytest.raises(ApiUnreachable):
        await client.start(PLAN_ID)
    assert len(api.requests) == 1


async def test_the_patience_ends(api: FakeApi) -> None:
    api.failures = [503] * 1000
    async with RebuildClient(api.url, TOKEN, patience=0.5) as client:
        with pytest.raises(ApiProblem) as caught:
            await client.get_plan(PLAN_ID)
    assert caught.value.status == 503


async def test_a_problem_has_its_code_and_its_faults(api: FakeApi, client: RebuildClient) -> None:
    fault = {"path": "rollout.rate", "code": "invalid_value", "message": "must be above 0"}
    api.failures = [problem_document(422, "invalid_spec", "The plan has faults.", fault)]
    with pytest.raises(ApiProblem, match="The plan has faults") as caught:
        await client.submit({}, idempotency_key="k")
    problem = caught.value
    assert (problem.status, problem.reason_code) == (422, "invalid_spec")
    assert [(f.path, f.code, f.message) for f in problem.errors] == [tuple(fault.values())]


async def test_an_answer_that_is_no_problem_document_still_is_a_problem(api: FakeApi, client: RebuildClient) -> None:
    api.failures = [404]
    with pytest.raises(ApiProblem, match="404") as caught:
        await client.get_plan(PLAN_ID)
    assert caught.value.reason_code == "http_404"


async def test_a_page_of_something_else_is_a_problem_and_no_crash(api: FakeApi) -> None:
    async with RebuildClient(f"{api.url}/nowhere", TOKEN) as client:
        with pytest.raises(ApiProblem):
            await client.list_plans()


async def test_only_large_bodies_are_compressed(api: FakeApi, client: RebuildClient) -> None:
    servers = [f"3ed456f5-3d8f-4383-a6c9-{i:012d}" for i in range(5000)]
    await client.submit({"name": "small"}, idempotency_key="a")
    await client.submit({"name": "large", "targets": {"servers": servers}}, idempotency_key="b")
    small, large = api.sent("POST", "/v1/plans")
    assert "Content-Encoding" not in small[2]
    assert large[2]["Content-Encoding"] == "gzip"
    assert int(large[2]["Content-Length"]) < len(json.dumps(servers)) / 3
    assert large[3]["targets"]["servers"] == servers


async def test_events_are_followed_to_the_end_each_once_over_cut_connections(
    api: FakeApi, client: RebuildClient
) -> None:
    api.events = [{"seq": n, "type": "job.succeeded", "from": "verifying", "to": "succeeded"} for n in range(1, 8)]
    api.drop_after = 3
    found = [event async for event in client.follow(PLAN_ID)]
    assert [event.seq for event in found] == [1, 2, 3, 4, 5, 6, 7]
    assert (found[0].from_state, found[0].to_state) == ("verifying", "succeeded")
    streams = api.sent("GET", f"/v1/plans/{PLAN_ID}/events")
    assert [r[2]["Last-Event-ID"] for r in streams] == ["0", "3", "6"]


async def test_following_begins_after_a_number(api: FakeApi, client: RebuildClient) -> None:
    api.events = [{"seq": n, "type": "x"} for n in range(1, 6)]
    assert [event.seq async for event in client.follow(PLAN_ID, after=3)] == [4, 5]


async def test_following_a_plan_that_is_not_there_is_a_problem(client: RebuildClient) -> None:
    with pytest.raises(ApiProblem) as caught:
        await anext(client.follow("nothing"))
    assert caught.value.status == 404


async def test_following_gives_up_after_its_patience() -> None:
    async with RebuildClient("http://127.0.0.1:9", TOKEN) as client:
        with pytest.raises(ApiUnreachable):
            await anext(client.follow(PLAN_ID, patience=0.3))


async def test_all_jobs_are_read_over_pages(api: FakeApi, client: RebuildClient) -> None:
    api.jobs = [{"server_id": f"s-{i}", "state": "failed" if i % 2 else "succeeded"} for i in range(7)]
    assert [job.server_id async for job in client.all_jobs(PLAN_ID, state="failed")] == ["s-1", "s-3", "s-5"]


async def test_what_a_path_is_made_of_is_quoted(api: FakeApi, client: RebuildClient) -> None:
    with pytest.raises(ApiProblem):
        await client.get_plan("../../metrics?x=1#y")
    assert api.requests[0][1] == "/v1/plans/..%2F..%2Fmetrics%3Fx%3D1%23y"


async def test_the_token_stays_out_of_errors_and_representations(api: FakeApi) -> None:
    async with RebuildClient("http://user:hunter2@127.0.0.1:9/", "rbt_secret", patience=0) as client:
        with pytest.raises(ApiUnreachable) as caught:
            await client.get_plan(PLAN_ID)
    said = f"{caught.value} {caught.value!r} {client!r} {client.api_url}"
    assert "rbt_secret" not in said
    assert "hunter2" not in said


async def test_a_redirect_is_not_followed_with_the_token(api: FakeApi) -> None:
    with fake_api() as elsewhere:
        app = web.Application()

        async def away(_: web.Request) -> web.Response:
            return web.Response(status=307, headers={"Location": f"{elsewhere.url}/v1/plans"})

        app.router.add_get("/{rest:.*}", away)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        async with RebuildClient(f"http://127.0.0.1:{port}", TOKEN) as client:
            with pytest.raises(ApiProblem, match="REBUILD_API_URL"):
                await client.list_plans()
        await runner.cleanup()
        assert elsewhere.requests == []


async def test_a_stream_is_read_as_the_standard_has_it() -> None:
    async def lines() -> AsyncIterator[bytes]:
        for line in (
            b": a comment\n", b"\n", b"id: 1\r\n", b"event: end\r\n", b"data: a\n", b"data:b\n", b"unknown: x\n",
            b"\n", b"data: c\n", b"\n", b"id: 9\n", b"\n", b"data: cut off\n",
        ):  # fmt: skip
            yield line

    found = [event async for event in parse_sse(lines())]
    assert [(e.id, e.type, e.data) for e in found] == [("1", "end", "a\nb"), ("1", "message", "c")]
