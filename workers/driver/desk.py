"""What the driver's modules share while it drives one project."""

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from ipaddress import IPv4Address, IPv6Address
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from orchestrator.clouds.config import CloudSettings
from orchestrator.clouds.pacing import Limiter, LocalPace
from orchestrator.clouds.protocol import Cloud, Server
from orchestrator.domain.completion import Expected
from orchestrator.domain.decide import FailurePolicy, Happened, Reason, Tried, decide
from orchestrator.domain.evidence import Case, Open
from orchestrator.domain.hooks import HookDue
from orchestrator.domain.probing import Course, Standing, label_of
from orchestrator.domain.request import METADATA_ITEMS
from orchestrator.domain.spec import PlanSpec, Window
from orchestrator.domain.spec.extras import TcpProbe
from orchestrator.domain.states import FINAL_PLAN_STATUSES, JobState, PlanStatus
from orchestrator.domain.verdict import Limits
from orchestrator.ledger.drive import ClaimedJob, DrivenPlan, Ownership
from orchestrator.ledger.transitions import AttemptAnswer, JobChange, JobKey
from workers.driver.breaker import Breaker
from workers.driver.lease import LeaseKeeper
from workers.driver.mirror import Mirror
from workers.driver.record import Recorder


@dataclass(frozen=True, kw_only=True)
class LivePlan:
    """A plan that is being driven, with its spec parsed once."""

    row: DrivenPlan
    spec: PlanSpec
    policy: FailurePolicy
    waves: int
    settings: CloudSettings
    """Of the cloud that the plan names; another name of the same project may have others."""
    limits: Limits
    """What that cloud's settings refuse."""
    pace: LocalPace | None
    """The plan's own `rate`, where it goes below the cloud's."""

    @property
    def running(self) -> bool:
        """Whether new work may be claimed for it."""
        return self.row.status is PlanStatus.RUNNING

    @property
    def windows(self) -> Sequence[Window]:
        """When work may be started; none: always."""
        return self.spec.schedule.windows if self.spec.schedule else ()


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A job that may be sent: what it was checked against, and the body that will go."""

    job: ClaimedJob
    server: Server
    baseline: Mapping[str, Any]
    body: bytes
    body_sha256: str
    reimage: bool
    epoch: int
    """The plan's `go_epoch` that it was checked under."""


@dataclass(kw_only=True)
class Watched:
    """A server whose rebuild the cloud accepted."""

    job: ClaimedJob
    state: JobState
    expected: Expected
    request_id: str | None
    accepted_at: float
    """`time.monotonic()` of the 202 (of the takeover, for one that another driver sent)."""
    deadline_at: datetime
    canary: bool = False
    measured: bool = True
    """Whether its duration says how long rebuilds take: not, where the call's time is not known well."""
    due: bool = False
    """A look of its own is due whatever the lists show: it may have ended before it was known to have begun."""
    looked_at: float = float("-inf")
    looking: bool = False


@dataclass(kw_only=True)
class ProbeRun:
    """One probe of one server, under way."""

    probe: TcpProbe
    course: Course
    address: IPv4Address | IPv6Address | None = None
    """Where the last try went; None: the server has none such."""
    refused: str | None = None
    """Why its address must not be called."""

    @property
    def failed(self) -> bool:
        """Whether it can't succeed any more."""
        return self.refused is not None or self.course.standing is Standing.FAILED

    @property
    def reason(self) -> Reason:
        """Why it failed: probe, address and last error."""
        label = label_of(self.probe)
        if self.refused is not None:
            return Reason(code="probe_address_refused", message=f"Probe {label} was not sent: {self.refused}.")
        if self.address is None:
            return Reason(code="probe_no_address", message=f"Probe {label} {self.course.says}.")
        return Reason(code="probe_failed", message=f"Probe {label} at {self.address} {self.course.says}.")

    @property
    def fingerprint(self) -> str:
        """Its class and code."""
        label = f"probe:{label_of(self.probe)}"
        if self.refused is not None:
            return f"{label}:address_refused"
        return f"{label}:no_address" if self.address is None else label


@dataclass(kw_only=True)
class Verifying:
    """A rebuilt server whose probes run."""

    job: ClaimedJob
    """Its `attempt` is the one that is verified."""
    runs: Sequence[ProbeRun]
    waits: bool = False
    """For its probes to be started."""


@dataclass(kw_only=True)
class OpenCall:
    """A call whose effect is not known: `resolving`, or `unresolved` until a person or its effect settles it."""

    job: ClaimedJob
    state: JobState
    number: int
    case: Case
    open: Open
    sent_at: datetime
    next_look: float
    """`time.monotonic()`; infinite: only for a trace in the mirror."""
    pause: float = 0.5
    looking: bool = False
    noted: tuple[Mapping[str, Any], ...] = ()
    """What is in the ledger already."""
    seen_at: float = float("-inf")
    trace: object = None


@dataclass(frozen=True, kw_only=True)
class Drifted:
    """What a plan's servers changed between preparing and the look before its first send."""

    looked_at: float
    """`time.monotonic()`, before the read."""
    changed: Sequence[tuple[str, str]]
    """Server id, and what changed, in words."""


@dataclass
class Waits:
    """What time itself will change for the gate."""

    closes: dict[UUID, datetime] = field(default_factory=dict)
    """When a plan's window closes, where it has one and it is open."""
    next: datetime | None = None
    """When the gate is to be asked again: a bake ends, a window opens or closes."""

    def until(self, at: datetime) -> None:
        """Ask again then, at the latest."""
        self.next = at if self.next is None else min(self.next, at)


@dataclass
class Desk:
    """One project's state in memory. Everything here can be lost: the ledger has it."""

    engine: AsyncEngine
    cloud: Cloud
    settings: CloudSettings
    own: Ownership
    limits: Limits
    lease: LeaseKeeper
    limiter: Limiter
    mirror: Mirror
    recorder: Recorder
    plans: dict[UUID, LivePlan] = field(default_factory=dict)
    ready: deque[Checked] = field(default_factory=deque)
    """Checked jobs that wait for a permit."""
    unchecked: deque[ClaimedJob] = field(default_factory=deque)
    """Claimed jobs that wait for their check."""
    watched: dict[str, Watched] = field(default_factory=dict)
    """By server id."""
    open: dict[str, OpenCall] = field(default_factory=dict)
    """By server id."""
    verifying: dict[str, Verifying] = field(default_factory=dict)
    """By server id: those whose plan has probes."""
    probes_wanted: asyncio.Event = field(default_factory=asyncio.Event)
    """Something in `verifying` waits for its probes to begin."""
    claimed: set[JobKey] = field(default_factory=set)
    """Jobs that are `checking` or `sending` by this driver's doing. Any other such job is an orphan: the COMMIT of its
    claim got no answer."""
    breaker: Breaker = field(default_factory=Breaker)
    reconciling: Reason | None = None
    """Why nothing is claimed or sent yet: another database answers than the ledger was last known to be true on."""
    reload_wanted: bool = False
    """The ledger has moved jobs that this driver doesn't have in memory yet."""
    lowered: dict[UUID, float] = field(default_factory=dict)
    """Plans whose `max_in_flight` was lowered: `time.monotonic()` of it. What was claimed before goes back."""
    orphans: bool = False
    """A claim's COMMIT got no answer: jobs may be `checking` that nobody has."""
    metadata_items: int = METADATA_ITEMS
    """Metadata items that a server may have here: Nova's usual quota, until the cloud says another."""
    posting: int = 0
    """Calls that are being sent."""
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    """Something may be claimed."""
    waits: Waits = field(default_factory=Waits)
    drifts: dict[UUID, Drifted] = field(default_factory=dict)
    """By plan, where it was looked for."""
    filled: asyncio.Event = field(default_factory=asyncio.Event)
    """Something is to be checked or sent."""
    stopping: bool = False
    """Nothing new is claimed or sent."""
    rebuild_seconds: float | None = None
    """Learned: about how long a rebuild takes."""
    api_url: str = ""
    """Where this service is reached from outside, without a slash at its end."""
    loopback: bool = False
    """Whether plans may have this machine itself called: all the service is on it."""

    def shows_addresses(self, server_id: str) -> bool:
        """Whether the mirror is to keep a server's addresses: its probes run, or will as soon as it is rebuilt."""
        if server_id in self.verifying:
            return True
        watched = self.watched.get(server_id)
        plan = self.plans.get(watched.job.plan_id) if watched else None
        return plan is not None and bool(plan.spec.verify)

    async def happen(
        self, job: ClaimedJob, state: JobState, happened: Happened, *,
        answer: AttemptAnswer | None = None, data: Mapping[str, Any] | None = None, actor: str = "driver",
        hook: HookDue | None = None,
    ) -> JobState:  # fmt: skip
        """Decides what becomes of a job and queues it for the ledger; its new state."""
        plan = self.plans.get(job.plan_id)
        policy = plan.policy if plan else FailurePolicy()
        if plan and plan.row.status in FINAL_PLAN_STATUSES:
            policy = replace(policy, rebuild_again=0)  # an ended plan claims nothing: it runs on by a person's word
        tried = Tried(refusals=job.refusals, rebuilt_again=job.rebuilt_again, policy=policy)
        decision = decide(state, happened, self.lease.now(), tried)
        await self.recorder.put(
            JobChange(plan_id=job.plan_id, ord=job.ord, server_id=job.server_id, expected=state, decision=decision,
                      actor=actor, answer=answer, data=data, hook=hook)
        )  # fmt: skip
        return decision.state
