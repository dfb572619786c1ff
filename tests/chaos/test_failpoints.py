"""A process crashes at each of the failpoints in turn, and the verdicts are those of any other run."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.failpoints import POINTS
from orchestrator.rehearsal import FaultKind
from tests.chaos.play import play
from tests.chaos.script import Act, Deed, Mishap, Script

SMALL = Script(
    seed=0,
    with_api=False,
    with_beat=False,
    with_control=False,
    mishaps=[
        Mishap(kind=FaultKind.DROP_AFTER, numbers=[4, 5], more={"times": 1}),
        Mishap(kind=FaultKind.SPAWN_FAILS, numbers=[6], more={"times": 1}),
    ],
)
"""Two calls lose their answers, so that there is something to resolve."""

HITS: Mapping[str, int] = {
    "claim.before_commit": 1, "claim.after_commit": 1, "check.before": 1, "check.ready": 9, "gate.before_commit": 3,
    "gate.after_commit": 4, "send.before_write": 7, "send.after_answer": 8, "record.before_commit": 5,
    "record.after_commit": 6, "ledger.moved": 7,
}  # fmt: skip
"""At which hit a process crashes: in the midst of the plan rather than at its begin. 1 for all others."""

ACTS: Mapping[str, Act] = {
    "takeover.before_write": Act(deed=Deed.KILL_DRIVE_CHILD, share=0.3),
    "takeover.done": Act(deed=Deed.KILL_DRIVE_CHILD, share=0.3),
    "reconcile.before_write": Act(deed=Deed.FAILOVER, share=0.3),
    "slice.end": Act(deed=Deed.LEAVE_DRIVE, share=0.3),
}
"""What must happen besides, that these points are reached at all."""

SHORT = ("gate.after_commit", "send.after_answer", "record.before_commit")
"""Of `make test`: before the call, after its answer, and before what followed from it was written."""

ELSEWHERE = ("hooks.begun", "hooks.before_commit", "hooks.after_commit")
"""Only plans with hooks come there: tests/driver/test_hook_crashes.py."""


def scenario(point: str) -> Script:
    """A small plan in which a process crashes at that point; for those of ticks there is somebody more who ticks."""
    acts, ticks = [ACTS[point]] if point in ACTS else [], point.startswith("tick.")
    failpoint = f"{point}@{HITS.get(point, 1)}"
    return replace(SMALL, failpoint=failpoint, acts=acts, with_beat=ticks, with_control=ticks)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("point", SHORT)
async def test_a_crash_around_the_call_loses_nothing_and_wipes_nothing_twice(point: str, tmp_path: Path) -> None:
    await _crash_at(point, tmp_path)


@pytest.mark.chaos
@pytest.mark.timeout(300)
@pytest.mark.parametrize("point", [point for point in POINTS if point not in SHORT and point not in ELSEWHERE])
async def test_a_crash_anywhere_loses_nothing_and_wipes_nothing_twice(point: str, tmp_path: Path) -> None:
    await _crash_at(point, tmp_path)


async def _crash_at(point: str, folder: Path) -> None:
    result = await play(scenario(point), keep=folder)
    assert result.struck, f"{point} was never reached: this scenario shows nothing"
    assert result.faults_found == []
    assert set(result.states) <= {"succeeded", "failed", "unresolved"}
    assert result.accepted_twice == 0
