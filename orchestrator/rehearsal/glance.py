"""Glance: images by id and by name, in pages."""

from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from orchestrator.rehearsal.cloud import RehearsalCloud
from orchestrator.rehearsal.config import RehearsalImage, stable_hex
from orchestrator.rehearsal.keystone import Keystone

_PAGE = 25
"""Glance's own page where no limit is given."""
_MOST = 1000
_FILTERS = ("name", "status", "visibility", "id")


class Glance:
    """The handlers under `/image`."""

    def __init__(self, cloud: RehearsalCloud, keystone: Keystone, url: str):
        self.cloud = cloud
        self._keystone = keystone
        self._url = f"{url}/image"

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/image", self._versions),
            web.get("/image/", self._versions),
            web.get("/image/versions", self._versions),
            web.get("/image/v2/images", self._list),
            web.get("/image/v2/images/{image}", self._show),
        ]

    async def _versions(self, _: web.Request) -> web.Response:
        versions = [
            {
                "id": version,
                "status": "CURRENT" if version == "v2.15" else "SUPPORTED",
                "links": [{"rel": "self", "href": f"{self._url}/v2/"}],
            }
            for version in ("v2.15", "v2.9", "v2.7", "v2.6", "v2.5", "v2.4", "v2.3", "v2.2", "v2.1", "v2.0")
        ]
        return web.json_response({"versions": versions}, status=300)

    async def _list(self, request: web.Request) -> web.Response:
        if (refused := self._refused(request)) is not None:
            return refused
        query = request.query
        try:
            limit = min(int(query.get("limit", _PAGE)), _MOST)
        except ValueError:
            return page_of_error(400, "Bad Request", "limit param must be an integer")
        images = sorted(self.cloud.images.values(), key=lambda i: (i.name, i.id), reverse=True)
        marker = query.get("marker")
        if marker is not None:
            at = next((n for n, image in enumerate(images) if image.id == marker), None)
            if at is None:
                return page_of_error(400, "Bad Request", f"No image found with ID {marker}")
            images = images[at + 1 :]
        found = [image for image in images if self._wanted(image, request)][:limit]
        kept = {k: v for k, v in query.items() if k != "marker"}
        body: dict[str, Any] = {
            "images": [self._document(image) for image in found],
            "first": "/v2/images" + (f"?{urlencode(kept)}" if kept else ""),
            "schema": "/v2/schemas/images",
        }
        if found and len(found) == limit:
            body["next"] = "/v2/images?" + urlencode({**kept, "marker": found[-1].id})
        return web.json_response(body)

    async def _show(self, request: web.Request) -> web.Response:
        if (refused := self._refused(request)) is not None:
            return refused
        wanted = request.match_info["image"]
        image = self.cloud.images.get(wanted)
        if image is None:
            return page_of_error(404, "Not Found", f"No image found with ID {wanted}")
        return web.json_response(self._document(image))

    def _refused(self, request: web.Request) -> web.Response | None:
        if self._keystone.whose(request.headers.get("X-Auth-Token"), self.cloud.now()) is not None:
            return None
        answer = page_of_error(401, "Unauthorized", "This server could not verify that you are authorized.")
        answer.headers.update(self._keystone.challenge)
        return answer

    @staticmethod
    def _wanted(image: RehearsalImage, request: web.Request) -> bool:
        for name in _FILTERS:
            given = request.query.get(name)
            if given is None:
                continue
            options = given[3:].split(",") if given.startswith("in:") else [given]
            if getattr(image, name) not in options:
                return False
        return all(key in (*_FILTERS, "limit", "marker", "sort", "sort_key", "sort_dir") for key in request.query)

    @staticmethod
    def _document(image: RehearsalImage) -> dict[str, Any]:
        return {
            "name": image.name,
            "disk_format": "raw",
            "container_format": "bare",
            "visibility": image.visibility,
            "size": 448,
            "virtual_size": 448,
            "status": image.status,
            "checksum": stable_hex("checksum", image.id),
            "protected": False,
            "min_ram": image.min_ram,
            "min_disk": image.min_disk,
            "owner": stable_hex("project", "admin"),
            "os_hidden": False,
            "id": image.id,
            "created_at": "2026-10-01T00:00:00Z",
            "updated_at": "2026-10-01T00:00:00Z",
            "tags": [],
            "self": f"/v2/images/{image.id}",
            "file": f"/v2/images/{image.id}/file",
            "schema": "/v2/schemas/image",
        }


def page_of_error(status: int, title: str, text: str) -> web.Response:
    """An error as OpenStack's WSGI layers write it: a small page of HTML."""
    heading = f"{status} {title}"
    html = (
        f"<html>\n <head>\n  <title>{heading}</title>\n </head>\n <body>\n  <h1>{heading}</h1>\n"
        f"  {text}<br /><br />\n\n\n\n </body>\n</html>"
    )
    return web.Response(status=status, text=html, content_type="text/html", charset="UTF-8")
