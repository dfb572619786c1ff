"""Plans, their jobs and their events."""

import json

from aiohttp import web

from orchestrator.api.handlers.answer import answer
from orchestrator.api.keys import DEPS, PRINCIPAL
from orchestrator.api.requests import (
    ActionBody,
    EventsQuery,
    HookBody,
    JobsQuery,
    PlansQuery,
    ResolveBody,
    RetryBody,
    RollbackBody,
    StartBody,
    plan_id_of,
    read_body,
    read_bytes,
    read_query,
    server_id_of,
)
from orchestrator.api.stream import stream_events
from orchestrator.errors import Fault
from orchestrator.service import actions, copies, hooks, reads, settle
from orchestrator.service.errors import RequestInvalid
from orchestrator.service.submit import submit

MAX_SEQ = 2**63 - 1


async def submit_plan(request: web.Request) -> web.Response:
    """A new plan, or the one that the same Idempotency-Key made before."""
    done = await submit(
        request.app[DEPS], request[PRINCIPAL], await read_bytes(request), idempotency_key=_idempotency_key(request)
    )
    return answer(done.plan, status=201 if done.created else 200, headers={"Location": f"/v1/plans/{done.plan.id}"})


async def list_plans(request: web.Request) -> web.Response:
    """Plans, the newest first."""
    query = read_query(request, PlansQuery)
    page = await reads.list_plans(
        request.app[DEPS], request[PRINCIPAL], statuses=query.status, labels=query.labels(), cloud=query.cloud,
        limit=query.limit, cursor=query.cursor,
    )  # fmt: skip
    return answer(page)


async def get_plan(request: web.Request) -> web.Response:
    """One plan."""
    return answer(await reads.get_plan(request.app[DEPS], request[PRINCIPAL], plan_id_of(request)))


async def get_spec(request: web.Request) -> web.Response:
    """The plan file."""
    spec = await reads.get_spec(request.app[DEPS], request[PRINCIPAL], plan_id_of(request))
    return web.Response(body=json.dumps(spec).encode(), content_type="application/json")


async def list_jobs(request: web.Request) -> web.Response:
    """A plan's jobs."""
    query = read_query(request, JobsQuery)
    page = await reads.list_jobs(
        request.app[DEPS], request[PRINCIPAL], plan_id_of(request), states=query.state, wave=query.wave,
        cause=query.cause, q=query.q, limit=query.limit, cursor=query.cursor,
    )  # fmt: skip
    return answer(page)


async def get_job(request: web.Request) -> web.Response:
    """One job with its attempts and events."""
    return answer(
        await reads.get_job(request.app[DEPS], request[PRINCIPAL], plan_id_of(request), server_id_of(request))
    )


async def list_events(request: web.Request) -> web.StreamResponse:
    """A plan's events: a page, or a stream for who accepts one."""
    query, plan_id = read_query(request, EventsQuery), plan_id_of(request)
    deps, principal = request.app[DEPS], request[PRINCIPAL]
    after = _last_event_id(request, query.after)
    if "text/event-stream" in request.headers.get("Accept", ""):
        await reads.need_readable(deps, principal, plan_id)
        return await stream_events(request, plan_id, after)
    return answer(
        await reads.list_events(deps, principal, plan_id, after=after, limit=query.limit, cursor=query.cursor)
    )


async def start(request: web.Request) -> web.Response:
    """Runs a saved preview."""
    body = await read_body(request, StartBody)
    return answer(
        await actions.start(
            request.app[DEPS], request[PRINCIPAL], plan_id_of(request), digest=body.digest, reason=body.reason
        )
    )


async def pause(request: web.Request) -> web.Response:
    """Stops sending."""
    body = await read_body(request, ActionBody)
    return answer(await actions.pause(request.app[DEPS], request[PRINCIPAL], plan_id_of(request), reason=body.reason))


async def resume(request: web.Request) -> web.Response:
    """Goes on after a pause or a halt."""
    body = await read_body(request, ActionBody)
    return answer(await actions.resume(request.app[DEPS], request[PRINCIPAL], plan_id_of(request), reason=body.reason))


async def cancel(request: web.Request) -> web.Response:
    """Ends a plan."""
    body = await read_body(request, ActionBody)
    return answer(await actions.cancel(request.app[DEPS], request[PRINCIPAL], plan_id_of(request), reason=body.reason))


async def retry(request: web.Request) -> web.Response:
    """Another attempt for failed servers."""
    body = await read_body(request, RetryBody)
    return answer(
        await actions.retry(
            request.app[DEPS], request[PRINCIPAL], plan_id_of(request), servers=body.servers, reason=body.reason
        )
    )


async def clone(request: web.Request) -> web.Response:
    """A held plan of the same content."""
    body = await read_body(request, ActionBody)
    plan = await copies.clone(
        request.app[DEPS], request[PRINCIPAL], plan_id_of(request), reason=body.reason,
        idempotency_key=_idempotency_key(request),
    )  # fmt: skip
    return answer(plan, headers={"Location": f"/v1/plans/{plan.id}"})


async def rollback(request: web.Request) -> web.Response:
    """A plan that takes servers back to the images that they had."""
    body = await read_body(request, RollbackBody)
    plan = await copies.rollback(
        request.app[DEPS], request[PRINCIPAL], plan_id_of(request), servers=body.servers, hold=body.hold,
        reason=body.reason, idempotency_key=_idempotency_key(request),
    )  # fmt: skip
    return answer(plan, headers={"Location": f"/v1/plans/{plan.id}"})


async def resolve(request: web.Request) -> web.Response:
    """A person's word on a call whose effect is unknown."""
    body = await read_body(request, ResolveBody)
    job = await settle.resolve(
        request.app[DEPS], request[PRINCIPAL], plan_id_of(request), server_id_of(request), decision=body.decision,
        attempt=body.attempt, reason=body.reason,
    )  # fmt: skip
    return answer(job)


async def answer_hook(request: web.Request) -> web.Response:
    """The result of a hook, from whoever was called."""
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    hook = request.app[DEPS], plan_id_of(request), server_id_of(request), request.match_info["phase"]
    token = await hooks.need_open(*hook, given.strip() if scheme.lower() == "bearer" else None)
    body = await read_body(request, HookBody)
    return answer(await hooks.answer_hook(*hook, token=token, result=body.result, message=body.message))


def _idempotency_key(request: web.Request) -> str | None:
    key = request.headers.get("Idempotency-Key")
    if key is not None and not (0 < len(key) <= 255 and key.isprintable()):
        message = "must be 1 to 255 printable characters"
        raise RequestInvalid(
            f"Idempotency-Key: {message}",
            errors=[Fault(path="Idempotency-Key", code="invalid_value", message=message)],
        )
    return key


def _last_event_id(request: web.Request, after: int) -> int:
    given = request.headers.get("Last-Event-ID")
    if given is None or given == "":
        return after
    if not (given.isascii() and given.isdigit() and int(given) <= MAX_SEQ):
        message = "must be the number of an event"
        raise RequestInvalid(
            f"Last-Event-ID: {message}", errors=[Fault(path="Last-Event-ID", code="invalid_value", message=message)]
        )
    return int(given)
