"""`/rehearsal/…`: the account, the faults and the levers, for tests and drills. No token is asked for."""

import json
from dataclasses import asdict
from ipaddress import ip_address
from typing import Any

from aiohttp import web

from orchestrator.rehearsal.cloud import RehearsalCloud
from orchestrator.rehearsal.faults import Fault
from orchestrator.rehearsal.keystone import Keystone
from orchestrator.rehearsal.state import Server


class Admin:
    """What no real cloud offers."""

    def __init__(self, cloud: RehearsalCloud, keystone: Keystone):
        self.cloud = cloud
        self._keystone = keystone

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/rehearsal/account", self.account),
            web.get("/rehearsal/servers", self.servers),
            web.put("/rehearsal/servers/{server}/addresses", self.set_addresses),
            web.get("/rehearsal/faults", self.faults),
            web.post("/rehearsal/faults", self.add_faults),
            web.delete("/rehearsal/faults", self.clear_faults),
            web.post("/rehearsal/tokens/revoke", self.revoke),
            web.delete("/rehearsal/images/{image}", self.drop_image),
        ]

    async def account(self, request: web.Request) -> web.Response:
        """The account; `?all=1` also of servers that no rebuild named."""
        self.cloud.now()
        return web.json_response(self.cloud.account.document(every=request.query.get("all") == "1"))

    async def servers(self, _: web.Request) -> web.Response:
        """All servers as they truly are, deleted and vanished ones too, in one answer: id → what there is of it."""
        self.cloud.now()
        return web.json_response({"servers": {s.id: _true(s) for s in self.cloud.servers.values()}})

    async def set_addresses(self, request: web.Request) -> web.Response:
        """`{"addresses": {"private": [{"addr": "127.0.0.5", "type": "fixed"}, …], …}}` instead of a server's own."""
        server = self.cloud.servers.get(request.match_info["server"])
        if server is None:
            return web.Response(status=404)
        try:
            given = (await request.json())["addresses"]
            addresses = {net: [_address(entry) for entry in listed] for net, listed in given.items()}
        except (AttributeError, KeyError, TypeError, ValueError) as e:
            return web.json_response({"error": f"{type(e).__name__}: {e}"}, status=400)
        self.cloud.set_addresses(server.id, addresses)
        return web.Response(status=204)

    async def faults(self, _: web.Request) -> web.Response:
        return web.json_response({"faults": [_shown(f) for f in self.cloud.faults.in_force(self.cloud.now())]})

    async def add_faults(self, request: web.Request) -> web.Response:
        """`{"faults": [{"kind": "spawn_fails", "servers": ["node-00007"], "times": 1}, …]}`: all of them or none."""
        try:
            faults = [Fault.parse(document) for document in (await request.json())["faults"]]
        except (KeyError, TypeError, ValueError) as e:
            return web.json_response({"error": str(e)}, status=400)
        self.cloud.now()
        self.cloud.fail(*faults)
        return web.json_response({"faults": [_shown(f) for f in faults]}, status=201)

    async def clear_faults(self, _: web.Request) -> web.Response:
        self.cloud.faults.clear()
        return web.Response(status=204)

    async def revoke(self, request: web.Request) -> web.Response:
        """All tokens, or those of `?user=`."""
        return web.json_response({"revoked": self._keystone.revoke(request.query.get("user"))})

    async def drop_image(self, request: web.Request) -> web.Response:
        """Deletes an image, also under a rebuild that was accepted and that no host has begun."""
        self.cloud.now()
        gone = self.cloud.images.pop(request.match_info["image"], None)
        return web.Response(status=404 if gone is None else 204)


def _address(entry: Any) -> tuple[str, str]:
    if entry["type"] not in ("fixed", "floating"):
        raise ValueError("an address is fixed or floating")
    return str(ip_address(entry["addr"])), entry["type"]


def _true(server: Server) -> dict[str, Any]:
    return {
        "id": server.id,
        "name": server.name,
        "status": server.status,
        "task_state": server.task,
        "image": server.image,
        "launched_at": server.launched_at,
        "metadata": server.metadata,
        "rebuilds": [a.request_id for a in server.actions.values() if a.action == "rebuild"],
    }


def _shown(fault: Fault) -> Any:
    return json.loads(json.dumps(asdict(fault), default=sorted))
