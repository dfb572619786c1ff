"""Watching: one poll for the whole project tells which rebuilds have ended; the rest gets a look of its own."""

import asyncio
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from orchestrator.clouds.protocol import Action
from orchestrator.domain.completion import Ending, Expected, Judgement, Sight, judge, sight
from orchestrator.domain.decide import Happened, Reason
from orchestrator.domain.lifecycle import JobEvent
from orchestrator.domain.states import JobState
from orchestrator.errors import CloudAnswerInvalid, CloudError, CloudNotOffered, CloudThrottled
from orchestrator.failpoints import failpoint
from orchestrator.log import get_logger
from workers.driver.desk import Desk, Watched
from workers.driver.mirror import FULL_SECONDS
from workers.driver.verify import begin_verifying

log = get_logger(__name__)

SHORTEST, LONGEST = 0.5, 8.0
"""Bounds of the time between two polls, in seconds: never idle, never older than a check may use."""
LOOK_AGAIN = 2.0
"""Seconds between two looks at one server."""
LOOKS_AT_ONCE = 8
RENEW_AFTER = 3
"""Polls that fail in a row before the next sign-in."""
OVERDUE = 4.0
"""A rebuild that takes this many times as long as usual gets a look of its own."""


def expected_of(baseline: Mapping[str, Any], target_image: str, accepted: datetime | None) -> Expected:
    """How a server should look when its rebuild is done. A server in ERROR comes back ACTIVE (nova-facts, 4)."""
    launched = baseline.get("launched_at")
    return Expected(
        status="SHUTOFF" if baseline.get("status") == "SHUTOFF" else "ACTIVE",
        image=target_image,
        launched_before=datetime.fromisoformat(launched) if launched else None,
        accepted_at=accepted,
    )


async def watch_forever(desk: Desk, looks: asyncio.TaskGroup) -> None:
    """Polls until cancelled; adaptive: often only when answers are near."""
    places = asyncio.Semaphore(LOOKS_AT_ONCE)
    failed = 0
    while True:
        began = time.monotonic()
        try:
            failpoint("watch.before_poll")
            if began > desk.mirror.full_at + FULL_SECONDS:
                await desk.mirror.read_all()
                desk.woken.set()  # there may be a census now
            elif _something_moves(desk):
                await desk.mirror.read_changes()
            desk.breaker.read_worked()
            failed = 0
            await _judge_all(desk, looks, places)
        except CloudThrottled as e:
            await asyncio.sleep(min(30.0, e.retry_after or 2.0))
        except CloudError as e:
            failed += 1
            await _trouble(desk, e, failed)
        await _overdue(desk)
        await asyncio.sleep(0.05)
        while (left := began + _interval(desk) - time.monotonic()) > 0:  # noqa: ASYNC110  shorter once something is sent
            await asyncio.sleep(min(left, SHORTEST / 2))


def _something_moves(desk: Desk) -> bool:
    """Whether anything hangs on what has changed since the last read."""
    return bool(
        desk.watched or desk.verifying or desk.open or desk.unchecked or desk.ready or desk.breaker.reason
        or desk.mirror.census
    )  # fmt: skip


async def _trouble(desk: Desk, error: CloudError, failed: int) -> None:
    """The project could not be read. Every few times the sign-in is done anew: services move, and the new catalog says
    where to."""
    log.warning("poll_failed", project=desk.own.project, error=error.message)
    desk.breaker.read_failed(error.message)
    if failed % RENEW_AFTER == 0:
        try:
            await desk.cloud.renew_token()
        except CloudError as e:
            log.warning("token_not_renewed", project=desk.own.project, error=e.message)
    await asyncio.sleep(1.0)


def _interval(desk: Desk) -> float:
    """Seconds from one poll's begin to the next: a fraction of what a rebuild takes, as soon as ends are near."""
    usual = desk.rebuild_seconds
    if desk.mirror.census and not desk.mirror.census.complete:
        return SHORTEST
    if not desk.watched or usual is None:
        return SHORTEST if desk.watched or desk.unchecked or desk.ready else LONGEST / 2
    oldest = min(w.accepted_at for w in desk.watched.values())
    until_due = oldest + 0.8 * usual - time.monotonic()
    return min(LONGEST, max(SHORTEST, 0.1 * usual, min(until_due, LONGEST / 2)))


async def _judge_all(desk: Desk, looks: asyncio.TaskGroup, places: asyncio.Semaphore) -> None:
    """Ends what the mirror attests, and has a look of its own taken where the mirror can't tell."""
    now = time.monotonic()
    patience = max(10.0, OVERDUE * (desk.rebuild_seconds or 30.0))
    for watched in list(desk.watched.values()):
        if watched.looking:
            continue
        told = _told(desk, watched)
        if told is Sight.DONE and not watched.canary:
            await _done(desk, watched)
        elif now > watched.looked_at + LOOK_AGAIN and (
            watched.due
            or told in (Sight.DONE, Sight.LOOK)
            or now > max(watched.accepted_at, watched.looked_at) + patience
        ):
            watched.looking = True
            looks.create_task(_look(desk, watched, places))


def _told(desk: Desk, watched: Watched) -> Sight | None:
    """What the mirror tells of a server; None: it has no view from after the 202. An older one still shows the old
    life, which looks like a rebuild that failed early."""
    view = desk.mirror.view(watched.job.server_id)
    if view is None or view.seen_at <= watched.accepted_at:
        return None
    return Sight.LOOK if view.server is None else sight(watched.expected, view.server)


async def _look(desk: Desk, watched: Watched, places: asyncio.Semaphore) -> None:
    """One look at the call's action and one read of the server."""
    async with places:
        try:
            failpoint("watch.before_look")
            # The action first: what the server shows counts once the action is final, and it may change with it.
            action = await _action(desk, watched)
            view = await desk.mirror.read_one(watched.job.server_id)
            judgement = judge(watched.expected, view.server, action)
            watched.due = view.server is None or view.server.status == "UNKNOWN"
            if view.server is not None or desk.mirror.surely_gone(watched.job.server_id):
                await _apply(desk, watched, judgement)
        except CloudError as e:
            log.warning("look_failed", server=watched.job.server_id, error=e.message)
        finally:
            watched.looking, watched.looked_at = False, time.monotonic()


async def _action(desk: Desk, watched: Watched) -> Action | None:
    """The call's own action; None where its id is not known or the cloud shows none."""
    if watched.request_id is None:
        return None
    try:
        return await desk.cloud.get_action(watched.job.server_id, watched.request_id)
    except (CloudNotOffered, CloudAnswerInvalid):
        return None


async def _apply(desk: Desk, watched: Watched, judgement: Judgement) -> None:
    match judgement.ending:
        case Ending.UNDER_WAY:
            return
        case Ending.DONE:
            await _done(desk, watched)
            return
        case Ending.FAILED:
            event = JobEvent.REBUILD_FAILED
        case Ending.GONE:
            event = JobEvent.GONE
    if desk.watched.pop(watched.job.server_id, None) is None:
        return
    await desk.happen(watched.job, watched.state,
                      Happened(event=event, reason=judgement.reason, fingerprint=judgement.fingerprint,
                               final=judgement.final))  # fmt: skip


async def _done(desk: Desk, watched: Watched) -> None:
    """Attested by image and boot: the plan's probes begin, if it has any."""
    if desk.watched.pop(watched.job.server_id, None) is None:
        return
    took = time.monotonic() - watched.accepted_at
    if watched.measured:
        desk.rebuild_seconds = took if desk.rebuild_seconds is None else 0.9 * desk.rebuild_seconds + 0.1 * took
    await begin_verifying(desk, watched.job, watched.state, data={"seconds": round(took, 1)})


async def _overdue(desk: Desk) -> None:
    """Past its deadline a job is stuck; it stays watched."""
    now = desk.lease.now()
    for watched in list(desk.watched.values()):
        if watched.state is JobState.REBUILDING and now > watched.deadline_at and not watched.looking:
            reason = Reason(code="timeout", message="No end was seen within failure.timeout; it is still watched.")
            await desk.happen(watched.job, watched.state,
                              Happened(event=JobEvent.DEADLINE, reason=reason, fingerprint="timeout"))  # fmt: skip
            watched.state = JobState.STUCK
