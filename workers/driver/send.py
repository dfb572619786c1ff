"""Sending: a permit, the second gate, one POST, and its answer recorded first of all."""

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy.exc import DBAPIError

from orchestrator.clouds.pacing import Permit
from orchestrator.clouds.protocol import Answer
from orchestrator.domain.causes import Cause, Effect
from orchestrator.domain.completion import Expected
from orchestrator.domain.decide import Happened, Reason
from orchestrator.domain.lifecycle import JobEvent
from orchestrator.domain.states import JobState
from orchestrator.errors import CloudError
from orchestrator.failpoints import failpoint
from orchestrator.ledger.second_gate import Intent, commit_intents
from orchestrator.ledger.transitions import AttemptAnswer
from orchestrator.log import get_logger
from workers.driver.desk import Checked, Desk, Watched
from workers.driver.mirror import FRESH_SECONDS
from workers.driver.resolve import open_call
from workers.driver.watch import expected_of

log = get_logger(__name__)

SLICE_SECONDS = 0.05
"""How much of the rate is reserved at a time: a stall then spills few permits (embedded.md)."""
LEAD_SECONDS = 0.3
"""How far ahead of their slots intents are committed: enough for a slow commit or a stall to cost no slot, and no more,
since a crash leaves that many calls in doubt and a pause lets that many go."""
CALLS_AT_ONCE = 96
"""Calls under way; beyond, sending waits for answers, whatever the rate says."""
UNRECORDED = 200
"""Answers that wait to be recorded; beyond, sending waits for the ledger: a crash leaves them all in doubt."""
USUAL_COMMIT = 0.015
NO_PERMIT = "No permit in time."
HORIZON = 2.0
"""Permits further away than this are not taken: a pause of the cloud must not be slept through."""


async def send_forever(desk: Desk, calls: asyncio.TaskGroup) -> None:
    """Sends ready jobs, a few tens of milliseconds of rate at a time, until cancelled."""
    commit_seconds = USUAL_COMMIT
    while True:
        most = 0 if desk.stopping or desk.reconciling or not desk.lease.fresh() else desk.breaker.most(desk.posting)
        full = desk.posting >= CALLS_AT_ONCE or desk.recorder.answers >= UNRECORDED
        if not desk.ready or not most or full:
            desk.filled.clear()
            try:
                async with asyncio.timeout(0.1):
                    await desk.filled.wait()
            except TimeoutError:
                pass
            continue
        size = max(1, int(desk.limiter.learned_rate * SLICE_SECONDS))
        batch = _take(desk, int(min(size, most)))
        if not batch:
            await asyncio.sleep(SLICE_SECONDS)
            continue
        desk.posting += len(batch)  # a stop waits for it, from here on
        sent = 0
        try:
            permits = await desk.limiter.reserve(len(batch), commit_seconds, within=HORIZON)
            for checked in batch[len(permits) :]:
                desk.ready.appendleft(checked)
            began = time.monotonic()
            through = await _second_gate(desk, batch[: len(permits)]) if permits else []
            took = time.monotonic() - began
            for checked, permit in zip(through, permits, strict=False):
                calls.create_task(_send(desk, checked, permit))
                sent += 1
        finally:
            desk.posting -= len(batch) - sent
        if not permits:
            await asyncio.sleep(0.1)
            continue
        commit_seconds = min(0.5, max(1.2 * took, 0.95 * commit_seconds))  # the slowest of late: no permit comes late
        await asyncio.sleep(permits[-1].at - LEAD_SECONDS - time.monotonic())


def _take(desk: Desk, size: int) -> list[Checked]:
    """The next jobs whose check is still fresh and whose plan's own pace allows one now; stale ones are checked
    again."""
    batch: list[Checked] = []
    soon = time.monotonic() + SLICE_SECONDS
    for _ in range(len(desk.ready)):
        if len(batch) == size:
            break
        checked = desk.ready.popleft()
        plan = desk.plans.get(checked.job.plan_id)
        if plan is None or not plan.running or _closed(desk, checked.job.plan_id) or not _still_so(desk, checked):
            desk.unchecked.append(checked.job)
            desk.filled.set()
        elif plan.pace and plan.pace.next > soon:
            desk.ready.append(checked)
        else:
            if plan.pace:
                plan.pace.reserve(1, time.monotonic())
            batch.append(checked)
    return batch


def _closed(desk: Desk, plan_id: UUID) -> bool:
    """Whether the plan's window has closed since the gate was asked."""
    closes = desk.waits.closes.get(plan_id)
    return closes is not None and desk.lease.now() >= closes


def _still_so(desk: Desk, checked: Checked) -> bool:
    """Whether the server is, by a view that is fresh, just what was checked."""
    view = desk.mirror.view(checked.job.server_id)
    fresh = desk.mirror.age(checked.job.server_id) <= FRESH_SECONDS
    return fresh and view is not None and view.server == checked.server


async def _second_gate(desk: Desk, batch: Sequence[Checked]) -> list[Checked]:
    """Commits the intents; what was let through. What wasn't goes back to its check, which finds out why."""
    intents = [
        Intent(plan_id=c.job.plan_id, ord=c.job.ord, server_id=c.job.server_id, number=c.job.attempt + 1,
               body_sha256=c.body_sha256, baseline=c.baseline)
        for c in batch
    ]  # fmt: skip
    epochs = {c.job.plan_id: c.epoch for c in batch}
    desk.claimed.update(c.job.key for c in batch)
    try:
        async with desk.engine.begin() as conn:
            let_through = await commit_intents(conn, desk.own, intents, epochs)
        failpoint("gate.after_commit")
    except (DBAPIError, OSError, TimeoutError) as e:
        # A COMMIT without an answer sends nothing, wherever it left the jobs: both ways back are queued, one fits.
        log.warning("second_gate_failed", project=desk.own.project, jobs=len(batch), error=str(e)[:200])
        for checked in batch:
            await desk.happen(checked.job, JobState.SENDING, Happened(event=JobEvent.NOT_SENT))
            await desk.happen(checked.job, JobState.CHECKING, Happened(event=JobEvent.POSTPONE))
        return []
    for checked in batch:
        if checked.job.key not in let_through:
            await desk.happen(checked.job, JobState.CHECKING, Happened(event=JobEvent.POSTPONE))
    return [c for c in batch if c.job.key in let_through]


async def _send(desk: Desk, checked: Checked, permit: Permit) -> None:
    """One call, at its time, at most once; then the answer goes to the ledger."""
    sent_at = desk.lease.now()
    try:
        answer, permit = await _call(desk, checked, permit)
        await _settle(desk, checked, answer, permit, sent_at)
    finally:
        desk.posting -= 1
        desk.filled.set()


async def _call(desk: Desk, checked: Checked, permit: Permit) -> tuple[Answer, Permit]:
    """Waits for the permit's time, throws a late one away for another, and sends; the answer, and the permit used."""
    give_up = time.monotonic() + HORIZON + 5.0
    while True:
        await asyncio.sleep(permit.at - time.monotonic())
        if not desk.limiter.late(permit):
            break
        again = [] if desk.stopping or time.monotonic() > give_up else await desk.limiter.reserve(1, within=HORIZON)
        if not again:
            return Answer(effect=Effect.NOT_APPLIED, cause=Cause.NEVER_SENT, message=NO_PERMIT), permit
        permit = again[0]

    def ready() -> bool:
        fresh = desk.lease.fresh()
        failpoint("send.before_write")
        return fresh

    answer = await desk.cloud.rebuild(
        checked.job.server_id, checked.body, reimage_boot_volume=checked.reimage, ready=ready
    )
    failpoint("send.after_answer")
    return answer, permit


async def _settle(desk: Desk, checked: Checked, answer: Answer, permit: Permit, sent_at: datetime) -> None:
    """Records the answer, then does what follows from it."""
    job = checked.job
    happened = _quota_learned(desk, checked, answer) or happened_of(answer)
    record = AttemptAnswer(
        number=job.attempt + 1, classification=f"{answer.effect}/{answer.cause}", http_status=answer.http_status,
        effect=None if happened.event is JobEvent.UNKNOWN else answer.effect.value,
        request_id=answer.request_id, cloud_date=answer.date, message=answer.message,
    )  # fmt: skip
    data = {"attempt": record.number, "http_status": answer.http_status, "request_id": answer.request_id}
    state = await desk.happen(job, JobState.SENDING, happened, answer=record, data=data)
    if state is JobState.REBUILDING:
        desk.watched[job.server_id] = _watched(desk, checked, answer)
    elif state is JobState.RESOLVING:
        log.warning("answer_unknown", plan=str(job.plan_id), server=job.server_id, message=answer.message)
        known = replace(
            job, baseline=checked.baseline, request_id=answer.request_id, classification=record.classification,
            http_status=answer.http_status, answered_at=desk.lease.now(), intended_at=sent_at,
        )  # fmt: skip
        desk.open[job.server_id] = open_call(desk, known, JobState.RESOLVING, number=record.number)
    _tell_breaker(desk, answer)
    if answer.cause is Cause.THROTTLED or (answer.http_status == 503 and answer.retry_after is not None):
        await desk.limiter.throttled(answer.retry_after, permit.epoch, allowed_rate=answer.allowed_rate)
    elif answer.cause in (Cause.TOKEN, Cause.MOVED):  # the new sign-in's catalogue says where to
        try:
            await desk.cloud.renew_token()
        except CloudError as e:  # the next call's sign-in will say it again
            log.warning("token_not_renewed", project=desk.own.project, error=e.message)


def _quota_learned(desk: Desk, checked: Checked, answer: Answer) -> Happened | None:
    """The cloud allows fewer metadata items than Nova usually does: our marker was one too many, which is no try."""
    found = re.search(r"metadata items exceeds (\d+)", answer.message) if answer.cause is Cause.FORBIDDEN else None
    if found is None or not checked.baseline.get("marker"):
        return None
    desk.metadata_items = min(desk.metadata_items, int(found[1]))
    reason = Reason(code="metadata_quota", message=f"{answer.message} The marker is left out.")
    return Happened(event=JobEvent.TURNED_AWAY, cause=Cause.FORBIDDEN, reason=reason)


def _tell_breaker(desk: Desk, answer: Answer) -> None:
    withheld = answer.cause is Cause.NEVER_SENT and (answer.message == NO_PERMIT or not desk.lease.fresh())
    proves_nothing = answer.effect is Effect.UNKNOWN or answer.cause in (Cause.NEVER_SENT, Cause.MOVED)
    if proves_nothing and not withheld:
        desk.breaker.call_failed(answer.message or answer.cause.value)
    elif not withheld:
        desk.breaker.call_worked()


def _watched(desk: Desk, checked: Checked, answer: Answer) -> Watched:
    job, plan = checked.job, desk.plans.get(checked.job.plan_id)
    expected: Expected = expected_of(checked.baseline, job.target_image, answer.date)
    decided = desk.lease.now()
    timeout = plan.policy.timeout if plan else 1800.0
    return Watched(
        job=replace(job, attempt=job.attempt + 1), state=JobState.REBUILDING, expected=expected,
        request_id=answer.request_id,
        accepted_at=time.monotonic(), deadline_at=decided + timedelta(seconds=timeout),
        canary=bool(plan and plan.waves > 1 and job.wave == 0),
    )  # fmt: skip


def happened_of(answer: Answer) -> Happened:
    """What a classified answer means for a job that is `sending`."""
    reason = Reason(code=answer.cause.value, message=answer.message or answer.cause.value.replace("_", " "))
    fingerprint = f"{answer.cause}:{answer.http_status or 0}"
    match answer.effect:
        case Effect.APPLIED:
            return Happened(event=JobEvent.ACCEPTED)
        case Effect.UNKNOWN:
            return Happened(event=JobEvent.UNKNOWN, cause=answer.cause, reason=Reason(code="unknown_answer", message=(
                f"Whether the call took effect is not known: {answer.message or answer.cause}")))  # fmt: skip
        case Effect.NOT_APPLIED if answer.cause is Cause.BUSY:
            # Not this request's doing; but something on the way may have sent a copy of it before: read back first.
            return Happened(event=JobEvent.UNKNOWN, cause=answer.cause, reason=reason)
        case Effect.NOT_APPLIED:
            match answer.cause:
                case Cause.NEVER_SENT:
                    event = JobEvent.NOT_SENT
                case Cause.TOKEN | Cause.THROTTLED | Cause.MOVED:
                    event = JobEvent.TURNED_AWAY
                case _:
                    event = JobEvent.NOT_APPLIED
            return Happened(event=event, cause=answer.cause, reason=reason, fingerprint=fingerprint,
                            retry_after=answer.retry_after)  # fmt: skip
