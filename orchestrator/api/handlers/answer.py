"""Serialising."""

from aiohttp import web
from pydantic import BaseModel


def answer(view: BaseModel, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A view as JSON."""
    return web.Response(
        status=status,
        body=view.model_dump_json(by_alias=True).encode(),
        content_type="application/json",
        headers=headers,
    )
