"""What the watchdog concludes from its looks, without any time passing."""

from collections.abc import Sequence

import pytest

from workers.watchdog import Advice, Limits, Look, Memory, judge

LIMITS = Limits(look=1.0, free=2.0, silent=20.0, alone=3.0)
FRESH = Memory(free_since=None)


def looks(
    count: int, *, waiting: int | None, free: int, received: Sequence[int] = (), start: float = 100.0
) -> list[Look]:
    """One look a second, all alike but for what was received."""
    told = [*received, *[received[-1] if received else 0] * count]
    return [Look(at=start + n, waiting=waiting, free=free, received=told[n]) for n in range(count)]


def advice(seen: Sequence[Look], memory: Memory = FRESH) -> list[Advice]:
    given = []
    for look in seen:
        memory, said = judge(memory, look, LIMITS)
        given.append(said)
    return given


def test_a_consumer_that_takes_nothing_for_the_whole_time_is_ended() -> None:
    said = advice(looks(22, waiting=3, free=1))
    assert said == [Advice.NOTHING] * 20 + [Advice.END] * 2


def test_it_is_left_alone_as_long_as_it_receives_anything() -> None:
    assert Advice.END not in advice(looks(60, waiting=3, free=1, received=[n // 15 for n in range(60)]))


def test_messages_that_only_just_came_end_nobody() -> None:
    seen = [*looks(100, waiting=0, free=1), *looks(15, waiting=9, free=1, start=200.0)]
    assert Advice.END not in advice(seen)


@pytest.mark.parametrize(
    ("waiting", "free"), [(3, 0), (None, 1), (0, 1)], ids=["all are busy", "the broker is away", "nothing waits"]
)
def test_silence_means_nothing_then(waiting: int | None, free: int) -> None:
    assert Advice.END not in advice(looks(100, waiting=waiting, free=free))


@pytest.mark.parametrize(("waiting", "free"), [(3, 0), (None, 1), (0, 1)])
def test_the_patience_begins_anew_after_it(waiting: int | None, free: int) -> None:
    seen = [
        *looks(15, waiting=3, free=1),
        *looks(1, waiting=waiting, free=free, start=115.0),
        *looks(20, waiting=3, free=1, start=116.0),
    ]
    assert Advice.END not in advice(seen)


def test_a_process_that_stood_still_is_not_taken_for_deaf_nor_for_free() -> None:
    seen = [*looks(2, waiting=3, free=1), *looks(20, waiting=3, free=1, start=500.0)]
    assert Advice.END not in advice(seen)
    seen = [*looks(2, waiting=0, free=1), *looks(3, waiting=0, free=1, start=500.0)]
    assert advice(seen)[2:] == [Advice.NOTHING, Advice.NOTHING, Advice.HINT]


def test_a_free_process_is_hinted_at_once_every_while_and_not_sooner() -> None:
    said = advice(looks(7, waiting=0, free=1))
    assert [n for n, one in enumerate(said) if one is Advice.HINT] == [2, 4, 6]


def test_a_new_worker_is_hinted_at_at_once() -> None:
    assert advice(looks(1, waiting=0, free=1), Memory()) == [Advice.HINT]


@pytest.mark.parametrize(
    ("waiting", "free"), [(1, 1), (None, 1), (0, 0)], ids=["a hint waits already", "the broker is away", "none is free"]
)
def test_no_hint_is_sent_then(waiting: int | None, free: int) -> None:
    assert Advice.HINT not in advice(looks(19, waiting=waiting, free=free), Memory())


def test_a_hint_is_sent_as_soon_as_the_broker_is_back() -> None:
    seen = [*looks(30, waiting=None, free=1), *looks(1, waiting=0, free=1, start=130.0)]
    assert advice(seen)[-1] is Advice.HINT


def test_a_free_process_without_a_broker_gets_a_stand_in_after_a_while() -> None:
    said = advice(looks(8, waiting=None, free=1))
    assert [n for n, one in enumerate(said) if one is Advice.STAND_IN] == [3, 6]


@pytest.mark.parametrize(("waiting", "free"), [(None, 0), (0, 1)], ids=["all are busy", "the broker answers"])
def test_no_stand_in_is_started_then_and_the_patience_begins_anew(waiting: int | None, free: int) -> None:
    assert Advice.STAND_IN not in advice(looks(60, waiting=waiting, free=free))
    seen = [
        *looks(3, waiting=None, free=1),
        *looks(1, waiting=waiting, free=free, start=103.0),
        *looks(3, waiting=None, free=1, start=104.0),
    ]
    assert Advice.STAND_IN not in advice(seen)
