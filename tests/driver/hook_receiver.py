"""A receiver of hooks over HTTP on loopback, which checks every signature by itself."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

KEY = "a key of the tests"


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call that arrived."""

    phase: str
    server: str
    message_id: str
    document: Mapping[str, Any]
    seen: Any
    """What `look` saw while the caller waited for the answer."""


@dataclass
class Receiver:
    """Answers by phase: a status, a list of statuses (the last one stays), or whatever a coroutine says."""

    url: str
    statuses: dict[str, list[int]] = field(default_factory=dict)
    hangs: set[str] = field(default_factory=set)
    """Phases that get no answer."""
    calls: list[Call] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    look: Callable[[str, str], Awaitable[Any]] | None = None

    def hooks(self, *phases: str, **more: Mapping[str, Any]) -> dict[str, Any]:
        """The `hooks` of a plan file."""
        return {p: {"url": f"{self.url}/{p}", "secret": "env:HOOK_KEY", **more.get(p, {})} for p in phases}

    def of(self, phase: str, server: str | None = None) -> list[Call]:
        """The calls of a phase, in their order."""
        return [c for c in self.calls if c.phase == phase and server in (None, c.server)]

    async def answer(self, request: web.Request) -> web.Response:
        phase, body = request.match_info["phase"], await request.read()
        document = json.loads(body)
        self._verify(request.headers, body)
        if document["phase"] != phase:
            self.wrong.append(f"{document['phase']} came to {phase}")
        seen = await self.look(phase, document["server_id"]) if self.look else None
        self.calls.append(Call(phase=phase, server=document["server_id"], document=document, seen=seen,
                               message_id=request.headers["webhook-id"]))  # fmt: skip
        if phase in self.hangs:
            await asyncio.sleep(3600)
        statuses = self.statuses.get(phase, [200])
        return web.Response(status=statuses.pop(0) if len(statuses) > 1 else statuses[0])

    def _verify(self, headers: Mapping[str, str], body: bytes) -> None:
        signed = b".".join([headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body])
        mac = hmac.new(KEY.encode(), signed, hashlib.sha256).digest()
        if headers["webhook-signature"] != "v1," + base64.b64encode(mac).decode():
            self.wrong.append("a signature is wrong")
        if abs(time.time() - int(headers["webhook-timestamp"])) > 60:
            self.wrong.append("a time is wrong")


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    """A receiver on a free port, ended at once."""
    app = web.Application()
    receiver = Receiver("")
    app.router.add_post("/{phase}", receiver.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield receiver
    finally:
        await runner.cleanup()
    assert receiver.wrong == []
