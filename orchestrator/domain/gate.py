"""The rollout gate: given a plan's figures, how many of its jobs may start now, or what is to happen to it instead.

Pure: the driver asks it inside the claiming transaction, with counters read under the plan row's lock.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from orchestrator.domain.decide import Reason
from orchestrator.domain.spec import Window
from orchestrator.domain.states import FINISHED_JOB_STATES, JobState, PlanStatus
from orchestrator.domain.windows import standing, wait_for

PLACES = frozenset(
    {
        JobState.CHECKING,
        JobState.DRAINING,
        JobState.SENDING,
        JobState.RESOLVING,
        JobState.REBUILDING,
        JobState.VERIFYING,
        JobState.CONFIGURING,
    }
)
"""Jobs here take one of `max_in_flight`'s places."""


@dataclass(frozen=True, kw_only=True)
class WaveFigures:
    """One wave, with the number of its jobs in each state."""

    index: int
    name: str
    size: int
    max_errors: int | None = None
    halt_on_unresolved: bool = False
    resumed: bool = False
    bake_seconds: float = 0.0
    """How long to wait and watch once it has ended."""
    bake_until: datetime | None = None
    """When its bake is over; None: it has not begun. A promotion moves it to the present."""
    approval: bool = False
    """Whether a person must approve before the next wave."""
    approved: bool = False
    likely_seconds: float = 0.0
    """How long the whole of it is likely to take, for windows that it has to fit into."""
    counts: Mapping[JobState, int] = field(default_factory=dict)

    def count(self, *states: JobState) -> int:
        """Jobs of this wave in any of `states`."""
        return sum(self.counts.get(s, 0) for s in states)

    @property
    def failures(self) -> int:
        """Failed and stuck count; jobs, not attempts."""
        return self.count(JobState.FAILED, JobState.STUCK)

    @property
    def finished(self) -> bool:
        """No job is unfinished, backoffs included."""
        return sum(self.counts.values()) == self.count(*FINISHED_JOB_STATES)

    @property
    def begun(self) -> bool:
        """Whether anything was started for one of its jobs."""
        untouched = (JobState.PENDING, JobState.SKIPPED, JobState.REFUSED, JobState.CANCELLED)
        return sum(self.counts.values()) > self.count(*untouched)


@dataclass(frozen=True, kw_only=True)
class PlanFigures:
    """A plan as the gate sees it; `waves` in order, all of them."""

    status: PlanStatus
    current_wave: int
    waves: Sequence[WaveFigures]
    max_in_flight: int
    max_errors: int | None = None
    same_cause: int | None = None
    causes: Mapping[str, int] = field(default_factory=dict)
    """Failed and stuck jobs by fingerprint, since the last acknowledgement."""
    acknowledged_failures: int = 0
    acknowledged_unresolved: int = 0
    outside_failures: int = 0
    """Jobs without a wave that make the plan's end `failed`: refused in preparing."""
    windows: Sequence[Window] = ()
    """When work may be started; none: always."""
    rooms: Mapping[str, int] | None = None
    """How many more servers of each group may be out, by the disruption budget; None: it has none."""
    drifted: int = 0
    """Servers that changed between preparing and the first send."""
    drift_limit: int | None = None
    """How many of those are put up with; None: it was looked at already, or never is."""

    def count(self, *states: JobState) -> int:
        """Jobs of all waves in any of `states`."""
        return sum(w.count(*states) for w in self.waves)

    @property
    def in_flight(self) -> int:
        """Places taken."""
        return self.count(*PLACES)


@dataclass(frozen=True, kw_only=True)
class Start:
    """Up to `places` jobs of the waves up to `wave` may start (0: all places are taken, or none is pending)."""

    wave: int
    places: int
    rooms: Mapping[str, int] | None = None
    """Of them, no more of each group, but for servers that are out already; None: no budget."""
    until: datetime | None = None
    """The window closes then: nothing may be sent from there on."""


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Nothing may start before `until`, as its windows want it."""

    until: datetime
    reason: Reason


@dataclass(frozen=True, kw_only=True)
class Bake:
    """The current wave has ended well; it is watched until then."""

    wave: int
    until: datetime


@dataclass(frozen=True, kw_only=True)
class Ask:
    """The current wave has ended well (and baked); a person must approve before the next one."""

    wave: int


@dataclass(frozen=True, kw_only=True)
class NextWave:
    """The current wave has ended well; `wave` is the next."""

    wave: int


@dataclass(frozen=True, kw_only=True)
class Replenish:
    """The current wave ended with all its jobs skipped or refused: its places go to the next `places` jobs."""

    wave: int
    places: int


@dataclass(frozen=True, kw_only=True)
class Halt:
    """The failure policy stops the plan."""

    reason: Reason


@dataclass(frozen=True, kw_only=True)
class Finish:
    """Every job has finished."""

    status: PlanStatus


GateAnswer = Start | Wait | Bake | Ask | NextWave | Replenish | Halt | Finish


def gate(plan: PlanFigures, now: datetime) -> GateAnswer:
    """What the plan may do at `now`. Only running, baking and cancelling plans are asked about."""
    if plan.status is PlanStatus.CANCELLING:
        return _cancelling(plan)
    if reason := halts(plan):
        return Halt(reason=reason)
    so_far = [w for w in plan.waves if w.index <= plan.current_wave]
    later = [w for w in plan.waves if w.index > plan.current_wave]
    if not all(w.finished for w in so_far):
        return _start(plan, now)
    wave = so_far[-1] if so_far else None
    if wave and later and not (wave.count(JobState.SUCCEEDED) or wave.resumed):
        return _without_success(wave)
    if wave and (wave.count(JobState.SUCCEEDED) or wave.resumed):
        if wave.bake_seconds and wave.bake_until is None:
            return Bake(wave=wave.index, until=now + timedelta(seconds=wave.bake_seconds))
        if wave.bake_until is not None and now < wave.bake_until:
            return Bake(wave=wave.index, until=wave.bake_until)
        if later and wave.approval and not wave.approved:
            return Ask(wave=wave.index)
    return NextWave(wave=later[0].index) if later else Finish(status=outcome(plan))


def _start(plan: PlanFigures, now: datetime) -> Start | Wait:
    stands = standing(plan.windows, now)
    if not stands.open and stands.until is not None:
        message = f"Outside its windows: nothing is started before {_time(stands.until)}."
        return Wait(until=stands.until, reason=Reason(code="window_closed", message=message))
    wave = next((w for w in plan.waves if w.index == plan.current_wave), None)
    if wave and not wave.begun and (until := wait_for(plan.windows, now, wave.likely_seconds)):
        message = (
            f"Wave {wave.name} is likely to take {round(wave.likely_seconds / 60)} min, more than is left of this "
            f"window: it waits until {_time(until)}."
        )
        return Wait(until=until, reason=Reason(code="wave_does_not_fit", message=message))
    places = max(0, plan.max_in_flight - plan.in_flight)
    return Start(wave=plan.current_wave, places=places, rooms=plan.rooms, until=stands.until)


def _without_success(wave: WaveFigures) -> Halt | Replenish:
    if not wave.failures and not wave.count(JobState.UNRESOLVED):
        return Replenish(wave=wave.index, places=max(1, wave.size))
    message = (
        f"No server of wave {wave.name} succeeded ({wave.failures} failed or stuck, "
        f"{wave.count(JobState.UNRESOLVED)} unresolved); a wave needs at least one success."
    )
    return Halt(reason=Reason(code="wave_without_success", message=message))


def _time(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M UTC")


def halts(plan: PlanFigures) -> Reason | None:
    """Why the plan must halt, or None: thresholds count failed and stuck jobs and halt at *more than* N."""
    wave = next((w for w in plan.waves if w.index == plan.current_wave), None)
    failures = sum(w.failures for w in plan.waves) - plan.acknowledged_failures
    commonest = _commonest(plan.causes)
    if plan.drift_limit is not None and plan.drifted > plan.drift_limit:
        message = (
            f"{plan.drifted} of {sum(w.size for w in plan.waves)} servers changed since they were prepared, "
            f"{plan.drift_limit} allowed; nothing was sent. Resume leaves them out."
        )
        return Reason(code="drift", message=message)
    if wave and not wave.resumed and wave.max_errors is not None and wave.failures > wave.max_errors:
        return Reason(
            code="wave_max_errors",
            message=(f"Wave {wave.name}: {wave.failures} of {wave.size} failed, {wave.max_errors} allowed.{commonest}"),
        )
    if plan.max_errors is not None and failures > plan.max_errors:
        return Reason(
            code="max_errors",
            message=(f"{failures} of {sum(w.size for w in plan.waves)} failed, {plan.max_errors} allowed.{commonest}"),
        )
    if plan.same_cause is not None and failures > 0:
        for cause, n in plan.causes.items():
            if n >= plan.same_cause:
                return Reason(
                    code="same_cause",
                    message=(f"{n} servers failed of one cause, {cause}; same_cause is {plan.same_cause}."),
                )
    fresh = plan.count(JobState.UNRESOLVED) - plan.acknowledged_unresolved
    unresolved = min(fresh, wave.count(JobState.UNRESOLVED)) if wave else 0
    if wave and wave.halt_on_unresolved and unresolved > 0:
        return Reason(
            code="unresolved",
            message=(
                f"{unresolved} unresolved in wave {wave.name}: whether they were rebuilt can't be known; "
                "a person must settle them (rebuildctl resolve)."
            ),
        )
    return None


def _cancelling(plan: PlanFigures) -> GateAnswer:
    unfinished = sum(sum(w.counts.values()) - w.count(*FINISHED_JOB_STATES) for w in plan.waves)
    if unfinished:
        return Start(wave=plan.current_wave, places=0)
    return Finish(status=PlanStatus.CANCELLED)


def outcome(plan: PlanFigures) -> PlanStatus:
    """How a plan ends whose jobs have all finished."""
    bad = plan.count(JobState.FAILED, JobState.REFUSED, JobState.STUCK, JobState.UNRESOLVED)
    return PlanStatus.FAILED if bad or plan.outside_failures else PlanStatus.SUCCEEDED


def _commonest(causes: Mapping[str, int]) -> str:
    if not causes:
        return ""
    top = sorted(causes.items(), key=lambda item: (-item[1], item[0]))[:3]
    return " Commonest: " + ", ".join(f"{cause} ({n})" for cause, n in top) + "."
