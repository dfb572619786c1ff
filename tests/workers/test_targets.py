"""Which servers a plan comes to: named, found, selected and left out, against a cloud over HTTP."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.clouds.openstack import OpenStackCloud
from orchestrator.domain.spec import parse_spec
from orchestrator.ledger.prepare import Target
from orchestrator.rehearsal import RehearsalConfig, Running, serve
from tests.workers.clouds import client_of
from workers.prepare.lookup import Found, Rejected, listed_of, servers_of


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    """Twelve servers in three zones; the first three have another image, the last two are stopped."""
    async with serve(RehearsalConfig(servers=12, shutoff=2)) as running:
        servers = {s.name: s for s in running.cloud.servers.values()}
        newer = next(i.id for i in running.cloud.images.values() if i.name == "base-2026.11")
        for n in (1, 2, 3):
            servers[f"node-{n:05d}"].image = newer
        servers["node-00004"].tags = ["blue", "old"]
        servers["node-00005"].tags = ["blue"]
        servers["node-00006"].metadata = {"role": "db", "keep": "true"}
        for server in servers.values():
            server.forget_view()
        yield running


@pytest.fixture
async def cloud(running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OpenStackCloud]:
    async with client_of(running, tmp_path, monkeypatch) as cloud:
        yield cloud


async def found(cloud: OpenStackCloud, **targets: Any) -> list[Found]:
    spec = parse_spec({"name": "t", "cloud": "rehearsal", "image": "new", "targets": targets})
    rows = [Target(ord=i, server_id=s, find=f, overrides=o) for i, (s, f, o) in enumerate(spec.targets.rows())]
    return await servers_of(cloud, spec, rows, await listed_of(cloud, spec, rows))


async def numbers(cloud: OpenStackCloud, **targets: Any) -> list[int]:
    return [int(f.server.name[-5:]) for f in await found(cloud, **targets) if f.server]


def ids(running: Running, *wanted: int) -> list[str]:
    by_name = {s.name: s.id for s in running.cloud.servers.values()}
    return [by_name[f"node-{n:05d}"] for n in wanted]


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        ({"name": "node-0000[1-4]"}, [1, 2, 3, 4]),
        ({"name": "node-*", "availability_zone": ["az1"]}, [1, 4, 7, 10]),
        ({"image": "base-2026.11"}, [1, 2, 3]),
        ({"image": "base-2026.11", "availability_zone": ["az2", "az3"]}, [2, 3]),
        ({"tags": ["blue"]}, [4, 5]),
        ({"tags": ["blue", "old"]}, [4]),
        ({"metadata": {"role": "db"}}, [6]),
        ({"status": ["SHUTOFF"]}, [11, 12]),
        ({"status": ["SHUTOFF", "ACTIVE"], "name": "*1"}, [1, 11]),
    ],
)
async def test_selected_servers_come_by_name(cloud: OpenStackCloud, select: Any, expected: list[int]) -> None:
    assert await numbers(cloud, select=select) == expected


async def test_named_ones_come_first_as_written_and_are_not_selected_again(
    cloud: OpenStackCloud, running: Running
) -> None:
    nine, two = ids(running, 9, 2)
    servers = [nine, {"find": "node-00005", "rebuild": {"name": "web-5"}}, {"id": two, "image": "other"}]
    targets = await found(cloud, servers=servers, select={"name": "node-0000[1-9]"})
    assert [int(f.server.name[-5:]) for f in targets if f.server] == [9, 5, 2, 1, 3, 4, 6, 7, 8]
    assert [f.target.ord for f in targets] == list(range(9))
    assert [f.target.overrides for f in targets[:4]] == [None, {"rebuild": {"name": "web-5"}}, {"image": "other"}, None]


async def test_exclusions_win_over_names_and_selections(cloud: OpenStackCloud, running: Running) -> None:
    exclude = {"servers": ids(running, 1), "tags": ["old"], "metadata": {"keep": "true"}}
    targets = {"servers": ids(running, 6, 2), "select": {"name": "node-0000[1-7]"}, "exclude": exclude}
    assert await numbers(cloud, **targets) == [2, 3, 5, 7]


@pytest.mark.parametrize(
    ("given", "code", "path"),
    [
        ([{"find": "node-00099"}], "unknown_server", "targets.servers[0].find"),
        (["id of 3", {"find": "node-00003"}], "duplicate", "targets.servers[1]"),
        (["id of 3", {"find": "twin"}], "ambiguous_server", "targets.servers[1].find"),
    ],
)
async def test_a_name_must_lead_to_one_server_that_is_named_once(
    cloud: OpenStackCloud, running: Running, given: list[Any], code: str, path: str
) -> None:
    for n in (7, 8):
        server = running.cloud.servers[ids(running, n)[0]]
        server.name = "twin"
        server.forget_view()
    servers = [ids(running, 3)[0] if item == "id of 3" else item for item in given]
    with pytest.raises(Rejected) as rejected:
        await found(cloud, servers=servers)
    (fault,) = rejected.value.faults
    assert (fault.code, fault.path) == (code, path)
