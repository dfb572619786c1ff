"""A person's word at the gates of a plan."""

from collections.abc import Awaitable, Callable

from aiohttp import web

from orchestrator.api.handlers.answer import answer
from orchestrator.api.keys import DEPS, PRINCIPAL
from orchestrator.api.requests import ActionBody, plan_id_of, read_body
from orchestrator.service import gates
from orchestrator.service.views import PlanView

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _action(act: Callable[..., Awaitable[PlanView]]) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        body = await read_body(request, ActionBody)
        return answer(await act(request.app[DEPS], request[PRINCIPAL], plan_id_of(request), reason=body.reason))

    return handle


approve = _action(gates.approve)
reject = _action(gates.reject)
promote = _action(gates.promote)
