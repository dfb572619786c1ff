"""The plan file's notations."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.units import Size, format_duration, format_rate, parse_duration, parse_rate


@pytest.mark.parametrize(
    ("text", "seconds"), [("0s", 0), ("90s", 90), ("30m", 1800), ("2h", 7200), ("1d", 86400), ("007s", 7)]
)
def test_a_duration_is_a_whole_number_and_a_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "5", "s", "1.5h", "-1s", "1 m", "1w", "1M", "5m\n", "٣s", "1h30m", "9" * 400 + "d", "367d"]
)
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"a duration is"):
        parse_duration(text)


@given(st.integers(min_value=0, max_value=366 * 86400))
def test_a_written_duration_reads_the_same(seconds: int) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize(("seconds", "text"), [(0, "0s"), (90, "90s"), (5400, "90m"), (7200, "2h"), (172800, "2d")])
def test_a_duration_is_written_in_the_largest_whole_unit(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(("text", "rate"), [("10/s", 10), ("600/m", 10), ("0.5/s", 0.5), ("10/m", 10 / 60)])
def test_a_rate_is_calls_per_second_or_minute(text: str, rate: float) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    "text", ["", "10", "0/s", "0.0/m", "-1/s", "10/h", "1e3/s", ".5/s", "5./s", "10 /s", "9" * 400 + "/s"]
)
def test_other_rates_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"a rate"):
        parse_rate(text)


@given(st.sampled_from("sm"), st.decimals(min_value="0.001", max_value=100000, places=3))
def test_a_written_rate_reads_the_same(unit: str, figure: object) -> None:
    rate = parse_rate(f"{figure}/{unit}")
    assert parse_rate(format_rate(rate)) == rate


@pytest.mark.parametrize(
    ("value", "total", "up", "down"),
    [(3, 10, 3, 3), (30, 10, 10, 10), ("5%", 19, 1, 0), ("5%", 20, 1, 1),
     ("5%", 21, 2, 1), ("100%", 7, 7, 7), ("0.1%", 100_000, 100, 100),
     ("33.3%", 1000, 333, 333), ("5%", 0, 0, 0)],
)  # fmt: skip
def test_a_size_of_a_total_is_rounded_as_asked(value: int | str, total: int, up: int, down: int) -> None:
    size = Size.parse(value)
    assert (size.of(total, round_up=True), size.of(total, round_up=False)) == (up, down)


@pytest.mark.parametrize(
    "value", [0, -1, True, 1.5, None, "5", "0%", "0.0%", "101%", "100.1%", "-5%", "5 %", "%", "5%%", "1e1%", 2**31]
)
def test_a_size_is_at_least_one_or_a_percentage_above_zero(value: object) -> None:
    with pytest.raises(ValueError, match=r"a (size|percentage) is"):
        Size.parse(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, "0%"])
def test_an_error_limit_may_be_zero(value: int | str) -> None:
    assert Size.parse_limit(value).of(1000, round_up=False) == 0


@given(st.integers(1, 10000).map(lambda n: f"{n // 100}.{n % 100:02d}%"))
def test_a_written_percentage_is_exact(text: str) -> None:
    size = Size.parse(text)
    assert Size.parse(size.to_document()) == size


def test_a_size_is_written_without_idle_digits() -> None:
    assert [str(Size.parse(v)) for v in (3, "5%", "5.50%", "0.250%")] == ["3", "5%", "5.5%", "0.25%"]
