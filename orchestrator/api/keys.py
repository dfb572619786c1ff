"""Where the application keeps its parts, by typed keys."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import web

from orchestrator.api.metrics import RequestMetrics
from orchestrator.service.deps import Deps
from orchestrator.service.health import Readiness
from orchestrator.service.roles import Principal
from orchestrator.service.tail import Tail
from orchestrator.service.tokens import TokenChecker

if TYPE_CHECKING:
    from orchestrator.api.routes import Route


@dataclass(frozen=True, kw_only=True)
class ApiConfig:
    """What the application needs to know."""

    database_url: str = field(repr=False)
    redis_url: str = field(repr=False)
    api_url: str
    clouds: tuple[str, ...] = ()
    """Names of clouds that may be used; empty: all of clouds.yaml."""
    max_body_bytes: int = 64 * 1024 * 1024
    """Of a body after decompression."""
    heartbeat_seconds: float = 15.0
    """A stream of events says something at least so often."""


CONFIG = web.AppKey("config", ApiConfig)
DEPS = web.AppKey("deps", Deps)
TOKENS = web.AppKey("tokens", TokenChecker)
TAIL = web.AppKey("tail", Tail)
READINESS = web.AppKey("readiness", Readiness)
METRICS = web.AppKey("metrics", RequestMetrics)
OPENAPI = web.AppKey("openapi", bytes)
ROUTES = web.AppKey("routes", dict[tuple[str, str], "Route"])

PRINCIPAL = web.RequestKey("principal", Principal)
"""Whoever makes the request; the middleware put it there, except on public routes."""
