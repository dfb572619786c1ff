"""Calls to the outside: real sockets, and names that an injected resolver makes up."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from workers.outbound import ANSWER_LIMIT, AddressRefused, Outbound, OutboundFailed


class Names(AbstractResolver):
    """Names and their addresses."""

    def __init__(self, **names: list[str]):
        self._names = names

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=a, port=port, family=family, proto=0, flags=0)
            for a in self._names[host.partition(".")[0]]
        ]

    async def close(self) -> None:
        """Has nothing to close."""


@asynccontextmanager
async def answering(handler: object) -> AsyncIterator[str]:
    """A server on loopback; yields `host:port`."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)  # type: ignore[arg-type]
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    "url",
    ["http://meta.example/", "http://both.example/", "http://169.254.169.254/", "http://[::ffff:169.254.169.254]/",
     "http://0xA9FEA9FE/", "http://2852039166/"],
)  # fmt: skip
async def test_a_metadata_address_is_refused_whatever_it_is_called(url: str) -> None:
    names = Names(meta=["169.254.169.254"], both=["93.184.216.34", "169.254.169.254"])
    resolver = None if "0xA9" in url else names
    async with Outbound(loopback=True, resolver=resolver) as outbound:
        with pytest.raises(AddressRefused):
            await outbound.post(url, body=b"{}", headers={}, seconds=5)


async def test_loopback_is_called_only_where_it_may_be() -> None:
    came = []

    async def handler(request: web.Request) -> web.Response:
        came.append(await request.read())
        return web.Response(status=204)

    async with answering(handler) as place:
        port = place.rpartition(":")[2]
        for url in (f"http://{place}/", f"http://here.example:{port}/"):
            async with Outbound(loopback=False, resolver=Names(here=["127.0.0.1"])) as outbound:
                with pytest.raises(AddressRefused, match="the worker itself"):
                    await outbound.post(url, body=b"{}", headers={}, seconds=5)
            assert came == []
        async with Outbound(loopback=True, resolver=Names(here=["127.0.0.1"])) as outbound:
            reply = await outbound.post(f"http://here.example:{port}/", body=b"{}", headers={}, seconds=5)
        assert (reply.status, came) == (204, [b"{}"])


async def test_redirects_are_not_followed_and_no_proxy_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = []

    async def handler(request: web.Request) -> web.Response:
        paths.append(request.path)
        return web.Response(status=307, headers={"Location": "/elsewhere"})

    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    async with answering(handler) as place, Outbound(loopback=True) as outbound:
        reply = await outbound.post(f"http://{place}/here", body=b"{}", headers={}, seconds=5)
    assert (reply.status, paths) == (307, ["/here"])


async def test_no_more_of_an_answer_is_read_than_its_limit() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 65536)
        except ConnectionError:
            return response

    async with answering(handler) as place, Outbound(loopback=True) as outbound:
        reply = await outbound.post(f"http://{place}/", body=b"{}", headers={}, seconds=20)
    assert len(reply.body) == ANSWER_LIMIT


async def test_who_does_not_answer_and_who_is_not_there_is_told_apart() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        async with Outbound(loopback=True) as outbound:
            with pytest.raises(OutboundFailed, match=r"within 0\.3 s"):
                await outbound.post(f"http://127.0.0.1:{deaf.getsockname()[1]}/", body=b"{}", headers={}, seconds=0.3)
    async with Outbound(loopback=True) as outbound:
        with pytest.raises(OutboundFailed, match="connection refused"):
            await outbound.post("http://127.0.0.1:9/", body=b"{}", headers={}, seconds=5)
