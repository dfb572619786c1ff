"""Runs the API as a process: `rebuildctl serve`."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import uvloop
from aiohttp import web

from orchestrator import log as logs
from orchestrator.api.app import make_app
from orchestrator.api.keys import ApiConfig
from orchestrator.errors import Fault, SettingsInvalid
from orchestrator.log import get_logger
from orchestrator.settings import Settings

log = get_logger(__name__)

SHUTDOWN_SECONDS = 10.0
"""How long requests under way may take when the process is told to stop."""


def serve(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then finishes what is under way. Raises `SettingsInvalid`, and OSError where the
    address is taken."""
    logs.configure(settings.log_level, settings.log_format)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings))


@asynccontextmanager
async def serving(config: ApiConfig, bind: str) -> AsyncIterator[str]:
    """Serves in this loop; yields the address, `http://host:port`. Port 0 takes a free one."""
    host, port = parse_bind(bind)
    runner = web.AppRunner(make_app(config), access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        real_port = int(runner.addresses[0][1])
        yield f"http://{f'[{host}]' if ':' in host else host}:{real_port}"
    finally:
        await runner.cleanup()


def config_of(settings: Settings) -> ApiConfig:
    """What the API needs of the settings. Raises `SettingsInvalid` for what it can't do without."""
    missing = [
        Fault(path=name, code="missing", message=f"{name} must be set")
        for name, value in (("REBUILD_DATABASE_URL", settings.database_url), ("REBUILD_REDIS_URL", settings.redis_url))
        if not value
    ]
    if missing:
        raise SettingsInvalid("; ".join(f.message for f in missing), errors=missing)
    return ApiConfig(
        database_url=settings.database_url, redis_url=settings.redis_url, api_url=settings.api_url,
        clouds=settings.clouds,
    )  # fmt: skip


def parse_bind(bind: str) -> tuple[str, int]:
    """`host:port`, `[::1]:port` or `:port` (every address). Raises `SettingsInvalid`."""
    host, separator, port = bind.rpartition(":")
    if not separator or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise SettingsInvalid("REBUILD_BIND must be host:port, such as 127.0.0.1:8080")
    return host.strip("[]") or "0.0.0.0", int(port)  # noqa: S104  asked for by leaving the host out


async def _serve(settings: Settings, on_ready: Callable[[str], None] | None = None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with serving(config_of(settings), settings.bind) as address:
        log.info("serving", address=address)
        if on_ready is not None:
            on_ready(address)
        await stop.wait()
        log.info("stopping")
