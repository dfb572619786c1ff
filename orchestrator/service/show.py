"""From the ledger's rows to what is answered."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.estimate import estimate
from orchestrator.domain.states import FINISHED_JOB_STATES, IN_FLIGHT_JOB_STATES, JobState, PlanStatus, Verdict
from orchestrator.ledger.events import EventRecord
from orchestrator.ledger.jobs import JobRecord
from orchestrator.ledger.plans import Counts as LedgerCounts
from orchestrator.ledger.plans import PlanRecord, WaveRecord, job_counts, wave_records
from orchestrator.service.deps import Deps
from orchestrator.service.views import (
    ApprovalView,
    Counts,
    EtaView,
    EventView,
    FaultView,
    JobView,
    PlanView,
    RateView,
    ReasonView,
    WaveView,
)

EXPIRING = frozenset({PlanStatus.READY, PlanStatus.AWAITING_APPROVAL})
"""Plans that a person must do something about in time."""

SENDING = frozenset({PlanStatus.RUNNING, PlanStatus.BAKING, PlanStatus.CANCELLING})
"""Plans whose rate is worth showing."""

FORESEEABLE = frozenset(
    {PlanStatus.READY, PlanStatus.SCHEDULED, PlanStatus.AWAITING_APPROVAL, PlanStatus.RUNNING, PlanStatus.BAKING}
)
"""Plans whose end can be estimated: nobody has stopped them."""


async def plan_views(deps: Deps, conn: AsyncConnection, records: Sequence[PlanRecord]) -> list[PlanView]:
    """The plans as they are answered: three statements, however many there are."""
    ids = [r.id for r in records]
    counts = await job_counts(conn, ids)
    waves = await wave_records(conn, ids)
    rates = {cloud: await deps.clouds.write_rate(cloud) for cloud in {r.cloud for r in records}}
    now = datetime.now(UTC)
    return [
        _plan(r, counts[r.id], waves[r.id], url=f"{deps.api_url}/plans/{r.id}", configured_rate=rates[r.cloud], now=now)
        for r in records
    ]


def job_fields(r: JobRecord) -> JobView:
    """A job as it is listed."""
    return JobView(
        server_id=r.server_id, name=r.name, state=JobState(r.state), verdict=Verdict(r.verdict) if r.verdict else None,
        reason=reason_view(r.reason_code, r.reason_message), wave=r.wave, attempts=r.attempts,
        previous_image=r.previous_image, target_image=r.target_image, zone=r.zone, updated_at=r.updated_at,
    )  # fmt: skip


def event_view(r: EventRecord) -> EventView:
    """An event as it is answered."""
    return EventView(
        seq=r.seq, at=r.at, plan_id=r.plan_id, server_id=r.server_id, type=r.type, from_=r.from_state, to=r.to_state,
        actor=r.actor, reason=reason_view(r.reason_code, r.reason_message), data=r.data,
    )  # fmt: skip


def reason_view(code: str | None, message: str | None) -> ReasonView | None:
    """A reason, where there is one."""
    return None if code is None else ReasonView(code=code, message=message or "")


def cloud_paused(by: str | None, why: str | None) -> ReasonView:
    """Why a running plan sends nothing, by the emergency stop of its cloud."""
    return ReasonView(
        code="cloud_paused", message=f"{by or 'Somebody'} has paused its cloud: {why or 'no reason given'}"
    )


def _plan(
    r: PlanRecord, counts: LedgerCounts, waves: Sequence[WaveRecord], *, url: str, configured_rate: float | None,
    now: datetime,
) -> PlanView:  # fmt: skip
    status = PlanStatus(r.status)
    limiter = r.limiter or {}
    allowed = _least(r.rate, limiter.get("allowed"), r.learned_write_rate, configured_rate)
    all_counts = _counts(counts.values())
    reason = reason_view(r.reason_code, r.reason_message)
    if r.cloud_paused and status in SENDING:
        reason = cloud_paused(r.paused_by, r.paused_reason)
    if reason is None and status in SENDING:
        reason = reason_view(r.trouble_code, r.trouble_message)
    return PlanView(
        id=r.id, name=r.name, cloud=r.cloud, status=status, reason=reason,
        digest=r.digest, url=url, labels=r.labels, created_by=r.created_by, created_at=r.created_at,
        started_at=r.started_at, finished_at=r.finished_at, start_at=r.start_at,
        expires_at=r.expires_at if status in EXPIRING else None, counts=all_counts,
        waves=[
            _wave(w, _counts([counts.get(w.index, {})]), current=r.current_wave, status=status, last=w is waves[-1])
            for w in waves
        ],
        rate=RateView(allowed_per_second=allowed, used_per_second=limiter.get("used_per_second") or 0.0)
        if status in SENDING else RateView(),
        eta=_eta(r, all_counts, waves, rate=allowed, now=now) if status in FORESEEABLE else None,
        max_in_flight=r.max_in_flight, errors=[FaultView.model_validate(f) for f in r.faults or ()],
        rollback_of=r.rollback_of,
    )  # fmt: skip


def _eta(
    r: PlanRecord, counts: Counts, waves: Sequence[WaveRecord], *, rate: float | None, now: datetime
) -> EtaView | None:
    left = [w for w in waves if w.index >= r.current_wave]
    bakes = sum(w.bake_seconds if w.bake_until is None else (w.bake_until - now).total_seconds() for w in left
                if w.bake_until is None or w.bake_until > now)  # fmt: skip
    found = estimate(
        now=max(now, r.start_at or now), waiting=counts.pending + counts.checking,
        in_flight=sum(getattr(counts, s.value) for s in IN_FLIGHT_JOB_STATES),
        waves_left=len(left), rate=rate, max_in_flight=r.max_in_flight,
        rebuild_seconds=r.learned_rebuild_seconds, bake_seconds=bakes,
        budget_places=r.budget_places,
    )  # fmt: skip
    return None if found is None else EtaView(finish_at=found.finish_at, limited_by=found.limited_by)


def _wave(w: WaveRecord, counts: Counts, *, current: int, status: PlanStatus, last: bool) -> WaveView:
    over = w.finished_at is not None or (
        w.started_at is not None and counts.total == sum(getattr(counts, s.value) for s in FINISHED_JOB_STATES)
    )
    if w.index == current and status in (PlanStatus.BAKING, PlanStatus.AWAITING_APPROVAL) and w.started_at is not None:
        shown = status.value
    elif over:
        shown = "finished"
    else:
        shown = "pending" if w.started_at is None else "running"
    approval = ApprovalView(
        needed=w.approval and not last, approved_by=w.approved_by, approved_at=w.approved_at,
    )  # fmt: skip
    return WaveView(index=w.index, name=w.name, size=w.size, status=shown, counts=counts, bake_until=w.bake_until,
                    approval=approval)  # fmt: skip


def _counts(waves: Iterable[Mapping[str, int]]) -> Counts:
    sums: dict[str, int] = {}
    for states in waves:
        for state, n in states.items():
            sums[state] = sums.get(state, 0) + n
    return Counts(total=sum(sums.values()), **sums)


def _least(*rates: float | None) -> float | None:
    return min((r for r in rates if r is not None), default=None)
