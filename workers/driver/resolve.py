"""Resolving: what became of a call whose answer proves nothing is settled by evidence, or left to a person.

The weighing is pure and in `domain/evidence.py`; this module looks, at the right times, and records what was seen.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

from sqlalchemy.exc import DBAPIError

from orchestrator.clouds.look import look
from orchestrator.domain.causes import Effect
from orchestrator.domain.decide import Happened, Reason
from orchestrator.domain.evidence import MARKER, Finding, Look, Open, Settlement, Weighed, marked, settle, weigh
from orchestrator.domain.lifecycle import JobEvent
from orchestrator.domain.states import JobState
from orchestrator.errors import CloudError
from orchestrator.failpoints import failpoint
from orchestrator.ledger.drive import ClaimedJob
from orchestrator.ledger.leases import guard
from orchestrator.ledger.transitions import AttemptAnswer, record_attempts
from orchestrator.log import get_logger
from workers.driver.desk import Desk, OpenCall, Watched
from workers.driver.lease import LEASE_SECONDS
from workers.driver.watch import expected_of

log = get_logger(__name__)

LOOKS_AT_ONCE = 8
FIRST_LOOK, LONGEST = 0.5, 15.0
"""Seconds between looks: doubled from the first on, while the quiescence period runs."""
AGAIN = 2.0
"""Seconds between two looks that count together."""
LOST = "The driver was lost between the intent and the recorded answer: whether the call took effect is not known."


def open_call(desk: Desk, job: ClaimedJob, state: JobState, *, number: int) -> OpenCall:
    """An open call as the ledger has it: `job` with its attempt `number`."""
    plan = desk.plans.get(job.plan_id)
    sent_at = job.intended_at or desk.lease.now()
    # Without a recorded answer the call may have been written as long as its driver believed in its lease.
    asked_at = job.answered_at or sent_at + timedelta(seconds=LEASE_SECONDS)
    settings, timeout = (plan.settings, plan.policy.timeout) if plan else (desk.settings, 1800.0)
    case = job.case(desk.cloud.user_id)
    return OpenCall(
        job=job, state=state, number=number, case=case, sent_at=sent_at,
        open=Open(quiet_at=asked_at + timedelta(seconds=settings.quiescence),
                  deadline_at=sent_at + timedelta(seconds=timeout),
                  resend=settings.resend == "after_quiescence"),
        next_look=float("inf") if state is JobState.UNRESOLVED else time.monotonic(),
    )  # fmt: skip


async def resolve_forever(desk: Desk, looks: asyncio.TaskGroup) -> None:
    """Looks into every open call when it is due, and at once where the mirror shows its effect."""
    places = asyncio.Semaphore(LOOKS_AT_ONCE)
    while True:
        now = time.monotonic()
        for call in list(desk.open.values()):
            if not call.looking and (now >= call.next_look or _shows(desk, call)):
                call.looking = True
                looks.create_task(_look(desk, call, places))
        await asyncio.sleep(0.1)


def _shows(desk: Desk, call: OpenCall) -> bool:
    """Whether the mirror, which costs no read of its own, has something new that speaks for the call's effect."""
    view = desk.mirror.view(call.job.server_id)
    if view is None or view.server is None or view.seen_at <= call.seen_at:
        return False
    server, case = view.server, call.case
    mine = marked(server.metadata.get(MARKER)) == (call.job.plan_id, call.number)
    booted = server.launched_at is not None and server.launched_at != case.launched_before
    deleted = server.status in ("DELETED", "SOFT_DELETED")
    trace = (mine, deleted, server.launched_at if booted else None)
    news = (mine or deleted or booted) and trace != call.trace
    call.seen_at, call.trace = view.seen_at, trace
    return news


async def _look(desk: Desk, call: OpenCall, places: asyncio.Semaphore) -> None:
    try:
        async with places:
            failpoint("resolve.before_look")
            weighed = weigh(call.case, _deleted(desk, call) or await look(desk.cloud, call.job.server_id))
            settlement, call.open = settle(call.open, weighed, desk.lease.now())
            await _act(desk, call, weighed, settlement)
    except CloudError as e:  # a failed read is no look: silence must be heard in a row
        log.warning("look_failed", server=call.job.server_id, error=e.message)
        call.open = call.open.counted(None)
        _look_again(desk, call, AGAIN)
    except (DBAPIError, OSError, TimeoutError) as e:
        log.warning("ledger_trouble", project=desk.own.project, error=str(e)[:200])
        _look_again(desk, call, AGAIN)
    finally:
        call.looking = False


def _deleted(desk: Desk, call: OpenCall) -> Look | None:
    """What the mirror knows for certain: the changes of the project show the server as deleted."""
    view = desk.mirror.view(call.job.server_id)
    deleted = view is not None and view.server is not None and view.server.status in ("DELETED", "SOFT_DELETED")
    return Look(server=view.server, actions=None) if view and deleted else None


async def _act(desk: Desk, call: OpenCall, weighed: Weighed, settlement: Settlement) -> None:
    if call.state is JobState.UNRESOLVED and settlement not in (Settlement.APPLIED, Settlement.GONE):
        call.next_look = float("inf")  # a person decides; only a trace in the mirror leads to another look
        return
    match settlement:
        case Settlement.WAIT:
            await _note(desk, call, weighed)
            _look_again(desk, call, AGAIN if weighed.finding is Finding.GONE else call.pause)
            call.pause = min(LONGEST, 2 * call.pause)
        case Settlement.APPLIED:
            await _found_applied(desk, call, weighed)
        case Settlement.NOT_APPLIED:
            busy = call.case.turned_away
            event = JobEvent.TURNED_AWAY if busy else JobEvent.NOT_APPLIED
            code = "busy" if busy else "not_applied"
            happened = Happened(event=event, cause=call.case.cause, fingerprint="not_applied",
                                reason=Reason(code=code, message=weighed.says))  # fmt: skip
            await _end(desk, call, weighed, happened, effect=Effect.NOT_APPLIED)
        case Settlement.GONE:
            reason = Reason(code="server_deleted", message="The server was deleted; whether the call had an effect "
                            "doesn't matter any more.")  # fmt: skip
            await _end(desk, call, weighed, Happened(event=JobEvent.GONE, reason=reason, fingerprint="server_deleted"))
        case Settlement.UNRESOLVED:
            await _unresolved(desk, call, weighed)


async def _note(desk: Desk, call: OpenCall, weighed: Weighed) -> None:
    """What a look showed goes to the ledger, where it is something new."""
    if weighed.evidence == call.noted:
        return
    answer = AttemptAnswer(number=call.number, evidence=_evidence(weighed))
    async with desk.engine.begin() as conn:
        await guard(conn, desk.own.lease, desk.own.fence)
        await record_attempts(conn, [(call.job.key, answer)])
    call.noted = weighed.evidence


async def _found_applied(desk: Desk, call: OpenCall, weighed: Weighed) -> None:
    job, plan = call.job, desk.plans.get(call.job.plan_id)
    request_id = weighed.request_id or call.case.request_id
    happened = Happened(event=JobEvent.FOUND_APPLIED, sent_at=call.sent_at)
    timeout = plan.policy.timeout if plan else 1800.0
    desk.watched[job.server_id] = Watched(
        job=replace(job, attempt=call.number), state=JobState.REBUILDING,
        expected=expected_of(job.baseline or {}, job.target_image, call.case.since),
        request_id=request_id, accepted_at=time.monotonic(), deadline_at=call.sent_at + timedelta(seconds=timeout),
        canary=True, measured=False, due=True,  # without the 202 nothing but a look of its own attests the end
    )  # fmt: skip
    await _end(desk, call, weighed, happened, effect=Effect.APPLIED, request_id=request_id)


async def _unresolved(desk: Desk, call: OpenCall, weighed: Weighed) -> None:
    answered = call.job.classification is not None
    code, first = (
        ("unknown_answer", "Whether the call took effect is not known.") if answered else ("driver_lost", LOST)
    )
    reason = Reason(code=code, message=f"{first} {weighed.says} A person must settle it (rebuildctl resolve).")
    log.warning("unresolved", plan=str(call.job.plan_id), server=call.job.server_id, says=weighed.says)
    answer = AttemptAnswer(number=call.number, evidence=_evidence(weighed))
    call.state, call.next_look = JobState.UNRESOLVED, float("inf")
    failpoint("resolve.settled")
    await desk.happen(call.job, JobState.RESOLVING, Happened(event=JobEvent.UNSETTLED, reason=reason), answer=answer)


async def _end(
    desk: Desk,
    call: OpenCall,
    weighed: Weighed,
    happened: Happened,
    *,
    effect: Effect | None = None,
    request_id: str | None = None,
) -> None:
    """The call is settled: it is open no longer."""
    if desk.open.get(call.job.server_id) is call:
        del desk.open[call.job.server_id]
    failpoint("resolve.settled")
    answer = AttemptAnswer(number=call.number, request_id=request_id, evidence=_evidence(weighed),
                           effect=effect.value if effect else None)  # fmt: skip
    log.info("resolved", plan=str(call.job.plan_id), server=call.job.server_id, finding=weighed.finding.value,
             says=weighed.says)  # fmt: skip
    await desk.happen(call.job, call.state, happened, answer=answer, data={"says": weighed.says})


def _evidence(weighed: Weighed) -> list[Mapping[str, Any]]:
    return [*weighed.evidence, {"kind": "finding", "value": f"{weighed.finding}: {weighed.says}"}]


def _look_again(desk: Desk, call: OpenCall, seconds: float) -> None:
    """After so long, but right away when the quiescence period is over."""
    until_quiet = (call.open.quiet_at - desk.lease.now()).total_seconds()
    call.next_look = time.monotonic() + (min(seconds, until_quiet + 0.05) if until_quiet > 0 else AGAIN)
