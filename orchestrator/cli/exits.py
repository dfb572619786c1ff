"""What rebuildctl's exit codes mean, and which one a plan's end gets."""

from collections.abc import Iterable
from enum import IntEnum

from orchestrator.client import ApiProblem, Plan
from orchestrator.domain.states import PlanStatus


class Exit(IntEnum):
    """rebuildctl's exit codes."""

    OK = 0
    """Done; a waited-for plan succeeded."""
    FAILED = 1
    """Failed or halted, or stuck or unresolved servers are left."""
    BAD_INPUT = 2
    """Bad usage, a bad spec, or the plan was rejected."""
    TIMED_OUT = 3
    """The wait timed out; the plan goes on."""
    WAITS_FOR_PERSON = 4
    """The wait timed out on a plan that is paused or awaits approval."""
    CANCELLED = 5
    """The plan was cancelled."""
    UNREACHABLE = 6
    """The API is out of reach."""
    NOT_ALLOWED = 7
    """The token is unknown, or its role doesn't allow that."""
    REFUSALS = 8
    """`preview`: some servers are refused."""
    INTERNAL = 70
    """A fault of rebuildctl itself."""
    INTERRUPTED = 130
    """Ctrl-C, or a TERM."""


def exit_of(plan: Plan) -> Exit:
    """For a plan as it stood when the waiting ended."""
    match plan.status:
        case PlanStatus.SUCCEEDED:
            return Exit.OK
        case PlanStatus.FAILED | PlanStatus.HALTED:
            return Exit.FAILED
        case PlanStatus.REJECTED | PlanStatus.EXPIRED:
            return Exit.BAD_INPUT
        case PlanStatus.CANCELLED:
            return Exit.CANCELLED
        case PlanStatus.PAUSED | PlanStatus.AWAITING_APPROVAL:
            return Exit.WAITS_FOR_PERSON
        case _:
            return Exit.TIMED_OUT


_GRAVITY = (
    Exit.FAILED,
    Exit.BAD_INPUT,
    Exit.NOT_ALLOWED,
    Exit.UNREACHABLE,
    Exit.CANCELLED,
    Exit.WAITS_FOR_PERSON,
    Exit.TIMED_OUT,
)


def gravest(codes: Iterable[Exit]) -> Exit:
    """The one that several waited-for plans get together."""
    given = set(codes)
    return next((code for code in _GRAVITY if code in given), Exit.OK)


def exit_of_problem(problem: ApiProblem) -> Exit:
    """For an answer of the API that is no success."""
    if problem.status in (401, 403):
        return Exit.NOT_ALLOWED
    if 400 <= problem.status < 500 and problem.status != 429:
        return Exit.BAD_INPUT
    return Exit.UNREACHABLE
