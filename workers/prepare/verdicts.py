"""Every job's verdict and wave, from what the cloud shows of its server."""

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncEngine

from orchestrator.clouds.config import CloudConfig
from orchestrator.clouds.openstack import OpenStackCloud
from orchestrator.clouds.protocol import Image, Project, Server
from orchestrator.domain.decide import Reason
from orchestrator.domain.drift import metadata_digest
from orchestrator.domain.request import matches_request
from orchestrator.domain.spec import Overrides, PlanSpec
from orchestrator.domain.states import JobState, Verdict
from orchestrator.domain.verdict import ALREADY_THERE, busy, refusal, too_small
from orchestrator.domain.waves import allowed_errors, assign, places
from orchestrator.ledger import prepare
from orchestrator.ledger.holds import who_holds
from orchestrator.ledger.prepare import Prepared, PreparedJob, PreparedWave, PreparingPlan, Target
from workers.cloud import limits_of
from workers.prepare.groups import with_groups
from workers.prepare.lookup import Found, check_count, images_of, listed_of, servers_of

ACTIONS_AT_ONCE = 8
NO_REIMAGE = Reason(
    code="volume_booted",
    message="The server boots from a volume; this cloud can't re-image volumes (it needs microversion 2.93).",
)


async def resolve(
    engine: AsyncEngine, cloud: OpenStackCloud, project: Project, config: CloudConfig, spec: PlanSpec,
    plan: PreparingPlan, targets: Sequence[Target],
) -> Prepared:  # fmt: skip
    """The plan as it is to be published. Raises `Rejected` with the faults found, and `CloudError`."""
    rollback = plan.rollback_of is not None
    images = await images_of(cloud, spec, targets, leave_out=rollback)
    listed = await listed_of(cloud, spec, targets)
    found = await servers_of(cloud, spec, targets, listed)
    check_count(spec, found)
    limits = limits_of(config.settings, project.project_id)
    image = images.get(spec.image or "") or Image(id=spec.image or "", name=spec.image or "", status="deleted")
    held = await _held(engine, project.deployment, spec, plan, found)
    later = _begins_later(spec, plan, config)
    jobs: list[PreparedJob] = []
    alike: list[int] = []
    for f in found:
        overrides = Overrides.model_validate(f.target.overrides) if f.target.overrides else None
        wanted = (overrides.image if overrides else None) or (None if rollback else spec.image)
        target_image = images.get(wanted) if wanted else None
        reason = _no_way_back(wanted, target_image) or refusal(
            f.server, limits, reimage_boot_volume=spec.rebuild.reimage_boot_volume
        )
        target_image = target_image or image
        if f.server and reason is None:
            reason = _unfit(f.server, target_image, plan, reimage=cloud.supports_reimage)
        job = _job(f, target_image.id, reason, seen=later)
        if reason is None and (holder := held.get(f.server_id)):
            verdict = Verdict.SKIP if spec.on_conflict == "skip" else Verdict.REFUSE
            job, reason = replace(job, verdict=verdict, reason=holder), holder
        jobs.append(job)
        if f.server and reason is None and spec.skip_matching and matches_request(
            spec.rebuild, overrides, f.server, target_image.id
        ):  # fmt: skip
            alike.append(len(jobs) - 1)
    for i in await _really_there(engine, cloud, project.deployment, [jobs[i].server_id for i in alike], alike):
        jobs[i] = replace(jobs[i], verdict=Verdict.SKIP, reason=ALREADY_THERE)
    prepared = await _prepared(engine, config, spec, plan, project, image, jobs)
    budget = spec.rollout.max_unavailable
    return with_groups(prepared, budget, found, listed) if budget else prepared


def _no_way_back(wanted: str | None, image: Image | None) -> Reason | None:
    """Why a server can't be rolled back; in any other plan its image is there."""
    if wanted is None:
        message = "The image that it had before is not known, as of a server that boots from a volume."
        return Reason(code="no_previous_image", message=message)
    if image is None:
        message = f"The image {wanted} that it had before is no longer there, or can't be used."
        return Reason(code="image_gone", message=message)
    return None


def _unfit(server: Server, image: Image, plan: PreparingPlan, *, reimage: bool) -> Reason | None:
    """What speaks against a server besides itself. A held plan's is refused while it is busy: a saved preview says what
    will happen; a plan that starts at once waits for it."""
    if server.volume_booted and not reimage:
        return NO_REIMAGE
    small = too_small(server.flavor, min_disk=image.min_disk, min_ram=image.min_ram,
                      volume_booted=server.volume_booted)  # fmt: skip
    return small or (busy(server) if plan.hold else None)


async def _held(
    engine: AsyncEngine, deployment: str, spec: PlanSpec, plan: PreparingPlan, found: Sequence[Found]
) -> Mapping[str, Reason]:
    """Who holds servers of a plan that is only previewed; one that starts takes its holds, and one that queues waits
    for them."""
    if not plan.hold or spec.on_conflict == "queue":
        return {}
    async with engine.connect() as conn:
        holders = await who_holds(conn, deployment, [f.server_id for f in found], limit=None)
    return {h.server_id: Reason(code="held", message=h.says) for h in holders}


def _begins_later(spec: PlanSpec, plan: PreparingPlan, config: CloudConfig) -> bool:
    """Whether time may pass between this look and the first send."""
    queues = spec.on_conflict == "queue"
    return plan.hold or spec.schedule is not None or queues or config.settings.approval.start


def _job(f: Found, target_image: str, reason: Reason | None, *, seen: bool) -> PreparedJob:
    server = f.server
    return PreparedJob(
        ord=f.target.ord, server_id=f.server_id, find=f.target.find, overrides=f.target.overrides,
        name=server.name if server else None, verdict=Verdict.REFUSE if reason else Verdict.REBUILD, reason=reason,
        previous_image=server.image if server else None, target_image=target_image,
        zone=server.zone if server else None, host=(server.host or server.host_id) if server else None,
        seen_status=server.status if server and seen else None,
        seen_metadata=metadata_digest(server.metadata) if server and seen else None,
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
                            on_unresolved=w.on_unresolved, bake_seconds=w.bake_seconds,
                            approval=w.approval) for w in waves],
        max_in_flight=places(spec.rollout.max_in_flight, len(rebuilds), config.settings.max_in_flight),
        rate=spec.rollout.rate if spec.rollout.rate and spec.rollout.rate < config.settings.write_rate else None,
        max_errors=allowed_errors(spec.failure.max_errors, len(rebuilds)),
        expires_at=plan.now + timedelta(seconds=spec.hold_expires) if plan.hold else None,
        start_at=spec.schedule.start_at if spec.schedule else None, approve_first=config.settings.approval.start,
        check_drift=_begins_later(spec, plan, config),
        drift_limit=allowed_errors(spec.failure.drift_limit, len(rebuilds)),
    )  # fmt: skip


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
