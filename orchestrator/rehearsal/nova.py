"""Nova: microversions, tokens and errors around the handlers of `compute.py`."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import hdrs, web

from orchestrator.rehearsal.cloud import Caller, RehearsalCloud
from orchestrator.rehearsal.gateway import MAX_BODY, new_request_id
from orchestrator.rehearsal.glance import page_of_error
from orchestrator.rehearsal.keystone import AUTH_REQUIRED, Keystone
from orchestrator.rehearsal.refusals import Refusal, bad_request
from orchestrator.rehearsal.views import Place

JSON = "application/json"
_VERSION_HEADERS = "OpenStack-API-Version, X-OpenStack-Nova-API-Version"


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call, after the token, the URL and the microversion were found good."""

    cloud: RehearsalCloud
    caller: Caller
    request: web.Request
    body: bytes
    place: Place

    @property
    def minor(self) -> int:
        return self.caller.minor

    @property
    def server_id(self) -> str:
        return self.request.match_info["server"]

    def json(self) -> Any:
        """The body. 400 in Nova's words where it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            raise bad_request("Malformed request body") from None


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a handler answers: JSON given as an object or as text, or nothing."""

    status: int = 200
    document: Any = None
    text: str | None = None
    headers: tuple[tuple[str, str], ...] = ()


Route = Callable[[Call], Reply]


class NoSuchPath(Exception):
    """The path is unknown at this microversion."""


class Nova:
    """Everything under `/compute`."""

    def __init__(self, cloud: RehearsalCloud, keystone: Keystone, url: str):
        self.cloud = cloud
        self._keystone = keystone
        self.base = f"{url}/compute"

    async def versions(self, _: web.Request) -> web.Response:
        """`GET /compute/`, without a token."""
        old: dict[str, Any] = {
            "id": "v2.0",
            "status": "SUPPORTED",
            "version": "",
            "min_version": "",
            "updated": "2011-01-21T11:33:21Z",
        }
        old["links"] = [{"rel": "self", "href": f"{self.base}/v2/"}]
        return web.json_response({"versions": [old, self._described()]})

    async def version(self, request: web.Request) -> web.Response:
        """`GET /compute/v2.1/`, without a token."""
        try:
            minor = self._minor(request)
        except Refusal as e:
            return self._refused(e, new_request_id(), None)
        shown = self._described()
        shown["links"].append({"rel": "describedby", "type": "text/html", "href": "http://docs.openstack.org/"})
        shown["media-types"] = [{"base": JSON, "type": "application/vnd.openstack.compute+json;version=2.1"}]
        return web.json_response({"version": shown}, headers=_headers(new_request_id(), minor))

    def answer(self, request: web.Request, route: Route, body: bytes) -> web.Response:
        """Answers one call. The order is that of Nova's own layers: size, token, path, microversion, project."""
        request_id = new_request_id()
        if len(body) > MAX_BODY:
            text = f"Request is too large. Larger than max_request_body_size ({MAX_BODY})."
            return _with_ids(page_of_error(413, "Request Entity Too Large", text), request_id)
        now = self.cloud.now()
        token = self._keystone.whose(request.headers.get("X-Auth-Token"), now)
        if token is None or not token.scoped:
            error = {"code": 401, "title": "Unauthorized", "message": AUTH_REQUIRED}
            refusal = web.json_response({"error": error}, status=401, headers=self._keystone.challenge)
            return _with_ids(refusal, request_id)
        minor: int | None = None
        try:
            minor = self._minor(request)
            project = request.match_info.get("project")
            own = token.user.project_id
            if project is not None and project != own:
                raise bad_request(
                    f"Malformed request URL: URL's project_id '{project}' doesn't match Context's project_id '{own}'"
                )
            reply = route(
                Call(
                    cloud=self.cloud,
                    caller=Caller(user=token.user, request_id=request_id, now=now, minor=minor),
                    request=request,
                    body=body,
                    place=Place(base=self.base, project=f"/{project}" if project else ""),
                )
            )
        except Refusal as e:
            return self._refused(e, request_id, minor)
        except NoSuchPath:
            return _no_such_path(request_id)
        shown = reply.text
        if shown is None and reply.document is not None:
            shown = json.dumps(reply.document)
        headers = _headers(request_id, minor) | dict(reply.headers)
        return web.Response(
            status=reply.status, body=shown.encode() if shown is not None else b"", content_type=JSON, headers=headers
        )

    def _minor(self, request: web.Request) -> int:
        """The microversion that the call asks for, as its second number. 406 and 400 in Nova's words."""
        asked = request.headers.get("X-OpenStack-Nova-API-Version", "")
        for service in request.headers.get("OpenStack-API-Version", "").split(","):
            parts = service.split()
            if len(parts) == 2 and parts[0].lower() == "compute":
                asked = parts[1]
        if not asked:
            return 1
        most = self.cloud.config.max_minor
        if asked == "latest":
            return most
        found = re.fullmatch(r"([1-9]\d*)\.([1-9]\d*|0)", asked)
        if found is None:
            raise bad_request(f"API Version String {asked} is of invalid format. Must be of format MajorNum.MinorNum.")
        minor = int(found[2])
        if found[1] != "2" or not 1 <= minor <= most:
            raise Refusal(
                406,
                "computeFault",
                f"Version {asked} is not supported by the API. Minimum is 2.1 and maximum is 2.{most}.",
            )
        return minor

    def _refused(self, e: Refusal, request_id: str, minor: int | None) -> web.Response:
        headers = _headers(request_id, minor)
        if e.key == "computeFault" and e.status == 406:
            asked = e.message.split()[1]
            headers |= {"OpenStack-API-Version": f"compute {asked}", "X-OpenStack-Nova-API-Version": asked}
        body = json.dumps({e.key: {"code": e.status, "message": e.message}})
        return web.Response(status=e.status, text=body, content_type=JSON, charset="UTF-8", headers=headers)

    def _described(self) -> dict[str, Any]:
        return {
            "id": "v2.1",
            "status": "CURRENT",
            "version": self.cloud.config.max_microversion,
            "min_version": "2.1",
            "updated": "2013-07-23T11:33:21Z",
            "links": [{"rel": "self", "href": f"{self.base}/v2.1/"}],
        }


def _headers(request_id: str, minor: int | None) -> dict[str, str]:
    headers = {"x-openstack-request-id": request_id, "x-compute-request-id": request_id}
    if minor is not None:
        headers |= {
            "OpenStack-API-Version": f"compute 2.{minor}",
            "X-OpenStack-Nova-API-Version": f"2.{minor}",
            hdrs.VARY: _VERSION_HEADERS,
        }
    return headers


def _with_ids(response: web.Response, request_id: str) -> web.Response:
    response.headers.update(_headers(request_id, None))
    return response


def _no_such_path(request_id: str) -> web.Response:
    return _with_ids(page_of_error(404, "Not Found", "The resource could not be found."), request_id)
