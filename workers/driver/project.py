"""One driver: takes a project over, runs its loops until told to stop or until the lease is lost."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from orchestrator.clouds.config import CloudSettings, load_cloud
from orchestrator.clouds.factory import pace_key
from orchestrator.clouds.pacing import Limiter, LocalPace
from orchestrator.clouds.sign_in import TokenCache
from orchestrator.domain.addresses import is_loopback
from orchestrator.domain.decide import FailurePolicy, Happened, Reason
from orchestrator.domain.lifecycle import JobEvent
from orchestrator.domain.spec import PlanSpec
from orchestrator.domain.states import JobState
from orchestrator.errors import CloudConfigInvalid
from orchestrator.failpoints import failpoint
from orchestrator.ledger import drive, projects
from orchestrator.ledger.drive import ClaimedJob, DueProject
from orchestrator.ledger.leases import guard
from orchestrator.ledger.reconcile import Changed, changed
from orchestrator.ledger.transitions import JobChange
from orchestrator.log import get_logger
from workers.cloud import limits_of, signed_in
from workers.driver.budgets import census_keys
from workers.driver.check import check_batch
from workers.driver.claim import claim_forever
from workers.driver.desk import Desk, LivePlan, Watched
from workers.driver.drift import drift_forever
from workers.driver.hooks import hooks_forever
from workers.driver.lease import LeaseKeeper
from workers.driver.mirror import Mirror
from workers.driver.reconcile import begin, reconcile
from workers.driver.record import Recorder
from workers.driver.resolve import LOST, open_call, resolve_forever
from workers.driver.send import send_forever
from workers.driver.verify import begin_verifying, verify_forever
from workers.driver.watch import expected_of, watch_forever

log = get_logger(__name__)

CHECK_BATCH = 500
STATE_SECONDS = 2.0
"""How often the limiter's state is published."""
TROUBLE_SECONDS = 0.25
"""How soon a plan says that its cloud is in trouble."""
IDLE_SECONDS = 3.0
"""A project whose plans have all ended is left after this."""


class Finished(Exception):
    """Nothing is left to drive."""


def policy_of(spec: PlanSpec) -> FailurePolicy:
    """The part of a plan's failure policy that a job's fate hangs on."""
    failure = spec.failure
    return FailurePolicy(
        attempts=failure.attempts,
        backoff_initial=failure.backoff.initial,
        backoff_max=failure.backoff.max,
        timeout=failure.timeout,
        rebuild_again=failure.rebuild_again,
    )


async def drive_project(
    engine: AsyncEngine, redis: Any, tokens: TokenCache, due: DueProject, lease: LeaseKeeper, stop: asyncio.Event,
    api_url: str,
) -> None:  # fmt: skip
    """Drives one project under a lease already taken; returns when stopped or when nothing is left. `api_url`: where
    this service is reached from outside.

    Raises `LeaseLost`; `CloudError` where the cloud can't be signed in to.
    """
    config = load_cloud(due.cloud)
    async with signed_in(engine, redis, config, tokens) as (cloud, project):
        async with engine.begin() as conn:
            rate, seconds = await projects.project_learned(conn, due.project)
            change = await changed(conn, due.project, lease.before)
        settings = config.settings
        writes = Limiter(redis, pace_key(project, "write"), settings.write_rate, learned=rate)
        desk = Desk(
            engine=engine, cloud=cloud, settings=settings, own=lease.own, lease=lease, limiter=writes,
            limits=limits_of(settings, project.project_id),
            mirror=Mirror(cloud=cloud), recorder=None, rebuild_seconds=seconds,  # type: ignore[arg-type]
            api_url=api_url.rstrip("/"), loopback=is_loopback(api_url),
        )  # fmt: skip
        desk.mirror.addressed = desk.shows_addresses
        desk.recorder = Recorder(engine=engine, own=lease.own, recorded=_recorded(desk), dropped=_dropped(desk))
        await _run(desk, stop, change)


def _recorded(desk: Desk) -> Callable[[JobChange], None]:
    def recorded(change: JobChange) -> None:
        _out_of_hand(desk, change)
        if change.decision.state not in (JobState.REBUILDING, JobState.VERIFYING):
            desk.woken.set()

    return recorded


def _dropped(desk: Desk) -> Callable[[JobChange], None]:
    def dropped(change: JobChange) -> None:
        _out_of_hand(desk, change)
        log.info("change_dropped", plan=str(change.plan_id), server=change.server_id, expected=change.expected.value,
                 state=change.decision.state.value)  # fmt: skip
        if change.decision.state is JobState.VERIFYING and change.server_id:
            desk.verifying.pop(change.server_id, None)  # as below
        if change.decision.state is JobState.REBUILDING and change.server_id:
            desk.watched.pop(change.server_id, None)  # somebody else's word was first
            desk.reload_wanted = True

    return dropped


def _out_of_hand(desk: Desk, change: JobChange) -> None:
    if change.expected in (JobState.CHECKING, JobState.SENDING):
        desk.claimed.discard(change.key)


async def _run(desk: Desk, stop: asyncio.Event, change: Changed | None) -> None:
    failpoint("lease.taken")
    await _reload(desk, adopt=False)
    if change:
        await begin(desk, change)
    taken_over = await _take_over(desk)
    failpoint("takeover.done")
    log.info("driver_started", project=desk.own.project, fence=desk.own.fence, plans=len(desk.plans),
             watched=len(desk.watched), open=len(desk.open), taken_over=taken_over)  # fmt: skip
    async with asyncio.TaskGroup() as loops, asyncio.TaskGroup() as calls:
        background = [
            loops.create_task(desk.lease.keep()),
            loops.create_task(desk.recorder.run()),
            loops.create_task(_persist(desk, lambda: _publish_forever(desk))),
            loops.create_task(_persist(desk, lambda: claim_forever(desk, _reload))),
            loops.create_task(_persist(desk, lambda: _check_forever(desk))),
            loops.create_task(_persist(desk, lambda: drift_forever(desk))),
            loops.create_task(_persist(desk, lambda: _say_trouble_forever(desk))),
            loops.create_task(_persist(desk, lambda: watch_forever(desk, calls))),
            loops.create_task(_persist(desk, lambda: verify_forever(desk))),
            loops.create_task(_persist(desk, lambda: resolve_forever(desk, calls))),
            loops.create_task(_persist(desk, lambda: send_forever(desk, calls))),
            loops.create_task(_persist(desk, lambda: hooks_forever(desk))),
        ]
        if change:
            background.append(loops.create_task(reconcile(desk, change)))
        await _until_over(desk, stop)
        await _leave(desk)
        for task in background:
            task.cancel()
    log.info("driver_stopped", project=desk.own.project, fence=desk.own.fence)


async def _persist(desk: Desk, loop: Callable[[], Awaitable[None]]) -> None:
    """Goes on after trouble with the ledger; the lease decides when it is over."""
    while True:
        try:
            await loop()
        except (DBAPIError, OSError, TimeoutError) as e:
            log.warning("ledger_trouble", project=desk.own.project, error=str(e)[:200])
            await asyncio.sleep(1.0)


async def _until_over(desk: Desk, stop: asyncio.Event) -> None:
    idle_since: float | None = None
    while not stop.is_set():
        idle = not (desk.plans or desk.watched or desk.posting)
        idle_since = (idle_since or time.monotonic()) if idle else None
        if idle_since and time.monotonic() > idle_since + IDLE_SECONDS:
            return
        try:
            async with asyncio.timeout(0.25):
                await stop.wait()
        except TimeoutError:
            pass


async def _leave(desk: Desk) -> None:
    """Stops claiming, lets calls that are being sent finish, puts back what was claimed, writes everything down."""
    desk.stopping = True
    while desk.posting:  # noqa: ASYNC110  a handful of calls, none longer than the HTTP timeout
        await asyncio.sleep(0.02)
    back = [c.job for c in desk.ready] + list(desk.unchecked)
    desk.ready.clear()
    desk.unchecked.clear()
    for job in back:
        await desk.happen(job, JobState.CHECKING, Happened(event=JobEvent.POSTPONE))
    await desk.recorder.drain()


async def _reload(desk: Desk, *, adopt: bool = True) -> None:
    """Reads the project's plans anew, and adopts jobs that somebody else has moved: a person's word settles an
    unresolved one without the driver."""
    async with desk.engine.connect() as conn:
        rows = await drive.plans_of(conn, desk.own.project)
        moving = await drive.moving_jobs(conn, desk.own.project) if adopt else []
        mine = desk.watched.keys() | desk.verifying.keys() | desk.open.keys()
        desk.mirror.want(await drive.unfinished_servers(conn, desk.own.project) | mine)
    plans: dict[Any, LivePlan] = {}
    for plan_id, row in rows.items():
        old = desk.plans.get(plan_id)
        spec = old.spec if old else PlanSpec.read_stored(row.spec, row.user_data)
        pace = old.pace if old and old.row.rate == row.rate else (LocalPace(row.rate) if row.rate else None)
        settings = old.settings if old else await asyncio.to_thread(_settings_of, row.cloud, desk.settings)
        plans[plan_id] = LivePlan(row=row, spec=spec, policy=policy_of(spec), settings=settings, pace=pace,
                                  limits=limits_of(settings, desk.limits.project_id),
                                  waves=len(spec.rollout.waves))  # fmt: skip
    before, desk.plans = desk.plans, plans
    for plan_id, plan in plans.items():
        if plan_id in before and plan.row.max_in_flight < before[plan_id].row.max_in_flight:
            await _take_back(desk, plan_id)
    desk.mirror.count(census_keys(plans.values()))
    if adopt:
        _adopt_moved(desk, moving)


async def _take_back(desk: Desk, plan_id: UUID) -> None:
    """What is claimed of a plan and not sent goes back: fewer may be under way now. Its epoch has moved, so that
    nothing that was checked before passes the second gate."""
    desk.lowered[plan_id] = time.monotonic()
    back = [c.job for c in desk.ready if c.job.plan_id == plan_id]
    back += [j for j in desk.unchecked if j.plan_id == plan_id]
    desk.ready = deque(c for c in desk.ready if c.job.plan_id != plan_id)
    desk.unchecked = deque(j for j in desk.unchecked if j.plan_id != plan_id)
    for job in back:
        await desk.happen(job, JobState.CHECKING, Happened(event=JobEvent.POSTPONE))


def _settings_of(cloud: str, otherwise: CloudSettings) -> CloudSettings:
    try:
        return load_cloud(cloud).settings
    except CloudConfigInvalid:
        return otherwise


def _adopt_moved(desk: Desk, moving: Sequence[ClaimedJob]) -> None:
    """Forgets jobs that a person has settled, and takes up those that the ledger has put under way."""
    there = {j.server_id: j.state for j in moving}
    for server_id, call in list(desk.open.items()):
        if call.state is JobState.UNRESOLVED and there.get(server_id) not in (JobState.UNRESOLVED, JobState.RESOLVING):
            del desk.open[server_id]
    for server_id, watched in list(desk.watched.items()):
        if watched.state is JobState.STUCK and server_id not in there:
            del desk.watched[server_id]
    now, mine = time.monotonic(), desk.watched.keys() | desk.verifying.keys() | desk.open.keys()
    for job in moving:
        if job.server_id in mine:
            continue
        if job.state in (JobState.REBUILDING, JobState.STUCK):
            desk.watched[job.server_id] = _adopted(desk, job, now)
        elif job.state in (JobState.RESOLVING, JobState.UNRESOLVED):
            desk.open[job.server_id] = open_call(desk, job, job.state, number=job.attempt)


async def _take_over(desk: Desk) -> int:
    """Adopts what another driver left: watches what was sent, puts back what was only claimed, and looks for the
    effect of calls whose answer nobody recorded."""
    async with desk.engine.connect() as conn:
        jobs = await drive.moving_jobs(conn, desk.own.project)
    failpoint("takeover.before_write")
    reason = Reason(code="driver_lost", message=LOST)
    now = time.monotonic()
    recorder = asyncio.create_task(desk.recorder.run())
    try:
        for job in jobs:
            match job.state:
                case JobState.CHECKING:
                    await desk.happen(job, job.state, Happened(event=JobEvent.POSTPONE))
                case JobState.SENDING:
                    await desk.happen(job, job.state, Happened(event=JobEvent.UNKNOWN, reason=reason))
                    desk.open[job.server_id] = open_call(desk, job, JobState.RESOLVING, number=job.attempt)
                case JobState.RESOLVING | JobState.UNRESOLVED:
                    desk.open[job.server_id] = open_call(desk, job, job.state, number=job.attempt)
                case JobState.VERIFYING:
                    await begin_verifying(desk, job, job.state)
                case JobState.DRAINING | JobState.CONFIGURING:
                    pass  # their calls are in the ledger
                case _:
                    desk.watched[job.server_id] = _adopted(desk, job, now)
        drained = asyncio.create_task(desk.recorder.drain())
        await asyncio.wait({recorder, drained}, return_when=asyncio.FIRST_COMPLETED)
        drained.cancel()
        if recorder.done():
            recorder.result()
    finally:
        recorder.cancel()
    return len(jobs)


def _adopted(desk: Desk, job: ClaimedJob, now: float) -> Watched:
    plan = desk.plans.get(job.plan_id)
    deadline: datetime = job.deadline_at or desk.lease.now() + timedelta(minutes=30)
    return Watched(
        job=job, state=job.state, expected=expected_of(job.baseline or {}, job.target_image, job.cloud_date),
        request_id=job.request_id, accepted_at=now, deadline_at=deadline, measured=False, due=job.answered_at is None,
        canary=bool(plan and plan.waves > 1 and job.wave == 0),
    )  # fmt: skip


async def _check_forever(desk: Desk) -> None:
    while True:
        if desk.unchecked and not desk.stopping:
            batch = [desk.unchecked.popleft() for _ in range(min(CHECK_BATCH, len(desk.unchecked)))]
            await check_batch(desk, batch)
            continue
        desk.filled.clear()
        try:
            async with asyncio.timeout(0.1):
                await desk.filled.wait()
        except TimeoutError:
            pass


async def _say_trouble_forever(desk: Desk) -> None:
    """Says on the project's plans why nothing is sent, as soon as it is so, and when it is over."""
    said: Reason | str | None = "not yet"
    while True:
        reason = desk.reconciling or desk.breaker.reason
        if reason != said:
            async with desk.engine.begin() as conn:
                await guard(conn, desk.own.lease, desk.own.fence)
                await projects.note_trouble(conn, desk.own.project, reason)
            said = reason
        await asyncio.sleep(TROUBLE_SECONDS)


async def _publish_forever(desk: Desk) -> None:
    """The limiter's state for the dashboard, and a wake-up when a backoff ends."""
    while True:
        state = await desk.limiter.state()
        published = {
            "ceiling": state.ceiling, "allowed": state.allowed, "used_per_second": state.used_per_second,
            "last_429_at": state.last_429_at, "blocked_until": state.blocked_until, "degraded": state.degraded,
            "cap": state.cap,
            "at": desk.lease.now().isoformat(),
        }  # fmt: skip
        async with desk.engine.begin() as conn:
            await projects.publish_limiter(conn, desk.own.project, published, desk.limiter.learned_rate,
                                        desk.rebuild_seconds)  # fmt: skip
            waiting = await drive.next_due(conn, desk.own.project)
        if waiting is not None and waiting < STATE_SECONDS:
            await asyncio.sleep(max(0.0, waiting))
            desk.woken.set()
        await asyncio.sleep(STATE_SECONDS)
