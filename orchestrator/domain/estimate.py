"""How long a plan is likely to take, from rate, places and what rebuilds usually take."""

from dataclasses import dataclass
from datetime import datetime, timedelta

USUAL_REBUILD_SECONDS = 120.0
"""A first guess, where no rebuild of this project was measured yet."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The likely end, and what keeps it from being sooner: `rate`, `max_in_flight` or `max_unavailable`."""

    finish_at: datetime
    limited_by: str


def wave_seconds(jobs: int, *, rate: float | None, places: int, rebuild_seconds: float | None) -> float:
    """Seconds that a wave of so many jobs is likely to take; `rate` in calls per second. It ends with its slowest."""
    seconds = rebuild_seconds or USUAL_REBUILD_SECONDS
    by_rate = jobs / rate if rate else 0.0
    return max(by_rate, jobs * seconds / max(1, places)) + seconds if jobs else 0.0


def estimate(
    *, now: datetime, waiting: int, in_flight: int, waves_left: int, rate: float | None, max_in_flight: int | None,
    rebuild_seconds: float | None, bake_seconds: float = 0.0, budget_places: int | None = None,
) -> Estimate | None:  # fmt: skip
    """The likely end of a plan with `waiting` jobs to send and `in_flight` under way; None where it can't be told.

    `rate` in calls per second. Each wave that is left adds one rebuild's time, since it ends with its slowest job, and
    `bake_seconds` are all bakes that are left; approvals are not foreseen. `budget_places`: how many of all its groups
    together may be out by its disruption budget; None: it has none.
    """
    if not rate or not max_in_flight or not waiting + in_flight:
        return None
    seconds = rebuild_seconds or USUAL_REBUILD_SECONDS
    by_rate = waiting / rate
    tight = budget_places is not None and 0 < budget_places < max_in_flight
    by_places = waiting * seconds / (budget_places if tight and budget_places else max_in_flight)
    whole = max(by_rate, by_places) + max(1, waves_left) * seconds + bake_seconds
    limited_by = "rate" if by_rate >= by_places else "max_unavailable" if tight else "max_in_flight"
    return Estimate(finish_at=now + timedelta(seconds=round(whole)), limited_by=limited_by)
