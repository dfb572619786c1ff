"""A front before the rehearsal cloud, as a load balancer is: it forwards, moves away, dies, and ends TLS."""

import asyncio
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

import aiohttp
from aiohttp import web

_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "host"})
PAGE = "<html><head><title>Gone</title></head><body><h1>Nothing here</h1><hr>nginx</body></html>"


class Leaves(StrEnum):
    """What is left where a front was."""

    NOBODY = "refuses connections"
    """What is under way is finished first."""
    DEATH = "dies in the midst"
    """Connections are cut, whatever is under way; then nobody listens."""
    A_404 = "404"
    A_410 = "410"


class Front:
    """Forwards to `backend` (`http://host:port`). Every connection carries one request: none is cut while idle."""

    def __init__(self, loop: asyncio.AbstractEventLoop, tls: ssl.SSLContext | None) -> None:
        self.port = 0
        self.backend = ""
        self.requests = 0
        """That arrived, whatever became of them."""
        self._loop = loop
        self._tls = tls
        self._status: int | None = None
        self._server: asyncio.Server | None = None
        self._session: aiohttp.ClientSession | None = None
        self._web: Any = None

    def change_tls(self, change: Callable[[ssl.SSLContext], None]) -> None:
        """Before the next handshake."""
        context = self._tls
        assert context is not None

        async def it() -> None:
            change(context)

        self._do(it)

    @property
    def url(self) -> str:
        """Where it is reached."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def leave(self, leaves: Leaves) -> None:
        """From now on nothing is forwarded any more."""
        match leaves:
            case Leaves.A_404:
                self._status = 404
            case Leaves.A_410:
                self._status = 410
            case Leaves.NOBODY:
                self._do(self._close)
            case Leaves.DEATH:
                self._do(self._die)

    async def open(self) -> None:
        """In the front's own loop."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
        )
        self._web = web.Server(self._forward, access_log=None)
        self._server = await self._loop.create_server(self._web, "127.0.0.1", 0, ssl=self._tls, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """In the front's own loop."""
        await self._close()
        if self._session:
            await self._session.close()

    async def _forward(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests += 1
        if self._status:
            answer = web.Response(status=self._status, text=PAGE, content_type="text/html")
            answer.force_close()
            return answer
        assert self._session is not None
        kept = {k: v for k, v in request.headers.items() if k.lower() not in _HOP_BY_HOP}
        async with self._session.request(
            request.method, f"{self.backend}{request.raw_path}", headers=kept, data=await request.read(),
            allow_redirects=False,
        ) as got:  # fmt: skip
            headers = {k: v for k, v in got.headers.items() if k.lower() not in _HOP_BY_HOP}
            answer = web.Response(status=got.status, headers=headers, body=await got.read())
        answer.force_close()
        return answer

    async def _close(self) -> None:
        if self._server:
            self._server.close()
            await self._web.shutdown(10.0)
            self._server = None

    async def _die(self) -> None:
        if self._server:
            self._server.close()
            for connection in list(self._web.connections):
                if connection.transport:
                    connection.transport.abort()
            self._server = None

    def _do(self, what: Callable[[], Awaitable[None]]) -> None:
        async def it() -> None:
            await what()

        asyncio.run_coroutine_threadsafe(it(), self._loop).result(30)


class Fronts:
    """Any number of fronts in one thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fronts", daemon=True)
        self._thread.start()
        self._open: list[Front] = []

    def open(self, backend: str = "", tls: ssl.SSLContext | None = None) -> Front:
        """A new one at a port of its own."""
        front = Front(self._loop, tls)
        front.backend = backend
        asyncio.run_coroutine_threadsafe(front.open(), self._loop).result(30)
        self._open.append(front)
        return front

    def close(self) -> None:
        """Closes all."""
        for front in self._open:
            asyncio.run_coroutine_threadsafe(front.close(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextmanager
def fronts() -> Iterator[Fronts]:
    """All are closed at the end."""
    found = Fronts()
    try:
        yield found
    finally:
        found.close()
