"""What every request goes through: its log line and metrics, its errors, and who makes it."""

import time
from collections.abc import Awaitable, Callable

import asyncpg
from aiohttp import web
from sqlalchemy.exc import SQLAlchemyError
from uuid_utils.compat import uuid7

from orchestrator.api.keys import METRICS, PRINCIPAL, ROUTES, TOKENS
from orchestrator.api.problems import HTTP_CODES, problem, problem_of, status_of
from orchestrator.errors import RebuildError, Unauthenticated, Unavailable
from orchestrator.log import get_logger
from orchestrator.service.roles import Principal
from orchestrator.service.sessions import COOKIE, principal_of_session

log = get_logger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

CONTENT_SECURITY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


AWAY = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
)
"""What a database that is down, starting or full raises, rather than one that was asked for nonsense."""


@web.middleware
async def record(request: web.Request, handler: Handler) -> web.StreamResponse:
    """One log line and one count a request. Paths are logged by their pattern, queries and headers not at all."""
    began = time.perf_counter()
    response = await handler(request)
    seconds = time.perf_counter() - began
    route = _route_of(request)
    request.app[METRICS].answered(request.method, route, response.status, seconds)
    principal = request.get(PRINCIPAL)
    log.info(
        "request", method=request.method, route=route, plan=request.match_info.get("id"), status=response.status,
        milliseconds=round(seconds * 1000, 1), who=principal.name if principal else None,
    )  # fmt: skip
    return response


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error as a problem document; what nobody foresaw gets an id that the log has too."""
    try:
        return await handler(request)
    except RebuildError as e:
        if status_of(e) < 500:
            return problem_of(e)
        log.error("request_failed", route=_route_of(request), code=e.reason_code, problem=e.message)
        return problem_of(e)
    except web.HTTPException as e:
        return _http_problem(e)
    except web.RequestPayloadError as e:
        return problem(400, "bad_request", f"The body can't be read: {' '.join(str(e).split())}")
    except (SQLAlchemyError, asyncpg.PostgresError, ConnectionError, TimeoutError) as e:
        if _is_outage(e):
            log.error("ledger_away", route=_route_of(request), error=type(e).__name__)
            return problem_of(Unavailable("The ledger can't be reached now; try again shortly."))
        return _unexpected(request, e)
    except Exception as e:  # noqa: BLE001  the last place where a traceback can be kept from a user
        return _unexpected(request, e)


@web.middleware
async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Finds out who asks, on the interface's own routes; pages do so by themselves."""
    route = request.app[ROUTES].get((request.method if request.method != "HEAD" else "GET", _route_of(request)))
    if route is not None and not route.public:
        request[PRINCIPAL] = await _principal(request)
    return await handler(request)


async def secure_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Headers that keep browsers from being used against their users."""
    response.headers.setdefault("Content-Security-Policy", CONTENT_SECURITY)
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("X-Frame-Options", "DENY")
    response.headers.setdefault("Referrer-Policy", "no-referrer")
    response.headers.setdefault("Cache-Control", "no-cache" if request.path.startswith("/static/") else "no-store")


async def _principal(request: web.Request) -> Principal:
    checker = request.app[TOKENS]
    given = request.headers.get("Authorization")
    if given is not None:
        scheme, _, secret = given.partition(" ")
        if scheme.lower() != "bearer" or not secret.strip():
            raise Unauthenticated
        return await checker.by_secret(secret.strip())
    cookie = request.cookies.get(COOKIE)
    # A session only reads: nothing that another site makes a browser send can change anything.
    if cookie is not None and request.method in ("GET", "HEAD"):
        return await principal_of_session(checker, cookie)
    raise Unauthenticated("A bearer token is needed: send `Authorization: Bearer …`.")


def _route_of(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "unknown"


def _http_problem(e: web.HTTPException) -> web.StreamResponse:
    if e.status < 400:
        raise e
    detail = {
        404: "There is nothing at this address.",
        405: f"This address does not take that method, but: {e.headers.get('Allow', '')}.",
        413: "The body is too large: 64 MiB at most, after decompression.",
    }.get(e.status, e.text or e.reason)
    headers = {"Allow": e.headers["Allow"]} if "Allow" in e.headers else None
    return problem(e.status, HTTP_CODES.get(e.status, "http_error"), detail, headers=headers)


def _is_outage(e: Exception) -> bool:
    """Whether the database was away, rather than asked for something that it can't do."""
    if isinstance(e, SQLAlchemyError):
        cause = getattr(e, "orig", None) or e.__cause__
        closed = getattr(e, "connection_invalidated", False)
        return closed or "Timeout" in type(e).__name__ or (isinstance(cause, Exception) and _is_outage(cause))
    if e.__cause__ is not None and isinstance(e.__cause__, asyncpg.PostgresError):
        return _is_outage(e.__cause__)
    return isinstance(e, AWAY)


def _unexpected(request: web.Request, e: Exception) -> web.Response:
    incident = str(uuid7())
    log.error("request_broke", route=_route_of(request), incident=incident, exc_info=e)
    return problem(500, "internal", f"Something went wrong here; the log has it as {incident}.")
