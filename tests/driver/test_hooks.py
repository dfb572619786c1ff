"""Plans with hooks: a real receiver, real workers, the real API for late answers, a cloud over HTTP."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
import pytest
from sqlalchemy import text

from orchestrator.api.keys import ApiConfig
from orchestrator.api.serve import serving
from orchestrator.domain.states import PlanStatus
from orchestrator.ledger.transitions import PlanMove, lock_plans, move_plan
from orchestrator.rehearsal import Fault, FaultKind, Running
from orchestrator.service.roles import Role
from orchestrator.service.tokens import create_token
from tests.driver.hook_receiver import KEY, Receiver, receiving
from tests.driver.site import QUEUES, Site, Workers
from tests.parts import eventually


@pytest.fixture(scope="module")
def api_port() -> int:
    """Where the API will be; the workers have to know before."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def workers(
    cloud: Running, urls: tuple[str, str], api_port: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Workers]:
    """Workers that have the hooks' secret."""
    folder: Path = tmp_path_factory.mktemp("workers")
    env = Site.environment(cloud, folder, *urls)
    running = Workers({**env, "HOOK_KEY": KEY, "REBUILD_API_URL": f"http://127.0.0.1:{api_port}"}, folder)
    running.start(*QUEUES)
    yield running
    running.stop()
    for log in sorted(folder.glob("*.log")):
        print(f"== {log.name}\n{log.read_text()[-4000:]}")  # noqa: T201  pytest shows it beside a failure


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as running:
        yield running


class Api:
    """The API, for the callbacks and for what is shown."""

    def __init__(self, url: str, token: str, session: aiohttp.ClientSession):
        self.url, self._token, self._session = url, token, session

    async def say(self, call: Any, result: str, *, token: str | None = None, message: str | None = None) -> int:
        """A callback; its status."""
        headers = {"Authorization": f"Bearer {token or call.document['callback_token']}"}
        body = {"result": result, "message": message}
        async with self._session.post(call.document["callback_url"], json=body, headers=headers) as response:
            return response.status

    async def job(self, plan: UUID, server: str) -> Any:
        headers = {"Authorization": f"Bearer {self._token}"}
        async with self._session.get(f"{self.url}/v1/plans/{plan}/jobs/{server}", headers=headers) as response:
            return await response.json()


@pytest.fixture
async def api(site: Site, urls: tuple[str, str], api_port: int) -> AsyncIterator[Api]:
    config = ApiConfig(database_url=urls[0], redis_url=urls[1], api_url=f"http://127.0.0.1:{api_port}")
    async with serving(config, f"127.0.0.1:{api_port}") as url, aiohttp.ClientSession() as session:
        name = f"viewer-{len(await _tokens(site))}"
        _, secret = await create_token(site.engine, name, Role.VIEWER, created_by="tests")
        yield Api(url, secret, session)


async def _tokens(site: Site) -> list[Any]:
    async with site.engine.connect() as conn:
        return list(await conn.execute(text("SELECT 1 FROM tokens")))


async def state_of(site: Site, server: str) -> str:
    """The state of the server's newest job."""
    async with site.engine.connect() as conn:
        return str(
            (
                await conn.execute(
                    text("SELECT state FROM jobs WHERE server_id = :id ORDER BY plan_id DESC LIMIT 1"), {"id": server}
                )
            ).scalar_one()
        )


async def in_state(site: Site, server: str, state: str) -> None:
    async def so() -> bool:
        return await state_of(site, server) == state

    await eventually(so, deadline=40, message=f"the job is {state}", every=0.05)


async def came(receiver: Receiver, phase: str, n: int = 1) -> Any:
    """The n-th call of a phase."""
    await eventually(lambda: len(receiver.of(phase)) >= n, deadline=40, message=f"{n} calls of {phase}")
    return receiver.of(phase)[n - 1]


async def move(site: Site, plan: UUID, before: PlanStatus, after: PlanStatus) -> None:
    async with site.engine.begin() as conn:
        await lock_plans(conn, [plan])
        assert await move_plan(
            conn, PlanMove(plan_id=plan, expected=before, status=after, actor="tests", stop_sending=True)
        )


async def test_a_server_is_drained_rebuilt_configured_and_released_in_that_order(
    site: Site, receiver: Receiver
) -> None:
    ids = site.named(*range(10, 16))

    async def look(phase: str, server: str) -> tuple[int, str]:
        return site.received(server), await state_of(site, server)

    receiver.look = look
    plan, status = await site.run({"targets": {"servers": ids}, "hooks": receiver.hooks("before", "after", "release")})
    assert status == "succeeded"
    await eventually(lambda: len(receiver.of("release")) == len(ids), message="all are released")
    await site.undriven()
    for server in ids:
        assert [(c.phase, c.seen) for c in receiver.calls if c.server == server] == [
            ("before", (0, "draining")), ("after", (1, "configuring")), ("release", (1, "succeeded")),
        ]  # fmt: skip
    call = receiver.calls[0].document
    assert {k: call[k] for k in ("plan_id", "name", "attempt")} == {
        "plan_id": str(plan), "name": site.cloud.cloud.servers[call["server_id"]].name, "attempt": 1,
    }  # fmt: skip
    assert call["callback_url"].endswith(f"/v1/plans/{plan}/jobs/{call['server_id']}/hooks/before")
    assert [site.accepted(i) for i in ids] == [1] * len(ids)
    await site.assert_ledger_is_sound(plan)


async def test_hooks_are_answered_later_with_a_token_for_one_answer(site: Site, receiver: Receiver, api: Api) -> None:
    (server,) = site.named(16)
    receiver.statuses = {"before": [202], "after": [202], "release": [202]}
    plan = await site.submit({"targets": {"servers": [server]}, "hooks": receiver.hooks("before", "after", "release")})
    before = await came(receiver, "before")
    (shown,) = (await api.job(plan, server))["hooks"]
    assert (shown["phase"], shown["tries"]) == ("before", 1)
    assert await api.say(before, "ok", token="not-the-token") == 401
    assert await state_of(site, server) == "draining"
    assert site.received(server) == 0
    assert await api.say(before, "ok") == 200
    assert await api.say(before, "ok") == 409
    after = await came(receiver, "after")
    assert site.accepted(server) == 1
    assert await api.say(after, "ok", token=before.document["callback_token"]) == 401
    assert await state_of(site, server) == "configuring"
    assert await api.say(after, "ok", message="configured by the tests") == 200
    assert await site.ended(plan) == "succeeded"
    assert await api.say(await came(receiver, "release"), "ok") == 200
    await site.undriven()
    hooks = (await api.job(plan, server))["hooks"]
    assert [(h["phase"], h["state"], h["http_status"], h["message"]) for h in hooks] == [
        ("before", "done", 202, "Answered: ok."), ("after", "done", 202, "configured by the tests"),
        ("release", "done", 202, "Answered: ok."),
    ]  # fmt: skip
    assert [len(receiver.of(p)) for p in ("before", "after", "release")] == [1, 1, 1]
    async with site.engine.connect() as conn:
        kept = str((await conn.execute(text("SELECT * FROM hook_calls"))).all())
    assert before.document["callback_token"] not in kept
    await site.assert_ledger_is_sound(plan)


async def test_a_failed_drain_fails_the_server_untouched_or_is_passed_over(
    site: Site, receiver: Receiver, api: Api
) -> None:
    strict, lax = site.named(17, 18)
    receiver.statuses = {"before": [202]}
    plan = await site.submit({"targets": {"servers": [strict]}, "hooks": receiver.hooks("before", "release")})
    assert await api.say(await came(receiver, "before"), "failed", message="still has sessions") == 200
    assert await site.ended(plan) == "failed"
    assert await site.jobs(plan) == {strict: ("failed", "drain_failed")}
    assert "still has sessions" in (await api.job(plan, strict))["reason"]["message"]
    await came(receiver, "release")
    assert site.received(strict) == 0

    hooks = receiver.hooks("before", before={"on_failure": "continue"})
    plan = await site.submit({"targets": {"servers": [lax]}, "hooks": hooks})
    assert await api.say(await came(receiver, "before", 2), "failed") == 200
    assert await site.ended(plan) == "succeeded"
    assert site.accepted(lax) == 1
    await site.undriven()
    assert len(receiver.of("release")) == 1


async def test_a_failed_configuration_fails_the_server_or_is_passed_over(site: Site, receiver: Receiver) -> None:
    strict, lax = site.named(19, 20)
    receiver.statuses = {"after": [500]}
    for server, on_failure, end in ((strict, "fail", "failed"), (lax, "continue", "succeeded")):
        hooks = receiver.hooks("after", after={"timeout": "2s", "on_failure": on_failure})
        plan, status = await site.run({"targets": {"servers": [server]}, "hooks": hooks})
        assert status == end
        assert (await site.jobs(plan))[server][1] == ("configure_failed" if end == "failed" else None)
        assert site.accepted(server) == 1
        assert len(receiver.of("after", server)) > 1
        await site.assert_ledger_is_sound(plan)


async def test_a_receiver_that_errs_is_called_again_under_the_same_id(site: Site, receiver: Receiver) -> None:
    (server,) = site.named(21)
    receiver.statuses = {"before": [503, 302, 404, 204]}
    _, status = await site.run({"targets": {"servers": [server]}, "hooks": receiver.hooks("before")})
    assert status == "succeeded"
    calls = receiver.of("before")
    assert len(calls) == 4
    assert len({c.message_id for c in calls}) == 1
    assert len({c.document["callback_token"] for c in calls}) == 4


async def test_a_server_that_failed_is_released_too(site: Site, receiver: Receiver) -> None:
    (server,) = site.named(22)
    site.cloud.cloud.fail(Fault(kind=FaultKind.SPAWN_FAILS, servers=frozenset({server}), times=1))
    plan, status = await site.run({"targets": {"servers": [server]}, "hooks": receiver.hooks("before", "release")})
    assert status == "failed"
    assert await site.jobs(plan) == {server: ("failed", "rebuild_failed_on_host")}
    await came(receiver, "release")
    await site.undriven()
    assert len(receiver.of("release")) == 1


async def test_a_plan_cancelled_while_servers_drain_releases_them_untouched(site: Site, receiver: Receiver) -> None:
    ids = site.named(23, 24, 25)
    receiver.statuses = {"before": [202]}
    plan = await site.submit({"targets": {"servers": ids}, "hooks": receiver.hooks("before", "release")})
    await came(receiver, "before", 3)
    await site.cancel(plan)
    assert await site.ended(plan) == "cancelled"
    await came(receiver, "release", 3)
    await site.undriven()
    assert await site.states(plan) == {"cancelled": 3}
    assert sorted(c.server for c in receiver.of("release")) == sorted(ids)
    assert [site.received(i) for i in ids] == [0, 0, 0]


async def test_a_drained_server_waits_for_a_paused_plan_and_is_not_drained_again(
    site: Site, receiver: Receiver, api: Api
) -> None:
    (server,) = site.named(26)
    receiver.statuses = {"before": [202]}
    plan = await site.submit({"targets": {"servers": [server]}, "hooks": receiver.hooks("before", "release")})
    before = await came(receiver, "before")
    await move(site, plan, PlanStatus.RUNNING, PlanStatus.PAUSED)
    assert await api.say(before, "ok") == 200
    await in_state(site, server, "pending")
    assert site.received(server) == 0
    assert receiver.of("release") == []
    await move(site, plan, PlanStatus.PAUSED, PlanStatus.RUNNING)
    assert await site.ended(plan) == "succeeded"
    await came(receiver, "release")
    await site.undriven()
    assert [len(receiver.of(p)) for p in ("before", "release")] == [1, 1]
    assert site.accepted(server) == 1


async def test_a_call_that_is_sent_again_needs_no_second_drain(site: Site, receiver: Receiver) -> None:
    (server,) = site.named(27)
    site.cloud.cloud.fail(Fault(kind=FaultKind.ERROR_BEFORE, status=503, servers=frozenset({server}), times=1))
    plan, status = await site.run(
        {
            "targets": {"servers": [server]}, "hooks": receiver.hooks("before", "release"),
            "failure": {"attempts": 3, "backoff": {"initial": "1s"}}, "cloud": "resending",
        }
    )  # fmt: skip
    assert status == "succeeded"
    await came(receiver, "release")
    assert site.received(server) == 2
    assert site.accepted(server) == 1
    assert [len(receiver.of(p)) for p in ("before", "release")] == [1, 1]
    await site.undriven()
    await site.assert_ledger_is_sound(plan)


async def test_a_driver_killed_while_servers_drain_loses_nothing_and_rebuilds_once(
    site: Site, receiver: Receiver, api: Api
) -> None:
    """One drain waits for its late answer, the other's call has none yet: the next driver makes that one again."""
    waiting, hanging = site.named(28, 29)
    receiver.statuses = {"before": [202]}
    first = await site.submit(
        {"targets": {"servers": [waiting]}, "hooks": receiver.hooks("before", "after", "release")}
    )
    early = await came(receiver, "before")

    async def waits() -> bool:
        return (await api.job(first, waiting))["hooks"][0]["state"] == "waiting"

    await eventually(waits, deadline=20, message="the 202 is recorded")
    receiver.hangs.add("before")
    second = await site.submit({"targets": {"servers": [hanging]}, "hooks": receiver.hooks("before", "release")})
    await came(receiver, "before", 2)
    site.workers.kill("drive")
    receiver.hangs.clear()
    assert await api.say(early, "ok") == 200
    site.workers.start("drive")
    again = await came(receiver, "before", 3)
    assert again.server == hanging
    assert again.message_id == receiver.of("before")[1].message_id
    assert await api.say(again, "ok") == 200
    assert [await site.ended(p) for p in (first, second)] == ["succeeded", "succeeded"]
    assert [site.accepted(i) for i in (waiting, hanging)] == [1, 1]
    await came(receiver, "release", 2)
    await site.undriven()
    assert len(receiver.of("before")) == 3
    for plan in (first, second):
        await site.assert_ledger_is_sound(plan)


@pytest.mark.parametrize(
    ("number", "url"),
    [
        (30, "http://169.254.169.254/openstack/latest/meta_data.json"),
        (31, "http://0xA9FEA9FE/"),
        (32, "http://[::ffff:a9fe:a9fe]/"),
    ],
    ids=["an address", "a name that the resolver takes for it", "another form"],
)
async def test_metadata_addresses_are_never_called_and_the_server_stays_untouched(
    site: Site, api: Api, number: int, url: str
) -> None:
    (server,) = site.named(number)
    plan, status = await site.run(
        {"targets": {"servers": [server]}, "hooks": {"before": {"url": url}, "release": {"url": url}}}
    )
    assert status == "failed"
    assert await site.jobs(plan) == {server: ("failed", "drain_failed")}
    job = await api.job(plan, server)
    assert "metadata service" in job["reason"]["message"]
    assert [h["phase"] for h in job["hooks"]] == ["before"]
    assert site.received(server) == 0
    await site.undriven()


async def test_a_secret_that_is_not_there_fails_the_hook_with_its_name(site: Site, receiver: Receiver) -> None:
    (server,) = site.named(33)
    hooks = receiver.hooks("before", before={"secret": "env:NO_SUCH_KEY"})
    plan, status = await site.run({"targets": {"servers": [server]}, "hooks": hooks})
    assert status == "failed"
    assert await site.jobs(plan) == {server: ("failed", "drain_failed")}
    assert receiver.calls == []
    assert site.received(server) == 0


async def test_a_server_is_configured_once_its_probes_have_passed_and_released_either_way(
    site: Site, receiver: Receiver, api: Api
) -> None:
    good, bad = site.named(120, 121)
    site.cloud.cloud.set_addresses(good, {"private": [("127.2.0.1", "fixed")]})
    site.cloud.cloud.set_addresses(bad, {"private": [("127.2.0.2", "fixed")]})
    listening = await asyncio.start_server(lambda _, writer: writer.close(), "127.2.0.1", 0)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        plan, _ = await site.run({
            "targets": {"servers": [good, bad]}, "hooks": receiver.hooks("before", "after", "release"),
            "verify": [{"tcp": {"port": port, "timeout": "2s", "interval": "1s"}}],
        })  # fmt: skip
    await eventually(lambda: len(receiver.of("release")) == 2, message="both are released")
    assert await site.jobs(plan) == {good: ("succeeded", None), bad: ("failed", "probe_failed")}
    assert [c.phase for c in receiver.calls if c.server == good] == ["before", "after", "release"]
    assert [c.phase for c in receiver.calls if c.server == bad] == ["before", "release"]
    shown = await api.job(plan, good)
    assert [(e["kind"], e["value"]) for e in shown["attempt_log"][0]["evidence"]] == [
        ("probe", f"tcp/{port} at 127.2.0.1: passed after 1 try")
    ]
    states = [e["to"] for e in sorted(shown["events"], key=lambda e: e["seq"]) if e["to"]]
    assert states[-3:] == ["verifying", "configuring", "succeeded"]
