"""When a plan is likely to have finished."""

from dataclasses import dataclass
from datetime import datetime, timedelta

USUAL_REBUILD_SECONDS = 120.0
"""A first guess, where no rebuild of this project was measured yet."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The likely end, and what keeps it from being sooner: `rate` or `max_in_flight`."""

    finish_at: datetime
    limited_by: str


def estimate(
    *, now: datetime, waiting: int, in_flight: int, waves_left: int, rate: float | None, max_in_flight: int | None,
    rebuild_seconds: float | None,
) -> Estimate | None:  # fmt: skip
    """The likely end of a plan with `waiting` jobs to send and `in_flight` under way; None where it can't be told.

    `rate` in calls per second. Each wave that is left adds one rebuild's time, since it ends with its slowest job;
    bake times and approvals are not foreseen.
    """
    if not rate or not max_in_flight or not waiting + in_flight:
        return None
    seconds = rebuild_seconds or USUAL_REBUILD_SECONDS
    by_rate = waiting / rate
    by_places = waiting * seconds / max_in_flight
    whole = max(by_rate, by_places) + max(1, waves_left) * seconds
    limited_by = "rate" if by_rate >= by_places else "max_in_flight"
    return Estimate(finish_at=now + timedelta(seconds=round(whole)), limited_by=limited_by)
