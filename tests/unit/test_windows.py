"""Windows: local time with daylight saving, and waves that have to fit."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.spec import Window
from orchestrator.domain.windows import DAYS, Opening, Standing, openings, standing, wait_for

BERLIN = ZoneInfo("Europe/Berlin")


def window(days: str, opens: str, closes: str, tz: str = "Europe/Berlin") -> Window:
    return Window.model_validate({"days": days.split(), "from": opens, "to": closes, "tz": tz})


def local(*at: int, zone: ZoneInfo = BERLIN) -> datetime:
    return datetime(*at, tzinfo=zone).astimezone(UTC)  # type: ignore[misc, arg-type]


def test_a_window_is_of_local_time_in_summer_and_in_winter() -> None:
    sat = [window("sat", "01:00", "05:00")]
    (summer,) = openings(sat, local(2026, 7, 3))[:1]
    (winter,) = openings(sat, local(2026, 11, 27))[:1]
    assert summer == Opening(opens=datetime(2026, 7, 3, 23, tzinfo=UTC), closes=datetime(2026, 7, 4, 3, tzinfo=UTC))
    assert winter == Opening(opens=datetime(2026, 11, 28, 0, tzinfo=UTC), closes=datetime(2026, 11, 28, 4, tzinfo=UTC))


def test_it_says_until_when_it_is_open_or_closed() -> None:
    sat = [window("sat", "01:00", "05:00")]
    assert standing(sat, local(2026, 11, 28, 0, 59)) == Standing(open=False, until=local(2026, 11, 28, 1))
    assert standing(sat, local(2026, 11, 28, 1)) == Standing(open=True, until=local(2026, 11, 28, 5))
    assert standing(sat, local(2026, 11, 28, 5)) == Standing(open=False, until=local(2026, 12, 5, 1))
    assert standing([], local(2026, 11, 28)) == Standing(open=True, until=None)


def test_one_past_midnight_belongs_to_the_day_on_which_it_begins() -> None:
    night = [window("fri", "22:00", "02:00")]
    assert standing(night, local(2026, 11, 28, 1, 30)).open
    assert not standing(night, local(2026, 11, 27, 1, 30)).open


def test_windows_that_touch_are_one() -> None:
    both = [window("sat", "22:00", "24:00"), window("sun", "00:00", "04:00")]
    assert standing(both, local(2026, 11, 28, 23)) == Standing(open=True, until=local(2026, 11, 29, 4))


@pytest.mark.parametrize(
    ("opens", "closes", "begins", "ends"),
    [
        # 2026-03-29: 02:00 CET is 03:00 CEST, at 01:00 UTC.
        ("01:00", "05:00", (0, 0), (3, 0)),
        ("02:30", "05:00", (1, 30), (3, 0)),
        ("01:00", "02:30", (0, 0), (1, 30)),
    ],
)
def test_a_time_that_is_left_out_in_spring(
    opens: str, closes: str, begins: tuple[int, int], ends: tuple[int, int]
) -> None:
    (found,) = openings([window("sun", opens, closes)], local(2026, 3, 28))[:1]
    assert found.opens == datetime(2026, 3, 29, *begins, tzinfo=UTC)
    assert found.closes == datetime(2026, 3, 29, *ends, tzinfo=UTC)


@pytest.mark.parametrize(
    ("opens", "closes", "begins", "ends"),
    [
        # 2026-10-25: 03:00 CEST is 02:00 CET, at 01:00 UTC; 02:30 comes at 00:30 and 01:30 UTC.
        ("01:00", "05:00", (23, 0, 24), (4, 0, 25)),
        ("02:30", "05:00", (0, 30, 25), (4, 0, 25)),
        ("01:00", "02:30", (23, 0, 24), (0, 30, 25)),
    ],
)
def test_a_time_that_comes_twice_in_autumn(
    opens: str, closes: str, begins: tuple[int, int, int], ends: tuple[int, int, int]
) -> None:
    (found,) = openings([window("sun", opens, closes)], local(2026, 10, 24))[:1]
    assert found.opens == datetime(2026, 10, begins[2], *begins[:2], tzinfo=UTC)
    assert found.closes == datetime(2026, 10, ends[2], *ends[:2], tzinfo=UTC)


def test_a_wave_waits_for_an_opening_that_is_long_enough() -> None:
    windows = [window("sat", "01:00", "03:00"), window("sun", "01:00", "07:00")]
    now = local(2026, 11, 28, 2, 30)
    assert wait_for(windows, now, 1200) is None
    assert wait_for(windows, now, 3600) == local(2026, 11, 29, 1)
    assert wait_for(windows, now, 6 * 3600) == local(2026, 11, 29, 1)


def test_a_wave_that_fits_no_opening_begins_with_the_longest() -> None:
    windows = [window("sat", "01:00", "03:00"), window("sun", "01:00", "07:00")]
    assert wait_for(windows, local(2026, 11, 28, 1), 50 * 3600) == local(2026, 11, 29, 1)
    assert wait_for(windows, local(2026, 11, 29, 2), 50 * 3600) is None


zones = st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC", "Asia/Kolkata"])
clocks = st.builds(lambda h, m: f"{h:02}:{m:02}", st.integers(0, 23), st.sampled_from([0, 15, 30, 45]))


@st.composite
def some_windows(draw: st.DrawFn) -> list[Window]:
    found = []
    for _ in range(draw(st.integers(1, 3))):
        opens, closes = draw(clocks), draw(clocks)
        days = " ".join(draw(st.lists(st.sampled_from(DAYS), min_size=1, max_size=7, unique=True)))
        found.append(window(days, opens, closes if closes != opens else "24:00", draw(zones)))
    return found


moments = st.datetimes(datetime(2026, 1, 1), datetime(2027, 12, 31)).map(lambda d: d.replace(tzinfo=UTC))  # noqa: DTZ001


@given(some_windows(), moments)
def test_what_it_says_holds_until_then_and_no_longer(windows: list[Window], now: datetime) -> None:
    stands = standing(windows, now)
    assert stands.until is not None
    assert now < stands.until <= now + timedelta(days=12)
    assert standing(windows, stands.until - timedelta(microseconds=1)).open is stands.open
    if not stands.open:
        assert standing(windows, stands.until).open


@given(some_windows(), moments, st.floats(min_value=0, max_value=7 * 86400))
def test_a_wave_always_begins_once_its_wait_is_over(windows: list[Window], now: datetime, seconds: float) -> None:
    for _ in range(3):
        until = wait_for(windows, now, seconds)
        if until is None:
            return
        assert now < until <= now + timedelta(days=9)
        assert standing(windows, until).open
        now = until
    pytest.fail("it waits again and again")
