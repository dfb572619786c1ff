"""Calls to addresses that plans name: hooks, and whatever else is told the outside.

Whoever writes a plan must not reach through a worker what is only for workers. So every address is looked at just
before it is connected to, also each that a name resolves to; redirects are not followed, no proxy is taken from the
environment, and no more of an answer is read than is needed.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from orchestrator.domain.addresses import refusal
from orchestrator.errors import RebuildError

ANSWER_LIMIT = 64 * 1024
"""Bytes that are read of an answer."""
CONNECT_SECONDS = 5.0
CONNECTIONS = 256


class AddressRefused(RebuildError, ValueError):
    """The address must not be called."""

    code = "address_refused"


class OutboundFailed(RebuildError):
    """The call had no answer."""

    code = "no_answer"


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer, read to its end or to the limit."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class GuardedResolver(AbstractResolver):
    """Resolves names, and refuses one of which any address must not be called."""

    def __init__(self, inner: AbstractResolver, *, loopback: bool):
        self._inner = inner
        self._loopback = loopback

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        """What aiohttp connects to: addresses, so that nothing is looked up a second time."""
        found = await self._inner.resolve(host, port, family)  # type: ignore[arg-type]
        for one in found:
            if reason := refusal(one["host"], loopback=self._loopback):
                raise AddressRefused(f"{host} must not be called: {reason}.")
        return found

    async def close(self) -> None:
        """Closes the resolver behind."""
        await self._inner.close()


class Outbound:
    """One session for all calls of a driver."""

    def __init__(self, *, loopback: bool, resolver: AbstractResolver | None = None):
        self._loopback = loopback
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=GuardedResolver(resolver or aiohttp.ThreadedResolver(), loopback=loopback),
                use_dns_cache=False, limit=CONNECTIONS, force_close=True,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "fleet-rebuild", "Accept-Encoding": "identity"},
            auto_decompress=False,
            trust_env=False,
        )  # fmt: skip

    async def post(self, url: str, *, body: bytes, headers: Mapping[str, str], seconds: float) -> Reply:
        """One POST, never repeated. Raises `AddressRefused`, before anything has left, and `OutboundFailed`."""
        target = self._target(url)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
        try:
            async with (
                asyncio.timeout(seconds),
                self._session.post(
                    target, data=body, headers=dict(headers), allow_redirects=False, timeout=timeout
                ) as response,
            ):
                return Reply(status=response.status, headers=response.headers, body=await _read(response))
        except aiohttp.InvalidURL as e:
            raise AddressRefused(f"The address can't be called: {e}.") from None
        except TimeoutError:
            raise OutboundFailed(f"No answer within {seconds:.3g} s.") from None
        except (aiohttp.ClientError, OSError, ValueError) as e:
            if isinstance(e, AddressRefused):
                raise
            raise OutboundFailed(f"No answer: {_words(e)}.") from None

    def _target(self, url: str) -> URL:
        """The address to call; one that is no name is looked at here, since nothing resolves it."""
        try:
            target = URL(url)
            host = target.host or ""
        except ValueError as e:
            raise AddressRefused(f"The address can't be read: {e}.") from None
        try:
            literal = ip_address(host)
        except ValueError:
            return target
        if reason := refusal(literal, loopback=self._loopback):
            raise AddressRefused(f"The address must not be called: {reason}.")
        return target

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._session.close()


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The body up to the limit; the rest stays unread, and the connection is closed."""
    body = bytearray()
    while len(body) < ANSWER_LIMIT and (part := await response.content.read(ANSWER_LIMIT - len(body))):
        body += part
    response.close()
    return bytes(body)


def _words(error: Exception) -> str:
    """What went wrong, in few words."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    match cause:
        case ConnectionRefusedError():
            return "connection refused"
        case ConnectionResetError() | aiohttp.ServerDisconnectedError():
            return "the connection was closed"
        case OSError() if cause.strerror:
            return cause.strerror.lower()
    return type(cause).__name__
