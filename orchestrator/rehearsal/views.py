"""Servers as Nova's answers show them, by microversion."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from orchestrator.rehearsal.config import RehearsalConfig
from orchestrator.rehearsal.state import Action, Server, VmState, micro, zulu

FLAVOR_ID = "1"
FLAVOR_NAME = "rehearsal"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where links in an answer point: `{base}/v2.1{project}/servers/…`; `project` is "" or "/PID", as it was asked."""

    base: str
    project: str

    def links(self, path: str) -> list[dict[str, str]]:
        """The self and bookmark links of `/servers/ID` and the like."""
        return [
            {"rel": "self", "href": f"{self.base}/v2.1{self.project}{path}"},
            {"rel": "bookmark", "href": f"{self.base}{self.project}{path}"},
        ]

    def bookmark(self, path: str) -> list[dict[str, str]]:
        return self.links(path)[1:]


def brief(server: Server, place: Place) -> dict[str, Any]:
    """As the list without detail shows it."""
    return {"id": server.id, "name": server.name, "links": place.links(f"/servers/{server.id}")}


def flavor(config: RehearsalConfig) -> dict[str, Any]:
    """The only flavor, embedded as from 2.47."""
    return {
        "vcpus": 2,
        "ram": 2048,
        "disk": config.disk,
        "ephemeral": 0,
        "swap": 0,
        "original_name": FLAVOR_NAME,
        "extra_specs": {},
    }


def detail(
    server: Server, place: Place, config: RehearsalConfig, *, minor: int, listed: bool = False, full: bool = True
) -> dict[str, Any]:
    """As GET shows it. `listed`: in a list; `full`: False leaves out what the answer to a change lacks below 2.75."""
    status = server.status
    image: Any = ""
    if server.volume is None:
        image = {"id": server.image, "links": place.bookmark(f"/images/{server.image}")}
    if minor >= 47:
        size: dict[str, Any] = flavor(config)
    else:
        size = {"id": FLAVOR_ID, "links": place.bookmark(f"/flavors/{FLAVOR_ID}")}
    shown: dict[str, Any] = {
        "id": server.id,
        "name": server.name,
        "status": status,
        "tenant_id": server.project_id,
        "user_id": server.user_id,
        "metadata": server.metadata,
        "hostId": server.host_id,
        "image": image,
        "flavor": size,
        "created": zulu(server.created),
        "updated": zulu(server.updated),
        "addresses": _addresses(server),
        "accessIPv4": server.access_v4,
        "accessIPv6": server.access_v6,
        "links": place.links(f"/servers/{server.id}"),
        "OS-DCF:diskConfig": server.disk_config,
    }
    if server.fault is not None and status in ("ERROR", "DELETED"):
        shown["fault"] = {
            "code": server.fault.code,
            "created": zulu(server.fault.created),
            "message": server.fault.message,
        }
    if status in ("ACTIVE", "BUILD", "REBUILD", "RESIZE", "VERIFY_RESIZE", "MIGRATING"):
        shown["progress"] = 0
    if full:
        shown |= {
            "OS-EXT-AZ:availability_zone": server.zone,
            "config_drive": "",
            "key_name": server.key_name,
            "OS-SRV-USG:launched_at": micro(server.launched_at),
            "OS-SRV-USG:terminated_at": micro(server.deleted_at),
            "OS-EXT-STS:task_state": server.task,
            "OS-EXT-STS:vm_state": server.vm_state,
            "OS-EXT-STS:power_state": 0 if server.vm_state is VmState.DELETED else server.power,
            "os-extended-volumes:volumes_attached": _volumes(server, minor),
        }
    elif minor >= 54:
        shown["key_name"] = server.key_name
    shown |= _by_microversion(server, minor)
    if minor >= 71 and not listed:
        shown["server_groups"] = []
    return shown


def _by_microversion(server: Server, minor: int) -> dict[str, Any]:
    fields = (
        (9, "locked", server.locked),
        (73, "locked_reason", server.locked_reason),
        (19, "description", server.description),
        (26, "tags", server.tags),
        (63, "trusted_image_certificates", None),
        (90, "OS-EXT-SRV-ATTR:hostname", server.hostname),
    )
    return {name: value for since, name, value in fields if minor >= since}


def _addresses(server: Server) -> dict[str, Any]:
    given = server.addresses
    if given is None:
        given = {} if server.address is None else {"private": [(server.address, "fixed")]}
    return {network: [_address(addr, kind) for addr, kind in listed] for network, listed in given.items()}


def _address(addr: str, kind: str) -> dict[str, Any]:
    ip = ip_address(addr)
    mac = "fa:16:3e:" + ":".join(f"{part:02x}" for part in ip.packed[-3:])
    return {"version": ip.version, "addr": addr, "OS-EXT-IPS:type": kind, "OS-EXT-IPS-MAC:mac_addr": mac}


def _volumes(server: Server, minor: int) -> list[Mapping[str, Any]]:
    if server.volume is None:
        return []
    return [{"id": server.volume, "delete_on_termination": False} if minor >= 3 else {"id": server.volume}]


def detail_text(server: Server, place: Place, config: RehearsalConfig, minor: int) -> str:
    """One server of a detailed list, as JSON; written once and kept until the server changes."""
    key = (minor, place.base, place.project)
    if server.view is not None and server.view[0] == key:
        return server.view[1]
    text = json.dumps(detail(server, place, config, minor=minor, listed=True))
    server.view = (key, text)
    return text


def partial_text(server: Server, place: Place) -> str:
    """What Nova knows of a server without its cell (from 2.69 on), as JSON."""
    return json.dumps({"id": server.id, "status": "UNKNOWN", "tenant_id": server.project_id,
                       "created": zulu(server.created), "links": place.links(f"/servers/{server.id}")})  # fmt: skip


def action_document(action: Action, *, minor: int, events: bool, server_id: str) -> dict[str, Any]:
    """An instance action as a user sees it at 2.`minor` (nova-facts, 6)."""
    shown: dict[str, Any] = {
        "action": action.action,
        "instance_uuid": server_id,
        "request_id": action.request_id,
        "user_id": action.user_id,
        "project_id": action.project_id,
        "start_time": micro(action.start),
        "message": action.message,
    }
    if minor >= 58:
        shown["updated_at"] = micro(action.updated)
    if events and minor >= 51:
        shown["events"] = [
            {
                "event": e.event,
                "start_time": micro(e.start),
                "finish_time": micro(e.finish),
                "result": e.result,
                **({"hostId": e.host_id} if minor >= 62 else {}),
            }
            for e in action.events
        ]
    return shown
