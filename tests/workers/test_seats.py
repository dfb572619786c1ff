"""Which pool processes run a task, as their parent sees it."""

import os
import signal

from tests.parts import eventually
from workers.watchdog import Seats


async def test_a_child_is_busy_from_its_task_on_and_until_its_death_even_unwaited_for() -> None:
    seats = Seats()
    child = os.fork()
    if child == 0:
        seats.take()
        while True:
            signal.pause()
    try:
        await eventually(lambda: seats.busy() == 1, message="the child is in its task")
    finally:
        os.kill(child, signal.SIGKILL)
    await eventually(lambda: seats.busy() == 0, message="a dead child is free although nobody has waited for it")
    assert _wait_for(child) == child, "and can still be waited for"
    assert seats.busy() == 0


def _wait_for(child: int) -> int:
    return os.waitpid(child, os.WNOHANG)[0]


def test_a_child_that_has_done_its_task_is_free() -> None:
    seats = Seats()
    seats.take()
    seats.leave()
    assert seats.busy() == 0
