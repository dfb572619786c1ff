"""The rehearsal cloud over HTTP: Keystone, Nova and Glance behind one port."""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import yaml
from aiohttp import hdrs, web

from orchestrator.rehearsal.account import Account
from orchestrator.rehearsal.admin import Admin
from orchestrator.rehearsal.cloud import RehearsalCloud
from orchestrator.rehearsal.compute import NOTHING, ROUTES
from orchestrator.rehearsal.config import RehearsalConfig, RehearsalUser
from orchestrator.rehearsal.gateway import MAX_BODY, Gateway
from orchestrator.rehearsal.glance import Glance
from orchestrator.rehearsal.keystone import Keystone
from orchestrator.rehearsal.nova import Nova, Route

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_PROJECT = "{project:[0-9a-f]{32}}"


@dataclass(frozen=True, kw_only=True)
class Running:
    """A rehearsal cloud that answers at `url` (`http://127.0.0.1:PORT`)."""

    url: str
    cloud: RehearsalCloud
    keystone: Keystone
    listens_at: str = ""
    """The same, where `url` is what something in front of it is reached at."""

    @property
    def account(self) -> Account:
        """The account, with everything done that is due by now."""
        self.cloud.now()
        return self.cloud.account

    @property
    def auth_url(self) -> str:
        return f"{self.keystone.url}/v3"

    @property
    def compute_url(self) -> str:
        """The fleet project's compute endpoint."""
        return f"{self.url}/compute/v2.1/{self.cloud.config.fleet_user.project_id}"

    def revoke_tokens(self, user: str | None = None) -> int:
        """Takes back all tokens, or one user's; says how many."""
        return self.keystone.revoke(user)

    def cloud_entry(
        self, rebuild_settings: Mapping[str, Any] | None = None, *, user: RehearsalUser | None = None
    ) -> dict[str, Any]:
        """The entry below `clouds:` with which the tools of OpenStack, and this service, sign in."""
        who = user or self.cloud.config.fleet_user
        entry: dict[str, Any] = {
            "auth": {
                "auth_url": self.auth_url,
                "username": who.name,
                "password": who.password,
                "project_name": who.project,
                "user_domain_name": "Default",
                "project_domain_name": "Default",
            },
            "region_name": self.cloud.config.region,
            "identity_api_version": 3,
        }
        if rebuild_settings is not None:
            entry["rebuild"] = dict(rebuild_settings)
        return entry

    def clouds_yaml(self, name: str = "rehearsal", rebuild_settings: Mapping[str, Any] | None = None) -> str:
        """The text of a clouds.yaml with this cloud under `name`, and as `NAME-admin` for its administrator."""
        clouds = {name: self.cloud_entry(rebuild_settings)}
        for user in self.cloud.config.users:
            if user.role == "admin":
                clouds[f"{name}-admin"] = self.cloud_entry(user=user)
        return yaml.safe_dump({"clouds": clouds}, sort_keys=False)


def application(cloud: RehearsalCloud, url: str) -> tuple[web.Application, Keystone]:
    """The routes of one cloud that is reached at `url`."""
    keystone = Keystone(cloud, url)
    nova = Nova(cloud, keystone, url)
    gateway = Gateway(cloud, nova.answer)
    app = web.Application(client_max_size=8 * MAX_BODY)
    for root in ("/compute", "/compute/"):
        app.router.add_get(root, nova.versions, allow_head=False)
    for root in ("/compute/v2.1", "/compute/v2.1/"):
        app.router.add_get(root, nova.version, allow_head=False)
    for project in (f"/{_PROJECT}", ""):
        for method, path, route in ROUTES:
            app.router.add_route(method, f"/compute/v2.1{project}{path}", _through(gateway, route))
    app.router.add_route("*", "/compute/{rest:.*}", _through(gateway, NOTHING))
    app.add_routes(keystone.routes())
    app.add_routes(Glance(cloud, keystone, url).routes())
    app.add_routes(Admin(cloud, keystone).routes())
    if not cloud.config.date_header:
        app.on_response_prepare.append(_without_date)
    return app, keystone


@asynccontextmanager
async def serve(
    config: RehearsalConfig,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    url: str | None = None,
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[Running]:
    """Serves a new cloud until the block ends.

    `port` 0 takes a free one. `url` is what the catalogue and all links say, where that is not `http://host:port`.
    Raises `OSError` where the port is taken.
    """
    listener = socket.create_server((host, port), backlog=1024)
    listens_at = f"http://{host}:{listener.getsockname()[1]}"
    address = url or listens_at
    cloud = RehearsalCloud(config, clock=clock)
    app, keystone = application(cloud, address)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.SockSite(runner, listener, backlog=1024).start()
        yield Running(url=address, cloud=cloud, keystone=keystone, listens_at=listens_at)
    finally:
        await runner.cleanup()
        listener.close()


@contextmanager
def serve_in_thread(
    config: RehearsalConfig, *, host: str = "127.0.0.1", port: int = 0, url: str | None = None
) -> Iterator[Running]:
    """The same for callers without an event loop. The cloud lives in a thread of its own: reach it over HTTP, or with
    reads of the account that bear being a moment old."""
    started: Future[Running] = Future()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def run() -> None:
        async with serve(config, host=host, port=port, url=url) as running:
            started.set_result(running)
            await stop.wait()

    def main() -> None:
        try:
            loop.run_until_complete(run())
        except Exception as e:
            if started.done():
                raise
            started.set_exception(e)
        finally:
            loop.close()

    thread = threading.Thread(target=main, name="rehearsal-cloud", daemon=True)
    thread.start()
    running = started.result(timeout=30)
    try:
        yield running
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(timeout=10)


async def _without_date(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.popall(hdrs.DATE, None)


def _through(gateway: Gateway[Route], route: Route) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        return await gateway(request, route)

    return handler
