"""The application, put together."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import redis.asyncio as redis
from aiohttp import web

from orchestrator.api import keys, middleware
from orchestrator.api.keys import ApiConfig
from orchestrator.api.metrics import RequestMetrics
from orchestrator.api.openapi import describe
from orchestrator.api.routes import ROUTES
from orchestrator.clouds.pacing import make_redis
from orchestrator.dashboard.pages import add_pages
from orchestrator.hints import Hints
from orchestrator.ledger.engine import open_engine
from orchestrator.service.clouds import CloudBook
from orchestrator.service.deps import Deps
from orchestrator.service.health import Readiness
from orchestrator.service.tail import Tail
from orchestrator.service.tokens import TokenChecker

POOL_SIZE = 10


def make_app(config: ApiConfig) -> web.Application:
    """The REST interface and the status page. It opens what it needs when it starts, in the loop that runs it."""
    app = web.Application(
        client_max_size=config.max_body_bytes,
        middlewares=[middleware.record, middleware.errors, middleware.authenticate],
    )
    app[keys.CONFIG] = config
    app[keys.METRICS] = RequestMetrics()
    app[keys.ROUTES] = {(r.method, r.path): r for r in ROUTES}
    app[keys.OPENAPI] = json.dumps(describe(ROUTES, url=config.api_url)).encode()
    app.on_response_prepare.append(middleware.secure_headers)
    app.cleanup_ctx.extend([_ledger, _broker, _tail])
    app.on_shutdown.append(_end_streams)
    for route in ROUTES:
        app.router.add_route(route.method, route.path, route.handler)
    add_pages(app, deps=keys.DEPS, tokens=keys.TOKENS)
    return app


async def _ledger(app: web.Application) -> AsyncIterator[None]:
    config = app[keys.CONFIG]
    hints, paces = Hints(config.redis_url), make_redis(config.redis_url)
    async with open_engine(config.database_url, name="rebuild-api", pool_size=POOL_SIZE) as engine:
        app[keys.DEPS] = Deps(
            engine=engine,
            hints=hints,
            clouds=CloudBook(config.clouds),
            paces=paces,
            api_url=config.api_url.rstrip("/"),
        )
        app[keys.TOKENS] = TokenChecker(engine)
        yield
        hints.close()
        await paces.aclose()


async def _broker(app: web.Application) -> AsyncIterator[None]:
    config = app[keys.CONFIG]
    client = redis.Redis.from_url(config.redis_url, socket_timeout=1, socket_connect_timeout=1)
    app[keys.READINESS] = Readiness(app[keys.DEPS].engine, config.database_url, client)
    yield
    await client.aclose()


async def _tail(app: web.Application) -> AsyncIterator[None]:
    tail = app[keys.TAIL] = Tail(app[keys.DEPS].engine)
    running = asyncio.create_task(tail.run(), name="tail")
    yield
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


async def _end_streams(app: web.Application) -> None:
    app[keys.TAIL].close()
