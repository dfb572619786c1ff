"""A rehearsal cloud in the test's own loop, with a signed-in caller; and one whose clock the test moves."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from orchestrator.rehearsal import RehearsalConfig, RehearsalUser, Running, serve

START = 1_800_000_000.0
"""A whole second, so that tests can reckon with what `updated` shows."""


class Clock:
    """Time that moves only when told."""

    def __init__(self) -> None:
        self.at = START

    def __call__(self) -> float:
        return self.at

    def pass_by(self, seconds: float) -> None:
        self.at += seconds


@dataclass(kw_only=True)
class Caller:
    """Calls to a rehearsal cloud with one user's token."""

    running: Running
    session: aiohttp.ClientSession
    clock: Clock
    token: str = ""
    project_id: str = ""

    async def sign_in(self, user: RehearsalUser) -> None:
        who = {"name": user.name, "password": user.password, "domain": {"id": "default"}}
        identity = {"methods": ["password"], "password": {"user": who}}
        scope = {"project": {"name": user.project, "domain": {"id": "default"}}}
        body = {"auth": {"identity": identity, "scope": scope}}
        async with self.session.post(f"{self.running.auth_url}/auth/tokens", json=body) as answer:
            assert answer.status == 201
            self.token = answer.headers["X-Subject-Token"]
            self.project_id = (await answer.json())["token"]["project"]["id"]

    async def __call__(
        self, method: str, path: str, body: Any = None, *, version: str = "2.73"
    ) -> tuple[int, Any, Mapping[str, str]]:
        """Status, JSON (or text) and headers; `path` is below /v2.1, or begins with /rehearsal."""
        base = self.running.url if path.startswith("/rehearsal") else f"{self.running.url}/compute/v2.1"
        headers = {"X-Auth-Token": self.token, "OpenStack-API-Version": f"compute {version}"}
        async with self.session.request(method, base + path, json=body, headers=headers) as answer:
            text = await answer.text()
            shown = await answer.json() if text and "json" in answer.headers["Content-Type"] else text
            return answer.status, shown, answer.headers

    async def rebuild(
        self, server_id: str, image: str, *, version: str = "2.73", **fields: Any
    ) -> tuple[int, Any, str]:
        """Status, JSON and the request id."""
        body = {"rebuild": {"imageRef": image, **fields}}
        status, shown, headers = await self("POST", f"/servers/{server_id}/action", body, version=version)
        return status, shown, headers.get("x-openstack-request-id", "")

    async def server(self, server_id: str, *, version: str = "2.73") -> dict[str, Any]:
        status, shown, _ = await self("GET", f"/servers/{server_id}", version=version)
        assert status == 200, shown
        server: dict[str, Any] = shown["server"]
        return server

    async def action(self, server_id: str, request_id: str) -> dict[str, Any]:
        status, shown, _ = await self("GET", f"/servers/{server_id}/os-instance-actions/{request_id}")
        assert status == 200, shown
        action: dict[str, Any] = shown["instanceAction"]
        return action

    @property
    def ids(self) -> list[str]:
        """The servers' ids, `node-00001` first."""
        return [s.id for s in sorted(self.running.cloud.servers.values(), key=lambda s: s.number)]

    @property
    def images(self) -> list[str]:
        """The images' ids; the servers have the first."""
        return [i.id for i in self.running.cloud.config.images]


@asynccontextmanager
async def rehearsed(config: RehearsalConfig) -> AsyncIterator[Caller]:
    """A cloud whose clock stands still until the test moves it."""
    clock = Clock()
    async with serve(config, clock=clock) as running, aiohttp.ClientSession() as session:
        caller = Caller(running=running, session=session, clock=clock)
        await caller.sign_in(config.fleet_user)
        yield caller
