"""A plan's events as a stream (server-sent events)."""

import contextlib
from collections.abc import Sequence
from uuid import UUID

from aiohttp import web
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.api.keys import CONFIG, TAIL
from orchestrator.log import get_logger
from orchestrator.service.views import EventView

log = get_logger(__name__)


async def stream_events(request: web.Request, plan_id: UUID, after: int) -> web.StreamResponse:
    """Each event has its number as `id`, so that `Last-Event-ID` resumes; a comment is sent in times of silence.

    A plan that has ended, once all was told, ends the stream with `event: end`. Without it the connection was lost,
    or this process is being stopped: connect again.
    """
    tail = request.app[TAIL]
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
    await response.prepare(request)
    # A reader who left or a ledger that is away both end the stream; the answer has begun, so no problem can be sent.
    try:
        await response.write(b"retry: 2000\n\n")
        batches = tail.follow(plan_id, after, silence=request.app[CONFIG].heartbeat_seconds)
        async with contextlib.aclosing(batches):
            async for batch in batches:
                await response.write(b": still here\n\n" if batch is None else _lines(batch))
        if not tail.closed:
            await response.write(b"event: end\ndata: {}\n\n")
        await response.write_eof()
    except (ConnectionError, SQLAlchemyError, TimeoutError) as e:
        log.info("stream_ended", plan=str(plan_id), cause=type(e).__name__)
        response.force_close()
    return response


def _lines(batch: Sequence[EventView]) -> bytes:
    return "".join(f"id: {e.seq}\ndata: {e.model_dump_json(by_alias=True)}\n\n" for e in batch).encode()
