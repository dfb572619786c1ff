"""Maintenance windows: when new work may start. Local times of a zone, with its daylight saving.

A time that comes twice, when the clocks go back, counts the first time; one that is left out, when they go forward,
counts as many minutes later as the clocks were moved, so that a window keeps its length.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from orchestrator.domain.spec import Window

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
AHEAD_DAYS = 9
"""A week has every window once; one more day on each side for those past midnight and for the zones."""


@dataclass(frozen=True, kw_only=True, order=True)
class Opening:
    """A time in which calls may be sent: from `opens` up to, and without, `closes`. Both in UTC."""

    opens: datetime
    closes: datetime

    @property
    def seconds(self) -> float:
        """Its length."""
        return (self.closes - self.opens).total_seconds()


def openings(windows: Sequence[Window], now: datetime) -> list[Opening]:
    """The present opening, if any, and all of the week to come, in order; those that touch are one."""
    found = sorted(o for w in windows for o in _of(w, now) if o.closes > now)
    merged: list[Opening] = []
    for opening in found:
        if merged and opening.opens <= merged[-1].closes:
            merged[-1] = Opening(opens=merged[-1].opens, closes=max(merged[-1].closes, opening.closes))
        else:
            merged.append(opening)
    return merged


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a plan stands to its windows: open `until` (None: without end), or closed `until`."""

    open: bool
    until: datetime | None


def standing(windows: Sequence[Window], now: datetime) -> Standing:
    """Whether new work may start at `now`, and until when that holds. No windows: always."""
    if not windows:
        return Standing(open=True, until=None)
    first = openings(windows, now)[0]
    return Standing(open=True, until=first.closes) if first.opens <= now else Standing(open=False, until=first.opens)


def wait_for(windows: Sequence[Window], now: datetime, seconds: float) -> datetime | None:
    """Until when a wave that takes `seconds` is to wait; None: it may begin now.

    It waits for an opening that is long enough from there on. Where none of the week is, it begins with the longest
    one, or at once if that is the present one, and goes on in those after it.
    """
    if not windows:
        return None
    to_come = openings(windows, now)
    left = [Opening(opens=max(o.opens, now), closes=o.closes) for o in to_come]
    for opening in left:
        if opening.seconds >= seconds:
            return None if opening.opens <= now else opening.opens
    longest = max(to_come, key=lambda o: o.seconds)
    return None if longest.opens <= now else longest.opens


def _of(window: Window, now: datetime) -> Iterator[Opening]:
    zone = ZoneInfo(window.tz)
    today = now.astimezone(zone).date()
    for offset in range(-2, AHEAD_DAYS):
        day = today + timedelta(days=offset)
        if DAYS[day.weekday()] in window.days:
            past_midnight = _minutes(window.to) <= _minutes(window.from_)
            opens = _at(day, window.from_, zone)
            closes = _at(day + timedelta(days=1) if past_midnight else day, window.to, zone)
            if closes > opens:
                yield Opening(opens=opens, closes=closes)


def _minutes(clock: str) -> int:
    hours, minutes = clock.split(":")
    return 60 * int(hours) + int(minutes)


def _at(day: date, clock: str, zone: ZoneInfo) -> datetime:
    minutes = _minutes(clock)
    day += timedelta(days=minutes // 1440)
    return datetime.combine(day, time(minutes % 1440 // 60, minutes % 60), tzinfo=zone).astimezone(UTC)
