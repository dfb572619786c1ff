"""HTTP below the cloud client: connections, limits, and the one write of a rebuild call.

Two pools. Reads keep connections as usual, and aiohttp sends a GET anew where a kept connection turned out closed.
The rebuild call has a pool of its own that takes up a connection again only within a second of its last use: a server
that closes an idle connection just as the call is written leaves "may have arrived", which costs a quiescence period
to settle, where a new connection costs a round trip or two.
"""

import asyncio
import os
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import aiohttp
import certifi
import requests.utils  # type: ignore[import-untyped, unused-ignore]
from aiohttp.abc import AbstractStreamWriter
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from orchestrator.clouds.protocol import Ready
from orchestrator.errors import CloudAnswerInvalid, CloudConfigInvalid, CloudUnreachable

CONNECT_TIMEOUT = 10.0
TOTAL_TIMEOUT = 60.0
POST_ANSWER_LIMIT = 1 << 20
LIST_ANSWER_LIMIT = 64 << 20
CONNECTIONS = 128
FRESH = 1.0
"""Seconds for which a connection of the rebuild call may be idle and still be used."""


@dataclass(frozen=True, kw_only=True)
class RawAnswer:
    """An HTTP answer, read to its end or to the limit."""

    status: int
    headers: Mapping[str, str]
    """Without regard to case."""
    body: bytes
    whole: bool = True
    """False where the body is longer than the limit."""


@dataclass(frozen=True, kw_only=True)
class NoAnswer:
    """The rebuild call has no answer."""

    may_have_left: bool
    """False: not a byte was written. True: some or all of it may have been."""
    why: str


class _Withheld(Exception):
    """The call is not to be written."""


class _GatedBody(aiohttp.BytesPayload):
    """The call's body, and the gate that the whole request waits behind.

    aiohttp keeps the request's head back until the body's first write and then hands both to the transport at once,
    so the gate decides about the first byte: from `ready()` to the transport's write no await suspends. Should a
    later aiohttp write the head earlier, the server still has no complete request, and `passed` counts as soon as
    anything was written.
    """

    def __init__(self, body: bytes, ready: Ready | None) -> None:
        super().__init__(body, content_type="application/json")
        self._ready = ready
        self.passed = False
        """Whether bytes may have been handed to the transport."""
        self.why_not = ""
        self._shut = False
        self._caller = asyncio.current_task()
        self._cancelling = self._caller.cancelling() if self._caller else 0

    def shut(self) -> None:
        """Nothing is written from now on: the caller has stopped waiting."""
        self._shut = True

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        if self._shut or (self._caller and self._caller.cancelling() > self._cancelling):
            raise _Withheld
        transport = getattr(writer, "transport", None)
        if transport is None or transport.is_closing():
            self.why_not = "The connection was closed before the call was written."
            raise _Withheld
        if self._ready is not None and not self._ready():
            self.why_not = "Held back at the last moment."
            raise _Withheld
        self.passed = True
        await super().write_with_length(writer, content_length)

    async def write(self, writer: AbstractStreamWriter) -> None:
        await self.write_with_length(writer, None)


class Transport:
    """The connections to one cloud. Made inside a running event loop, closed in the same.

    `read_timeout`: seconds for a whole read; the rebuild call always has its own 60 s, as a shorter wait would only
    turn late answers into unknown ones. `cert`: client certificate and key.
    """

    def __init__(
        self,
        *,
        verify: bool | str = True,
        cert: tuple[str, str | None] | None = None,
        read_timeout: float = TOTAL_TIMEOUT,
        post_timeout: float = TOTAL_TIMEOUT,
        connect_timeout: float = CONNECT_TIMEOUT,
    ) -> None:
        self._tls = tls_context(verify, cert)
        self._connect_timeout = connect_timeout
        self._reads = self._session(timeout=read_timeout, keepalive=15.0)
        self._posts = self._session(timeout=post_timeout, keepalive=FRESH)
        self._proxies: dict[str, str | None] = {}

    def _session(self, *, timeout: float, keepalive: float) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=CONNECTIONS, keepalive_timeout=keepalive, ssl=self._tls),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=timeout, connect=self._connect_timeout),
            headers={"User-Agent": "fleet-rebuild", "Accept": "application/json", "Accept-Encoding": "identity"},
            trust_env=False,  # that would send the passwords of ~/.netrc too; proxies are looked up below
        )

    async def get(self, url: str, *, params: Sequence[tuple[str, str]] = (), headers: Mapping[str, str]) -> RawAnswer:
        """One GET; redirects are not followed.

        Raises `CloudUnreachable`, and `CloudAnswerInvalid` for an answer beyond the limit.
        """
        host = urlsplit(url).netloc
        target = URL(url).update_query(params) if params else URL(url)
        try:
            async with self._reads.get(
                target, headers=headers, allow_redirects=False, proxy=self._proxy(url)
            ) as response:
                body, whole = await _read(response, LIST_ANSWER_LIMIT)
        except TimeoutError:
            raise CloudUnreachable(f"{host} did not answer in time.") from None
        except aiohttp.ClientPayloadError:
            raise CloudAnswerInvalid(f"{host} broke off in the midst of its answer.") from None
        except aiohttp.InvalidURL:
            raise CloudConfigInvalid(f"{url!r} is not an address.") from None
        except (aiohttp.ClientError, OSError) as e:
            raise CloudUnreachable(f"{host} can't be reached: {_words(e)}") from None
        if not whole:
            raise CloudAnswerInvalid(f"{host} answered more than {LIST_ANSWER_LIMIT >> 20} MiB.")
        return RawAnswer(status=response.status, headers=_headers(response), body=body)

    async def post_once(
        self, url: str, body: bytes, *, headers: Mapping[str, str], ready: Ready | None = None
    ) -> RawAnswer | NoAnswer:
        """Writes one POST, at most once, and reads its answer. Raises only what cancels it."""
        gate = _GatedBody(body, ready)
        answer: RawAnswer | None = None
        why = ""
        try:
            async with self._posts.post(
                URL(url), data=gate, headers=headers, allow_redirects=False, proxy=self._proxy(url)
            ) as response:
                answer = await _read_answer(response)
        except TimeoutError:
            why = "No answer in time." if gate.passed else "No connection in time."
        except (aiohttp.ClientError, OSError, ValueError) as e:
            why = gate.why_not or _words(e)
        finally:
            gate.shut()
        return answer or NoAnswer(may_have_left=gate.passed, why=why)

    def _proxy(self, url: str) -> str | None:
        """The proxy of HTTP(S)_PROXY, ALL_PROXY and NO_PROXY, by the same rules as the OpenStack tools."""
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        if origin not in self._proxies:
            proxies = requests.utils.get_environ_proxies(origin, no_proxy=None)
            proxy = requests.utils.select_proxy(origin, proxies)
            if proxy and "://" not in proxy:
                proxy = f"http://{proxy}"
            if proxy and not proxy.startswith(("http://", "https://")):
                raise CloudConfigInvalid(f"The proxy for {parts.netloc} is not an HTTP proxy; set NO_PROXY or another.")
            self._proxies[origin] = proxy
        return self._proxies[origin]

    async def close(self) -> None:
        """Closes all connections."""
        await self._reads.close()
        await self._posts.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def _read_answer(response: aiohttp.ClientResponse) -> RawAnswer:
    """The answer to the call; its status and request id count even where its body breaks off."""
    try:
        body, whole = await _read(response, POST_ANSWER_LIMIT)
    except (aiohttp.ClientError, OSError, TimeoutError):
        body, whole = b"", False
    return RawAnswer(status=response.status, headers=_headers(response), body=body, whole=whole)


async def _read(response: aiohttp.ClientResponse, limit: int) -> tuple[bytes, bool]:
    """The body up to `limit` bytes, and whether that is all of it; a longer one closes the connection."""
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > limit:
            response.close()
            return b"".join(parts)[:limit], False
    return b"".join(parts), True


def _headers(response: aiohttp.ClientResponse) -> Mapping[str, str]:
    return CIMultiDictProxy(CIMultiDict(response.headers))


def _words(error: BaseException) -> str:
    """What went wrong, without addresses' or libraries' noise."""
    match error:
        case aiohttp.ClientConnectorCertificateError():
            return f"its certificate is not trusted ({error.certificate_error})."
        case aiohttp.ClientConnectorDNSError():
            return "its name can't be resolved."
        case aiohttp.ClientConnectorSSLError() | ssl.SSLError():
            return "the TLS connection failed."
        case aiohttp.ClientHttpProxyError():
            return f"the proxy refused the connection ({error.status})."
        case aiohttp.ClientConnectorError(os_error=ConnectionResetError()):
            return "it cut the connection in the TLS handshake."  # connecting itself is refused, never reset
        case aiohttp.ClientConnectorError(os_error=cause):
            return f"{os.strerror(cause.errno) if cause.errno else str(cause) or type(cause).__name__}."
        case aiohttp.ServerDisconnectedError():
            return "it closed the connection without an answer."
        case OSError() if error.strerror:
            return f"{error.strerror}."
        case _:
            return f"{type(error).__name__}."


def tls_context(verify: bool | str, cert: tuple[str, str | None] | None) -> ssl.SSLContext | bool:
    """TLS as requests, and so the OpenStack tools, do it: `cacert`, else REQUESTS_CA_BUNDLE, else certifi's list.

    Raises `CloudConfigInvalid`.
    """
    authorities = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or certifi.where()
    path = Path(verify if isinstance(verify, str) else authorities)
    try:
        context = ssl.create_default_context(
            cafile=None if path.is_dir() else str(path), capath=str(path) if path.is_dir() else None
        )
        if verify is False:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if cert:
            context.load_cert_chain(*cert)
    except (OSError, ssl.SSLError) as e:
        raise CloudConfigInvalid(f"The certificates of cacert, cert or key can't be read: {e}") from None
    return context
