"""The OpenStack client against the rehearsal cloud, and where that is too well behaved, against scripted answers."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.clouds.config import load_cloud
from orchestrator.clouds.factory import open_cloud, pace_key
from orchestrator.clouds.microversions import Feature, Microversions, compute_root, offered_by
from orchestrator.clouds.openstack import OpenStackCloud, exactly
from orchestrator.clouds.pacing import Limiter, make_redis
from orchestrator.clouds.protocol import Answer, Cause, Effect, Selection, Server
from orchestrator.clouds.sign_in import TokenCache, sign_in_blocking
from orchestrator.errors import (
    CloudAnswerInvalid,
    CloudConfigInvalid,
    CloudError,
    CloudThrottled,
    CloudTokenExpired,
    CloudUnreachable,
)
from orchestrator.rehearsal import Fault, FaultKind, RehearsalConfig, Running, serve
from tests.clouds.raw import Connection, raw_server
from tests.parts import eventually

Open = Callable[..., OpenStackCloud]
DATE = "Date: Mon, 23 Nov 2026 10:00:00 GMT\r\n"
VERSION = {"version": {"id": "v2.1", "version": "2.93", "min_version": "2.1"}}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], None]:
    path = tmp_path / "clouds.yaml"
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(path))

    def write(entry: dict[str, Any]) -> None:
        path.write_text(json.dumps({"clouds": {"reh": entry}}))

    return write


@pytest.fixture
async def rehearsal() -> AsyncIterator[Running]:
    async with serve(RehearsalConfig(servers=25, rebuild_seconds=0.05, page_limit=10, volume_booted=1)) as running:
        yield running


@asynccontextmanager
async def opened(
    running: Running, write: Any, tokens: TokenCache | None = None, **more: Any
) -> AsyncIterator[OpenStackCloud]:
    write({**running.cloud_entry(), **more})
    cloud = open_cloud(load_cloud("reh"), tokens or TokenCache())
    try:
        yield cloud
    finally:
        await cloud.close()


@pytest.fixture
async def cloud(rehearsal: Running, write: Any) -> AsyncIterator[OpenStackCloud]:
    async with opened(rehearsal, write) as made:
        yield made


async def everything(cloud: OpenStackCloud, **filters: Any) -> list[Server]:
    return [server async for page in cloud.list_servers(**filters) for server in page.servers]


async def plain_one(cloud: OpenStackCloud) -> Server:
    """A server without peculiarities."""
    return (await everything(cloud, name="node-00001"))[0]


def body(image: str, **more: Any) -> bytes:
    return json.dumps({"rebuild": {"imageRef": image, **more}}).encode()


async def test_signing_in_tells_project_user_and_what_the_cloud_can(cloud: OpenStackCloud, rehearsal: Running) -> None:
    project = await cloud.sign_in()
    fleet = rehearsal.cloud.config.fleet_user
    assert (project.project_id, project.region, cloud.user_id) == (fleet.project_id, "RegionOne", fleet.id)
    assert (cloud.max_microversion, cloud.supports_reimage) == ("2.93", True)
    assert cloud.features == frozenset(Feature)
    assert pace_key(project, "write") != pace_key(project, "read")


async def test_lists_follow_their_pages_to_the_end(cloud: OpenStackCloud) -> None:
    pages = [page async for page in cloud.list_servers()]
    assert sum(len(p.servers) for p in pages) == 25
    assert len(pages) >= 3
    assert len({s.id for p in pages for s in p.servers}) == 25
    assert all(p.date.tzinfo for p in pages)


async def test_an_empty_list_is_one_page_with_a_date(cloud: OpenStackCloud) -> None:
    pages = [page async for page in cloud.list_servers(name="no-such-name")]
    assert [p.servers for p in pages] == [()]


async def test_a_name_finds_only_itself(cloud: OpenStackCloud) -> None:
    assert [s.name for s in await everything(cloud, name="node-00001")] == ["node-00001"]
    assert await everything(cloud, name="node-0000.") == []
    assert await everything(cloud, name="node-0000") == []


def test_a_name_is_escaped_and_anchored_for_the_clouds_regular_expressions() -> None:
    assert exactly("web-1.example(2)") == r"^web-1\.example\(2\)$"
    assert exactly("a|b") == "^a.b$"


async def test_a_selection_narrows_the_list(cloud: OpenStackCloud) -> None:
    some = await plain_one(cloud)
    assert len(await everything(cloud, selection=Selection(statuses=("SHUTOFF", "ERROR")))) == 0
    assert len(await everything(cloud, selection=Selection(statuses=("ACTIVE",), image=some.image))) == 24
    assert await everything(cloud, selection=Selection(tags=("no-such-tag",))) == []


async def test_changes_since_shows_only_what_moved(cloud: OpenStackCloud) -> None:
    server, date = await cloud.get_server((await plain_one(cloud)).id)
    assert server is not None
    assert await everything(cloud, changes_since=date + timedelta(hours=1)) == []
    image = (await cloud.find_images("base-2026.11"))[0]
    await cloud.rebuild(server.id, body(image.id))
    assert server.id in {s.id for s in await everything(cloud, changes_since=date - timedelta(seconds=10))}


async def test_the_seeds_call_is_sent_as_it_is_written(rehearsal: Running, write: Any) -> None:
    """POST /v2.1/{project_id}/servers/{server_id}/action, whatever form the endpoint has."""
    project_id = rehearsal.cloud.config.fleet_user.project_id
    call = (
        b'{"rebuild": {"imageRef": "3ed456f5-3d8f-4383-a6c9-312032afcd1a", "name": "rebuildName", '
        b'"metadata": {"rebuild": "rebuild vm"}}}'
    )
    sid = "80eaeaa4-5441-4574-9e7c-363513d1c508"

    async def nova(connection: Connection) -> None:
        while request := await connection.request():
            post = request.startswith(b"POST")
            answer = {"server": {"id": sid, "status": "REBUILD"}} if post else VERSION
            await connection.answer("202 Accepted" if post else "200 OK", json.dumps(answer).encode(), DATE)

    for path in ("", "/", "/v2.1", "/v2.1/", f"/v2.1/{project_id}", f"/v2/{project_id}/"):
        async with (
            raw_server(nova) as server,
            opened(rehearsal, write, compute_endpoint_override=server.url + path) as cloud,
        ):
            answer = await cloud.rebuild(sid, call)
            assert answer.cause is Cause.ACCEPTED
            sent = next(bytes(c.received) for c in server.connections if b"POST" in c.received)
        head = sent.split(b"\r\n")
        assert head[0] == f"POST /v2.1/{project_id}/servers/{sid}/action HTTP/1.1".encode()
        assert b"OpenStack-API-Version: compute 2.73" in head
        assert b"X-OpenStack-Nova-API-Version: 2.73" in head
        assert b"Content-Type: application/json" in head
        assert sent.endswith(call)


async def test_a_rebuild_is_accepted_and_its_action_found(cloud: OpenStackCloud) -> None:
    server = (await everything(cloud, name="node-00002"))[0]
    image = (await cloud.find_images("base-2026.11"))[0]
    answer = await cloud.rebuild(server.id, body(image.id, metadata={"wave": "1"}))
    assert (answer.effect, answer.cause, answer.http_status) == (Effect.APPLIED, Cause.ACCEPTED, 202)
    assert answer.server is not None
    assert answer.server.image == image.id
    assert answer.date is not None
    assert answer.request_id is not None

    async def ended() -> bool:
        action = await cloud.get_action(server.id, str(answer.request_id))
        return action is not None and action.succeeded

    await eventually(ended)  # type: ignore[arg-type]  # mypy can't tell the awaitable's type from the value's
    actions = await cloud.list_actions(server.id)
    assert actions[0].request_id == answer.request_id
    assert actions[0].user_id == cloud.user_id
    assert [a.start_time for a in actions] == sorted((a.start_time for a in actions), reverse=True)
    after, _ = await cloud.get_server(server.id)
    assert after is not None
    assert (after.status, after.image, dict(after.metadata)) == ("ACTIVE", image.id, {"wave": "1"})


async def test_what_is_not_there_is_none(cloud: OpenStackCloud) -> None:
    server = await plain_one(cloud)
    absent = "00000000-0000-0000-0000-000000000000"
    assert (await cloud.get_server(absent))[0] is None
    assert await cloud.get_action(server.id, f"req-{absent}") is None


async def test_an_absent_server_is_no_proof_about_its_actions(cloud: OpenStackCloud) -> None:
    absent = "00000000-0000-0000-0000-000000000000"
    with pytest.raises(CloudAnswerInvalid):
        await cloud.get_action(absent, f"req-{absent}")
    with pytest.raises(CloudAnswerInvalid):
        await cloud.list_actions(absent)


@pytest.mark.parametrize("server_id", ["..", "a/b", "x?y", ""])
async def test_what_can_be_no_id_reaches_no_other_address(cloud: OpenStackCloud, server_id: str) -> None:
    assert (await cloud.get_server(server_id))[0] is None
    answer = await cloud.rebuild(server_id, body("x"))
    assert (answer.effect, answer.cause) == (Effect.NOT_APPLIED, Cause.NOT_FOUND)


async def test_images_are_found_by_id_address_or_exact_name(cloud: OpenStackCloud) -> None:
    (image,) = await cloud.find_images("base-2026.11")
    assert (image.name, image.status) == ("base-2026.11", "active")
    assert await cloud.find_images(image.id) == (image,)
    assert await cloud.find_images(f"https://images.example/v2/images/{image.id}") == (image,)
    for absent in ("base-2026", "BASE-2026.11", "00000000-0000-0000-0000-000000000000", "https://x/latest"):
        assert list(await cloud.find_images(absent)) == []


async def test_a_refused_token_is_renewed_once_for_a_read(cloud: OpenStackCloud, rehearsal: Running) -> None:
    await cloud.sign_in()
    assert rehearsal.revoke_tokens() == 1
    assert len(await everything(cloud)) == 25
    assert rehearsal.revoke_tokens() == 1


async def test_a_rebuild_with_a_refused_token_is_not_sent_again(cloud: OpenStackCloud, rehearsal: Running) -> None:
    server = await plain_one(cloud)
    image = (await cloud.find_images("base-2026.11"))[0]
    rehearsal.revoke_tokens()
    answer = await cloud.rebuild(server.id, body(image.id))
    assert (answer.effect, answer.cause) == (Effect.NOT_APPLIED, Cause.TOKEN)
    await cloud.renew_token()
    assert (await cloud.rebuild(server.id, body(image.id))).cause is Cause.ACCEPTED


@pytest.mark.parametrize(
    ("kind", "effect", "cause", "accepted"),
    [
        (FaultKind.DROP_BEFORE, Effect.UNKNOWN, Cause.NO_ANSWER, 0),
        (FaultKind.DROP_AFTER, Effect.UNKNOWN, Cause.NO_ANSWER, 1),
        (FaultKind.ERROR_BEFORE, Effect.UNKNOWN, Cause.SERVER_ERROR, 0),
        (FaultKind.ERROR_AFTER, Effect.UNKNOWN, Cause.SERVER_ERROR, 1),
        (FaultKind.STORM, Effect.NOT_APPLIED, Cause.THROTTLED, 0),
        (FaultKind.OUTAGE, Effect.UNKNOWN, Cause.SERVER_ERROR, 0),
    ],
)
async def test_a_fault_on_the_wire_is_classified_and_the_call_sent_once(
    cloud: OpenStackCloud, rehearsal: Running, kind: FaultKind, effect: Effect, cause: Cause, accepted: int
) -> None:
    server = await plain_one(cloud)
    image = (await cloud.find_images("base-2026.11"))[0]
    rehearsal.cloud.faults.add([Fault(kind=kind)], rehearsal.cloud.now())
    answer = await cloud.rebuild(server.id, body(image.id))
    assert (answer.effect, answer.cause) == (effect, cause)
    assert answer.date is not None
    assert rehearsal.account.servers[server.id].accepted == accepted
    if kind is FaultKind.STORM:
        assert answer.retry_after == 1.0


async def test_a_500_with_a_request_id_leads_to_its_action(cloud: OpenStackCloud, rehearsal: Running) -> None:
    server = await plain_one(cloud)
    image = (await cloud.find_images("base-2026.11"))[0]
    for kind, applied in ((FaultKind.ERROR_BEFORE, False), (FaultKind.ERROR_AFTER, True)):
        rehearsal.cloud.faults.add([Fault(kind=kind, status=500, times=1)], rehearsal.cloud.now())
        answer = await cloud.rebuild(server.id, body(image.id))
        assert (answer.cause, answer.http_status) == (Cause.SERVER_ERROR, 500)
        assert answer.request_id is not None
        assert (await cloud.get_action(server.id, answer.request_id) is not None) == applied


async def test_reads_say_what_is_wrong(cloud: OpenStackCloud, rehearsal: Running) -> None:
    server = await plain_one(cloud)
    for kind, error in ((FaultKind.STORM, CloudThrottled), (FaultKind.OUTAGE, CloudUnreachable)):
        rehearsal.cloud.faults.add([Fault(kind=kind)], rehearsal.cloud.now())
        with pytest.raises(error):
            await cloud.get_server(server.id)
        rehearsal.cloud.faults.clear()


async def test_without_a_date_header_the_clouds_clock_of_the_sign_in_serves(write: Any) -> None:
    ahead = 86_400.0
    config = RehearsalConfig(servers=1, date_header=False)
    async with (
        serve(config, clock=lambda: __import__("time").time() + ahead) as running,
        opened(running, write) as made,
    ):
        server = (await everything(made))[0]
        _, date = await made.get_server(server.id)
        assert abs(date.timestamp() - running.cloud.now()) < 3


async def test_volume_booted_servers_need_a_newer_cloud(write: Any) -> None:
    async with serve(RehearsalConfig(servers=1, volume_booted=1)) as running:
        async with opened(running, write) as made:
            server = (await everything(made))[0]
            image = (await made.find_images("base-2026.11"))[0]
            assert server.volume_booted
            assert (await made.rebuild(server.id, body(image.id))).cause is Cause.BAD_REQUEST
            again = await made.rebuild(server.id, body(image.id), reimage_boot_volume=True)
            assert again.cause is Cause.ACCEPTED
        async with opened(running, write, compute_api_version="2.92") as made:
            await made.sign_in()
            assert not made.supports_reimage
            refused = await made.rebuild(server.id, body(image.id), reimage_boot_volume=True)
            assert (refused.effect, refused.cause, refused.http_status) == (
                Effect.NOT_APPLIED,
                Cause.BAD_REQUEST,
                None,
            )
            assert "2.93" in refused.message


async def test_a_cloud_that_cant_be_reached_gets_no_rebuild(rehearsal: Running, write: Any) -> None:
    async with opened(rehearsal, write, compute_endpoint_override="http://127.0.0.1:1/v2.1") as cloud:
        answer = await cloud.rebuild("x", body("x"))
        assert (answer.effect, answer.cause) == (Effect.NOT_APPLIED, Cause.NEVER_SENT)
        with pytest.raises(CloudUnreachable, match=r"127\.0\.0\.1:1"):
            await cloud.get_server("x")


async def test_the_last_look_keeps_a_rebuild_back(cloud: OpenStackCloud, rehearsal: Running) -> None:
    server = await plain_one(cloud)
    answer = await cloud.rebuild(server.id, body("x"), ready=lambda: False)
    assert (answer.effect, answer.cause) == (Effect.NOT_APPLIED, Cause.NEVER_SENT)
    assert rehearsal.account.servers[server.id].received == 0


async def test_secrets_come_back_in_no_message(cloud: OpenStackCloud) -> None:
    server = await plain_one(cloud)
    answers: list[Answer] = [
        await cloud.rebuild(server.id, body("no-uuid", adminPass="hunter2")),
        await cloud.rebuild(server.id, json.dumps({"rebuild": {"adminPass": "hunter2"}}).encode()),
        await cloud.rebuild(server.id, body(server.id, adminPass="hunter2", colour="red")),
    ]
    assert all(a.cause is Cause.BAD_REQUEST for a in answers)
    assert "hunter2" not in repr(answers)


async def test_reads_are_paced(cloud: OpenStackCloud, redis_url: str) -> None:
    redis = make_redis(redis_url)
    await cloud.sign_in()
    cloud.pace_reads(Limiter(redis, "p|read", 20.0))
    loop = asyncio.get_running_loop()
    began = loop.time()
    await asyncio.gather(*(cloud.get_server("x1") for _ in range(6)))
    assert loop.time() - began >= 0.24
    await redis.aclose()


async def test_a_throttled_read_slows_the_reads_down(cloud: OpenStackCloud, rehearsal: Running, redis_url: str) -> None:
    redis = make_redis(redis_url)
    await cloud.sign_in()
    limiter = Limiter(redis, "p|read", 20.0)
    cloud.pace_reads(limiter)
    rehearsal.cloud.faults.add([Fault(kind=FaultKind.STORM, delay=0.2)], rehearsal.cloud.now())
    with pytest.raises(CloudThrottled):
        await cloud.get_server("x1")
    # Four tries, each after the pause that was asked for and each cutting what was left; climbing back is slow.
    assert limiter.learned_rate == pytest.approx(20.0 * 0.7**4, rel=0.4)
    assert limiter.learned_rate < 20.0 * 0.7
    await redis.aclose()


async def scripted(rehearsal: Running, write: Any, answers: list[tuple[str, Any]]) -> OpenStackCloud | None:
    """Lists all servers of a Nova that gives these answers, one after the other, and shows what was asked."""
    left = list(answers)

    async def nova(connection: Connection) -> None:
        while request := await connection.request():
            if request.split(b" ")[1] == b"/v2.1/":
                await connection.answer("200 OK", json.dumps(VERSION).encode(), DATE)
                continue
            status, value = left.pop(0)
            await connection.answer(status, value if isinstance(value, bytes) else json.dumps(value).encode(), DATE)

    async with raw_server(nova) as server, opened(rehearsal, write, compute_endpoint_override=server.url) as cloud:
        await everything(cloud)
    return None


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ([("200 OK", b"<html>login</html>")], CloudAnswerInvalid),
        ([("200 OK", b'{"servers": [{"id": "a", "sta')], CloudAnswerInvalid),
        ([("200 OK", {"servers": [{"name": "no id"}]})], CloudAnswerInvalid),
        ([("200 OK", {})], CloudAnswerInvalid),
        ([("302 Found", b"")], CloudAnswerInvalid),
        ([("400 Bad Request", {"badRequest": {"code": 400, "message": "marker [x] not found"}})], CloudAnswerInvalid),
        ([("404 Not Found", b"<html>404</html>")], CloudAnswerInvalid),
        ([("401 Unauthorized", b""), ("401 Unauthorized", b"")], CloudTokenExpired),
        ([("403 Forbidden", {"forbidden": {"code": 403, "message": "Policy"}})], CloudError),
        ([("429 Too Many Requests", b"")], CloudThrottled),
        ([("413 Too Large", {"overLimit": {"code": 413, "message": "slow"}})], CloudThrottled),
        ([("500 Oops", b"")], CloudUnreachable),
    ],
    ids=str,
)
async def test_an_answer_to_a_list_that_is_none_is_named(
    rehearsal: Running, write: Any, answers: list[tuple[str, Any]], error: type[CloudError]
) -> None:
    with pytest.raises(error) as caught:
        await scripted(rehearsal, write, answers)
    assert caught.value.message


async def test_a_list_whose_next_page_is_the_same_again_is_refused(rehearsal: Running, write: Any) -> None:
    page = {
        "servers": [{"id": "a", "status": "ACTIVE"}],
        "servers_links": [{"rel": "next", "href": "http://unreachable.invalid/servers/detail?marker=a"}],
    }
    with pytest.raises(CloudAnswerInvalid, match="does not end"):
        await scripted(rehearsal, write, [("200 OK", page)] * 3)


async def test_a_full_page_without_a_link_and_an_empty_last_page_are_followed(rehearsal: Running, write: Any) -> None:
    full = {"servers": [{"id": f"s{i}", "status": "ACTIVE"} for i in range(1000)]}
    await scripted(rehearsal, write, [("200 OK", full), ("200 OK", {"servers": []})])
    with pytest.raises(CloudUnreachable):  # the second page was asked for: without it there is no answer
        await scripted(rehearsal, write, [("200 OK", full)])


async def test_the_token_cache_signs_in_once_for_several_slices(rehearsal: Running, write: Any) -> None:
    count = 0

    def counting(config: Any) -> Any:
        nonlocal count
        count += 1
        return sign_in_blocking(config)

    tokens = TokenCache(counting)
    for _ in range(3):
        async with opened(rehearsal, write, tokens) as made:
            await made.sign_in()
    assert count == 1


@pytest.mark.parametrize(
    ("offered", "cap", "spoken", "reimage"),
    [
        ((2, 93), None, (2, 73), True),
        ((2, 96), (2, 60), (2, 60), False),
        ((2, 60), None, (2, 60), False),
        ((2, 60), (2, 90), (2, 60), False),
        ((2, 95), (2, 93), (2, 73), True),
        (None, (2, 60), None, False),
    ],
)
def test_the_spoken_microversion_is_the_best_up_to_2_73(
    offered: tuple[int, int] | None, cap: tuple[int, int] | None, spoken: tuple[int, int] | None, reimage: bool
) -> None:
    found = Microversions(offered=offered, cap=cap)
    assert (found.spoken, found.supports_reimage) == (spoken, reimage)


def test_an_old_cloud_offers_fewer_features() -> None:
    assert Microversions(offered=(2, 26)).features == {Feature.LOCKED, Feature.TAGS}
    assert Microversions(offered=None).features == frozenset()


def test_version_documents_have_two_forms() -> None:
    listed = {"versions": [{"id": "v2.0", "version": ""}, {"id": "v2.1", "version": "2.90"}]}
    assert offered_by(VERSION) == (2, 93)
    assert offered_by(listed) == (2, 90)
    assert offered_by({"versions": [{"id": "v2.0", "version": ""}]}) is None


@pytest.mark.parametrize("url", ["http://h/compute/v2.1/other", "ftp://h/v2.1", "h:8774/v2.1", "http:///v2.1"])
def test_an_endpoint_of_another_project_or_no_address_is_refused(url: str) -> None:
    with pytest.raises(CloudConfigInvalid):
        compute_root(url, "p1")
