"""Runs drawn from seeds: whatever is killed, no server is rebuilt twice and none is lost."""

import sys
from pathlib import Path

import pytest

from orchestrator.rehearsal import FaultKind
from tests.chaos.play import play
from tests.chaos.script import Act, Deed, Mishap, Script, script_of

SHORT = Script(
    seed=0,
    servers=40,
    with_beat=False,
    with_control=False,
    acts=[Act(deed=Deed.KILL_DRIVE_CHILD, share=0.3)],
    mishaps=[
        Mishap(kind=FaultKind.DROP_AFTER, numbers=[3], more={"times": 1}),
        Mishap(kind=FaultKind.DROP_BEFORE, numbers=[5], more={"times": 1}),
        Mishap(kind=FaultKind.TRUNCATED, numbers=[7], more={"times": 1}),
        Mishap(kind=FaultKind.DUPLICATED, numbers=[9], more={"times": 1}),
        Mishap(kind=FaultKind.SPAWN_FAILS, numbers=[11], more={"times": 1}),
    ],
)


@pytest.mark.timeout(300)
async def test_a_driver_dies_amid_bad_answers_and_every_server_is_rebuilt_once(tmp_path: Path) -> None:
    result = await play(SHORT, keep=tmp_path)
    assert result.faults_found == []
    assert result.states == {"succeeded": 39, "failed": 1}
    assert (result.accepted, len(result.takeovers)) == (40, 1)


@pytest.mark.chaos
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(1, 13))
async def test_a_seed(seed: int, tmp_path: Path) -> None:
    result = await play(script_of(seed), keep=tmp_path)
    sys.stdout.write(f"{result}\n")
    assert result.faults_found == []
    assert result.accepted_twice == 0


def test_a_seed_is_the_same_script_every_time_and_another_seed_another() -> None:
    assert script_of(7) == script_of(7)
    assert script_of(7) != script_of(8)
    drawn = {act.deed for seed in range(1, 201) for act in script_of(seed).acts}
    assert drawn == set(Deed)
