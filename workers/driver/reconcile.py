"""After a failover or a restored backup of the database: the ledger is held against the cloud before anything is sent.

What the last commits said may be lost, also the intent of a call that was made. So nothing is claimed or sent until
every such call has shown itself: by its marker, or as an instance action that nothing accounts for, looked for until
the cloud's quiescence period has passed since the takeover.
"""

import asyncio
import time
from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy.exc import DBAPIError

from orchestrator.domain.causes import Cause
from orchestrator.domain.decide import Happened, Reason, Tried, decide
from orchestrator.domain.evidence import CLOCKS, MARKER, Case, marked, own_rebuilds
from orchestrator.domain.lifecycle import JobEvent
from orchestrator.errors import CloudError, CloudNotOffered
from orchestrator.failpoints import failpoint
from orchestrator.ledger import reconcile as ledger
from orchestrator.ledger.drive import ClaimedJob
from orchestrator.ledger.leases import guard
from orchestrator.ledger.prepare import known_actions
from orchestrator.ledger.reconcile import Changed, LostAttempt
from orchestrator.ledger.transitions import JobChange, lock_plans, move_jobs
from orchestrator.log import get_logger
from workers.driver.desk import Desk
from workers.driver.mirror import View

log = get_logger(__name__)

LONGEST_PAUSE = 10.0
"""Seconds between two looks at everything, at the most."""
SKEW = timedelta(minutes=1)
"""How far the ledger's clock and the cloud's may be apart where one's time bounds the other's."""


async def reconcile(desk: Desk, change: Changed) -> None:
    """Looks until the quiescence period is over, then lets the driver go on. Runs beside the watch."""
    until = time.monotonic() + desk.settings.quiescence - (desk.lease.now() - change.since).total_seconds()
    log.warning("database_changed", project=desk.own.project, incarnation=change.now, restored=change.restored,
                quiescence=desk.settings.quiescence)  # fmt: skip
    pause = 0.5
    while True:
        last = time.monotonic() >= until
        try:
            if await _look(desk) and last:
                break
        except (CloudError, DBAPIError, OSError, TimeoutError) as e:
            log.warning("reconciling_failed", project=desk.own.project, error=str(e)[:200])
        pause = min(LONGEST_PAUSE, 2 * pause)
        await asyncio.sleep(pause if last else min(pause, max(0.1, until - time.monotonic())))
    async with desk.engine.begin() as conn:
        await guard(conn, desk.own.lease, desk.own.fence)
        await ledger.reconciled(conn, desk.own.project, change.now)
    desk.reconciling = None
    desk.woken.set()
    log.info("reconciled", project=desk.own.project)


async def begin(desk: Desk, change: Changed) -> None:
    """Before the driver's loops start: a restored backup's plans are paused, and nothing is sent until reconciled."""
    what = "was restored from a backup" if change.restored else "failed over"
    minutes = desk.settings.quiescence / 60
    desk.reconciling = Reason(
        code="database_restored" if change.restored else "database_failed_over",
        message=f"The database {what}: for {minutes:g} min nothing is sent, while the ledger is held against what the "
        "cloud has done.",
    )
    if change.restored and change.first:
        reason = Reason(code="database_restored", message="The database was restored from a backup, so its plans are "
                        "paused: look at what they would do before you resume them.")  # fmt: skip
        async with desk.engine.begin() as conn:
            await guard(conn, desk.own.lease, desk.own.fence)
            paused = await ledger.pause_all(conn, desk.own.project, reason)
        log.warning("plans_paused", project=desk.own.project, plans=paused)


async def _look(desk: Desk) -> bool:
    """One look at every job that the ledger takes for unsent or ended; lost calls are adopted. True: all were seen."""
    complete = True
    async with desk.engine.connect() as conn:
        doubtful = await ledger.doubtful_jobs(conn, desk.own.project)
        known = await known_actions(conn, desk.own.deployment, [job.server_id for job, _ in doubtful])
    desk.mirror.wanted.update(job.server_id for job, _ in doubtful)
    began = time.monotonic()
    await desk.mirror.read_all()
    newest = {job.server_id: job.plan_id for job, _ in doubtful}  # in the order of plans: the last one has the server
    found: list[tuple[ClaimedJob, LostAttempt]] = []
    for job, since in doubtful:
        ours = newest[job.server_id] == job.plan_id
        view = await _seen(desk, job.server_id, began)
        if view is None:
            complete = complete and not ours
            continue
        lost = await _lost_call(desk, job, since - SKEW, view, frozenset(known.get(job.server_id, ())), ours=ours)
        if lost:
            found.append((job, lost))
    failpoint("reconcile.before_write")
    if found:
        await adopt(desk, found, "The database lost this call; the cloud has carried it out.")
    return complete


async def _seen(desk: Desk, server_id: str, began: float) -> View | None:
    """A view since `began` of a server that shows itself, or is surely gone; None: it can't be told yet."""
    view = desk.mirror.view(server_id)
    if view is None or view.seen_at < began:
        view = await desk.mirror.read_one(server_id)
    if view.server is None:
        return view if desk.mirror.surely_gone(server_id) else None
    return None if view.server.status == "UNKNOWN" else view


async def _lost_call(
    desk: Desk, job: ClaimedJob, since: datetime, view: View, known: frozenset[str], *, ours: bool
) -> LostAttempt | None:
    """The job's call that the cloud has carried out and the ledger doesn't know of. `ours`: no later plan has the
    server, so that an action which nothing accounts for can be this job's."""
    server = view.server
    if server is None:
        return None
    marker = server.metadata.get(MARKER)
    mine = marked(marker)
    lost = mine is not None and mine[0] == job.plan_id and mine[1] > job.attempt
    told = mine is not None and not lost  # by a marker: of a rebuild that is known, or of another plan's
    moved = server.task_state is not None or server.updated is None or server.updated >= since - CLOCKS
    stirred = ours and not told and moved
    if not (lost or stirred):
        return None
    case = Case(cause=Cause.NO_ANSWER, since=since, user_id=desk.cloud.user_id,
                known_actions=known | ({job.request_id} if job.request_id else set()))  # fmt: skip
    try:
        actions = own_rebuilds(case, await desk.cloud.list_actions(job.server_id))
    except CloudNotOffered:
        actions = []
    if not lost and not actions:
        return None
    number = mine[1] if lost and mine else job.attempt + 1
    newest = actions[0].request_id if actions else None
    return LostAttempt(
        plan_id=job.plan_id, ord=job.ord, number=number, request_id=newest, marker=marker if lost else None
    )


async def adopt(desk: Desk, found: Sequence[tuple[ClaimedJob, LostAttempt]], said: str) -> None:
    """Calls that the ledger had lost or misjudged become attempts, and their jobs are watched as rebuilds."""
    now = desk.lease.now()
    changes = []
    for job, lost in found:
        plan = desk.plans.get(job.plan_id)
        tried = Tried(policy=plan.policy) if plan else Tried()
        happened = Happened(event=JobEvent.FOUND_APPLIED, reason=Reason(code="found_applied", message=said))
        changes.append(JobChange(plan_id=job.plan_id, ord=job.ord, server_id=job.server_id, expected=job.state,
                                 decision=decide(job.state, happened, now, tried), actor="reconcile",
                                 data={"attempt": lost.number, "request_id": lost.request_id}))  # fmt: skip
    async with desk.engine.begin() as conn:
        await guard(conn, desk.own.lease, desk.own.fence)
        await lock_plans(conn, {job.plan_id for job, _ in found})
        ended = [job for job, _ in found if job.state in ledger.FINISHED_STATES]
        if ended:
            await ledger.retake_holds(conn, desk.own.deployment, ended)
        await ledger.insert_lost_attempts(conn, desk.own.fence, [lost for _, lost in found])
        moved = await move_jobs(conn, desk.own.deployment, changes)
    log.warning("lost_calls_found", project=desk.own.project, calls=len(moved))
    desk.reload_wanted = True
