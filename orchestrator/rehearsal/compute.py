"""The handlers of the compute API. Each parses, makes one call to the cloud, and shows what came of it."""

import secrets
from collections.abc import Callable
from typing import Any

from orchestrator.rehearsal import listing, validation
from orchestrator.rehearsal.cloud import VERBS
from orchestrator.rehearsal.nova import Call, NoSuchPath, Reply, Route
from orchestrator.rehearsal.refusals import Refusal, bad_request, not_found
from orchestrator.rehearsal.state import Server, VmState
from orchestrator.rehearsal.validation import invalid, invalid_query
from orchestrator.rehearsal.views import (
    FLAVOR_ID,
    FLAVOR_NAME,
    action_document,
    brief,
    detail,
    detail_text,
    flavor,
    partial_text,
)


def list_brief(call: Call) -> Reply:
    """`GET /servers`."""
    servers, following = listing.page(call.cloud, call.caller, call.request.query)
    body: dict[str, Any] = {"servers": [brief(s, call.place) for s in servers]}
    if following is not None:
        body["servers_links"] = [_next(call, "/servers", following)]
    return Reply(document=body)


def list_detail(call: Call) -> Reply:
    """`GET /servers/detail`."""
    servers, following = listing.page(call.cloud, call.caller, call.request.query)
    config, place, minor = call.cloud.config, call.place, call.minor
    cell_down = call.cloud.cell_down
    shown = [
        partial_text(s, place) if cell_down(call.caller, s) else detail_text(s, place, config, minor) for s in servers
    ]
    text = '{"servers": [' + ", ".join(shown) + "]"
    if following is not None:
        href = _next(call, "/servers/detail", following)["href"]
        text += f', "servers_links": [{{"rel": "next", "href": "{href}"}}]'
    return Reply(text=text + "}")


def _next(call: Call, path: str, query: str) -> dict[str, str]:
    return {"rel": "next", "href": f"{call.place.links(path)[0]['href']}?{query}"}


def show(call: Call) -> Reply:
    """`GET /servers/ID`."""
    server = call.cloud.find(call.caller, call.server_id, partly=True)
    if call.cloud.cell_down(call.caller, server):
        return Reply(text='{"server": ' + partial_text(server, call.place) + "}")
    return Reply(document={"server": detail(server, call.place, call.cloud.config, minor=call.minor)})


def update(call: Call) -> Reply:
    """`PUT /servers/ID`: the name; other fields are checked for being known and left alone."""
    asked = validation.required(call.json(), "server")
    known = {"name", "OS-DCF:diskConfig", "accessIPv4", "accessIPv6"}
    known |= {"description"} if call.minor >= 19 else set()
    known |= {"hostname"} if call.minor >= 90 else set()
    validation.only("server", asked, known)
    if "name" in asked:
        validation.name("name", asked["name"])
    server = call.cloud.find(call.caller, call.server_id)
    if "name" in asked:
        call.cloud.rename(call.caller, server, asked["name"])
    shown = detail(server, call.place, call.cloud.config, minor=call.minor, full=call.minor >= 75)
    return Reply(document={"server": shown})


def delete(call: Call) -> Reply:
    """`DELETE /servers/ID`."""
    call.cloud.delete(call.caller, call.cloud.find(call.caller, call.server_id))
    return Reply(status=204)


def act(call: Call) -> Reply:
    """`POST /servers/ID/action`: one key in the body names the action."""
    body = call.json()
    if not isinstance(body, dict) or len(body) != 1:
        raise bad_request("Malformed request body")
    ((verb, asked),) = body.items()
    if verb == "rebuild":
        return _rebuild(call, asked)
    if verb in VERBS:
        call.cloud.act(call.caller, _cell(call), verb)
    elif verb == "lock":
        reason = _reason(call, asked)
        call.cloud.lock(call.caller, call.cloud.find(call.caller, call.server_id), locked=True, reason=reason)
    elif verb == "unlock":
        call.cloud.lock(call.caller, call.cloud.find(call.caller, call.server_id), locked=False)
    elif verb == "os-resetState":
        state = asked.get("state") if isinstance(asked, dict) else None
        if state not in ("active", "error"):
            raise invalid("state", state, f"{state!r} is not one of ['active', 'error']")
        call.cloud.reset_state(call.caller, call.cloud.find(call.caller, call.server_id), VmState(state))
    else:
        raise bad_request(f"There is no such action: {verb}")
    return Reply(status=202)


def _rebuild(call: Call, asked: Any) -> Reply:
    fields = validation.rebuild(asked, call.minor)
    server = call.cloud.find(call.caller, call.server_id)
    call.cloud.rebuild(call.caller, server, fields)
    shown = detail(server, call.place, call.cloud.config, minor=call.minor, full=call.minor >= 75)
    shown["adminPass"] = fields.get("adminPass", secrets.token_urlsafe(9))
    if call.minor >= 57:
        shown["user_data"] = server.user_data
    return Reply(status=202, document={"server": shown}, headers=(("Location", _location(call, server)),))


def _location(call: Call, server: Server) -> str:
    return call.place.links(f"/servers/{server.id}")[0]["href"]


def _reason(call: Call, asked: Any) -> str | None:
    """The reason of a lock, which 2.73 brought; below that the body is not looked at."""
    if call.minor < 73 or asked is None:
        return None
    if not isinstance(asked, dict):
        raise invalid("lock", asked, f"{asked!r} is not of type 'object', 'null'")
    validation.only("lock", asked, {"locked_reason"})
    reason = asked.get("locked_reason")
    return None if reason is None else str(reason)


def _cell(call: Call) -> Server:
    """The server of a simple action; Nova words its absence differently there."""
    try:
        return call.cloud.find(call.caller, call.server_id)
    except Refusal:
        raise not_found(f"Instance {call.server_id} has no mapping to a cell.") from None


def actions(call: Call) -> Reply:
    """`GET /servers/ID/os-instance-actions`, newest first; in pages from 2.58 on."""
    query = call.request.query
    server = call.cloud.find(call.caller, call.server_id, deleted=call.minor >= 21)
    found = list(reversed(server.actions.values()))
    limit = None
    if call.minor >= 58:
        if "marker" in query:
            at = next((n for n, a in enumerate(found) if a.request_id == query["marker"]), None)
            if at is None:
                raise bad_request(f"Marker {query['marker']} could not be found.")
            found = found[at + 1 :]
        if "limit" in query:
            if not query["limit"].isdigit():
                raise invalid_query("limit", query["limit"], f"{query['limit']!r} does not match '^[0-9]*$'")
            limit = int(query["limit"])
    shown = found if limit is None else found[:limit]
    body: dict[str, Any] = {
        "instanceActions": [action_document(a, minor=call.minor, events=False, server_id=server.id) for a in shown]
    }
    if limit and len(shown) == limit:
        query_text = f"limit={limit}&marker={shown[-1].request_id}"
        body["links"] = [_next(call, f"/servers/{server.id}/os-instance-actions", query_text)]
    return Reply(document=body)


def action(call: Call) -> Reply:
    """`GET /servers/ID/os-instance-actions/REQ`."""
    wanted = call.request.match_info["action"]
    server = call.cloud.find(call.caller, call.server_id, deleted=call.minor >= 21)
    found = server.actions.get(wanted)
    if found is None:
        raise not_found(f"Action {wanted} not found")
    shown = action_document(found, minor=call.minor, events=True, server_id=server.id)
    return Reply(document={"instanceAction": shown})


def metadata(call: Call) -> Reply:
    """`GET /servers/ID/metadata`."""
    return Reply(document={"metadata": call.cloud.find(call.caller, call.server_id).metadata})


def merge_metadata(call: Call) -> Reply:
    """`POST /servers/ID/metadata`: adds to what there is."""
    return _set_metadata(call, replace=False)


def replace_metadata(call: Call) -> Reply:
    """`PUT /servers/ID/metadata`."""
    return _set_metadata(call, replace=True)


def _set_metadata(call: Call, *, replace: bool) -> Reply:
    items = validation.required(call.json(), "metadata")
    validation.metadata("metadata", items)
    server = call.cloud.find(call.caller, call.server_id)
    call.cloud.set_metadata(call.caller, server, items, replace=replace)
    return Reply(document={"metadata": server.metadata})


def metadata_item(call: Call) -> Reply:
    """`GET /servers/ID/metadata/KEY`."""
    key = call.request.match_info["key"]
    server = call.cloud.find(call.caller, call.server_id)
    if key not in server.metadata:
        raise not_found("Metadata item was not found")
    return Reply(document={"meta": {key: server.metadata[key]}})


def set_metadata_item(call: Call) -> Reply:
    """`PUT /servers/ID/metadata/KEY`."""
    key = call.request.match_info["key"]
    items = validation.required(call.json(), "meta")
    validation.metadata("meta", items)
    if set(items) != {key}:
        raise bad_request("Request body and URI mismatch")
    server = call.cloud.find(call.caller, call.server_id)
    call.cloud.set_metadata(call.caller, server, items, replace=False)
    return Reply(document={"meta": items})


def drop_metadata_item(call: Call) -> Reply:
    """`DELETE /servers/ID/metadata/KEY`."""
    server = call.cloud.find(call.caller, call.server_id)
    call.cloud.drop_metadata(call.caller, server, call.request.match_info["key"])
    return Reply(status=204)


def _tagged(call: Call) -> Server:
    if call.minor < 26:
        raise not_found("The resource could not be found.")
    return _cell(call)


def tags(call: Call) -> Reply:
    """`GET /servers/ID/tags`, from 2.26."""
    return Reply(document={"tags": _tagged(call).tags})


def replace_tags(call: Call) -> Reply:
    """`PUT /servers/ID/tags`, from 2.26."""
    if call.minor < 26:
        raise not_found("The resource could not be found.")
    wanted = validation.tags(validation.required(call.json(), "tags"))
    server = _tagged(call)
    call.cloud.set_tags(server, wanted)
    return Reply(document={"tags": server.tags})


def clear_tags(call: Call) -> Reply:
    """`DELETE /servers/ID/tags`, from 2.26."""
    call.cloud.set_tags(_tagged(call), ())
    return Reply(status=204)


def flavors(call: Call) -> Reply:
    """`GET /flavors` and `/flavors/detail`: the only one there is."""
    full = call.request.path.endswith("/detail")
    return Reply(document={"flavors": [_flavor(call, full=full)]})


def one_flavor(call: Call) -> Reply:
    """`GET /flavors/ID`."""
    wanted = call.request.match_info["flavor"]
    if wanted != FLAVOR_ID:
        raise not_found(f"Flavor {wanted} could not be found.")
    return Reply(document={"flavor": _flavor(call, full=True)})


def _flavor(call: Call, *, full: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "id": FLAVOR_ID,
        "name": FLAVOR_NAME,
        "links": call.place.links(f"/flavors/{FLAVOR_ID}"),
    }
    if full:
        size = flavor(call.cloud.config)
        shown |= {k: size[k] for k in ("vcpus", "ram", "disk", "swap", "extra_specs")}
        shown |= {"OS-FLV-EXT-DATA:ephemeral": 0, "os-flavor-access:is_public": True, "description": None}
    return shown


def nothing(_: Call) -> Reply:
    """Any other path."""
    raise NoSuchPath


ROUTES: tuple[tuple[str, str, Callable[[Call], Reply]], ...] = (
    ("GET", "/servers", list_brief),
    ("GET", "/servers/detail", list_detail),
    ("GET", "/servers/{server}", show),
    ("PUT", "/servers/{server}", update),
    ("DELETE", "/servers/{server}", delete),
    ("POST", "/servers/{server}/action", act),
    ("GET", "/servers/{server}/os-instance-actions", actions),
    ("GET", "/servers/{server}/os-instance-actions/{action}", action),
    ("GET", "/servers/{server}/metadata", metadata),
    ("POST", "/servers/{server}/metadata", merge_metadata),
    ("PUT", "/servers/{server}/metadata", replace_metadata),
    ("GET", "/servers/{server}/metadata/{key}", metadata_item),
    ("PUT", "/servers/{server}/metadata/{key}", set_metadata_item),
    ("DELETE", "/servers/{server}/metadata/{key}", drop_metadata_item),
    ("GET", "/servers/{server}/tags", tags),
    ("PUT", "/servers/{server}/tags", replace_tags),
    ("DELETE", "/servers/{server}/tags", clear_tags),
    ("GET", "/flavors", flavors),
    ("GET", "/flavors/detail", flavors),
    ("GET", "/flavors/{flavor}", one_flavor),
)
"""Method, path below the project, handler."""

NOTHING: Route = nothing
