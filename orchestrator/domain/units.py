"""The plan file's notations: durations (`90s`), rates (`10/s`) and sizes (`3`, `5%`)."""

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Self

_DURATION = re.compile(r"(\d+)(s|m|h|d)", re.ASCII)
_RATE = re.compile(r"(\d+(?:\.\d+)?)/(s|m)", re.ASCII)
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)%", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

MAX_DURATION = 366 * 86400
"""Seconds; longer is taken for a slip of the keyboard."""
MAX_COUNT = 2**31 - 1
"""The ledger keeps counts in 32 bits."""


def parse_duration(text: str) -> float:
    """Seconds of `90s`, `30m`, `2h` or `1d`. Raises `ValueError`, with the remedy."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError("a duration is a whole number and a unit s, m, h or d, such as 90s, 30m or 2h")
    if len(match[1]) > 10 or (seconds := int(match[1]) * _SECONDS[match[2]]) > MAX_DURATION:
        raise ValueError(f"a duration is at most {MAX_DURATION // 86400}d")
    return float(seconds)


def format_duration(seconds: float) -> str:
    """Seconds in the plan file's notation, in the largest unit that divides them; rounded to whole seconds."""
    whole = round(seconds)
    unit = next((u for u in ("d", "h", "m") if whole and whole % _SECONDS[u] == 0), "s")
    return f"{whole // _SECONDS[unit]}{unit}"


def parse_rate(text: str) -> float:
    """Calls per second of `10/s` or `600/m`. Raises `ValueError`, with the remedy."""
    match = _RATE.fullmatch(text)
    if match is None:
        raise ValueError("a rate is a number of calls per second or minute, such as 10/s, 0.5/s or 600/m")
    rate = float(match[1]) / _SECONDS[match[2]]
    if not 0 < rate <= MAX_COUNT:
        raise ValueError("a rate must be above 0, such as 10/s; to send nothing, pause the plan")
    return rate


def format_rate(per_second: float) -> str:
    """Calls per second in the plan file's notation; `parse_rate` gives the same number back."""
    for figure, unit in ((per_second, "s"), (per_second * 60, "m")):
        text = f"{round(figure)}/{unit}"
        if round(figure) and parse_rate(text) == per_second:
            return text
    return f"{Decimal(repr(per_second)):f}/s"


@dataclass(frozen=True, kw_only=True)
class Size:
    """A share of a whole: either a count or a percentage."""

    count: int | None = None
    percent: Fraction | None = None
    """Exact, so that a third of a percent of 100,000 is no float's guess; 0–100."""

    @classmethod
    def parse(cls, value: int | str) -> Self:
        """`3` or `"5%"`: a count of at least 1, or a percentage above 0 and up to 100.

        Raises `ValueError`, with the remedy.
        """
        size = cls.parse_limit(value)
        if not (size.count or size.percent):
            raise ValueError("a size is a whole number of at least 1, or a percentage above 0 % such as 5%")
        return size

    @classmethod
    def parse_limit(cls, value: int | str) -> Self:
        """As `parse`, with 0 and `0%` allowed: a number of errors that are put up with."""
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError('a size is a whole number such as 3, or a percentage in quotes such as "5%"')
        if isinstance(value, int):
            if not 0 <= value <= MAX_COUNT:
                raise ValueError(f"a size is a whole number from 0 to {MAX_COUNT}, or a percentage such as 5%")
            return cls(count=value)
        match = _PERCENT.fullmatch(value)
        if match is None or len(value) > 32:
            raise ValueError('a size is a whole number such as 3 (not in quotes), or a percentage such as "5%"')
        percent = Fraction(match[1])
        if percent > 100:
            raise ValueError("a percentage is at most 100%")
        return cls(percent=percent)

    def of(self, total: int, *, round_up: bool) -> int:
        """How many of `total`, never more than all of them."""
        if self.count is not None:
            return min(self.count, total)
        exact = (self.percent or 0) * total / 100
        return math.ceil(exact) if round_up else math.floor(exact)

    def __str__(self) -> str:
        if self.count is not None:
            return str(self.count)
        return f"{_decimal(self.percent or Fraction(0))}%"

    def to_document(self) -> int | str:
        """As the plan file writes it."""
        return self.count if self.count is not None else str(self)


def _decimal(value: Fraction) -> str:
    """The exact decimal of a fraction that was read from one."""
    places = 0
    while (value * 10**places).denominator != 1:
        places += 1
    digits = str(int(value * 10**places)).rjust(places + 1, "0")
    return f"{digits[:-places]}.{digits[-places:]}" if places else digits
