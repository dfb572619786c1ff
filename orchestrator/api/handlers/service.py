"""Clouds, tokens, and the service's own state."""

from aiohttp import web

from orchestrator.api.handlers.answer import answer
from orchestrator.api.keys import DEPS, METRICS, OPENAPI, PRINCIPAL, READINESS, TAIL, TOKENS
from orchestrator.api.requests import TokenBody, read_body, token_id_of
from orchestrator.service import clouds, health, tokens
from orchestrator.service.roles import Right
from orchestrator.service.views import AliveView, CloudView, NewTokenView, Page, TokenView


async def list_clouds(request: web.Request) -> web.Response:
    """Clouds, with health and limiter."""
    deps = request.app[DEPS]
    found = await clouds.list_clouds(deps.engine, deps.clouds, request[PRINCIPAL])
    return answer(Page[CloudView](items=found, next=None))


async def create_token(request: web.Request) -> web.Response:
    """A new token; its secret is in this answer only."""
    principal = request[PRINCIPAL]
    principal.need(Right.ADMINISTER)
    body = await read_body(request, TokenBody)
    view, secret = await tokens.create_token(
        request.app[DEPS].engine, body.name, body.role, clouds=body.clouds, max_targets=body.max_targets,
        expires=body.expires, created_by=principal.name,
    )  # fmt: skip
    return answer(NewTokenView(**dict(view), token=secret), status=201)


async def list_tokens(request: web.Request) -> web.Response:
    """All tokens."""
    request[PRINCIPAL].need(Right.ADMINISTER)
    return answer(Page[TokenView](items=await tokens.list_tokens(request.app[DEPS].engine), next=None))


async def revoke_token(request: web.Request) -> web.Response:
    """Revokes a token."""
    request[PRINCIPAL].need(Right.ADMINISTER)
    revoked = await tokens.revoke_token(request.app[DEPS].engine, token_id_of(request))
    request.app[TOKENS].forget()
    return answer(revoked)


async def healthz(_: web.Request) -> web.Response:
    """The process answers."""
    return answer(AliveView())


async def readyz(request: web.Request) -> web.Response:
    """Whether the service can work."""
    found = await request.app[READINESS].look()
    return answer(found, status=503 if found.status == "unavailable" else 200)


async def metrics(request: web.Request) -> web.Response:
    """What Prometheus reads; without the ledger only what this process knows."""
    todo = await health.work_if_there(request.app[DEPS].engine)
    page = request.app[METRICS].page(request.app[TAIL], todo)
    return web.Response(body=page, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


async def openapi(request: web.Request) -> web.Response:
    """What this interface is."""
    return web.Response(body=request.app[OPENAPI], content_type="application/json")
