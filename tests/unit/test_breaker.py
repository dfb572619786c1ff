"""The circuit breaker: trouble in a row opens it, one call alone tries, and what is well again closes it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.driver import breaker as module
from workers.driver.breaker import CALLS_IN_A_ROW, FIRST_PAUSE, LONGEST_PAUSE, READS_IN_A_ROW, Breaker

MANY = float("inf")


class Clock:
    """`time.monotonic`, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def after(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(module, "time", found)
    return found


def opened_by_calls() -> Breaker:
    breaker = Breaker()
    for _ in range(CALLS_IN_A_ROW):
        breaker.call_failed("timeout")
    return breaker


def opened_by_reads() -> Breaker:
    breaker = Breaker()
    for _ in range(READS_IN_A_ROW):
        breaker.read_failed("503")
    return breaker


def pause(breaker: Breaker, clock: Clock) -> float:
    """Seconds until it lets a call through, found by waiting half a second at a time."""
    began = clock.now
    while breaker.most(0) == 0:
        clock.after(0.5)
        assert clock.now < began + 120
    return clock.now - began


def test_a_closed_one_sets_no_limit() -> None:
    assert Breaker().most(0) == MANY
    assert Breaker().most(96) == MANY
    assert Breaker().reason is None


def test_it_opens_after_so_many_calls_in_a_row_and_says_why(clock: Clock) -> None:
    breaker = Breaker()
    for _ in range(CALLS_IN_A_ROW - 1):
        breaker.call_failed("timeout")
        assert breaker.reason is None
    breaker.call_failed("the 504")
    assert breaker.reason is not None
    assert breaker.reason.code == "cloud_trouble"
    assert breaker.reason.message.endswith("Last: the 504")
    assert breaker.most(0) == 0


def test_it_opens_after_so_many_reads_in_a_row(clock: Clock) -> None:
    breaker = Breaker()
    for _ in range(READS_IN_A_ROW - 1):
        breaker.read_failed("503")
        assert breaker.reason is None
    breaker.read_failed("503")
    assert breaker.reason is not None
    assert breaker.most(0) == 0


def test_an_answer_in_between_begins_the_count_anew(clock: Clock) -> None:
    breaker = Breaker()
    for _ in range(3 * CALLS_IN_A_ROW):
        breaker.call_failed("timeout")
        if breaker._calls == CALLS_IN_A_ROW - 1:
            breaker.call_worked()
        assert breaker.reason is None
    for _ in range(3 * READS_IN_A_ROW):
        breaker.read_failed("503")
        if breaker._reads == READS_IN_A_ROW - 1:
            breaker.read_worked()
        assert breaker.reason is None


def test_calls_and_reads_are_counted_apart(clock: Clock) -> None:
    breaker = Breaker()
    for _ in range(CALLS_IN_A_ROW - 1):
        breaker.call_failed("timeout")
    for _ in range(READS_IN_A_ROW - 1):
        breaker.read_failed("503")
    assert breaker.reason is None
    breaker.read_worked()
    breaker.call_failed("timeout")
    assert breaker.reason is not None


def test_after_its_pause_it_lets_one_through_alone(clock: Clock) -> None:
    breaker = opened_by_calls()
    clock.after(FIRST_PAUSE - 0.001)
    assert breaker.most(0) == 0
    clock.after(0.001)
    assert [breaker.most(n) for n in (0, 1, 5)] == [1, 0, 0]


def test_the_pause_is_doubled_each_time_that_the_one_fails_up_to_the_longest(clock: Clock) -> None:
    breaker = opened_by_calls()
    pauses = []
    for _ in range(8):
        pauses.append(pause(breaker, clock))
        breaker.call_failed("timeout")
        assert breaker.most(0) == 0
    assert pauses == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
    assert pauses[0] == FIRST_PAUSE
    assert pauses[-1] == LONGEST_PAUSE


def test_an_answer_closes_it_and_the_next_time_begins_with_the_first_pause(clock: Clock) -> None:
    breaker = opened_by_calls()
    clock.after(FIRST_PAUSE)
    breaker.call_failed("timeout")
    clock.after(2 * FIRST_PAUSE)
    breaker.call_worked()
    assert (breaker.reason, breaker.most(50)) == (None, MANY)
    for _ in range(CALLS_IN_A_ROW):
        assert breaker.reason is None
        breaker.call_failed("timeout")
    assert pause(breaker, clock) == FIRST_PAUSE


def test_reads_close_what_reads_have_opened(clock: Clock) -> None:
    breaker = opened_by_reads()
    clock.after(LONGEST_PAUSE)
    assert breaker.most(0) == 0
    breaker.read_worked()
    assert (breaker.reason, breaker.most(50)) == (None, MANY)


def test_reads_do_not_close_what_calls_have_opened(clock: Clock) -> None:
    breaker = opened_by_calls()
    breaker.read_worked()
    assert breaker.reason is not None
    assert breaker.most(0) == 0
    clock.after(FIRST_PAUSE)
    assert breaker.most(0) == 1


def test_reads_do_not_close_it_while_a_call_has_failed_since_they_opened_it(clock: Clock) -> None:
    breaker = opened_by_reads()
    breaker.call_failed("timeout")
    breaker.read_worked()
    assert breaker.reason is not None
    assert breaker.most(0) == 0
    clock.after(FIRST_PAUSE)
    assert breaker.most(0) == 1


def test_calls_that_were_under_way_when_it_opened_do_not_lengthen_its_pause(clock: Clock) -> None:
    breaker = opened_by_calls()
    for _ in range(50):
        breaker.call_failed("timeout")
    assert pause(breaker, clock) == FIRST_PAUSE


def test_nothing_is_tried_while_the_last_read_failed(clock: Clock) -> None:
    breaker = opened_by_calls()
    breaker.read_failed("503")
    clock.after(LONGEST_PAUSE)
    assert breaker.most(0) == 0
    breaker.read_worked()
    assert breaker.most(0) == 1


def test_an_answer_to_a_call_that_was_under_way_closes_it_whatever_reads_say(clock: Clock) -> None:
    breaker = opened_by_reads()
    breaker.call_worked()
    assert breaker.most(9) == MANY
    breaker.read_failed("503")
    assert breaker.most(9) == 0


@given(st.lists(st.sampled_from(["call_failed", "call_worked", "read_failed", "read_worked", "wait"])))
def test_it_is_either_closed_without_a_limit_or_lets_one_through_alone_at_most(history: list[str]) -> None:
    clock, breaker = Clock(), Breaker()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "time", clock)
        calls = reads = 0
        for what in history:
            if what == "wait":
                clock.after(1.0)
                continue
            getattr(breaker, what)(*(["x"] if what.endswith("failed") else []))
            calls = 0 if what == "call_worked" else calls + (what == "call_failed")
            reads = 0 if what == "read_worked" else reads + (what == "read_failed")
            assert (breaker.most(1) == MANY) is (breaker.reason is None)
            assert breaker.most(1) in (0, MANY)
            enough = {"call_failed": calls >= CALLS_IN_A_ROW, "read_failed": reads >= READS_IN_A_ROW}
            if enough.get(what):
                assert breaker.reason is not None
            if breaker.reason is not None and breaker.most(0):
                assert reads == 0


def test_while_it_is_open_it_says_the_latest_trouble(clock: Clock) -> None:
    breaker = opened_by_reads()
    breaker.read_failed("its certificate is not trusted")
    assert "not trusted" in str(breaker.reason)
    breaker.call_failed("no connection in time")
    assert "no connection in time" in str(breaker.reason)
    breaker.read_worked()
    assert breaker.most(0) == 0, "saying so began no new pause and ended none"
    assert pause(breaker, clock) <= FIRST_PAUSE
