"""One request to the API and what becomes of it: retries where they are harmless, problems as errors."""

import asyncio
import gzip
import json
import random
import time
import urllib.request
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any

import aiohttp
from yarl import URL

from orchestrator.client.errors import ApiProblem, ApiUnreachable
from orchestrator.errors import Fault

GZIP_ABOVE = 100_000
"""Bytes; longer bodies are sent compressed."""
PASSING_STATUSES = frozenset({429, 502, 503, 504})
"""Answers of a service, or of the proxy before it, that is not up just now."""
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0


class Transport:
    """Signed JSON requests over one session, which lives from `open` to `close`."""

    def __init__(self, api_url: str, token: str, *, patience: float, timeout: float):
        self.base = _base(api_url)
        self.patience = patience
        """Seconds for which a request that may be repeated is tried again."""
        self._timeout = timeout
        self._proxy = _proxy(self.base)
        self._headers = {"Accept": "application/json", "User-Agent": "rebuildctl"}
        if token:
            try:
                token.encode("ascii")
                self._headers["Authorization"] = f"Bearer {token.strip()}"
            except UnicodeEncodeError:
                raise ApiProblem(
                    status=401, code="unauthenticated", detail="the token has characters that no token has"
                ) from None
        self._session: aiohttp.ClientSession | None = None

    def open(self) -> None:
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=self._timeout, sock_connect=10),
            connector=aiohttp.TCPConnector(limit=32),
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def url(self, path: str, params: Mapping[str, Any] | None = None) -> URL:
        """Of a path whose parts are quoted already."""
        url = URL(str(self.base).rstrip("/") + path, encoded=True)
        given = {key: str(value) for key, value in (params or {}).items() if value is not None}
        return url.update_query(given) if given else url

    def stream(
        self, path: str, *, headers: Mapping[str, str], silence: float
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """A GET whose answer is read as it comes; `silence` is the longest wait between two pieces, in seconds."""
        return self._live().get(
            self.url(path),
            headers=dict(headers),
            proxy=self._proxy,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=silence),
        )

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool | None = None,
    ) -> tuple[int, Any]:
        """The status and the parsed JSON of the answer (None for an empty one).

        `repeatable` (a GET, unless told) may reach the service twice, so it is tried again for `patience` seconds; any
        other request is only where the connection was refused, so that nothing has left.
        Raises `ApiProblem` for an answer of 300 and above, `ApiUnreachable` when there is none.
        """
        repeatable = method == "GET" if repeatable is None else repeatable
        data, extra = await _encoded(body)
        deadline, pause = time.monotonic() + self.patience, FIRST_PAUSE
        while True:
            wait: float | None = None
            try:
                async with self._live().request(
                    method,
                    self.url(path, params),
                    data=data,
                    headers={**extra, **(headers or {})},
                    proxy=self._proxy,
                    allow_redirects=False,
                ) as answer:
                    content = await answer.read()
                    if answer.status < 300:
                        return answer.status, _json(content)
                    error: ApiProblem | ApiUnreachable = problem(answer.status, answer.headers, content)
                    may_repeat = repeatable and answer.status in PASSING_STATUSES
                    wait = _retry_after(answer.headers)
            except aiohttp.ClientConnectorCertificateError as e:
                raise ApiUnreachable(f"the certificate of {self.base} is not trusted: {e.certificate_error}") from None
            except aiohttp.InvalidURL:
                raise ApiUnreachable(f"REBUILD_API_URL is no address of an API: {self.base}") from None
            except aiohttp.ClientConnectorError as e:
                error, may_repeat = self._unreachable(e.os_error), True
            except (aiohttp.ClientError, OSError) as e:  # a timeout is an OSError, too
                error, may_repeat = self._unreachable(e), repeatable
            pause = min(LONGEST_PAUSE, pause * 2)
            wait = wait if wait is not None else pause * random.uniform(0.5, 1.0)  # noqa: S311  spreads clients
            if not may_repeat or time.monotonic() + wait > deadline:
                raise error
            await asyncio.sleep(wait)

    def _live(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("use the client as `async with RebuildClient(…) as client`")
        return self._session

    def _unreachable(self, cause: BaseException) -> ApiUnreachable:
        why = "it did not answer in time" if isinstance(cause, TimeoutError) else str(cause) or type(cause).__name__
        return ApiUnreachable(f"the API at {self.base} can't be reached: {why}")


def problem(status: int, headers: Mapping[str, str], content: bytes) -> ApiProblem:
    """An RFC 9457 document as an error; a body that is none (a proxy's page) is not repeated to the user."""
    document: Any = None
    with suppress(ValueError):
        document = json.loads(content)
    if not isinstance(document, Mapping):
        where = headers.get("Location")
        detail = f"the API answered {status}" + (f" and points to {where}: set REBUILD_API_URL" if where else "")
        return ApiProblem(status=status, detail=detail)
    faults = [
        Fault(path=str(e.get("path") or ""), code=str(e.get("code") or ""), message=str(e.get("message") or ""))
        for e in document.get("errors") or ()
        if isinstance(e, Mapping)
    ]
    return ApiProblem(
        status=status,
        code=str(document.get("code") or ""),
        title=str(document.get("title") or ""),
        detail=str(document.get("detail") or ""),
        errors=faults,
    )


def _base(api_url: str) -> URL:
    url = api_url.strip()
    try:
        parsed = URL(url if "://" in url else f"http://{url}")
    except ValueError:
        parsed = URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ApiUnreachable(f"REBUILD_API_URL must be http://host:port or https://…, not {api_url!r}")
    return parsed.with_user(None).with_query(None).with_fragment(None)


def _proxy(base: URL) -> str | None:
    """The environment's proxy for that host; aiohttp's own `trust_env` would bring in .netrc against our token."""
    host = base.host or ""
    if host in ("localhost", "127.0.0.1", "::1") or urllib.request.proxy_bypass(host):
        return None
    return urllib.request.getproxies().get(base.scheme)


async def _encoded(body: Any) -> tuple[bytes | None, dict[str, str]]:
    if body is None:
        return None, {}
    data = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
    headers = {"Content-Type": "application/json"}
    if len(data) > GZIP_ABOVE:
        data = await asyncio.to_thread(gzip.compress, data, 6)
        headers["Content-Encoding"] = "gzip"
    return data, headers


def _json(content: bytes) -> Any:
    if not content.strip():
        return None
    try:
        return json.loads(content)
    except ValueError:
        raise ApiProblem(
            status=200, code="answer_invalid", detail="the answer is no JSON: does REBUILD_API_URL name the API?"
        ) from None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds; the form with a date is not used by this API."""
    value = headers.get("Retry-After", "")
    return min(60.0, float(value)) if value.isascii() and value.isdigit() else None
