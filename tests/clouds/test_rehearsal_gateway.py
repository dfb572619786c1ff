"""The rate limit, the faults of the wire, tokens, and the account."""

import asyncio
import sys
from pathlib import Path

import aiohttp
import pytest
import yaml

from orchestrator.rehearsal import Fault, FaultKind, RehearsalConfig, serve, serve_in_thread
from orchestrator.rehearsal.gateway import Limit
from tests.clouds.rehearsed import Caller, rehearsed
from tests.parts import eventually

FAST = RehearsalConfig(servers=10, rebuild_seconds=1.0)


async def test_calls_beyond_the_write_rate_get_429_with_retry_after_and_do_nothing() -> None:
    config = RehearsalConfig(servers=10, rebuild_seconds=1.0, write_rate=3.0, rate_tolerance=0.0)
    async with rehearsed(config) as caller:
        statuses = [(await caller.rebuild(i, caller.images[1]))[0] for i in caller.ids[:5]]
        assert statuses == [202, 202, 202, 429, 429]
        _, shown, headers = await caller("POST", f"/servers/{caller.ids[3]}/action", {"lock": None})
        assert headers["Retry-After"] == "1"
        assert shown["error_code"] == "APIGW.0308"
        assert "x-openstack-request-id" not in headers
        assert (await caller("GET", "/servers"))[0] == 200
        caller.clock.pass_by(0.99)
        assert (await caller.rebuild(caller.ids[3], caller.images[1]))[0] == 429
        caller.clock.pass_by(0.01)
        assert (await caller.rebuild(caller.ids[3], caller.images[1]))[0] == 202
        account = caller.running.account
        assert [account.servers[i].accepted for i in caller.ids[:5]] == [1, 1, 1, 1, 0]
        assert account.servers[caller.ids[3]].answers == {"429": 2, "202": 1}


async def test_reads_have_a_rate_of_their_own() -> None:
    async with rehearsed(RehearsalConfig(servers=1, read_rate=1.0, rate_tolerance=0.0)) as caller:
        assert (await caller("GET", "/servers"))[0] == 200
        assert (await caller("GET", "/servers"))[0] == 429
        assert (await caller.rebuild(caller.ids[0], caller.images[1]))[0] == 202


@pytest.mark.parametrize(("rate", "seconds", "most"), [(50.0, 4.0, 200), (0.5, 10.0, 5), (300.0, 2.0, 600)])
def test_the_limit_lets_the_rate_through_and_no_more(rate: float, seconds: float, most: int) -> None:
    limit = Limit(rate, 0.0)
    passed = sum(limit.wait(n / 1024) == 0.0 for n in range(int(seconds * 1024)))
    assert passed == most


def test_a_client_that_paces_itself_at_the_rate_passes_in_spite_of_jitter() -> None:
    limit = Limit(50.0, 0.05)
    assert all(limit.wait(n / 50 + (0.015 if n % 2 else 0.0)) == 0.0 for n in range(500))


async def _order(caller: Caller, **fault: object) -> None:
    status, shown, _ = await caller("POST", "/rehearsal/faults", {"faults": [fault]})
    assert status == 201, shown


@pytest.mark.parametrize(("kind", "accepted"), [("drop_before", 0), ("drop_after", 1)])
async def test_a_cut_connection_says_nothing_of_the_effect(kind: str, accepted: int) -> None:
    async with rehearsed(FAST) as caller:
        await _order(caller, kind=kind, servers=["node-00001"], times=1)
        with pytest.raises(aiohttp.ClientConnectionError):
            await caller.rebuild(caller.ids[0], caller.images[1])
        account = caller.running.account.servers[caller.ids[0]]
        assert (account.received, account.accepted, account.answers) == (1, accepted, {"dropped": 1})
        assert (await caller.rebuild(caller.ids[0], caller.images[1]))[0] == (409 if accepted else 202)


async def test_a_500_before_the_effect_has_a_request_id_without_an_action() -> None:
    async with rehearsed(FAST) as caller:
        await _order(caller, kind="error_before", times=1)
        status, _, request_id = await caller.rebuild(caller.ids[0], caller.images[1])
        assert status == 500
        path = f"/servers/{caller.ids[0]}/os-instance-actions/{request_id}"
        assert (await caller("GET", path))[1]["itemNotFound"]["message"] == f"Action {request_id} not found"


async def test_a_500_after_the_effect_has_the_request_id_of_the_action() -> None:
    async with rehearsed(FAST) as caller:
        await _order(caller, kind="error_after", status=500, times=1)
        status, shown, request_id = await caller.rebuild(caller.ids[0], caller.images[1])
        assert (status, shown["computeFault"]["code"]) == (500, 500)
        assert (await caller.action(caller.ids[0], request_id))["action"] == "rebuild"


async def test_a_503_after_the_effect_is_the_gateways_and_knows_no_request_id() -> None:
    async with rehearsed(FAST) as caller:
        await _order(caller, kind="error_after", times=1)
        status, shown, request_id = await caller.rebuild(caller.ids[0], caller.images[1])
        assert (status, request_id) == (503, "")
        assert shown.startswith("<html>")
        assert caller.running.account.servers[caller.ids[0]].accepted == 1


async def test_a_slow_answer_may_come_after_an_effect_that_the_client_gave_up_on() -> None:
    async with rehearsed(FAST) as caller:
        account = caller.running.cloud.account.servers[caller.ids[0]]
        await _order(caller, kind="slow_before", delay=0.3, times=1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(caller.rebuild(caller.ids[0], caller.images[1]), 0.1)
        assert account.accepted == 0
        await eventually(lambda: account.accepted == 1)


async def test_a_slow_answer_may_come_long_after_the_effect() -> None:
    async with rehearsed(FAST) as caller:
        account = caller.running.cloud.account.servers[caller.ids[0]]
        await _order(caller, kind="slow_after", delay=5, times=1)
        call = asyncio.ensure_future(caller.rebuild(caller.ids[0], caller.images[1]))
        await eventually(lambda: account.accepted == 1, deadline=2)
        assert not call.done()
        call.cancel()


async def test_a_vanished_server_is_404_and_missing_from_lists_for_a_while() -> None:
    async with rehearsed(FAST) as caller:
        await _order(caller, kind="vanished", servers=["node-00001"], lasts=60)
        assert (await caller("GET", f"/servers/{caller.ids[0]}"))[0] == 404
        assert len((await caller("GET", "/servers"))[1]["servers"]) == 9
        caller.clock.pass_by(61)
        assert len((await caller("GET", "/servers"))[1]["servers"]) == 10


async def test_an_outage_answers_503_to_everything_until_it_is_over() -> None:
    async with rehearsed(FAST) as caller:
        await _order(caller, kind="outage", lasts=30)
        assert (await caller("GET", "/servers"))[0] == 503
        assert (await caller.rebuild(caller.ids[0], caller.images[1]))[0] == 503
        caller.clock.pass_by(31)
        assert (await caller.rebuild(caller.ids[0], caller.images[1]))[0] == 202
        assert caller.running.account.servers[caller.ids[0]].accepted == 1


async def test_a_storm_is_429_whatever_the_rate() -> None:
    async with rehearsed(FAST) as caller:
        await _order(caller, kind="storm", times=2, delay=7)
        _, _, headers = await caller("GET", "/servers")
        assert headers["Retry-After"] == "7"
        assert (await caller.rebuild(caller.ids[0], caller.images[1]))[0] == 429
        assert (await caller("GET", "/servers"))[0] == 200


async def test_faults_are_shown_cleared_and_refused_whole_when_one_is_wrong() -> None:
    async with rehearsed(FAST) as caller:
        wrong = {"faults": [{"kind": "stuck"}, {"kind": "sulks"}]}
        assert (await caller("POST", "/rehearsal/faults", wrong))[0] == 400
        assert (await caller("GET", "/rehearsal/faults"))[1] == {"faults": []}
        await _order(caller, kind="stuck", servers=["node-00002"], times=1)
        _, shown, _ = await caller("GET", "/rehearsal/faults")
        assert [(f["kind"], f["servers"], f["times"]) for f in shown["faults"]] == [("stuck", ["node-00002"], 1)]
        assert (await caller("DELETE", "/rehearsal/faults"))[0] == 204
        assert (await caller("GET", "/rehearsal/faults"))[1] == {"faults": []}


async def test_tokens_end_at_their_time_and_when_they_are_revoked() -> None:
    async with rehearsed(RehearsalConfig(servers=1, token_ttl=100.0)) as caller:
        caller.clock.pass_by(99.9)
        assert (await caller("GET", "/servers"))[0] == 200
        caller.clock.pass_by(0.1)
        assert (await caller("GET", "/servers"))[0] == 401
        await caller.sign_in(caller.running.cloud.config.fleet_user)
        assert (await caller("GET", "/servers"))[0] == 200
        assert (await caller("POST", "/rehearsal/tokens/revoke?user=stranger"))[1] == {"revoked": 0}
        assert (await caller("POST", "/rehearsal/tokens/revoke?user=rehearsal"))[1]["revoked"] >= 1
        assert (await caller("GET", "/servers"))[0] == 401


async def test_an_application_credential_signs_in_to_its_project() -> None:
    async with rehearsed(FAST) as caller:
        user = caller.running.cloud.config.fleet_user
        for credential, status in (
            ({"id": user.credential_id, "secret": user.password}, 201),
            ({"id": user.credential_id, "secret": "wrong"}, 401),
        ):
            identity = {"methods": ["application_credential"], "application_credential": credential}
            url = f"{caller.running.auth_url}/auth/tokens"
            async with caller.session.post(url, json={"auth": {"identity": identity}}) as answer:
                assert answer.status == status


async def test_the_account_tells_what_each_server_went_through() -> None:
    async with rehearsed(FAST) as caller:
        first, second = caller.ids[:2]
        await caller.rebuild(first, caller.images[1], metadata={"rebuild-attempt": "plan/1"})
        await caller.rebuild(first, caller.images[1])
        await caller.rebuild(second, caller.images[1])
        caller.clock.pass_by(5)
        await caller.rebuild(first, caller.images[2])
        caller.clock.pass_by(5)
        await caller.server(second)
        _, account, _ = await caller("GET", "/rehearsal/account")
        assert account["servers"][first] == {
            "name": "node-00001",
            "received": 3,
            "accepted": 2,
            "wiped": 2,
            "succeeded": 2,
            "failed": 0,
            "answers": {"202": 2, "409": 1},
            "attempts": ["plan/1", None],
            "faults": {},
            "reads": 0,
        }
        assert account["servers"][second]["reads"] == 1
        assert account["accepted_twice"] == {first: 2}
        assert (account["in_flight"], account["highest_in_flight"]) == (0, 2)
        assert account["busiest_second"] == {"writes": 3, "reads": 1, "rebuilds": 2}
        assert len(account["servers"]) == 2
        assert len((await caller("GET", "/rehearsal/account?all=1"))[1]["servers"]) == 10


async def test_a_list_shows_a_change_at_once_although_it_keeps_what_it_wrote() -> None:
    async with rehearsed(FAST) as caller:

        async def listed() -> dict[str, object]:
            _, page, _ = await caller("GET", "/servers/detail?name=node-00001")
            (server,) = page["servers"]
            return dict(server)

        path = f"/servers/{caller.ids[0]}"
        assert await listed() == await listed()
        await caller("PUT", f"{path}/tags", {"tags": ["blue"]})
        assert (await listed())["tags"] == ["blue"]
        await caller("POST", f"{path}/metadata", {"metadata": {"k": "v"}})
        await caller("DELETE", f"{path}/metadata/role")
        assert (await listed())["metadata"] == {"index": "1", "k": "v"}
        await caller("POST", f"{path}/action", {"lock": None})
        assert (await listed())["locked"] is True
        await caller("POST", f"{path}/action", {"unlock": None})
        await caller.rebuild(caller.ids[0], caller.images[1])
        assert (await listed())["status"] == "REBUILD"
        caller.clock.pass_by(2)
        assert (await listed())["status"] == "ACTIVE"


async def test_pages_hold_at_most_a_thousand_servers() -> None:
    async with rehearsed(RehearsalConfig(servers=2500)) as caller:
        sizes, query = [], "?limit=5000"
        while query:
            _, page, _ = await caller("GET", f"/servers{query}")
            sizes.append(len(page["servers"]))
            links = page.get("servers_links")
            query = "?" + links[0]["href"].split("?")[1] if links else ""
        assert sizes == [1000, 1000, 500]


@pytest.mark.parametrize("dated", [True, False])
async def test_answers_have_a_date_unless_told_otherwise(*, dated: bool) -> None:
    async with rehearsed(RehearsalConfig(servers=1, date_header=dated)) as caller:
        _, _, headers = await caller("GET", "/servers")
        assert ("Date" in headers) is dated


async def test_the_clouds_yaml_names_the_cloud_its_administrator_and_the_settings() -> None:
    async with serve(FAST) as running:
        clouds = yaml.safe_load(running.clouds_yaml("drill", {"write_rate": "50/s"}))["clouds"]
        assert clouds.keys() == {"drill", "drill-admin"}
        assert clouds["drill"]["auth"]["auth_url"] == f"{running.url}/identity/v3"
        assert clouds["drill"]["rebuild"] == {"write_rate": "50/s"}


def test_a_taken_port_is_said_to_the_caller_of_the_thread() -> None:
    with serve_in_thread(FAST) as running:
        port = int(running.url.rsplit(":", 1)[1])
        with pytest.raises(OSError, match="in use"), serve_in_thread(FAST, port=port):
            pass


@pytest.mark.parametrize(
    "wrong",
    [
        {"servers": 2, "locked": 3},
        {"images": ()},
        {"max_microversion": "3.1"},
        {"servers": 300, "network": "10.0.0.0/24"},
    ],
)
def test_a_config_that_contradicts_itself_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        RehearsalConfig(**wrong)  # type: ignore[arg-type]


def test_a_fault_needs_a_kind_that_there_is() -> None:
    assert Fault.parse({"kind": "stuck", "servers": ["a"]}) == Fault(kind=FaultKind.STUCK, servers=frozenset({"a"}))
    for wrong in ({}, {"kind": "sulks"}, {"kind": "stuck", "colour": 1}, {"kind": "outage", "calls": "some"}):
        with pytest.raises(ValueError):
            Fault.parse(wrong)


async def test_the_command_serves_until_it_is_told_to_stop_and_writes_a_private_clouds_yaml(tmp_path: Path) -> None:
    clouds_file = tmp_path / "deep" / "clouds.yaml"
    code = (
        "from pathlib import Path\nfrom orchestrator.rehearsal import RehearsalConfig\n"
        "from orchestrator.rehearsal.command import run\n"
        f"run(RehearsalConfig(servers=3), '127.0.0.1', 0, Path({str(clouds_file)!r}), "
        "say=lambda line: print(line, flush=True))\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        first = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
        assert first.startswith("3 servers at http://127.0.0.1:")
        assert clouds_file.stat().st_mode & 0o777 == 0o600
        entry = yaml.safe_load(clouds_file.read_text())["clouds"]["rehearsal"]
        async with aiohttp.ClientSession() as session, session.get(entry["auth"]["auth_url"]) as answer:
            assert answer.status == 200
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 20) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
