"""The cloud that the contract is held against, and raw HTTP to it.

With `ACCEPTANCE=1` it is the one that OS_CLOUD names, where servers whose names match `ACCEPTANCE_SERVERS` (a shell
pattern) are rebuilt, stopped and renamed, and put back; else a rehearsal cloud of this process's own.
"""

import asyncio
import fnmatch
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from openstack.config import OpenStackConfig

from orchestrator.rehearsal import RehearsalConfig, serve_in_thread
from tests.parts import eventually

REAL = os.environ.get("ACCEPTANCE") == "1"
PATTERN = os.environ.get("ACCEPTANCE_SERVERS", "srv-004*" if REAL else "*")
BEST = "2.73"
PATIENCE = 60.0 if REAL else 10.0
"""Seconds that a rebuild may take."""

Document = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A signed-in cloud."""

    name: str
    clouds_file: Path | None
    """None: as OS_CLIENT_CONFIG_FILE says."""
    auth: Mapping[str, Any]
    token: str
    compute: str
    """The project's endpoint: `…/v2.1/PID`."""
    image: str
    """The image service's endpoint, without a version."""
    project_id: str


@contextmanager
def chosen_target(folder: Path) -> Iterator[Target]:
    """The real cloud or a new rehearsal cloud, signed in to with keystoneauth."""
    if REAL:
        yield _signed_in(os.environ["OS_CLOUD"], None)
        return
    config = RehearsalConfig(servers=30, rebuild_seconds=0.4, power_seconds=0.15)
    with serve_in_thread(config) as running:
        clouds_file = folder / "clouds.yaml"
        clouds_file.write_text(running.clouds_yaml())
        yield _signed_in("rehearsal", clouds_file)


def _signed_in(name: str, clouds_file: Path | None) -> Target:
    files = [str(clouds_file)] if clouds_file else None
    region = OpenStackConfig(config_files=files, load_envvars=clouds_file is None).get_one(cloud=name)
    session = region.get_session()
    return Target(
        name=name,
        clouds_file=clouds_file,
        auth=region.config["auth"],
        token=session.get_token(),
        compute=session.get_endpoint(service_type="compute", interface="public").rstrip("/"),
        image=session.get_endpoint(service_type="image", interface="public").rstrip("/"),
        project_id=session.get_project_id(),
    )


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    """Matched without regard to case."""
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def refusal(self) -> tuple[int, str, str]:
        """Status, kind and message of an answer in Nova's form of error."""
        ((kind, error),) = self.json.items()
        assert error["code"] == self.status
        return self.status, kind, error["message"]

    @property
    def request_id(self) -> str:
        return self.headers["x-openstack-request-id"]


class Api:
    """Raw calls with the target's token; nothing is retried, followed or interpreted."""

    def __init__(self, session: aiohttp.ClientSession, target: Target):
        self.target = target
        self._session = session

    async def __call__(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        version: str | None = BEST,
        headers: Mapping[str, str] | None = None,
        data: bytes | None = None,
        token: bool = True,
    ) -> Answer:
        """`path` is below the project's compute endpoint, or a whole URL. `data` goes as it is, `body` as JSON."""
        sent = {"X-Auth-Token": self.target.token} if token else {}
        if version is not None:
            sent["OpenStack-API-Version"] = f"compute {version}"
        if body is not None or data is not None:
            sent["Content-Type"] = "application/json"
        sent |= headers or {}
        payload = json.dumps(body).encode() if body is not None else data
        url = path if path.startswith("http") else self.target.compute + path
        async with self._session.request(method, url, headers=sent, data=payload, allow_redirects=False) as answer:
            text = (await answer.read()).decode()
            return Answer(status=answer.status, headers=answer.headers, text=text)

    async def server(self, server_id: str, *, version: str = BEST) -> Document:
        answer = await self("GET", f"/servers/{server_id}", version=version)
        assert answer.status == 200, answer
        shown: Document = answer.json["server"]
        return shown

    async def act(self, server_id: str, action: Document, *, version: str = BEST) -> Answer:
        return await self("POST", f"/servers/{server_id}/action", action, version=version)

    async def rebuild(self, server_id: str, *, version: str = BEST, **fields: Any) -> Answer:
        return await self.act(server_id, {"rebuild": fields}, version=version)

    async def at_rest(self, server_id: str) -> Document:
        """The server once nothing is being done to it."""

        async def look() -> Document | None:
            server = await self.server(server_id)
            return server if server["OS-EXT-STS:task_state"] is None else None

        found = await eventually(look, deadline=PATIENCE, every=0.03)
        assert found is not None
        return found

    async def when(self, server_id: str, status: str) -> Document:
        """The server once it is at rest in this status."""

        async def look() -> Document | None:
            server = await self.at_rest(server_id)
            return server if server["status"] == status else None

        found = await eventually(look, deadline=PATIENCE, every=0.03)
        assert found is not None
        return found

    async def action(self, server_id: str, request_id: str, *, version: str = BEST) -> Document:
        answer = await self("GET", f"/servers/{server_id}/os-instance-actions/{request_id}", version=version)
        assert answer.status == 200, answer
        shown: Document = answer.json["instanceAction"]
        return shown

    async def ended(self, server_id: str, request_id: str) -> Document:
        """The action once its last event has ended."""

        async def look() -> Document | None:
            action = await self.action(server_id, request_id)
            return action if action["events"] and all(e["finish_time"] for e in action["events"]) else None

        await self.at_rest(server_id)
        found = await eventually(look, deadline=PATIENCE, every=0.03)
        assert found is not None
        return found

    async def restore(self, before: Document) -> None:
        """Puts a server back: unlocked, running, with its old name, metadata and tags."""
        server_id = before["id"]
        now = await self.at_rest(server_id)
        if now["locked"]:
            assert (await self.act(server_id, {"unlock": None})).status == 202
        if now["status"] == "SHUTOFF":
            assert (await self.act(server_id, {"os-start": None})).status == 202
        if now["status"] == "PAUSED":
            assert (await self.act(server_id, {"unpause": None})).status == 202
        if now["name"] != before["name"]:
            await self("PUT", f"/servers/{server_id}", {"server": {"name": before["name"]}})
        if now["metadata"] != before["metadata"]:
            await self("PUT", f"/servers/{server_id}/metadata", {"metadata": before["metadata"]})
        if now["tags"] != before["tags"]:
            await self("PUT", f"/servers/{server_id}/tags", {"tags": before["tags"]})
        await self.when(server_id, "ACTIVE")


async def next_second() -> None:
    """Waits until the clock's second has changed, as `updated` and `launched_at` tell only whole seconds."""
    await asyncio.sleep(1.1)


def usable(servers: list[Document]) -> list[Document]:
    """Running, unlocked servers with a disk of their own that the environment allows to be rebuilt."""
    return [
        s
        for s in servers
        if fnmatch.fnmatch(s["name"], PATTERN) and s["status"] == "ACTIVE" and not s["locked"] and s["image"]
    ]
