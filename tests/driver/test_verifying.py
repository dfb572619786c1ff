"""Probes of rebuilt servers: real workers connect to addresses that the cloud shows and this test listens on."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from orchestrator.rehearsal import RehearsalConfig, Running, serve_in_thread
from orchestrator.rehearsal.cloud import Caller
from tests.driver.site import Site
from tests.parts import eventually


@pytest.fixture(scope="module")
def cloud() -> Iterator[Running]:
    """Servers whose addresses are this machine's: 127.0.0.1 and on, by number."""
    with serve_in_thread(RehearsalConfig(servers=300, rebuild_seconds=0.6, network="127.0.0.0/16")) as running:
        yield running


@pytest.fixture
def port() -> int:
    """A port that nothing listens on yet, at any address."""
    with socket.socket() as s:
        s.bind(("", 0))
        return int(s.getsockname()[1])


@asynccontextmanager
async def answering(host: str, port: int, *statuses: int) -> AsyncIterator[list[str]]:
    """Listens; answers the n-th request with the n-th status, and the last of them from then on. Yields the heads of
    the requests; without statuses it only takes connections."""
    heads: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            if statuses:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                status = statuses[min(len(heads), len(statuses) - 1)]
                heads.append(head)
                where = "Location: http://169.254.169.254/\r\n" if status == 302 else ""
                writer.write(f"HTTP/1.1 {status} Said\r\n{where}Content-Length: 1000000000\r\n\r\nbegin".encode())
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, host, port)
    async with server:
        yield heads


def plan_of(ids: Sequence[str], *probes: dict[str, Any]) -> dict[str, Any]:
    return {"targets": {"servers": list(ids)}, "verify": list(probes)}


async def job_of(site: Site, plan: UUID, server_id: str) -> dict[str, Any]:
    """The job's row, the evidence of its attempt, and the data of its last event."""
    async with site.engine.connect() as conn:
        row = (
            await conn.execute(
                text("""SELECT j.state, j.reason_code, j.reason_message, j.fingerprint, a.evidence, e.data
                        FROM jobs j JOIN attempts a USING (plan_id, ord)
                        JOIN LATERAL (SELECT data FROM events e WHERE e.plan_id = j.plan_id
                                      AND e.server_id = j.server_id ORDER BY seq DESC LIMIT 1) e ON true
                        WHERE j.plan_id = :plan AND j.server_id = :server"""),
                {"plan": plan, "server": server_id},
            )
        ).one()
    return dict(row._mapping)


async def states_are(site: Site, plan: UUID, expected: dict[str, int]) -> None:
    async def there() -> bool:
        return await site.states(plan) == expected

    await eventually(there, deadline=40, message=f"the jobs are {expected}")


async def test_a_port_that_takes_connections_verifies_and_one_that_never_does_fails(site: Site, port: int) -> None:
    good, bad = site.named(1, 2)
    async with answering("127.0.0.1", port):
        plan, status = await site.run(plan_of([good, bad], {"tcp": {"port": port, "timeout": "3s", "interval": "1s"}}))
    assert status == "failed"
    assert await site.jobs(plan) == {good: ("succeeded", None), bad: ("failed", "probe_failed")}
    row = await job_of(site, plan, bad)
    assert row["fingerprint"] == f"probe:tcp/{port}"
    assert row["reason_message"].startswith(f"Probe tcp/{port} at 127.0.0.2 failed after ")
    assert row["reason_message"].endswith(": connection refused.")
    probes = [e for e in row["evidence"] if e["kind"] == "probe"]
    assert [p["value"].partition(" after ")[0] for p in probes] == [f"tcp/{port} at 127.0.0.2: failed"]
    (told,) = row["data"]["probes"]
    assert (told["probe"], told["address"], told["standing"]) == (f"tcp/{port}", "127.0.0.2", "failed")
    assert told["tries"] >= 3
    row = await job_of(site, plan, good)
    assert [e["value"] for e in row["evidence"] if e["kind"] == "probe"] == [
        f"tcp/{port} at 127.0.0.1: passed after 1 try"
    ]
    await site.assert_ledger_is_sound(plan)


async def test_the_status_of_an_answer_is_what_counts(site: Site, port: int) -> None:
    """A wrong status fails, and a redirect is an answer like any other: it isn't followed. Both probes must pass."""
    good, other, moved = site.named(3, 4, 5)
    probe = {"port": port, "path": "/health?deep=1", "status": 203, "timeout": "2s", "interval": "1s"}
    async with (
        answering("127.0.0.3", port, 203) as heads,
        answering("127.0.0.4", port, 500),
        answering("127.0.0.5", port, 302),
    ):
        plan, _ = await site.run(plan_of([good, other, moved], {"http": probe}, {"tcp": {"port": port}}))
    assert await site.jobs(plan) == {
        good: ("succeeded", None), other: ("failed", "probe_failed"), moved: ("failed", "probe_failed"),
    }  # fmt: skip
    assert heads[0].startswith("GET /health?deep=1 HTTP/1.1\r\n")
    assert (await job_of(site, plan, other))["reason_message"].endswith(": HTTP 500 instead of 203.")
    row = await job_of(site, plan, moved)
    assert row["reason_message"].endswith(": HTTP 302 instead of 203.")
    assert row["fingerprint"] == f"probe:http/{port}"
    assert [p["standing"] for p in row["data"]["probes"]] == ["failed", "passed"]


async def test_a_server_that_flaps_must_succeed_often_enough_in_a_row(site: Site, port: int) -> None:
    (server,) = site.named(6)
    probe = {"port": port, "interval": "1s", "successes": 3}
    async with answering("127.0.0.6", port, 200, 200, 503, 200) as heads:
        plan, status = await site.run(plan_of([server], {"http": probe}))
    assert status == "succeeded"
    assert len(heads) == 6
    assert (await job_of(site, plan, server))["data"]["probes"][0]["outcome"] == "passed after 6 tries (3 in a row)"


async def test_addresses_are_chosen_by_kind_version_and_network(site: Site, port: int) -> None:
    by_kind, by_version, by_network, none = site.named(7, 8, 9, 10)
    site.cloud.cloud.set_addresses(by_kind, {"a": [("127.1.0.1", "fixed"), ("127.1.0.2", "floating")]})
    site.cloud.cloud.set_addresses(by_version, {"a": [("127.1.0.3", "fixed")], "b": [("::1", "fixed")]})
    site.cloud.cloud.set_addresses(by_network, {"a": [("127.1.0.4", "fixed")], "b": [("127.1.0.5", "fixed")]})
    short = {"port": port, "timeout": "2s", "interval": "1s"}
    rules = {by_kind: {"address": "floating"}, by_version: {"version": 6}, by_network: {"network": "b"},
             none: {"address": "floating"}}  # fmt: skip
    async with answering("127.1.0.2", port, 200), answering("::1", port, 200), answering("127.1.0.5", port, 200):
        plans = {s: await site.submit(plan_of([s], {"http": short | rule})) for s, rule in rules.items()}
        for plan in plans.values():
            await site.ended(plan)
    rows = {s: await job_of(site, plan, s) for s, plan in plans.items()}
    assert {s: (r["state"], r["data"]["probes"][0]["address"]) for s, r in rows.items()} == {
        by_kind: ("succeeded", "127.1.0.2"), by_version: ("succeeded", "::1"), by_network: ("succeeded", "127.1.0.5"),
        none: ("failed", None),
    }  # fmt: skip
    assert rows[none]["reason_code"] == "probe_no_address"
    assert rows[none]["reason_message"].endswith(": the server has no floating IPv4 address.")


async def test_an_address_that_comes_late_is_found(site: Site, port: int) -> None:
    """A floating address moves no `updated`: it is seen by the next read of the server."""
    (server,) = site.named(11)
    site.cloud.cloud.set_addresses(server, {"a": [("127.1.0.9", "fixed")]})
    async with answering("127.1.0.10", port):
        probe = {"port": port, "address": "floating", "timeout": "90s", "interval": "1s"}
        plan = await site.submit(plan_of([server], {"tcp": probe}))
        await states_are(site, plan, {"verifying": 1})
        site.cloud.cloud.set_addresses(server, {"a": [("127.1.0.9", "fixed"), ("127.1.0.10", "floating")]})
        assert await site.ended(plan, within=100) == "succeeded"


async def test_link_local_addresses_are_not_called(site: Site) -> None:
    metadata, local = site.named(12, 13)
    site.cloud.cloud.set_addresses(metadata, {"a": [("169.254.169.254", "fixed")]})
    site.cloud.cloud.set_addresses(local, {"a": [("fe80::1", "fixed")]})
    first, _ = await site.run(plan_of([metadata], {"http": {"port": 80}}))
    second, _ = await site.run(plan_of([local], {"tcp": {"port": 22, "version": 6}}))
    row = await job_of(site, first, metadata)
    assert (row["state"], row["reason_code"]) == ("failed", "probe_address_refused")
    assert row["reason_message"] == "Probe http/80 was not sent: 169.254.169.254 is a cloud's metadata service."
    assert row["fingerprint"] == "probe:http/80:address_refused"
    assert row["data"]["probes"][0]["tries"] == 0
    row = await job_of(site, second, local)
    assert row["reason_message"] == "Probe tcp/22 was not sent: fe80::1 is link-local."


async def test_a_server_deleted_while_it_is_verified_has_failed(site: Site, port: int) -> None:
    (server,) = site.named(14)
    plan = await site.submit(plan_of([server], {"tcp": {"port": port, "timeout": "1h"}}))
    await states_are(site, plan, {"verifying": 1})
    cloud = site.cloud.cloud
    caller = Caller(user=cloud.config.fleet_user, request_id="req-of-the-test", now=cloud.now(), minor=73)
    cloud.delete(caller, cloud.servers[server])
    assert await site.ended(plan) == "failed"
    assert await site.jobs(plan) == {server: ("failed", "server_deleted")}


async def test_cancelling_lets_a_verification_finish(site: Site, port: int) -> None:
    (server,) = site.named(15)
    plan = await site.submit(plan_of([server], {"tcp": {"port": port, "timeout": "1h", "interval": "1s"}}))
    await states_are(site, plan, {"verifying": 1})
    await site.cancel(plan)
    async with answering("127.0.0.15", port):
        assert await site.ended(plan) == "cancelled"
    assert await site.jobs(plan) == {server: ("succeeded", None)}


async def test_many_verifications_hold_up_nobody(site: Site, port: int) -> None:
    """200 servers wait for an answer while another plan goes on; then all are verified."""
    ids, others = site.named(*range(20, 220)), site.named(*range(220, 230))
    plan = await site.submit(plan_of(ids, {"tcp": {"port": port, "timeout": "1h", "interval": "1s"}}))
    await states_are(site, plan, {"verifying": 200})
    _, status = await site.run({"targets": {"servers": others}})
    assert status == "succeeded"
    assert await site.states(plan) == {"verifying": 200}
    async with answering("0.0.0.0", port):  # noqa: S104  all of 127.0.0.0/8
        assert await site.ended(plan) == "succeeded"
    await site.assert_ledger_is_sound(plan)


async def test_the_next_driver_verifies_again_and_rebuilds_nothing_twice(site: Site, port: int) -> None:
    ids = site.named(*range(240, 245))
    plan = await site.submit(plan_of(ids, {"tcp": {"port": port, "timeout": "1h", "interval": "1s"}}))
    await states_are(site, plan, {"verifying": 5})
    site.workers.kill("drive")
    async with answering("0.0.0.0", port):  # noqa: S104  all of 127.0.0.0/8
        assert await site.states(plan) == {"verifying": 5}
        site.workers.start("drive")
        assert await site.ended(plan) == "succeeded"
    assert [site.received(i) for i in ids] == [1] * 5
    rows = [await job_of(site, plan, i) for i in ids]
    assert [[e["kind"] for e in r["evidence"]].count("probe") for r in rows] == [1] * 5
    await site.assert_ledger_is_sound(plan)
