"""Reads server-sent events (WHATWG HTML, "Server-sent events") from an answer's lines."""

from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ServerSentEvent:
    """One event of a stream."""

    id: str | None
    type: str
    data: str


async def parse_sse(lines: AsyncIterable[bytes]) -> AsyncIterator[ServerSentEvent]:
    """Events with data, as they are complete; comments (heartbeats) and a cut-off last event are dropped.

    `lines` are whole lines, with or without their ends.
    """
    last_id: str | None = None
    kind, data = "", list[str]()
    async for raw in lines:
        line = raw.decode("utf-8", errors="replace").rstrip("\r\n")
        if not line:
            if data:
                yield ServerSentEvent(id=last_id, type=kind or "message", data="\n".join(data))
            kind, data = "", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match field:
            case "id":
                last_id = value
            case "event":
                kind = value
            case "data":
                data.append(value)
            case _:
                pass
