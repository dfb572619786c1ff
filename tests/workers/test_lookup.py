"""What preparing believes of a server that the cloud doesn't show: not its first 404."""

import time
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from orchestrator.clouds.openstack import OpenStackCloud
from orchestrator.clouds.protocol import Server
from orchestrator.domain.spec import PlanSpec, parse_spec
from orchestrator.ledger.prepare import Target
from orchestrator.rehearsal import Fault, FaultKind, RehearsalConfig, Running, serve
from tests.workers.clouds import client_of
from workers.driver import mirror
from workers.driver.mirror import FEW, GONE_READS
from workers.prepare.lookup import Found, listed_of, servers_of

UNKNOWN = "00000000-0000-4000-8000-000000000001"
SECONDS = 0.6


@pytest.fixture
async def running(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    """A cloud whose 404s are believed after so many in 0.6 s, rather than in 10."""
    monkeypatch.setattr(mirror, "GONE_SECONDS", SECONDS)
    async with serve(RehearsalConfig(servers=30)) as running:
        yield running


@pytest.fixture
async def cloud(running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OpenStackCloud]:
    async with client_of(running, tmp_path, monkeypatch) as cloud:
        yield cloud


@pytest.fixture
def asked(cloud: OpenStackCloud, running: Running, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids that were asked for. What hides a server ends with the first of them that was answered."""
    ids: list[str] = []
    get_server = cloud.get_server

    async def noting(server_id: str) -> tuple[Server | None, datetime]:
        ids.append(server_id)
        answer = await get_server(server_id)
        if answer[0] is None:
            running.cloud.faults.clear()
        return answer

    monkeypatch.setattr(cloud, "get_server", noting)
    return ids


def plan_of(ids: list[str]) -> tuple[PlanSpec, list[Target]]:
    document: dict[str, Any] = {"name": "t", "cloud": "rehearsal", "image": "new", "targets": {"servers": ids}}
    return parse_spec(document), [Target(ord=i, server_id=s, find=None, overrides=None) for i, s in enumerate(ids)]


async def lookup(cloud: OpenStackCloud, ids: list[str]) -> list[Found]:
    spec, targets = plan_of(ids)
    return await servers_of(cloud, spec, targets, await listed_of(cloud, spec, targets))


def hide(running: Running, server_id: str) -> None:
    running.cloud.fail(Fault(kind=FaultKind.VANISHED, servers=frozenset({server_id})))


@pytest.mark.parametrize("n", [3, FEW + 5], ids=["read by id", "read by a list"])
async def test_a_server_that_is_hidden_once_is_found(
    running: Running, cloud: OpenStackCloud, asked: list[str], n: int
) -> None:
    ids = list(running.cloud.servers)[:n]
    hide(running, ids[1])
    found = await lookup(cloud, ids)
    assert [f.server and f.server.id for f in found] == ids
    assert asked.count(ids[1]) == 2
    assert len(asked) == (4 if n <= FEW else 2), "only what answered 404 is asked again"


async def test_a_server_that_is_never_shown_is_given_up_as_every_other_404_is(
    running: Running, cloud: OpenStackCloud, asked: list[str]
) -> None:
    ids = [*list(running.cloud.servers)[:2], UNKNOWN]
    began = time.monotonic()
    found = await lookup(cloud, ids)
    assert time.monotonic() - began >= SECONDS
    assert [f.server and f.server.id for f in found] == [*ids[:2], None]
    assert asked.count(UNKNOWN) >= GONE_READS
    assert [asked.count(i) for i in ids[:2]] == [1, 1]


async def test_nothing_waits_where_every_server_is_shown(
    running: Running, cloud: OpenStackCloud, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "GONE_SECONDS", 3600.0)
    ids = list(running.cloud.servers)[:3]
    assert len(await lookup(cloud, ids)) == 3
    assert asked == ids
