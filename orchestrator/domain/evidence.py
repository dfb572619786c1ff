"""What became of a rebuild call whose answer proves nothing: evidence is weighed, strongest first, never guessed.

Sources: nova-facts ("Most to mind" 1 to 5, 6, outages) and cloud-api-facts 2. The order matters: what shows that the
call took effect is looked for first, in all of it, before anything may count as showing that it did not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from orchestrator.domain.causes import Cause
from orchestrator.domain.seen import SeenAction, SeenServer

MARKER = "rebuild-attempt"
"""The metadata key that says whose rebuild a server had last. Nova writes it in the transaction that takes the call."""
CLOCKS = timedelta(seconds=5)
"""How far the clocks of one cloud's services may differ: an action may be dated so much before our own mark."""


def marker_of(plan_id: UUID, number: int) -> str:
    """The marker's value for a plan's attempt: `plan id/number`. A server is in a plan once."""
    return f"{plan_id}/{number}"


def marked(value: str | None) -> tuple[UUID, int] | None:
    """The plan and the attempt's number of a marker; None for anything else."""
    plan, _, number = (value or "").partition("/")
    try:
        return UUID(plan), int(number)
    except ValueError:
        return None


@dataclass(frozen=True, kw_only=True)
class Case:
    """A call whose effect is open, as the ledger has it."""

    cause: Cause
    """Why it is open."""
    http_status: int | None = None
    request_id: str | None = None
    """The cloud's own, where its answer carried one."""
    marker: str | None = None
    """What the call wrote into the metadata; None where it was left out."""
    since: datetime | None = None
    """The cloud's clock shortly before the call."""
    user_id: str | None = None
    """Who we are to the cloud."""
    known_actions: frozenset[str] = frozenset()
    """Request ids of rebuilds of this server that are accounted for."""
    launched_before: datetime | None = None
    target_image: str = ""

    @property
    def handler_ended(self) -> bool:
        """Whether the cloud's own handler of the call is known to have ended: a 500 of Nova's carries the id of its
        request. A gateway's 502 to 504 may come while the handler still runs."""
        return self.http_status == 500 and self.request_id is not None

    @property
    def turned_away(self) -> bool:
        """A 409: not this request's effect, but perhaps that of a copy which something on the way had sent before."""
        return self.cause is Cause.BUSY


@dataclass(frozen=True, kw_only=True)
class Look:
    """One look at the server and at its actions."""

    server: SeenServer | None
    """None: the cloud says that there is no such server."""
    actions: Sequence[SeenAction] | None
    """None: the cloud doesn't offer them."""

    @property
    def healthy(self) -> bool:
        """Whether its silence may count: the server was shown, and by a cell that answers."""
        return self.server is not None and self.server.status != "UNKNOWN"


class Finding(StrEnum):
    """What one look comes to."""

    APPLIED = "applied"
    """The call took effect."""
    NOT_APPLIED = "not_applied"
    """It is proved that it did not, and can't any more."""
    NOTHING = "nothing"
    """A healthy look that shows no trace; counts only after the quiescence period."""
    OPEN = "open"
    """It can't be told: the evidence contradicts itself, or the cloud shows too little."""
    UNSEEN = "unseen"
    """The server can't be looked into just now: its cell is down, or something is under way on it."""
    GONE = "gone"
    """The cloud says that there is no such server."""


@dataclass(frozen=True, kw_only=True)
class Weighed:
    """A look's finding, with the evidence for it."""

    finding: Finding
    evidence: tuple[Mapping[str, Any], ...] = ()
    """[{kind, value}], as the ledger keeps it."""
    request_id: str | None = None
    """The call's own action, where it was found."""
    says: str = ""
    """One sentence for a person."""
    traces: bool = False
    """Something speaks for an effect, though it may not settle it: a person's "not applied" is refused."""
    certain: bool = False
    """GONE: the cloud shows the server as deleted, rather than not at all."""


def weigh(case: Case, look: Look) -> Weighed:
    """What a look proves about a call."""
    server = look.server
    if server is None:
        return Weighed(finding=Finding.GONE, evidence=({"kind": "server", "value": "404"},),
                       says="The cloud has no such server.")  # fmt: skip
    if server.status in ("DELETED", "SOFT_DELETED"):
        return Weighed(finding=Finding.GONE, evidence=(_shown(server),), certain=True,
                       says="The server was deleted.")  # fmt: skip
    evidence: list[Mapping[str, Any]] = [_shown(server)]
    candidates = own_rebuilds(case, look.actions or ())
    if look.actions is None:
        evidence.append({"kind": "actions", "value": "not offered"})
    else:
        evidence.append({"kind": "actions", "value": [a.request_id for a in candidates]})
    own = next((a.request_id for a in look.actions or () if a.request_id == case.request_id), None)
    if own is not None:
        return Weighed(finding=Finding.APPLIED, traces=True, evidence=tuple(evidence), request_id=own,
                       says=f"The cloud has an action for the call's request id {own}.")  # fmt: skip
    if case.marker is not None and server.metadata.get(MARKER) == case.marker:
        evidence.append({"kind": "marker", "value": case.marker})
        return Weighed(finding=Finding.APPLIED, traces=True, evidence=tuple(evidence),
                       request_id=candidates[0].request_id if len(candidates) == 1 else None,
                       says="The server carries the call's marker.")  # fmt: skip
    if len(candidates) == 1:
        found = candidates[0].request_id
        return Weighed(finding=Finding.APPLIED, traces=True, evidence=tuple(evidence), request_id=found,
                       says=f"The server has one rebuild of ours that nothing else accounts for: {found}.")  # fmt: skip
    if len(candidates) > 1:
        return Weighed(finding=Finding.OPEN, traces=True, evidence=tuple(evidence),
                       says=f"The server has {len(candidates)} unaccounted rebuilds of ours.")  # fmt: skip
    return _without_trace(case, look, server, tuple(evidence))


def _without_trace(case: Case, look: Look, server: SeenServer, evidence: tuple[Mapping[str, Any], ...]) -> Weighed:
    """Neither marker nor action: silence, if it is one that may count."""
    booted = server.launched_at is not None and (
        case.launched_before is None or server.launched_at > case.launched_before
    )
    if booted and look.actions is None and _same(server.image, case.target_image):
        return Weighed(finding=Finding.APPLIED, traces=True, evidence=evidence,
                       says="The server has booted anew, with the target image, since the call.")  # fmt: skip
    if booted:
        return Weighed(finding=Finding.OPEN, traces=True, evidence=evidence,
                       says="The server has booted anew since, and nothing shows whose doing that was.")  # fmt: skip
    if not look.healthy:
        return Weighed(finding=Finding.UNSEEN, evidence=evidence,
                       says=f"The server's status is {server.status}: it can't be looked into now.")  # fmt: skip
    if server.task_state is not None or server.status == "REBUILD":
        if case.turned_away and (case.marker is not None or look.actions is not None):
            return Weighed(finding=Finding.NOT_APPLIED, evidence=evidence,
                           says="The server is at something else, and it isn't this call.")  # fmt: skip
        return Weighed(finding=Finding.UNSEEN, evidence=evidence,
                       says=f"The server is at something ({server.task_state or server.status}).")  # fmt: skip
    if look.actions is not None and case.handler_ended:
        return Weighed(finding=Finding.NOT_APPLIED, evidence=(*evidence, {"kind": "request_id", "value": "no action"}),
                       says=f"The cloud ended request {case.request_id} without an action for it.")  # fmt: skip
    if case.turned_away and (case.marker is not None or look.actions is not None):
        return Weighed(finding=Finding.NOT_APPLIED, evidence=evidence,
                       says="The call was turned away, and no earlier copy of it took effect.")  # fmt: skip
    if case.marker is None and look.actions is None:
        return Weighed(finding=Finding.OPEN, evidence=evidence,
                       says="The cloud offers neither marker nor actions: its silence proves nothing.")  # fmt: skip
    return Weighed(finding=Finding.NOTHING, evidence=evidence, says="Nothing shows that the call took effect.")


def own_rebuilds(case: Case, actions: Sequence[SeenAction]) -> list[SeenAction]:
    """Rebuilds of ours since the call's mark that nothing else accounts for."""
    return [
        a
        for a in actions
        if a.action == "rebuild"
        and a.request_id not in case.known_actions
        and (case.since is None or a.start_time >= case.since - CLOCKS)
        and (a.user_id is None or case.user_id is None or a.user_id == case.user_id)
    ]


def _shown(server: SeenServer) -> Mapping[str, Any]:
    return {
        "kind": "server",
        "value": {
            "status": server.status,
            "task_state": server.task_state,
            "image": server.image,
            "launched_at": server.launched_at.isoformat() if server.launched_at else None,
            "marker": server.metadata.get(MARKER),
        },
    }


def _same(image: str | None, target: str) -> bool:
    return image is not None and image.lower() == target.lower()


class Settlement(StrEnum):
    """What is to be done about an open call."""

    WAIT = "wait"
    """Look again later."""
    APPLIED = "applied"
    """Watch it as a rebuild."""
    NOT_APPLIED = "not_applied"
    """It may be sent again, as a new attempt."""
    UNRESOLVED = "unresolved"
    """A person decides."""
    GONE = "gone"
    """The server was deleted."""


NEEDED_LOOKS = 2
"""Healthy looks without a trace, after the quiescence period, before silence counts."""
NEEDED_404 = 4
"""Looks that all say "no such server" before that is believed: one alone may be a gateway's mistake."""


@dataclass(frozen=True, kw_only=True)
class Open:
    """How far the settling of one call has come. Times by the database's clock."""

    quiet_at: datetime
    """From then on the call can't take effect any more."""
    deadline_at: datetime
    """From then on a person is asked, though the server can't be looked into."""
    resend: bool = False
    """Whether the cloud's settings allow to send again what shows no trace."""
    looks: int = 0
    """Looks of one kind in a row: without a trace after the quiescence period, or that found no such server."""
    kind: Finding | None = None
    """Of which kind."""

    def counted(self, finding: Finding | None) -> "Open":
        """One more look of that kind; None begins anew."""
        looks = self.looks + 1 if finding is not None and finding is self.kind else int(finding is not None)
        return replace(self, looks=looks, kind=finding)


def settle(open_: Open, weighed: Weighed, now: datetime) -> tuple[Settlement, Open]:
    """What a look leads to, and what is to be remembered of it."""
    quiet = now >= open_.quiet_at
    match weighed.finding:
        case Finding.APPLIED:
            return Settlement.APPLIED, open_.counted(None)
        case Finding.NOT_APPLIED:
            return Settlement.NOT_APPLIED, open_.counted(None)
        case Finding.GONE:
            kept = open_.counted(Finding.GONE)
            believed = weighed.certain or (quiet and kept.looks >= NEEDED_404)
            return (Settlement.GONE if believed else Settlement.WAIT), kept
        case Finding.NOTHING if quiet:
            kept = open_.counted(Finding.NOTHING)
            if kept.looks < NEEDED_LOOKS:
                return Settlement.WAIT, kept
            return (Settlement.NOT_APPLIED if open_.resend else Settlement.UNRESOLVED), kept
        case Finding.OPEN if quiet:  # never sent again by itself, whatever the settings say
            kept = open_.counted(Finding.OPEN)
            return (Settlement.UNRESOLVED if kept.looks >= NEEDED_LOOKS else Settlement.WAIT), kept
        case Finding.UNSEEN if now >= max(open_.quiet_at, open_.deadline_at):
            return Settlement.UNRESOLVED, open_.counted(None)
        case _:
            return Settlement.WAIT, open_.counted(None)
