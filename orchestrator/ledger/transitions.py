"""The one way in which jobs and plans move: state, counters, attempts, holds and events in a single transaction.

Every function here expects the plan rows to be locked (`lock_plans`), which is what makes counters exact and `seq`
dense and in commit order.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.decide import Decision, Reason
from orchestrator.domain.hooks import HookDue
from orchestrator.domain.states import JobState, PlanStatus
from orchestrator.failpoints import failpoint
from orchestrator.ledger.acknowledging import release_acknowledged
from orchestrator.ledger.events import NewEvent, append_events
from orchestrator.ledger.hook_rows import insert_due, owe_releases
from orchestrator.ledger.last_rebuilds import REMEMBERED_STATES, Remembered, remember
from orchestrator.ledger.outages import note_outages
from orchestrator.ledger.sql import columns_of, sql, to_json, unnest
from orchestrator.ledger.tables import NO_WAVE

JobKey = tuple[UUID, int]
"""Plan id and the job's place in it."""


@dataclass(frozen=True, kw_only=True)
class AttemptAnswer:
    """What came back of an attempt."""

    number: int
    classification: str | None = None
    """None: nothing came back; this is evidence found later."""
    effect: str | None = None
    """`applied` or `not_applied`, where that is known by now."""
    http_status: int | None = None
    request_id: str | None = None
    cloud_date: datetime | None = None
    message: str = ""
    evidence: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, kw_only=True)
class JobChange:
    """A job's transition, as decided."""

    plan_id: UUID
    ord: int
    server_id: str | None
    expected: JobState
    """Nothing happens where the job is in another state by now."""
    decision: Decision
    actor: str = "driver"
    answer: AttemptAnswer | None = None
    data: Mapping[str, Any] | None = None
    drained: bool | None = None
    """True: its `before` hook has drained it."""
    hook: HookDue | None = None
    """A hook that the transition makes due: `before` or `after`. `release` comes by itself with the job's end."""

    @property
    def key(self) -> JobKey:
        """Plan id and the job's place in it."""
        return self.plan_id, self.ord


@dataclass(frozen=True, kw_only=True)
class LockedPlan:
    """A plan row under lock."""

    id: UUID
    status: PlanStatus
    go_epoch: int
    event_seq: int


async def lock_plans(conn: AsyncConnection, plan_ids: Iterable[UUID]) -> dict[UUID, LockedPlan]:
    """Locks plan rows in the order of their ids; ids that are not there are left out."""
    rows = await conn.execute(
        sql("""
        SELECT id, status, go_epoch, event_seq FROM plans
        WHERE id = ANY(CAST(:ids AS uuid[])) ORDER BY id FOR NO KEY UPDATE"""),
        {"ids": list(set(plan_ids))},
    )
    return {
        r.id: LockedPlan(id=r.id, status=PlanStatus(r.status), go_epoch=r.go_epoch, event_seq=r.event_seq) for r in rows
    }


JOB_COLUMNS = {
    "plan_id": "uuid", "ord": "int", "expected": "text", "state": "text", "reason_code": "text",
    "reason_message": "text", "fingerprint": "text", "due_at": "timestamptz", "deadline_at": "timestamptz",
    "refusals": "int", "rebuilt_again": "int", "busy": "boolean", "drained": "boolean", "ends": "boolean",
}  # fmt: skip


async def move_jobs(conn: AsyncConnection, deployment: str, changes: Sequence[JobChange]) -> dict[JobKey, JobChange]:
    """Applies transitions to jobs whose state is still the expected one; returns those that were applied.

    Takes holds before jobs, jobs in the order of their keys. Counters, events and the servers' last rebuilds go along.
    """
    if not changes:
        return {}
    ordered = sorted(changes, key=lambda c: c.key)
    by_key = {c.key: c for c in ordered}
    ending = sorted(c.server_id for c in ordered if c.decision.drops_hold and c.server_id)
    if ending:
        await _lock_holds(conn, deployment, ending)
    await conn.execute(
        sql(f"""
        SELECT 1 FROM jobs j JOIN {unnest("i", {"plan_id": "uuid", "ord": "int"})}
          ON j.plan_id = i.plan_id AND j.ord = i.ord
        ORDER BY j.plan_id, j.ord FOR UPDATE OF j"""),  # noqa: S608
        columns_of({"plan_id": "uuid", "ord": "int"}, list(by_key)),
    )
    if leaving := [(*c.key, c.expected.value) for c in ordered if _counts_no_more(c)]:
        await release_acknowledged(conn, leaving)
    await owe_releases(conn, [(c.plan_id, c.ord, c.expected.value) for c in ordered if c.decision.drops_hold])
    rows = await conn.execute(
        sql(f"""
        UPDATE jobs j SET state = i.state, reason_code = i.reason_code, reason_message = i.reason_message,
          fingerprint = i.fingerprint, due_at = i.due_at,
          deadline_at = coalesce(i.deadline_at, j.deadline_at),
          refusals = coalesce(i.refusals, j.refusals),
          rebuilt_again = coalesce(i.rebuilt_again, j.rebuilt_again),
          busy_since = CASE WHEN i.busy THEN coalesce(j.busy_since, now())
                            WHEN i.state = 'checking' THEN j.busy_since END,
          drained_at = CASE WHEN i.ends THEN NULL WHEN i.drained THEN coalesce(j.drained_at, now())
                            ELSE j.drained_at END,
          updated_at = now()
        FROM {unnest("i", JOB_COLUMNS)}
        WHERE j.plan_id = i.plan_id AND j.ord = i.ord AND j.state = i.expected
        RETURNING j.plan_id, j.ord, j.wave"""),  # noqa: S608
        columns_of(JOB_COLUMNS, [_job_row(c) for c in ordered]),
    )
    moved = [(r.plan_id, r.ord, r.wave) for r in rows]
    applied = {(plan_id, ord_): by_key[plan_id, ord_] for plan_id, ord_, _ in moved}
    if not applied:
        return {}
    await _count(conn, [(by_key[p, o], wave) for p, o, wave in moved])
    await _record_answers(conn, list(applied.values()))
    await _remember(conn, deployment, list(applied.values()))
    await _note_outages(conn, deployment, list(applied.values()))
    await insert_due(conn, [(c.plan_id, c.ord, c.hook) for c in applied.values() if c.hook])
    ended = sorted((c.server_id, c.plan_id) for c in applied.values() if c.decision.drops_hold and c.server_id)
    if ended:
        await _drop_holds(conn, deployment, ended)
    await append_events(conn, [_event(c) for c in applied.values()])
    failpoint("ledger.moved")
    return applied


FAILURES = frozenset({JobState.FAILED, JobState.STUCK})


def _counts_no_more(c: JobChange) -> bool:
    """Whether it was a failure, or unresolved, and is so no more."""
    return (c.expected in FAILURES and c.decision.state not in FAILURES) or c.expected is JobState.UNRESOLVED


def _job_row(c: JobChange) -> tuple[Any, ...]:
    d = c.decision
    reason = d.reason
    return (c.plan_id, c.ord, c.expected.value, d.state.value, reason.code if reason else None,
            reason.message if reason else None, d.fingerprint, d.due_at, d.deadline_at, d.refusals,
            d.rebuilt_again, d.busy, c.drained, d.drops_hold)  # fmt: skip


def _event(c: JobChange) -> NewEvent:
    return NewEvent(plan_id=c.plan_id, server_id=c.server_id, type=f"job.{c.decision.state}", actor=c.actor,
                    from_state=c.expected.value, to_state=c.decision.state.value, reason=c.decision.reason,
                    data=c.data)  # fmt: skip


async def _count(conn: AsyncConnection, moved: Sequence[tuple[JobChange, int | None]]) -> None:
    deltas: dict[tuple[UUID, int, str], int] = defaultdict(int)
    for change, wave in moved:
        w = NO_WAVE if wave is None else wave
        deltas[change.plan_id, w, change.expected.value] -= 1
        deltas[change.plan_id, w, change.decision.state.value] += 1
    await add_counts(conn, deltas)


async def add_counts(conn: AsyncConnection, deltas: Mapping[tuple[UUID, int, str], int]) -> None:
    """Adds to the counters of (plan, wave, state)."""
    columns = {"plan_id": "uuid", "wave": "int", "state": "text", "n": "int"}
    rows = sorted((*key, n) for key, n in deltas.items() if n)
    if not rows:
        return
    await conn.execute(
        sql(f"""
        INSERT INTO job_counts AS c (plan_id, wave, state, n)
        SELECT plan_id, wave, state, n FROM {unnest("i", columns)}
        ON CONFLICT (plan_id, wave, state) DO UPDATE SET n = c.n + excluded.n"""),  # noqa: S608
        columns_of(columns, rows),
    )


async def _record_answers(conn: AsyncConnection, changes: Sequence[JobChange]) -> None:
    await record_attempts(conn, [(c.key, c.answer) for c in changes if c.answer])


async def record_attempts(conn: AsyncConnection, answers: Sequence[tuple[JobKey, AttemptAnswer]]) -> None:
    """Answers and evidence of attempts. Evidence is appended, with the ledger's time, and never changed."""
    columns = {"plan_id": "uuid", "ord": "int", "number": "int", "classification": "text", "http_status": "int",
               "request_id": "text", "cloud_date": "timestamptz", "message": "text", "evidence": "jsonb",
               "effect": "text"}  # fmt: skip
    rows = [
        (plan_id, ord_, a.number, a.classification, a.http_status, a.request_id, a.cloud_date, a.message,
         list(a.evidence), a.effect)
        for (plan_id, ord_), a in answers
    ]  # fmt: skip
    if not rows:
        return
    await conn.execute(
        sql(f"""
        UPDATE attempts a SET
          answered_at = CASE WHEN i.classification IS NULL THEN a.answered_at ELSE clock_timestamp() END,
          classification = coalesce(i.classification, a.classification), effect = coalesce(i.effect, a.effect),
          http_status = coalesce(i.http_status, a.http_status), request_id = coalesce(i.request_id, a.request_id),
          cloud_date = coalesce(i.cloud_date, a.cloud_date),
          message = coalesce(nullif(i.message, ''), a.message),
          evidence = a.evidence || (
            SELECT coalesce(jsonb_agg(e || jsonb_build_object('at', clock_timestamp())), '[]')
            FROM jsonb_array_elements(CAST(i.evidence AS jsonb)) AS e)
        FROM {unnest("i", columns)}
        WHERE a.plan_id = i.plan_id AND a.ord = i.ord AND a.number = i.number"""),  # noqa: S608
        columns_of(columns, rows),
    )


def _without_effect(change: JobChange) -> bool:
    """Whether the change says of a call that it had none."""
    if change.answer is not None and change.answer.effect == "not_applied":
        return True
    open_before = change.expected in (JobState.SENDING, JobState.RESOLVING, JobState.UNRESOLVED)
    return open_before and change.decision.state in (JobState.PENDING, JobState.CANCELLED)


async def _remember(conn: AsyncConnection, deployment: str, changes: Sequence[JobChange]) -> None:
    undone = [c.server_id for c in changes if c.server_id and _without_effect(c)]
    sent = [
        Remembered(server_id=c.server_id, plan_id=c.plan_id, state=c.decision.state,
                   action=c.answer.request_id if c.answer else None)
        for c in changes if c.server_id and c.decision.state in REMEMBERED_STATES and not _without_effect(c)
    ]  # fmt: skip
    await remember(conn, deployment, sent, undone)


OUT_STATES = frozenset({JobState.FAILED, JobState.STUCK, JobState.UNRESOLVED})


async def _note_outages(conn: AsyncConnection, deployment: str, changes: Sequence[JobChange]) -> None:
    out, back = [], []
    for c in changes:
        if c.server_id is None:
            continue
        untouched = c.expected is JobState.UNRESOLVED and c.decision.state in (JobState.PENDING, JobState.CANCELLED)
        if c.decision.gone or untouched or c.decision.state is JobState.SUCCEEDED:
            back.append(c.server_id)
        elif c.decision.state in OUT_STATES:
            out.append((c.server_id, c.plan_id))
    await note_outages(conn, deployment, out=out, back=back)


async def _lock_holds(conn: AsyncConnection, deployment: str, server_ids: Sequence[str]) -> None:
    await conn.execute(
        sql("""
        SELECT 1 FROM holds WHERE deployment = :deployment AND server_id = ANY(CAST(:ids AS text[]))
        ORDER BY server_id FOR UPDATE"""),
        {"deployment": deployment, "ids": list(server_ids)},
    )


async def _drop_holds(conn: AsyncConnection, deployment: str, ended: Sequence[tuple[str, UUID]]) -> None:
    columns = {"server_id": "text", "plan_id": "uuid"}
    await conn.execute(
        sql(f"""
        DELETE FROM holds h USING {unnest("i", columns)}
        WHERE h.deployment = :deployment AND h.server_id = i.server_id AND h.plan_id = i.plan_id"""),  # noqa: S608
        {"deployment": deployment} | columns_of(columns, ended),
    )


@dataclass(frozen=True, kw_only=True)
class PlanMove:
    """A plan's transition, with what goes along."""

    plan_id: UUID
    expected: PlanStatus
    status: PlanStatus
    actor: str
    reason: Reason | None = None
    stop_sending: bool = False
    """Bumps `go_epoch`: what the second gate has not let through stays unsent."""
    faults: Sequence[Mapping[str, str]] | None = None
    data: Mapping[str, Any] | None = None


DRIVEN = frozenset(
    {
        PlanStatus.RUNNING,
        PlanStatus.CANCELLING,
        PlanStatus.HALTED,
        PlanStatus.PAUSED,
        PlanStatus.BAKING,
        PlanStatus.AWAITING_APPROVAL,
    }
)
"""Plans that a driver has to look at."""

ENDED = frozenset(
    {PlanStatus.REJECTED, PlanStatus.EXPIRED, PlanStatus.CANCELLED, PlanStatus.SUCCEEDED, PlanStatus.FAILED}
)


async def move_plan(conn: AsyncConnection, move: PlanMove) -> bool:
    """Applies a plan's transition if its status is the expected one; False otherwise."""
    status = move.status
    result = await conn.execute(
        sql("""
        UPDATE plans SET status = :status, reason_code = :code, reason_message = :message,
          faults = coalesce(CAST(:faults AS jsonb), faults),
          go_epoch = go_epoch + :bump,
          due = CASE WHEN :driven THEN project IS NOT NULL
                     ELSE EXISTS (SELECT 1 FROM jobs j WHERE j.plan_id = plans.id
                                  AND j.state IN ('stuck', 'unresolved'))
                       OR EXISTS (SELECT 1 FROM hook_calls h WHERE h.plan_id = plans.id
                                  AND h.state IN ('due', 'waiting')) END,
          started_at = CASE WHEN :starts THEN coalesce(started_at, now()) ELSE started_at END,
          finished_at = CASE WHEN :ends THEN now() END
        WHERE id = :id AND status = :expected"""),
        {
            "id": move.plan_id, "expected": move.expected.value, "status": status.value,
            "code": move.reason.code if move.reason else None,
            "message": move.reason.message if move.reason else None,
            "faults": _faults(move.faults), "bump": int(move.stop_sending), "driven": status in DRIVEN,
            "starts": status is PlanStatus.RUNNING, "ends": status in ENDED,
        },
    )  # fmt: skip
    if result.rowcount != 1:
        return False
    await append_events(conn, [NewEvent(plan_id=move.plan_id, type=f"plan.{status}", actor=move.actor,
                                        from_state=move.expected.value, to_state=status.value, reason=move.reason,
                                        data=move.data)])  # fmt: skip
    return True


def _faults(faults: Sequence[Mapping[str, str]] | None) -> str | None:
    return None if faults is None else to_json([dict(f) for f in faults])
