"""Hooks: calls that are due, their answers, and what follows from them for their jobs.

A call's row is written by the transition that makes it due, so that no driver forgets it. Each try is committed, with
its one-time token, before it is made; its outcome and the job's next transition are one transaction. A driver that is
killed at any point leaves a call that the next one makes again, under the same `webhook-id`.
"""

import asyncio
import hashlib
import json
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy.exc import DBAPIError

from orchestrator.domain.decide import Happened, Reason, Tried, decide
from orchestrator.domain.hooks import (
    HookResult,
    Phase,
    SecretMissing,
    backoff,
    due,
    goes_on,
    hook_of,
    secret_of,
    signed,
)
from orchestrator.domain.lifecycle import JobEvent
from orchestrator.domain.states import JobState, PlanStatus
from orchestrator.failpoints import failpoint
from orchestrator.ledger import hooks as ledger
from orchestrator.ledger.drive import ClaimedJob
from orchestrator.ledger.events import NewEvent, append_events
from orchestrator.ledger.hooks import HookKey, HookMove, OpenHook
from orchestrator.ledger.leases import guard
from orchestrator.ledger.transitions import AttemptAnswer, JobChange, lock_plans, move_jobs
from orchestrator.log import get_logger
from workers.driver.desk import Desk
from workers.outbound import AddressRefused, Outbound, OutboundFailed

log = get_logger(__name__)

LOOK_SECONDS = 0.25
"""How often open calls are looked at."""
CALL_SECONDS = 60.0
"""How long one try may take; who needs longer answers 202."""
CALLS_AT_ONCE = 256


async def next_after_verified(desk: Desk, job: ClaimedJob, *, answer: AttemptAnswer | None = None,
                              data: Mapping[str, Any] | None = None) -> None:  # fmt: skip
    """A rebuilt server has passed its probes: it is configured, where its plan has an `after` hook, or done."""
    plan = desk.plans.get(job.plan_id)
    hook = due(plan.spec.hooks, Phase.AFTER) if plan else None
    event = JobEvent.CONFIGURE if hook else JobEvent.VERIFIED
    await desk.happen(job, JobState.VERIFYING, Happened(event=event), answer=answer, data=data, hook=hook)


async def call_drain(desk: Desk, job: ClaimedJob) -> bool:
    """Whether a job that may be sent is to be drained before that, which begins here."""
    plan = desk.plans[job.plan_id]
    hook = due(plan.spec.hooks, Phase.BEFORE)
    if hook is None or job.drained_at is not None:
        return False
    await desk.happen(job, JobState.CHECKING, Happened(event=JobEvent.CALL_DRAIN), hook=hook)
    return True


@dataclass(frozen=True, kw_only=True)
class Ending:
    """What becomes of a call, and of its job."""

    call: OpenHook
    move: HookMove
    ok: bool = False
    fingerprint: str = "no_answer"


@dataclass
class Calls:
    """The calls that are under way, and the answers that wait to be written."""

    under_way: dict[HookKey, asyncio.Task[None]] = field(default_factory=dict)
    made: list[tuple[OpenHook, HookMove]] = field(default_factory=list)
    answered: asyncio.Event = field(default_factory=asyncio.Event)


async def hooks_forever(desk: Desk) -> None:
    """Makes the project's calls until cancelled."""
    calls, adopted = Calls(), False
    async with Outbound(loopback=desk.loopback) as outbound, asyncio.TaskGroup() as tasks:
        while True:
            try:
                if not adopted:
                    async with desk.engine.begin() as conn:
                        await guard(conn, desk.own.lease, desk.own.fence)
                        await ledger.adopt_hooks(conn, desk.own.project)
                    adopted = True
                if not desk.stopping and any(p.spec.hooks for p in desk.plans.values()):
                    await _round(desk, calls, outbound, tasks)
            except (DBAPIError, OSError, TimeoutError) as e:
                log.warning("ledger_trouble", project=desk.own.project, error=str(e)[:200])
                await asyncio.sleep(1.0)
            calls.answered.clear()
            if not calls.made:
                try:
                    async with asyncio.timeout(LOOK_SECONDS):
                        await calls.answered.wait()
                except TimeoutError:
                    pass


async def _round(desk: Desk, calls: Calls, outbound: Outbound, tasks: asyncio.TaskGroup) -> None:
    """Ends what has ended, then calls what is due."""
    made = list(calls.made)
    async with desk.engine.connect() as conn:
        found = await ledger.open_hooks(conn, desk.own.project)
    known = [c for c in found if c.job.plan_id in desk.plans]
    desk.reload_wanted |= len(known) < len(found)
    withdrawn = [c for c in known if _withdraws(c)]
    endings = {c.key: _ending_of(c, move) for c, move in made}
    for call in known:
        busy = call.key in calls.under_way or call.key in endings
        if call not in withdrawn and (ending := _found_ending(call, busy=busy)):
            endings[call.key] = ending
    if endings or withdrawn:
        await _write(desk, list(endings.values()), withdrawn)
        del calls.made[: len(made)]
    over = endings.keys() | {c.key for c in withdrawn}
    places = CALLS_AT_ONCE - len(calls.under_way)
    ready = [c for c in known if c.ready and c.key not in over and c.key not in calls.under_way][:places]
    if ready:
        await _begin(desk, calls, ready, outbound, tasks)


def _withdraws(call: OpenHook) -> bool:
    """Whether a drain that was never called is not to be: its plan doesn't run, or its job went elsewhere."""
    stopped = call.plan_status is not PlanStatus.RUNNING or call.paused
    return call.phase is Phase.BEFORE and not call.called and call.tries == 0 and stopped


def _found_ending(call: OpenHook, *, busy: bool) -> Ending | None:
    """How a call ends by what the ledger has of it; None: it doesn't yet. `busy`: it is just being made."""
    expected = {Phase.BEFORE: JobState.DRAINING, Phase.AFTER: JobState.CONFIGURING}.get(call.phase)
    if call.phase is Phase.BEFORE and call.plan_status is PlanStatus.CANCELLING:
        return _ended(call, ok=False, message="The plan was cancelled.", fingerprint="cancelled")
    if expected is not None and call.job.state is not expected:
        return _ended(call, ok=False, message=f"The job is {call.job.state}.", fingerprint="elsewhere")
    if busy:
        return None
    if call.result is not None:
        said = call.message or f"Answered: {call.result}."
        return _ended(call, ok=call.result is HookResult.OK, message=said, fingerprint="answered")
    if call.over:
        waited = "No result was reported in time." if call.state == "waiting" else "It did not succeed in time."
        message = f"{waited} {call.message}" if call.message and call.state != "waiting" else waited
        return _ended(call, ok=False, message=message, fingerprint=str(call.http_status or "no_answer"))
    return None


def _ended(call: OpenHook, *, ok: bool, message: str, fingerprint: str) -> Ending:
    state = "done" if ok else "failed"
    return Ending(call=call, move=HookMove(key=call.key, state=state, message=message), ok=ok, fingerprint=fingerprint)


def _ending_of(call: OpenHook, move: HookMove) -> Ending:
    return Ending(call=call, move=move, ok=move.state == "done", fingerprint=str(move.http_status or "not_called"))


async def _write(desk: Desk, endings: Sequence[Ending], withdrawn: Sequence[OpenHook]) -> None:
    """Outcomes of calls and what follows for their jobs, in one transaction; drained jobs are checked again."""
    own = desk.own
    checked_again = [e.call.job for e in endings if e.call.phase is Phase.BEFORE and e.move.state in ("done", "failed")]
    desk.claimed.update(j.key for j in checked_again)  # nobody takes them for orphans between commit and check
    try:
        async with desk.engine.begin() as conn:
            await guard(conn, own.lease, own.fence)
            await lock_plans(conn, {c.job.plan_id for c in (*(e.call for e in endings), *withdrawn)})
            ended = await ledger.move_hooks(conn, [e.move for e in endings]) if endings else set()
            if withdrawn:
                await ledger.withdraw_hooks(conn, [c.key for c in withdrawn])
            over = [e for e in endings if e.call.key in ended and e.move.state in ("done", "failed")]
            await append_events(conn, [_event(e) for e in over])
            changes = [change for e in over if (change := _change(desk, e))]
            moved = await move_jobs(conn, own.deployment, [*changes, *(_back(desk, c) for c in withdrawn)])
            failpoint("hooks.before_commit")
        failpoint("hooks.after_commit")
    except (DBAPIError, OSError, TimeoutError):
        # Its COMMIT may have worked: whoever is `checking` by it goes back and is claimed again, drained as it is.
        for job in checked_again:
            await desk.happen(job, JobState.CHECKING, Happened(event=JobEvent.POSTPONE))
        raise
    for job in checked_again:
        if job.key in moved and moved[job.key].decision.state is JobState.CHECKING:
            desk.unchecked.append(replace(job, state=JobState.CHECKING, drained_at=desk.lease.now()))
        else:
            desk.claimed.discard(job.key)
    if over or moved:
        desk.filled.set()
        desk.woken.set()


def _change(desk: Desk, e: Ending) -> JobChange | None:
    """The job's transition that follows from the end of its call; `release` has none."""
    call, job = e.call, e.call.job
    hooks = desk.plans[job.plan_id].spec.hooks
    on = e.ok or goes_on(hooks, call.phase)
    match call.phase:
        case Phase.RELEASE:
            return None
        case Phase.BEFORE if job.state is JobState.DRAINING:
            event = JobEvent.DRAINED if on else JobEvent.DRAIN_FAILED
            if call.plan_status is PlanStatus.CANCELLING:
                event = JobEvent.CANCEL
        case Phase.AFTER if job.state is JobState.CONFIGURING:
            event = JobEvent.VERIFIED if on else JobEvent.CHECK_FAILED
        case _:
            return None
    failed = event in (JobEvent.DRAIN_FAILED, JobEvent.CHECK_FAILED)
    code = "drain_failed" if call.phase is Phase.BEFORE else "configure_failed"
    reason = Reason(code=code, message=f"The hook {call.phase} failed: {e.move.message}") if failed else None
    happened = Happened(event=event, reason=reason, fingerprint=f"{code}:{e.fingerprint}" if failed else None)
    return JobChange(plan_id=job.plan_id, ord=job.ord, server_id=job.server_id, expected=job.state,
                     decision=decide(job.state, happened, desk.lease.now(), Tried()),
                     drained=event is JobEvent.DRAINED or None)  # fmt: skip


def _back(desk: Desk, call: OpenHook) -> JobChange:
    """The job of a drain that isn't to be called after all: pending again, or cancelled with its plan."""
    cancelling = call.plan_status is PlanStatus.CANCELLING
    happened = Happened(event=JobEvent.CANCEL if cancelling else JobEvent.POSTPONE)
    decision = decide(JobState.DRAINING, happened, desk.lease.now(), Tried())
    return JobChange(plan_id=call.job.plan_id, ord=call.job.ord, server_id=call.job.server_id,
                     expected=JobState.DRAINING, decision=decision)  # fmt: skip


def _event(e: Ending) -> NewEvent:
    call = e.call
    data = {"phase": call.phase.value, "attempt": call.attempt, "tries": call.tries,
            "http_status": e.move.http_status or call.http_status}  # fmt: skip
    reason = None if e.ok else Reason(code="hook_failed", message=e.move.message or "It failed.")
    return NewEvent(plan_id=call.job.plan_id, server_id=call.job.server_id, type=f"hook.{e.move.state}",
                    actor="driver", reason=reason, data=data)  # fmt: skip


async def _begin(
    desk: Desk, calls: Calls, ready: Sequence[OpenHook], outbound: Outbound, tasks: asyncio.TaskGroup
) -> None:
    """Commits a try and its token of each call, and makes those that were committed."""
    tokens = {c.key: secrets.token_urlsafe(32) for c in ready}
    async with desk.engine.begin() as conn:
        await guard(conn, desk.own.lease, desk.own.fence, unexpired=True)
        await lock_plans(conn, {c.job.plan_id for c in ready})
        begun = await ledger.begin_calls(
            conn, [(c, hashlib.sha256(tokens[c.key].encode()).hexdigest()) for c in ready], within=CALL_SECONDS + 5.0
        )
    failpoint("hooks.begun")
    for call in ready:
        if call.key in begun:
            tried = replace(call, tries=call.tries + 1, called=True)
            calls.under_way[call.key] = tasks.create_task(_call(desk, calls, tried, tokens[call.key], outbound))


async def _call(desk: Desk, calls: Calls, call: OpenHook, token: str, outbound: Outbound) -> None:
    """One try; its outcome waits to be written."""
    try:
        move = await _outcome(desk, call, token, outbound)
    except Exception as e:
        # One plan's hook must not end the driver of all of the project's plans.
        log.error("hook_broke", plan=str(call.job.plan_id), server=call.job.server_id, exc_info=e)
        move = HookMove(key=call.key, state="due", message=f"The call broke: {type(e).__name__}.",
                        wait=backoff(call.tries))  # fmt: skip
    else:
        log.debug("hook_called", plan=str(call.job.plan_id), server=call.job.server_id, phase=call.phase.value,
                  status=move.http_status)  # fmt: skip
    finally:
        calls.under_way.pop(call.key, None)
    calls.made.append((call, move))
    calls.answered.set()


async def _outcome(desk: Desk, call: OpenHook, token: str, outbound: Outbound) -> HookMove:
    plan = desk.plans.get(call.job.plan_id)
    hook = hook_of(plan.spec.hooks, call.phase) if plan else None
    if hook is None:
        return HookMove(key=call.key, state="due", message=None, wait=1.0, never_left=True)
    job = call.job
    document = {
        "plan_id": str(job.plan_id), "server_id": job.server_id, "name": job.name, "phase": call.phase.value,
        "attempt": call.attempt, "callback_token": token,
        "callback_url": f"{desk.api_url}/v1/plans/{job.plan_id}/jobs/{job.server_id}/hooks/{call.phase}",
    }  # fmt: skip
    body = json.dumps(document).encode()
    left = (call.deadline_at - desk.lease.now()).total_seconds()
    try:
        secret = secret_of(hook.secret, os.environ)
        headers = signed(body, message_id=call.message_id, timestamp=int(time.time()), secret=secret)
        reply = await outbound.post(hook.url, body=body, headers=headers, seconds=max(0.5, min(CALL_SECONDS, left)))
    except SecretMissing as e:
        return HookMove(key=call.key, state="failed", message=str(e), never_left=True)
    except AddressRefused as e:
        return HookMove(key=call.key, state="failed", message=e.message, never_left=True)
    except OutboundFailed as e:
        return HookMove(key=call.key, state="due", message=e.message, wait=backoff(call.tries))
    match reply.status:
        case 200 | 204:
            return HookMove(key=call.key, state="done", message=None, http_status=reply.status)
        case 202:
            return HookMove(key=call.key, state="waiting", message=None, http_status=202)
        case status:
            return HookMove(key=call.key, state="due", message=f"HTTP {status}.", http_status=status,
                            wait=backoff(call.tries))  # fmt: skip
