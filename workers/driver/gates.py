"""Carrying out what the rollout gate says, but for claims: waves, bakes, approvals, windows, halts and ends."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.decide import Reason
from orchestrator.domain.estimate import wave_seconds
from orchestrator.domain.gate import (
    Ask,
    Bake,
    Finish,
    GateAnswer,
    Halt,
    NextWave,
    PlanFigures,
    Replenish,
    Start,
    Wait,
    WaveFigures,
)
from orchestrator.domain.states import JobState, PlanStatus
from orchestrator.ledger import waves
from orchestrator.ledger.drive import DrivenPlan
from orchestrator.ledger.plans import expire_at, note_waiting
from orchestrator.ledger.transitions import PlanMove, move_plan
from orchestrator.log import get_logger
from workers.driver.desk import Desk, LivePlan, Waits

log = get_logger(__name__)

WAITING = frozenset({"window_closed", "wave_does_not_fit"})
"""Reasons of a running plan that its windows keep from starting anything."""


NAMED = 5
"""How many of the servers that changed the halted plan's reason names."""


def with_limits(desk: Desk, figures: Mapping[UUID, PlanFigures]) -> dict[UUID, PlanFigures]:
    """The figures with what the driver knows besides the counters: windows, and how long waves are likely to take."""
    return {i: _with_limits(desk, desk.plans[i], f) if i in desk.plans else f for i, f in figures.items()}


def _with_limits(desk: Desk, plan: LivePlan, figures: PlanFigures) -> PlanFigures:
    if not plan.windows:
        return figures
    rate = min(desk.limiter.learned_rate, plan.row.rate or float("inf"))

    def likely(wave: WaveFigures) -> float:
        return wave_seconds(wave.size, rate=rate, places=figures.max_in_flight, rebuild_seconds=desk.rebuild_seconds)

    timed = [replace(w, likely_seconds=likely(w)) for w in figures.waves]
    return replace(figures, windows=plan.windows, waves=timed)


async def carry_out(
    conn: AsyncConnection, plan: DrivenPlan, figures: PlanFigures, answer: GateAnswer, *, waits: Waits,
    approval_seconds: float, drifted: dict[str, Any] | None = None,
) -> bool:  # fmt: skip
    """Does what the gate says; True: ask it again. The plan's row is locked."""
    match answer:
        case Start():
            return await _go_on(conn, waits, plan, figures, answer)
        case Wait(until=until, reason=reason):
            waits.closes.pop(plan.id, None)
            waits.until(until)
            if (plan.reason_code, plan.reason_message) != (reason.code, reason.message):
                await note_waiting(conn, plan.id, reason, stop_sending=plan.reason_code not in WAITING)
            return False
        case Bake(wave=wave, until=until):
            waits.until(until)
            if plan.status is PlanStatus.RUNNING:
                await waves.begin_bake(conn, plan.id, wave, until)
                name = _name(figures, wave)
                message = f"Wave {name} has ended; it is watched until {until:%Y-%m-%d %H:%M:%S} UTC."
                await move_plan(conn, move_of(plan, PlanStatus.BAKING, reason=Reason(code="baking", message=message),
                                              data={"wave": name}))  # fmt: skip
            return False
        case Ask(wave=wave):
            name = _name(figures, wave)
            await expire_at(conn, plan.id, approval_seconds)
            reason = Reason(code="approval_needed", message=f"Wave {name} has ended; the next one needs an approval.")
            await move_plan(conn, move_of(plan, PlanStatus.AWAITING_APPROVAL, reason=reason, data={"wave": name}))
            return False
        case NextWave(wave=wave):
            await waves.enter_wave(conn, plan.id, wave)
            await move_plan(conn, move_of(plan, PlanStatus.RUNNING, data={"wave": _name(figures, wave)}))
            return True
        case Replenish(wave=wave, places=places):
            if not await waves.replenish_wave(conn, plan.id, wave, places):
                later = min(w.index for w in figures.waves if w.index > wave)
                await waves.enter_wave(conn, plan.id, later)
            return True
        case Halt(reason=reason):
            if reason.code == "drift" and drifted:
                reason = replace(reason, message=f"{reason.message} {_first(drifted['servers'])}")
            await move_plan(conn, move_of(plan, PlanStatus.HALTED, reason=reason, stop_sending=True,
                                          data=drifted if reason.code == "drift" else None))  # fmt: skip
            log.warning("plan_halted", plan=str(plan.id), reason=reason.code, message=reason.message)
            return False
        case Finish(status=status):
            if plan.status is PlanStatus.BAKING:
                await move_plan(conn, move_of(plan, PlanStatus.RUNNING))
                return True
            await waves.enter_wave(conn, plan.id, max((w.index for w in figures.waves), default=-1) + 1)
            await move_plan(conn, move_of(plan, status, reason=finish_reason(figures, status)))
            log.info("plan_finished", plan=str(plan.id), status=status.value)
            return False


async def _go_on(conn: AsyncConnection, waits: Waits, plan: DrivenPlan, figures: PlanFigures, answer: Start) -> bool:
    """A job of the current waves is unfinished: a wave that baked has to end once more, a window has opened."""
    if plan.status is PlanStatus.BAKING:
        current = [w for w in figures.waves if w.index <= figures.current_wave]
        if not sum(w.count(JobState.PENDING) for w in current):
            return False
        await waves.reopen_wave(conn, plan.id)
        await move_plan(conn, move_of(plan, PlanStatus.RUNNING, data={"wave": _name(figures, figures.current_wave)}))
        return True
    if plan.reason_code in WAITING:
        await note_waiting(conn, plan.id, None)
    if answer.until is not None:
        waits.closes[plan.id] = answer.until
        waits.until(answer.until)
    else:
        waits.closes.pop(plan.id, None)
    return False


def _first(servers: Sequence[Mapping[str, str]]) -> str:
    shown = "; ".join(f"{s['server_id']}: {s['what']}" for s in servers[:NAMED])
    return f"They are {shown}." if len(servers) <= NAMED else f"The first: {shown}; the event has them all."


def _name(figures: PlanFigures, wave: int) -> str:
    return next(w.name for w in figures.waves if w.index == wave)


def move_of(
    plan: DrivenPlan, status: PlanStatus, *, reason: Reason | None = None, stop_sending: bool = False,
    data: dict[str, Any] | None = None,
) -> PlanMove:  # fmt: skip
    """The driver's move of a plan."""
    return PlanMove(plan_id=plan.id, expected=plan.status, status=status, actor="driver", reason=reason,
                    stop_sending=stop_sending, data=data)  # fmt: skip


def finish_reason(figures: PlanFigures, status: PlanStatus) -> Reason | None:
    """What a plan that ends `failed` says."""
    if status is not PlanStatus.FAILED:
        return None
    kinds = (JobState.FAILED, JobState.REFUSED, JobState.STUCK, JobState.UNRESOLVED)
    counts = {s: figures.count(s) for s in kinds}
    counts[JobState.REFUSED] += figures.outside_failures
    said = ", ".join(f"{n} {s.value}" for s, n in counts.items() if n)
    return Reason(code="jobs_not_done", message=f"Finished with {said}.")
