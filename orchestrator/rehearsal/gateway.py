"""What stands in front of the compute API: the rate limit, the faults of the wire, and the account of every call."""

import asyncio
import math
import uuid
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from aiohttp import web

from orchestrator.rehearsal.account import DROPPED, TRUNCATED
from orchestrator.rehearsal.cloud import RehearsalCloud
from orchestrator.rehearsal.faults import Calls, Fault, FaultKind
from orchestrator.rehearsal.glance import page_of_error
from orchestrator.rehearsal.refusals import unexpected

RouteT = TypeVar("RouteT")

MAX_BODY = 114688
_TITLES = {500: "Internal Server Error", 502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Timeout"}


class Limit:
    """At most `rate` calls in any second, the second sliding; below one a second, one in 1/rate seconds.

    Calls that were turned away do not count.
    """

    def __init__(self, rate: float, tolerance: float):
        self.rate = rate
        self._span = max(1.0, 1.0 / rate)
        self._most = max(1, math.floor(rate * self._span + 1e-9)) + math.ceil(rate * tolerance - 1e-9)
        self._passed: deque[float] = deque()

    def wait(self, now: float) -> float:
        """Seconds until a call would pass; 0: this one does, and is counted."""
        passed = self._passed
        while passed and passed[0] <= now - self._span:
            passed.popleft()
        if len(passed) < self._most:
            passed.append(now)
            return 0.0
        return passed[0] + self._span - now


class Gateway(Generic[RouteT]):
    """Lets calls through to `answer`, which gets the request, its route and its body; or not."""

    def __init__(self, cloud: RehearsalCloud, answer: Callable[[web.Request, RouteT, bytes], web.Response]):
        config = cloud.config
        self.cloud = cloud
        self._answer = answer
        self._write = Limit(config.write_rate, config.rate_tolerance) if config.write_rate else None
        self._read = Limit(config.read_rate, config.rate_tolerance) if config.read_rate else None

    async def __call__(self, request: web.Request, route: RouteT) -> web.StreamResponse:
        cloud, account = self.cloud, self.cloud.account
        now = cloud.now()
        body = await request.read() if request.can_read_body else b""
        write = request.method not in ("GET", "HEAD")
        server_id = request.match_info.get("server")
        server = cloud.servers.get(server_id or "")
        call: Calls = "read"
        if write:
            call = "rebuild" if request.path.endswith("/action") and b'"rebuild"' in body else "write"
        account.called(now, write=write)
        own = account.servers.get(server_id or "")
        if own is not None and call == "rebuild":
            own.received += 1
        elif own is not None and not write:
            own.reads += 1
        fault = cloud.faults.for_call(call, server_id, server.name if server else None, now)
        response = self._turned_away(fault, now, write=write)
        if response is not None and fault is not None and fault.kind is not FaultKind.STORM:
            fault = None  # the rate limit was quicker
        if fault is not None:
            account.struck(server_id, fault.kind)
        if response is None:
            response = await self._through(fault, request, route, body)
        broken = response is not None and fault is not None and fault.kind is FaultKind.TRUNCATED
        status = DROPPED if response is None else TRUNCATED if broken else str(response.status)
        account.answers[status] += 1
        if own is not None and call == "rebuild":
            own.answers[status] += 1
        if response is None:
            return _cut(request)
        return await _broken_off(request, response) if broken else response

    def _turned_away(self, fault: Fault | None, now: float, *, write: bool) -> web.Response | None:
        if fault is not None and fault.kind is FaultKind.STORM:
            return throttled(fault.delay, None)
        limit = self._write if write else self._read
        if limit is not None and (wait := limit.wait(now)):
            return throttled(wait, limit.rate)
        return None

    async def _through(
        self, fault: Fault | None, request: web.Request, route: RouteT, body: bytes
    ) -> web.Response | None:
        """The answer after whatever goes wrong on the way; None: the connection is to be cut."""
        kind = fault.kind if fault is not None else None
        if fault is not None:
            if kind is FaultKind.DROP_BEFORE or (kind is FaultKind.OUTAGE and fault.status == 0):
                return None
            if kind is FaultKind.OUTAGE:
                return failed(fault.status or 503)
            if kind is FaultKind.ERROR_BEFORE:
                return failed(fault.status or 500, new_request_id() if fault.request_id else None)
            if kind is FaultKind.SLOW_BEFORE:
                await asyncio.sleep(fault.delay)
        response = self._answer(request, route, body)
        if kind is FaultKind.DUPLICATED:
            response = self._answer(request, route, body)
        if self.cloud.config.answer_seconds:
            await asyncio.sleep(self.cloud.config.answer_seconds)
        if fault is not None:
            if kind is FaultKind.DROP_AFTER:
                return None
            if kind is FaultKind.ERROR_AFTER:
                request_id = response.headers.get("x-openstack-request-id")
                return failed(fault.status or 503, request_id if fault.request_id else None)
            if kind is FaultKind.HTML:
                return page_of_error(fault.status or 200, "Welcome", "Your session has expired. Please sign in again.")
            if kind is FaultKind.SLOW_AFTER:
                await asyncio.sleep(fault.delay)
        return response


def new_request_id() -> str:
    return f"req-{uuid.uuid4()}"


def throttled(wait: float, rate: float | None) -> web.Response:
    """429 as API gateways give it, with Retry-After in whole seconds."""
    body = {
        "error_code": "APIGW.0308",
        "error_msg": "The throttling threshold has been reached" + (f": limit:{rate:g},time:1 second" if rate else ""),
        "request_id": uuid.uuid4().hex,
    }
    return web.json_response(body, status=429, headers={"Retry-After": str(max(1, math.ceil(wait)))})


def failed(status: int, request_id: str | None = None) -> web.Response:
    """A 5xx: of Nova's own up to 501, of a gateway's above, which knows no request id."""
    if status >= 502:
        title = _TITLES.get(status, "Error")
        return page_of_error(status, title, "The server is temporarily unable to service your request.")
    error = {"computeFault": {"code": status, "message": unexpected("rehearsal.Fault")}}
    headers = {"x-openstack-request-id": request_id, "x-compute-request-id": request_id} if request_id else None
    return web.json_response(error, status=status, headers=headers)


async def _broken_off(request: web.Request, response: web.Response) -> web.StreamResponse:
    """Sends the head, which promises the whole body, and half of that; then closes."""
    body = response.body if isinstance(response.body, bytes) else b""
    headers = response.headers.copy()
    headers.popall("Content-Length", None)
    broken = web.StreamResponse(status=response.status, reason=response.reason, headers=headers)
    broken.content_length = max(2, len(body))
    await broken.prepare(request)
    await broken.write(body[: len(body) // 2] or b"{")
    if request.transport is not None:
        request.transport.close()
    return broken


def _cut(request: web.Request) -> web.Response:
    """Cuts the connection; the response that is returned reaches nobody."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)
