"""Lists, pages, details and streams."""

import asyncio
import json
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from orchestrator.domain.states import JobState
from orchestrator.ledger.engine import transaction
from orchestrator.ledger.events import NewEvent, append_events
from orchestrator.ledger.transitions import lock_plans
from orchestrator.service.views import Counts
from tests.api.conftest import Api, plan_file, running_api, server_id
from tests.parts import eventually


async def add_events(api: Api, plan_id: str, n: int) -> None:
    async with transaction(api.engine) as conn:
        await lock_plans(conn, [UUID(plan_id)])
        await append_events(
            conn,
            [NewEvent(plan_id=UUID(plan_id), type="job.checking", actor="driver", server_id=server_id(0))] * n,
        )


def test_the_counts_have_every_state_of_a_job() -> None:
    assert set(Counts.model_fields) == {"total", *JobState}


async def test_plans_come_in_pages_the_newest_first_and_by_filter(api: Api) -> None:
    made = [
        (await api.post("/v1/plans", plan_file(cloud=c, labels={"n": str(i % 2)}))).json["id"]
        for i, c in enumerate(["alpha", "beta"] * 4)
    ]
    seen, cursor = [], None
    while True:
        page = (await api.get("/v1/plans", limit=3, **({"cursor": cursor} if cursor else {}))).json
        seen += [p["id"] for p in page["items"]]
        if (cursor := page["next"]) is None:
            break
    assert seen == made[::-1]
    for given in ("n=1", "n:1"):
        labelled = (await api.get("/v1/plans", label=given)).json["items"]
        assert [p["id"] for p in labelled] == made[1::2][::-1]
    assert len((await api.get("/v1/plans", cloud="alpha")).json["items"]) == 4
    assert len((await api.get("/v1/plans", status="preparing,running")).json["items"]) == 8
    assert (await api.get("/v1/plans", status="running")).json["items"] == []


@pytest.mark.parametrize(
    "params",
    [{"limit": "0"}, {"limit": "1001"}, {"cursor": "x"}, {"cursor": "MQ"}, {"status": "lost"}, {"colour": "red"},
     {"label": "x"}, {"cloud": "\0"}],
)  # fmt: skip
async def test_a_faulty_query_is_refused_with_the_path_of_the_fault(api: Api, params: dict[str, str]) -> None:
    answer = await api.get("/v1/plans", **params)
    assert answer.status == 422
    assert answer.json["errors"][0]["path"].startswith(next(iter(params)))


async def test_jobs_are_found_by_state_wave_cause_and_part_of_name_or_id(api: Api) -> None:
    plan = (await api.post("/v1/plans", plan_file([server_id(i) for i in range(5)]))).json
    async with transaction(api.engine) as conn:
        await conn.execute(
            text("""UPDATE jobs SET state = 'failed', wave = 1, reason_code = 'rebuild_failed_on_host',
                    name = 'web_1%x', reason_message = 'm', fingerprint = 'failed_on_host:500' WHERE ord = 3""")
        )
    path = f"/v1/plans/{plan['id']}/jobs"
    for params in (
        {"state": "failed,stuck"}, {"wave": 1}, {"cause": "rebuild_failed_on_host"}, {"cause": "failed_on_host:500"},
        {"q": "WEB_1%"}, {"q": server_id(3)}, {"state": "failed", "wave": "1", "q": "b_1"},
    ):  # fmt: skip
        items = (await api.get(path, **params)).json["items"]
        assert [j["server_id"] for j in items] == [server_id(3)], params
    assert items[0]["reason"] == {"code": "rebuild_failed_on_host", "message": "m"}
    assert (await api.get(path, q="%")).json["items"][0]["server_id"] == server_id(3)
    assert len((await api.get(path, q="00000000-0000")).json["items"]) == 5
    first = (await api.get(path, limit=2)).json
    second = (await api.get(path, limit=3, cursor=first["next"])).json
    assert [j["server_id"] for j in first["items"] + second["items"]] == [server_id(i) for i in range(5)]
    assert second["next"] is None
    assert (await api.get(path, cursor="MTAwMDAwMDAwMDAwMDAwMDAwMDAw")).status == 422


async def test_a_job_has_its_attempts_with_evidence_and_its_events(api: Api) -> None:
    plan = (await api.post("/v1/plans", plan_file())).json
    async with transaction(api.engine) as conn:
        await conn.execute(
            text("""INSERT INTO attempts (plan_id, ord, number, fence, body_sha256, baseline, evidence)
                    SELECT plan_id, ord, 1, 7, 'abc', '{"status": "ACTIVE"}',
                           '[{"kind": "action", "value": "Success", "at": "2026-11-24T10:00:00Z"}]'
                    FROM jobs WHERE ord = 0""")
        )
    await add_events(api, plan["id"], 2)
    path = f"/v1/plans/{plan['id']}/jobs"
    job = (await api.get(f"{path}/{server_id(0)}")).json
    (attempt,) = job["attempt_log"]
    assert (attempt["number"], attempt["fence"], attempt["baseline"]) == (1, 7, {"status": "ACTIVE"})
    assert attempt["evidence"][0]["kind"] == "action"
    assert [e["seq"] for e in job["events"]] == [2, 3]
    assert (await api.get(f"{path}/{server_id(99)}")).status == 404
    assert (await api.get(f"{path}/%00")).status == 404


async def test_events_come_in_pages_after_a_number(api: Api) -> None:
    plan = (await api.post("/v1/plans", plan_file())).json
    await add_events(api, plan["id"], 9)
    path = f"/v1/plans/{plan['id']}/events"
    page = (await api.get(path, after=4, limit=3)).json
    assert [e["seq"] for e in page["items"]] == [5, 6, 7]
    rest = (await api.get(path, cursor=page["next"])).json
    assert ([e["seq"] for e in rest["items"]], rest["next"]) == ([8, 9, 10], None)


class Stream:
    """A reader of one stream of events."""

    def __init__(self, api: Api, plan_id: str, last: int | None = None):
        headers = {"Authorization": f"Bearer {api.tokens['viewer']}", "Accept": "text/event-stream"}
        if last is not None:
            headers["Last-Event-ID"] = str(last)
        self._request = api.session.get(f"{api.url}/v1/plans/{plan_id}/events", headers=headers)
        self.seqs: list[int] = []
        self.comments = 0
        self.ended = False

    async def read(self) -> None:
        async with self._request as response:
            assert response.status == 200
            assert response.content_type == "text/event-stream"
            name = ""
            async for raw in response.content:
                line = raw.decode().rstrip("\n")
                if line.startswith(":"):
                    self.comments += 1
                elif line.startswith("event: "):
                    name = line[7:]
                elif line.startswith("data: ") and name == "end":
                    self.ended = True
                elif line.startswith("data: "):
                    self.seqs.append(json.loads(line[6:])["seq"])


async def test_streams_tell_each_event_once_in_order_from_where_they_left_off_until_the_plan_ends(api: Api) -> None:
    plan = (await api.post("/v1/plans", plan_file())).json
    await add_events(api, plan["id"], 9)
    streams = [Stream(api, plan["id"], last) for last in (None, 4, 10)]
    tasks = [asyncio.create_task(s.read()) for s in streams]
    await eventually(lambda: streams[0].seqs == list(range(1, 11)))
    for _ in range(3):
        await add_events(api, plan["id"], 700)
    await eventually(lambda: streams[2].seqs[-1:] == [2110])
    await api.post(f"/v1/plans/{plan['id']}/cancel")
    await asyncio.wait_for(asyncio.gather(*tasks), 10)
    last = 2110 + 3 + 2
    assert [s.seqs for s in streams] == [list(range(first, last + 1)) for first in (1, 5, 11)]
    assert all(s.ended for s in streams)


async def test_a_silent_stream_says_that_it_is_still_there(api: Api) -> None:
    plan = (await api.post("/v1/plans", plan_file())).json
    stream = Stream(api, plan["id"])
    task = asyncio.create_task(stream.read())
    await eventually(lambda: stream.comments >= 2)
    assert stream.seqs == [1]
    task.cancel()
    await asyncio.wait([task])


async def test_a_stream_of_a_plan_that_has_ended_tells_the_rest_and_ends(api: Api) -> None:
    plan = (await api.post("/v1/plans", plan_file())).json
    await api.post(f"/v1/plans/{plan['id']}/cancel")
    stream = Stream(api, plan["id"], last=4)
    await asyncio.wait_for(stream.read(), 10)
    assert (stream.seqs, stream.ended) == ([5, 6], True)


async def test_stopping_the_service_ends_its_streams_at_once(
    database_url: str, redis_url: str, clouds_yaml: Any
) -> None:
    began = asyncio.get_running_loop().time
    async with running_api(database_url, redis_url) as api:
        plan = (await api.post("/v1/plans", plan_file())).json
        stream = Stream(api, plan["id"])
        task = asyncio.create_task(stream.read())
        await eventually(lambda: stream.seqs == [1])
        stopping = began()
    await asyncio.wait([task], timeout=5)
    assert task.done()
    assert began() - stopping < 5
    assert not stream.ended, "the plan has not ended; the client must come back"


async def test_a_hundred_streams_of_one_plan_cost_one_reader(api: Api) -> None:
    plan = (await api.post("/v1/plans", plan_file())).json
    streams = [Stream(api, plan["id"]) for _ in range(60)]
    tasks = [asyncio.create_task(s.read()) for s in streams]
    await eventually(lambda: all(s.seqs == [1] for s in streams), deadline=20)
    metrics = (await api.get("/metrics", role="")).body.decode()
    assert "rebuild_event_streams 60.0" in metrics
    await add_events(api, plan["id"], 5)
    await eventually(lambda: all(s.seqs == [1, 2, 3, 4, 5, 6] for s in streams), deadline=20)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_clouds_are_those_configured_with_what_the_workers_found(api: Api) -> None:
    async with transaction(api.engine) as conn:
        await conn.execute(
            text("""WITH p AS (INSERT INTO projects (deployment, region, project_id, paused)
                               VALUES ('https://id', 'r', 'p', true) RETURNING id)
                    INSERT INTO clouds (name, project, healthy, checked_at, limiter)
                    SELECT 'alpha', id, true, now(), '{"allowed": 3.5, "used_per_second": 2.0}' FROM p""")
        )
    items = (await api.get("/v1/clouds")).json["items"]
    assert [(c["name"], c["configured"], c["health"]["status"]) for c in items] == [
        ("alpha", True, "ok"), ("beta", True, "unknown"),
    ]  # fmt: skip
    assert items[0]["project"]["paused"] is True
    assert items[0]["limiter"]["allowed"] == 3.5
    assert 'rebuild_limiter_allowed_per_second{cloud="alpha"} 3.5' in (await api.get("/metrics")).body.decode()
