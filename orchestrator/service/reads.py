"""Looking at plans, jobs and events."""

import asyncio
import base64
import binascii
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.spec import UserData, server_document
from orchestrator.domain.states import JobState, PlanStatus
from orchestrator.errors import Fault, NotFound
from orchestrator.ledger.events import events_after, server_events
from orchestrator.ledger.events import latest_events as ledger_latest_events
from orchestrator.ledger.hooks import hooks_of
from orchestrator.ledger.jobs import ExplicitTarget, JobFilter, attempts_of, explicit_targets, job_of_server, job_page
from orchestrator.ledger.plans import PlanFilter, PlanRecord, plan_page, plan_record, plan_spec
from orchestrator.service.deps import Deps
from orchestrator.service.errors import RequestInvalid
from orchestrator.service.roles import Principal, Right
from orchestrator.service.show import event_view, job_fields, plan_views
from orchestrator.service.views import AttemptView, EventView, HookView, JobDetailView, JobView, Page, PlanView

T = TypeVar("T")

EVENTS_OF_A_JOB = 200
"""How many of its newest events a job's detail has."""


async def get_plan(deps: Deps, principal: Principal, plan_id: UUID) -> PlanView:
    """One plan. Raises `NotFound`, and `NotAllowed` for a token limited to other clouds; so do all of these."""
    async with deps.engine.connect() as conn:
        return (await plan_views(deps, conn, [await _readable(conn, principal, plan_id)]))[0]


async def list_plans(
    deps: Deps, principal: Principal, *, statuses: Sequence[PlanStatus] = (), labels: Mapping[str, str] | None = None,
    cloud: str | None = None, limit: int, cursor: str | None = None,
) -> Page[PlanView]:  # fmt: skip
    """Plans, the newest first."""
    principal.need(Right.READ)
    clouds = sorted(principal.clouds) or None
    if cloud is not None:
        principal.need_cloud(cloud)
        clouds = [cloud]
    before = None if cursor is None else _read_cursor(cursor, lambda value: UUID(str(value)))
    async with deps.engine.connect() as conn:
        records = await plan_page(
            conn, PlanFilter(statuses=statuses, labels=labels, clouds=clouds), before=before, limit=limit + 1
        )
        shown = records[:limit]
        return Page(
            items=await plan_views(deps, conn, shown),
            next=_cursor(str(shown[-1].id)) if len(records) > limit else None,
        )


async def get_spec(deps: Deps, principal: Principal, plan_id: UUID) -> dict[str, Any]:
    """The plan file as it was submitted, defaults written out; user data as size and digest."""
    async with deps.engine.connect() as conn:
        plan = await _readable(conn, principal, plan_id)
        spec = await plan_spec(conn, plan_id)
        targets = await explicit_targets(conn, plan_id, plan.explicit) if plan.explicit else []
    if targets:
        servers = await asyncio.to_thread(_servers, targets)
        spec["targets"] = {"servers": servers, **spec.get("targets", {})}
    return spec


async def list_jobs(
    deps: Deps, principal: Principal, plan_id: UUID, *, states: Sequence[JobState] = (), wave: int | None = None,
    cause: str | None = None, q: str | None = None, limit: int, cursor: str | None = None,
) -> Page[JobView]:  # fmt: skip
    """A plan's jobs, in their order."""
    after = -1 if cursor is None else _read_cursor(cursor, _place)
    async with deps.engine.connect() as conn:
        await _readable(conn, principal, plan_id)
        wanted = JobFilter(states=states, wave=wave, cause=cause, q=q)
        records = await job_page(conn, plan_id, wanted, after=after, limit=limit + 1)
    shown = records[:limit]
    return Page(items=[job_fields(r) for r in shown], next=_cursor(shown[-1].ord) if len(records) > limit else None)


async def get_job(deps: Deps, principal: Principal, plan_id: UUID, server_id: str) -> JobDetailView:
    """One job with its attempts, their evidence, and its newest events."""
    async with deps.engine.connect() as conn:
        await _readable(conn, principal, plan_id)
        job = await job_of_server(conn, plan_id, server_id)
        if job is None:
            raise NotFound("The plan has no server of that id.")
        attempts = await attempts_of(conn, plan_id, job.ord)
        events = await server_events(conn, plan_id, server_id, EVENTS_OF_A_JOB)
        hooks = await hooks_of(conn, plan_id, job.ord)
    return JobDetailView(
        **dict(job_fields(job)),
        attempt_log=[AttemptView.model_validate(a, from_attributes=True) for a in attempts],
        events=[event_view(e) for e in events],
        hooks=[HookView.model_validate(h, from_attributes=True) for h in hooks],
    )


async def list_events(
    deps: Deps, principal: Principal, plan_id: UUID, *, after: int, limit: int, cursor: str | None = None
) -> Page[EventView]:
    """A plan's events, the oldest first, those after number `after`, or after `cursor`."""
    if cursor is not None:
        after = _read_cursor(cursor, _place)
    async with deps.engine.connect() as conn:
        await _readable(conn, principal, plan_id)
        records = await events_after(conn, plan_id, after, limit + 1)
    shown = records[:limit]
    return Page(items=[event_view(r) for r in shown], next=_cursor(shown[-1].seq) if len(records) > limit else None)


async def latest_events(deps: Deps, principal: Principal, plan_id: UUID, limit: int) -> tuple[list[EventView], int]:
    """A plan's newest events, the newest first, and the number of the newest (0: there is none)."""
    async with deps.engine.connect() as conn:
        await _readable(conn, principal, plan_id)
        records = await ledger_latest_events(conn, plan_id, limit)
    return [event_view(r) for r in records], records[0].seq if records else 0


async def need_readable(deps: Deps, principal: Principal, plan_id: UUID) -> None:
    """Raises what `get_plan` would, and reads no more than that takes."""
    async with deps.engine.connect() as conn:
        await _readable(conn, principal, plan_id)


async def _readable(conn: AsyncConnection, principal: Principal, plan_id: UUID) -> PlanRecord:
    principal.need(Right.READ)
    record = await plan_record(conn, plan_id)
    if record is None:
        raise NotFound("There is no plan of that id.")
    principal.need_cloud(record.cloud)
    return record


def _servers(targets: Sequence[ExplicitTarget]) -> list[Any]:
    return [server_document(t.server_id, t.find, _without_secrets(t.overrides)) for t in targets]


def _without_secrets(overrides: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    rebuild = (overrides or {}).get("rebuild") or {}
    if overrides is None or "user_data" not in rebuild:
        return overrides
    shown = UserData.model_validate(rebuild["user_data"]).shown()
    return {**overrides, "rebuild": {**rebuild, "user_data": shown}}


def _cursor(value: str | int) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def _place(value: Any) -> int:
    if type(value) is not int or not -1 <= value < 2**31:
        raise ValueError("not a place")
    return value


def _read_cursor(cursor: str, read: Callable[[Any], T]) -> T:
    try:
        return read(json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))))
    except (ValueError, TypeError, binascii.Error):
        raise RequestInvalid(
            "cursor: is not one that this list gave.",
            errors=[Fault(path="cursor", code="invalid_value", message="is not one that this list gave")],
        ) from None
