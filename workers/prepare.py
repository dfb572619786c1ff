"""Preparing a plan: the cloud read in bulk, every job given its verdict and wave, all published in one commit."""

import asyncio
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from orchestrator.clouds.config import CloudConfig, load_cloud
from orchestrator.clouds.openstack import OpenStackCloud
from orchestrator.clouds.protocol import Image, Project, Server
from orchestrator.clouds.sign_in import TokenCache
from orchestrator.domain.decide import Reason
from orchestrator.domain.request import matches_request
from orchestrator.domain.spec import Overrides, PlanSpec, Select
from orchestrator.domain.states import JobState, PlanStatus, Verdict
from orchestrator.domain.targets import excluded, matches
from orchestrator.domain.verdict import ALREADY_THERE, refusal
from orchestrator.domain.waves import allowed_errors, assign, places
from orchestrator.errors import CloudConfigInvalid, CloudError, CloudSignInRefused, Fault
from orchestrator.failpoints import failpoint
from orchestrator.ledger import leases, prepare
from orchestrator.ledger.holds import HeldElsewhere, take_holds
from orchestrator.ledger.prepare import Prepared, PreparedJob, PreparedWave, PreparingPlan, Target
from orchestrator.ledger.reconcile import restored
from orchestrator.ledger.transitions import PlanMove, lock_plans, move_plan
from orchestrator.ledger.waves import enter_wave
from orchestrator.log import get_logger
from workers.cloud import limits_of, signed_in

log = get_logger(__name__)

LEASE_SECONDS = 30.0
FEW = 20
"""Up to so many explicit servers are read one by one: cheaper than a list of the whole project."""
ASKED_BY_ID = 500
"""So many servers that the list left out are asked for by id; a plan with more of them is most likely for another
project, and is told so."""
ACTIONS_AT_ONCE = 8
PATIENCE = timedelta(minutes=5)
"""How long the cloud may be out of reach before the plan fails."""


NO_REIMAGE = Reason(
    code="volume_booted",
    message="The server boots from a volume; this cloud can't re-image volumes (it needs microversion 2.93).",
)


RESTORED = Reason(
    code="database_restored",
    message="The database was restored from a backup, so the plan doesn't start by itself: it may have run already.",
)


class Rejected(Exception):
    """Preparing found faults; the plan is rejected with them, itemised."""

    def __init__(self, faults: Sequence[Fault]):
        super().__init__(faults[0].message)
        self.faults = faults


@dataclass(frozen=True, kw_only=True)
class Found:
    """A target with the server behind it (None: the cloud has none)."""

    target: Target
    server_id: str
    server: Server | None


async def prepare_plan(engine: AsyncEngine, redis: Any, tokens: TokenCache, plan_id: UUID, holder: str) -> None:
    """Prepares a plan under a lease of its own; does nothing where another is at it or it is prepared already."""
    name = leases.prepare_lease(plan_id)
    async with engine.begin() as conn:
        fence = await leases.acquire(conn, name, holder, LEASE_SECONDS)
        plan = await prepare.plan_to_prepare(conn, plan_id) if fence else None
    if fence is None:
        return
    renewing = asyncio.create_task(_renew(engine, name, fence))
    try:
        if plan:
            await _prepare(engine, redis, tokens, plan, name, fence)
    finally:
        renewing.cancel()
        async with engine.begin() as conn:
            await leases.release(conn, name, fence)


async def _renew(engine: AsyncEngine, name: str, fence: int) -> None:
    while True:
        await asyncio.sleep(LEASE_SECONDS / 4)
        async with engine.begin() as conn:
            await leases.renew(conn, name, fence, LEASE_SECONDS)


async def _prepare(
    engine: AsyncEngine, redis: Any, tokens: TokenCache, plan: PreparingPlan, lease: str, fence: int
) -> None:
    try:
        spec = PlanSpec.read_stored(plan.spec, plan.user_data)
        config = load_cloud(plan.cloud)
        async with engine.connect() as conn:
            targets = await prepare.explicit_targets(conn, plan.id)
        async with signed_in(engine, redis, config, tokens) as (cloud, project):
            prepared = await _resolve(engine, cloud, project, config, spec, plan, targets)
        await _publish(engine, plan, prepared, project, lease, fence)
    except Rejected as e:
        await _reject(engine, plan, lease, fence, Reason(code="rejected", message=_said(e.faults)), e.faults)
    except (CloudSignInRefused, CloudConfigInvalid) as e:
        faults = e.errors or [Fault(path="cloud", code=e.reason_code, message=e.message)]
        await _reject(engine, plan, lease, fence, Reason(code=e.reason_code, message=e.message), faults)
    except CloudError as e:
        await _try_later(engine, plan, e)


def _said(faults: Sequence[Fault]) -> str:
    first = f"{faults[0].path}: {faults[0].message}"
    return first if len(faults) == 1 else f"{len(faults)} faults; the first: {first}"


async def _try_later(engine: AsyncEngine, plan: PreparingPlan, error: CloudError) -> None:
    """The cloud is out of reach: again after a while, and a failed plan in the end."""
    log.warning("prepare_postponed", plan=str(plan.id), error=error.message)
    reason = Reason(code=error.reason_code, message=f"The plan could not be prepared yet: {error.message}")
    async with engine.begin() as conn:
        if plan.now - plan.created_at < PATIENCE:
            await prepare.postpone_preparing(conn, plan.id, min(30.0, 2.0 * 2**plan.tries), reason)
            return
        await lock_plans(conn, [plan.id])
        gave_up = replace(reason, message=f"The cloud was out of reach for too long: {error.message}")
        await move_plan(conn, PlanMove(plan_id=plan.id, expected=PlanStatus.PREPARING, status=PlanStatus.FAILED,
                                       actor="prepare", reason=gave_up))  # fmt: skip


async def _reject(
    engine: AsyncEngine, plan: PreparingPlan, lease: str, fence: int, reason: Reason, faults: Sequence[Fault]
) -> None:
    async with engine.begin() as conn:
        await leases.guard(conn, lease, fence)
        await lock_plans(conn, [plan.id])
        itemised = [{"path": f.path, "code": f.code, "message": f.message} for f in faults]
        await move_plan(conn, PlanMove(plan_id=plan.id, expected=PlanStatus.PREPARING, status=PlanStatus.REJECTED,
                                       actor="prepare", reason=reason, faults=itemised))  # fmt: skip
    log.info("plan_rejected", plan=str(plan.id), reason=reason.code)


async def _resolve(
    engine: AsyncEngine, cloud: OpenStackCloud, project: Project, config: CloudConfig, spec: PlanSpec,
    plan: PreparingPlan, targets: Sequence[Target],
) -> Prepared:  # fmt: skip
    images = await _images(cloud, spec, targets)
    found = await _servers(cloud, spec, targets)
    _check_count(spec, found)
    limits = limits_of(config.settings, project.project_id)
    image = images[spec.image or ""]
    jobs: list[PreparedJob] = []
    alike: list[int] = []
    for f in found:
        overrides = Overrides.model_validate(f.target.overrides) if f.target.overrides else None
        target_image = images[overrides.image] if overrides and overrides.image else image
        reason = refusal(f.server, limits, reimage_boot_volume=spec.rebuild.reimage_boot_volume)
        if f.server and reason is None and f.server.volume_booted and not cloud.supports_reimage:
            reason = NO_REIMAGE
        jobs.append(_job(f, target_image.id, reason))
        if f.server and reason is None and spec.skip_matching and matches_request(
            spec.rebuild, overrides, f.server, target_image.id
        ):  # fmt: skip
            alike.append(len(jobs) - 1)
    for i in await _really_there(engine, cloud, project.deployment, [jobs[i].server_id for i in alike], alike):
        jobs[i] = replace(jobs[i], verdict=Verdict.SKIP, reason=ALREADY_THERE)
    return await _prepared(engine, config, spec, plan, project, image, jobs)


def _job(f: Found, target_image: str, reason: Reason | None) -> PreparedJob:
    server = f.server
    return PreparedJob(
        ord=f.target.ord, server_id=f.server_id, find=f.target.find, overrides=f.target.overrides,
        name=server.name if server else None, verdict=Verdict.REFUSE if reason else Verdict.REBUILD, reason=reason,
        previous_image=server.image if server else None, target_image=target_image,
        zone=server.zone if server else None, host=(server.host or server.host_id) if server else None,
    )  # fmt: skip


async def _prepared(
    engine: AsyncEngine, config: CloudConfig, spec: PlanSpec, plan: PreparingPlan, project: Project, image: Image,
    jobs: Sequence[PreparedJob],
) -> Prepared:  # fmt: skip
    """Waves, thresholds and the digest of what was found."""
    rebuilds = [(j.ord, j.server_id) for j in jobs if j.verdict is Verdict.REBUILD]
    waves = assign(spec.rollout.waves, rebuilds, failure=spec.failure)
    wave_of = {ordinal: w.index for w in waves for ordinal in w.ordinals}
    jobs = [replace(j, wave=wave_of.get(j.ord)) for j in jobs]
    async with engine.begin() as conn:
        project_row = await prepare.note_project(conn, config.name, deployment=project.deployment,
                                                 region=project.region, project_id=project.project_id)  # fmt: skip
    seen = [image.id, *([j.server_id, j.verdict, j.wave, j.target_image] for j in jobs)]
    return Prepared(
        project=project_row,
        image_id=image.id,
        image_name=image.name,
        digest="sha256:" + hashlib.sha256(json.dumps(seen).encode()).hexdigest(),
        jobs=jobs,
        waves=[PreparedWave(index=w.index, name=w.name, size=w.size, max_errors=w.max_errors,
                            on_unresolved=w.on_unresolved) for w in waves],
        max_in_flight=places(spec.rollout.max_in_flight, len(rebuilds), config.settings.max_in_flight),
        rate=spec.rollout.rate if spec.rollout.rate and spec.rollout.rate < config.settings.write_rate else None,
        max_errors=allowed_errors(spec.failure.max_errors, len(rebuilds)),
        expires_at=plan.now + timedelta(seconds=spec.hold_expires) if plan.hold else None,
    )  # fmt: skip


async def _images(cloud: OpenStackCloud, spec: PlanSpec, targets: Sequence[Target]) -> Mapping[str, Image]:
    """Every image that the plan speaks of, by its reference. Raises `Rejected` for none, several or inactive ones."""
    references = {spec.image or "": "image"}
    for i, t in enumerate(targets):
        if t.overrides and t.overrides.get("image"):
            references.setdefault(t.overrides["image"], f"targets.servers[{i}].image")
    found: dict[str, Image] = {}
    faults: list[Fault] = []
    for reference, path in references.items():
        candidates = await cloud.find_images(reference)
        if len(candidates) != 1:
            faults.append(_image_fault(path, reference, candidates))
        elif candidates[0].status != "active":
            message = f"image {candidates[0].id} is {candidates[0].status}; only active images can be used"
            faults.append(Fault(path=path, code="image_not_active", message=message))
        else:
            found[reference] = candidates[0]
    if faults:
        raise Rejected(faults)
    return found


def _image_fault(path: str, reference: str, candidates: Sequence[Image]) -> Fault:
    if not candidates:
        return Fault(path=path, code="unknown_image", message=f"the cloud has no image {reference!r}")
    ids = ", ".join(c.id for c in candidates[:20])
    return Fault(path=path, code="ambiguous_image",
                 message=f"{len(candidates)} images are named {reference!r}; give an id: {ids}")  # fmt: skip


async def _servers(cloud: OpenStackCloud, spec: PlanSpec, targets: Sequence[Target]) -> list[Found]:
    """The plan's servers in their stable order: explicit ones as written, then selected ones by name."""
    by_id_only = spec.targets.select is None and all(t.server_id and not t.find for t in targets)
    if by_id_only and len(targets) <= FEW:
        listed: dict[str, Server] = {}
    else:
        listed = {s.id: s async for page in cloud.list_servers() for s in page.servers}
    found = await _explicit(cloud, targets, listed)
    exclude = spec.targets.exclude
    if select := spec.targets.select:
        select = await _by_image(cloud, select)
        named = {f.server_id for f in found}
        chosen = [s for s in listed.values() if s.id not in named and matches(select, s)]
        start = max((t.ord for t in targets), default=-1) + 1
        for i, server in enumerate(sorted(chosen, key=lambda s: (s.name, s.id))):
            target = Target(ord=start + i, server_id=server.id, find=None, overrides=None)
            found.append(Found(target=target, server_id=server.id, server=server))
    excluded_ids = exclude.servers if exclude else frozenset()
    return [f for f in found if f.server_id not in excluded_ids and not (f.server and excluded(exclude, f.server))]


async def _by_image(cloud: OpenStackCloud, select: Select) -> Select:
    """The selection with its image as an id, as servers show theirs. Raises `Rejected`."""
    if select.image is None:
        return select
    candidates = await cloud.find_images(select.image)
    if len(candidates) != 1:
        raise Rejected([_image_fault("targets.select.image", select.image, candidates)])
    return select.model_copy(update={"image": candidates[0].id})


async def _explicit(cloud: OpenStackCloud, targets: Sequence[Target], listed: Mapping[str, Server]) -> list[Found]:
    names: dict[str, list[Server]] = defaultdict(list)
    if any(t.find for t in targets):
        for server in listed.values():
            names[server.name].append(server)
    found: list[Found] = []
    faults: list[Fault] = []
    for i, target in enumerate(targets):
        if target.find is None:
            server_id = target.server_id or ""
            found.append(Found(target=target, server_id=server_id, server=listed.get(server_id)))
            continue
        candidates = names[target.find]
        if len(candidates) != 1:
            faults.append(_find_fault(i, target.find, candidates))
        else:
            found.append(Found(target=target, server_id=candidates[0].id, server=candidates[0]))
    faults += _duplicates(found)
    if faults:
        raise Rejected(faults[:1000])
    return await _asked_by_id(cloud, found)


def _find_fault(i: int, name: str, candidates: Sequence[Server]) -> Fault:
    path = f"targets.servers[{i}].find"
    if not candidates:
        return Fault(path=path, code="unknown_server", message=f"no server of the project is named {name!r}")
    ids = ", ".join(c.id for c in candidates[:20])
    return Fault(path=path, code="ambiguous_server",
                 message=f"{len(candidates)} servers are named {name!r}; give an id: {ids}")  # fmt: skip


def _duplicates(found: Iterable[Found]) -> list[Fault]:
    seen: dict[str, int] = {}
    faults = []
    for i, f in enumerate(found):
        if f.server_id in seen:
            message = f"is server {f.server_id} again, as targets.servers[{seen[f.server_id]}]"
            faults.append(Fault(path=f"targets.servers[{i}]", code="duplicate", message=message))
        seen.setdefault(f.server_id, i)
    return faults


async def _asked_by_id(cloud: OpenStackCloud, found: Sequence[Found]) -> list[Found]:
    """A server missing from a list is not gone (a cell may be down): each is asked for by its id."""
    missing = [f for f in found if f.server is None][:ASKED_BY_ID]
    answers: dict[str, Server | None] = {}
    for f in missing:
        answers[f.server_id], _ = await cloud.get_server(f.server_id)
    return [replace(f, server=answers.get(f.server_id)) if f.server is None else f for f in found]


def _check_count(spec: PlanSpec, found: Sequence[Found]) -> None:
    if not found:
        raise Rejected([Fault(path="targets", code="no_servers", message="no server matches; nothing would be done")])
    most = spec.targets.max
    if most is not None and len(found) > most:
        message = f"{len(found)} servers were found, more than the {most} that the plan allows"
        raise Rejected([Fault(path="targets.max", code="too_many_servers", message=message)])


async def _really_there(
    engine: AsyncEngine, cloud: OpenStackCloud, deployment: str, server_ids: Sequence[str], indexes: Sequence[int]
) -> list[int]:
    """Of servers that look as the plan wants them, those whose last rebuild succeeded: by the ledger, else by the
    newest `rebuild` action, or that had none. ACTIVE with the right image alone proves nothing."""
    if not server_ids:
        return []
    async with engine.connect() as conn:
        states = await prepare.last_rebuild_states(conn, deployment, server_ids)
    at_once = asyncio.Semaphore(ACTIONS_AT_ONCE)

    async def there(server_id: str) -> bool:
        if server_id in states:
            return states[server_id] is JobState.SUCCEEDED
        async with at_once:
            rebuilds = [a for a in await cloud.list_actions(server_id) if a.action == "rebuild"]
            if not rebuilds:
                return True
            newest = await cloud.get_action(server_id, rebuilds[0].request_id)
            return newest is not None and newest.succeeded

    answers = await asyncio.gather(*(there(i) for i in server_ids))
    return [index for index, yes in zip(indexes, answers, strict=True) if yes]


def _held_by(held: HeldElsewhere) -> str:
    return f"{held.server_id} is held by plan {held.plan_id} ({held.plan_name})"


async def _publish(
    engine: AsyncEngine, plan: PreparingPlan, prepared: Prepared, project: Project, lease: str, fence: int
) -> None:
    """One commit: verdicts, waves, and the plan ready, running or rejected."""
    async with engine.begin() as conn:
        await leases.guard(conn, lease, fence)
        locked = (await lock_plans(conn, [plan.id])).get(plan.id)
        if locked is None or locked.status is not PlanStatus.PREPARING:
            return
        await prepare.publish(conn, plan.id, prepared)
        failpoint("prepare.before_publish")
        move = PlanMove(plan_id=plan.id, expected=PlanStatus.PREPARING, status=PlanStatus.READY, actor="prepare",
                        data={"digest": prepared.digest})  # fmt: skip
        if not plan.hold and await restored(conn, prepared.project):
            move = replace(move, reason=RESTORED)
        elif not plan.hold:
            saved = await conn.begin_nested()
            held = await take_holds(conn, project.deployment, plan.id)
            if held:
                await saved.rollback()
                faults = [{"path": "targets", "code": "held", "message": _held_by(h)} for h in held]
                reason = Reason(code="servers_held", message=f"Other plans hold {len(held)} of these servers.")
                move = replace(move, status=PlanStatus.REJECTED, reason=reason, faults=faults)
            else:
                await saved.commit()
                await enter_wave(conn, plan.id, 0)
                move = replace(move, status=PlanStatus.RUNNING)
        await move_plan(conn, move)
    failpoint("prepare.after_publish")
    log.info("plan_prepared", plan=str(plan.id), status=move.status.value, jobs=len(prepared.jobs),
             waves=len(prepared.waves))  # fmt: skip
