"""Has a rebuild ended, and how? ACTIVE with the new image proves nothing: the API writes the image before it answers
(nova-facts, "Most to mind" 1). The proof is a moved `launched_at`, or the action of the call itself."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from orchestrator.domain.decide import Reason
from orchestrator.domain.seen import SeenAction, SeenServer


@dataclass(frozen=True, kw_only=True)
class Expected:
    """How the server should look when it is done."""

    status: str
    """ACTIVE, or SHUTOFF for a server that was SHUTOFF."""
    image: str
    launched_before: datetime | None
    """`launched_at` of the baseline."""
    accepted_at: datetime | None
    """The `Date` of the 202, by the cloud's clock."""


class Sight(StrEnum):
    """What one look at a list tells."""

    UNDER_WAY = "under_way"
    """Still at it."""
    DONE = "done"
    """Attested by task state, status, image and a new boot."""
    LOOK = "look"
    """Neither: it needs a read of its own and a look at the call's action."""


class Ending(StrEnum):
    """What a look of its own tells."""

    UNDER_WAY = "under_way"
    """No verdict yet."""
    DONE = "done"
    """Rebuilt."""
    FAILED = "failed"
    """Failed for good."""
    GONE = "gone"
    """The server was deleted."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The end of a rebuild, with reason and fingerprint where it failed."""

    ending: Ending
    reason: Reason | None = None
    fingerprint: str | None = None
    final: bool = False
    """The call's own action has ended: nothing of it is still to come."""


def sight(expected: Expected, server: SeenServer) -> Sight:
    """What a list's view of the server, read after the 202, tells."""
    if server.task_state is not None:
        return Sight.UNDER_WAY
    if server.status == expected.status and _image_is(expected, server) and _booted_anew(expected, server):
        return Sight.DONE
    return Sight.LOOK


def judge(expected: Expected, server: SeenServer | None, action: SeenAction | None) -> Judgement:
    """The verdict of a read of the server itself (None: 404) and of the call's action (None: not to be had)."""
    if server is None or server.status in ("DELETED", "SOFT_DELETED"):
        return Judgement(
            ending=Ending.GONE,
            fingerprint="server_deleted",
            reason=Reason(code="server_deleted", message="The server was deleted during its rebuild."),
        )
    if action is not None and action.failed:
        return _failed(expected, server, action)
    if server.task_state is not None or server.status in ("UNKNOWN", "REBUILD"):
        return Judgement(ending=Ending.UNDER_WAY)
    attested = action.succeeded if action is not None else _booted_anew(expected, server)
    if not attested:
        return Judgement(ending=Ending.UNDER_WAY)
    if not _image_is(expected, server):
        return Judgement(
            ending=Ending.FAILED,
            fingerprint="wrong_image",
            reason=Reason(
                code="wrong_image", message=f"The rebuild ended, but the server's image is {server.image or 'none'}."
            ),
            final=action is not None,
        )
    if server.status != expected.status:
        if server.status == "ERROR":
            return _failed(expected, server, action)
        return Judgement(ending=Ending.UNDER_WAY)
    return Judgement(ending=Ending.DONE)


def _failed(expected: Expected, server: SeenServer, action: SeenAction | None) -> Judgement:
    """The action's own word is Error; where the guest is untouched, say so (nova-facts, 11)."""
    if server.status == "ERROR" and not _image_is(expected, server):
        disk = "the image was rolled back and the disk is untouched"
        kind = "not_scheduled"
    elif server.task_state is not None:
        disk = "its order failed and the disk is untouched, but the server stays so until an administrator resets it"
        kind = "left_in_rebuild"
    elif server.status != "ERROR" and not _booted_anew(expected, server):
        disk = "the host gave up before it touched the disk, which still holds the old system whatever the image says"
        kind = "failed_early"
    else:
        disk = "the disk is most likely gone"
        kind = "failed_on_host"
    fault = f"{server.fault_message} " if server.fault_message else ""
    return Judgement(
        ending=Ending.FAILED,
        fingerprint=f"{kind}:{server.fault_code or 0}",
        final=action is not None and (action.failed or action.succeeded),
        reason=Reason(code=f"rebuild_{kind}", message=f"{fault}(status {server.status}; {disk})"),
    )


def _image_is(expected: Expected, server: SeenServer) -> bool:
    # Nova keeps an id in the case in which it was sent.
    return server.volume_booted or (server.image or "").lower() == expected.image.lower()


def _booted_anew(expected: Expected, server: SeenServer) -> bool:
    launched = server.launched_at
    if launched is None:
        return False
    after_baseline = expected.launched_before is None or launched > expected.launched_before
    after_call = expected.accepted_at is None or launched >= expected.accepted_at.replace(microsecond=0)
    return after_baseline and after_call
