"""Submitting a plan."""

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn
from uuid import UUID

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils.compat import uuid7

from orchestrator.domain.spec import PlanSpec, parse_spec
from orchestrator.errors import Conflict, Fault, IdempotencyKeyReused, SpecInvalid
from orchestrator.ledger.clouds import cloud_records
from orchestrator.ledger.engine import transaction
from orchestrator.ledger.holds import who_holds
from orchestrator.ledger.plans import plan_record
from orchestrator.ledger.sql import to_json
from orchestrator.ledger.submit import NewPlan, TargetRow, insert_plan, submitted_before
from orchestrator.service.deps import Deps
from orchestrator.service.errors import BodyUnreadable
from orchestrator.service.roles import Principal, Right
from orchestrator.service.show import plan_views
from orchestrator.service.views import PlanView


@dataclass(frozen=True, kw_only=True)
class Submission:
    """The plan, and whether this request made it (False: an earlier one with the same Idempotency-Key did)."""

    plan: PlanView
    created: bool


@dataclass(frozen=True, kw_only=True)
class _Document:
    raw: Any
    sha256: str


@dataclass(frozen=True, kw_only=True)
class _Parsed:
    spec: PlanSpec
    targets: Sequence[TargetRow]


async def submit(deps: Deps, principal: Principal, body: bytes, *, idempotency_key: str | None = None) -> Submission:
    """Writes the plan of a JSON document with its explicit targets, and hints that it can be prepared.

    Parsing and validating 100,000 targets takes long enough to be done in a thread. Raises `BodyUnreadable`,
    `SpecInvalid`, `IdempotencyKeyReused`, `NotAllowed`, and `Conflict` where a plan that isn't held names servers that
    others hold: by a look, since holds are taken at the start.
    """
    principal.need(Right.SUBMIT)
    document = await asyncio.to_thread(_read, body)
    if idempotency_key is not None:
        earlier = await earlier_plan(deps, principal, idempotency_key, document.sha256)
        if earlier is not None:
            return Submission(plan=earlier, created=False)
    parsed = await asyncio.to_thread(_parse, document.raw)
    spec = parsed.spec
    await _known_cloud(deps, spec)
    principal.need_cloud(spec.cloud)
    principal.need_targets(len(parsed.targets))
    plan = NewPlan(
        id=uuid7(), name=spec.name, cloud=spec.cloud, spec=_stored(spec, principal), user_data=spec.user_data,
        labels=dict(spec.labels), hold=spec.hold, created_by=principal.name, idempotency_key=idempotency_key,
        body_sha256=document.sha256, targets=parsed.targets,
    )  # fmt: skip
    try:
        async with transaction(deps.engine) as conn:
            if not spec.hold and spec.on_conflict == "reject":
                await _nobody_holds(conn, spec.cloud, parsed.targets)
            await insert_plan(conn, plan)
            view = await view_of(deps, conn, plan.id)
    except IntegrityError:
        if idempotency_key is None:
            raise
        earlier = await earlier_plan(deps, principal, idempotency_key, document.sha256)
        if earlier is None:
            raise
        return Submission(plan=earlier, created=False)
    await deps.hints.prepare(plan.id)
    return Submission(plan=view, created=True)


def _read(body: bytes) -> _Document:
    try:
        raw = json.loads(body, parse_constant=_not_json)
    except (ValueError, RecursionError) as e:
        where = f"line {e.lineno}, column {e.colno}: {e.msg}" if isinstance(e, json.JSONDecodeError) else str(e)
        raise BodyUnreadable(f"The body is not JSON: {where}") from None
    return _Document(raw=raw, sha256=hashlib.sha256(body).hexdigest())


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _parse(raw: Any) -> _Parsed:
    spec = parse_spec(raw)
    targets = [(server_id, find, to_json(overrides)) for server_id, find, overrides in spec.targets.rows()]
    return _Parsed(spec=spec, targets=targets)


def _stored(spec: PlanSpec, principal: Principal) -> Mapping[str, Any]:
    """The token's own limit goes into the plan's `targets.max`, which preparing holds what it selects against."""
    document = spec.without_servers()
    if principal.max_targets is not None and spec.targets.select is not None:
        most = document["targets"].get("max")
        document["targets"]["max"] = min(most or principal.max_targets, principal.max_targets)
    return document


async def _known_cloud(deps: Deps, spec: PlanSpec) -> None:
    names = await deps.clouds.names()
    if spec.cloud not in names:
        known = f"known are: {', '.join(names)}" if names else "none is configured"
        message = f"no cloud is named {spec.cloud!r}; {known}"
        raise SpecInvalid(f"cloud: {message}", errors=[Fault(path="cloud", code="unknown_cloud", message=message)])


async def _nobody_holds(conn: AsyncConnection, cloud: str, targets: Sequence[TargetRow]) -> None:
    record = (await cloud_records(conn, [cloud])).get(cloud)
    if record is None or record.deployment is None:
        return  # no worker has signed in there yet: nobody can hold anything
    places = {server_id: i for i, (server_id, _, _) in enumerate(targets) if server_id is not None}
    held = await who_holds(conn, record.deployment, list(places))
    if held:
        raise Conflict(
            f"Other plans hold {len(held)} of these servers; wait for them, or submit with hold: true.",
            code="servers_held",
            errors=[
                Fault(
                    path=f"targets.servers[{places[h.server_id]}]",
                    code="held",
                    message=f"{h.server_id} is held by plan {h.plan_id} ({h.plan_name})",
                )
                for h in held
            ],
        )


async def earlier_plan(deps: Deps, principal: Principal, key: str, sha256: str) -> PlanView | None:
    """The plan that this token made with that key. Raises `IdempotencyKeyReused` where it was for something else."""
    async with deps.engine.connect() as conn:
        earlier = await submitted_before(conn, principal.name, key)
        if earlier is None:
            return None
        if earlier.body_sha256 != sha256:
            raise IdempotencyKeyReused
        return await view_of(deps, conn, earlier.plan_id)


async def view_of(deps: Deps, conn: AsyncConnection, plan_id: UUID) -> PlanView:
    """A plan that is known to be there."""
    record = await plan_record(conn, plan_id)
    assert record is not None  # noqa: S101  it was written or found in this very transaction
    return (await plan_views(deps, conn, [record]))[0]
