"""Controls at any time: a plan's pace, single servers, and the emergency stop of a cloud."""

from aiohttp import web

from orchestrator.api.handlers.answer import answer
from orchestrator.api.keys import DEPS, PRINCIPAL
from orchestrator.api.requests import ActionBody, ChangeBody, cloud_name_of, plan_id_of, read_body, server_id_of
from orchestrator.service import clouds, servers
from orchestrator.service.change import change


async def change_plan(request: web.Request) -> web.Response:
    """Another pace for a plan."""
    body = await read_body(request, ChangeBody)
    plan = await change(
        request.app[DEPS], request[PRINCIPAL], plan_id_of(request), max_in_flight=body.max_in_flight, rate=body.rate,
        reason=body.reason,
    )  # fmt: skip
    return answer(plan)


async def skip(request: web.Request) -> web.Response:
    """Leaves a server out."""
    body = await read_body(request, ActionBody)
    job = await servers.skip(
        request.app[DEPS], request[PRINCIPAL], plan_id_of(request), server_id_of(request), reason=body.reason
    )
    return answer(job)


async def acknowledge(request: web.Request) -> web.Response:
    """Frees the place of a server that somebody looks after."""
    body = await read_body(request, ActionBody)
    job = await servers.acknowledge(
        request.app[DEPS], request[PRINCIPAL], plan_id_of(request), server_id_of(request), reason=body.reason
    )
    return answer(job)


async def pause_cloud(request: web.Request) -> web.Response:
    """The emergency stop."""
    deps, body = request.app[DEPS], await read_body(request, ActionBody)
    done = await clouds.stop_cloud(
        deps.engine, deps.clouds, request[PRINCIPAL], cloud_name_of(request), reason=body.reason
    )
    await deps.hints.drive()
    return answer(done)


async def resume_cloud(request: web.Request) -> web.Response:
    """Takes the emergency stop back."""
    deps, body = request.app[DEPS], await read_body(request, ActionBody)
    done = await clouds.release_cloud(
        deps.engine, deps.clouds, request[PRINCIPAL], cloud_name_of(request), reason=body.reason
    )
    await deps.hints.drive()
    return answer(done)
