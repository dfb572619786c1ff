"""Failpoints: off they cost a comparison, armed they do what their entry says, and the list of them is the code's."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import failpoints
from orchestrator.errors import RebuildError
from orchestrator.failpoints import POINTS, FailpointHit, FailpointsInvalid, arm, failpoint

ROOT = Path(__file__).parents[2]
POINT = "gate.after_commit"
OTHER = "gate.before_commit"
HITS_IN_A_CHILD = """
import sys, time
from orchestrator.failpoints import FailpointHit, arm, failpoint
arm(sys.argv[1])
for n in range(1, int(sys.argv[2]) + 1):
    began = time.monotonic()
    try:
        failpoint("gate.after_commit")
    except FailpointHit:
        print(n, "raised", flush=True)
    else:
        print(n, "late" if time.monotonic() - began >= 0.2 else "on", flush=True)
"""


@pytest.fixture(autouse=True)
def off() -> Iterator[None]:
    """Whatever a test arms is off after it."""
    yield
    arm("")


def raised(times: int, name: str = POINT) -> list[int]:
    """Which of so many hits raised, counted from 1."""
    found = []
    for n in range(1, times + 1):
        try:
            failpoint(name)
        except FailpointHit:
            found.append(n)
    return found


def child(spec: str, hits: int = 3) -> subprocess.Popen[str]:
    """A process that arms `spec`, hits its point so often, and says of each hit how it went."""
    return subprocess.Popen(
        [sys.executable, "-c", HITS_IN_A_CHILD, spec, str(hits)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def run(spec: str, hits: int = 3) -> tuple[int, list[str]]:
    """Its exit code and what it said."""
    with child(spec, hits) as process:
        said, _ = process.communicate(timeout=30)
    return process.returncode, said.splitlines()


class TestGrammar:
    @pytest.mark.parametrize(
        "entry",
        [
            "gate.after_commit",
            "gate.after_commit=",
            "gate.after_commit=explode",
            "gate.after_commit=crash()",
            "gate.after_commit=delay",
            "gate.after_commit=delay(x)",
            "gate.after_commit=delay(-1)",
            "gate.after_commit=delay(.5)",
            "gate.after_commit=crash@0",
            "gate.after_commit=crash@",
            "gate.after_commit=crash@+",
            "gate.after_commit=crash@2-",
            "gate.after_commit=crash~relative",
            "gate.after_commit=crash~/x@2",
            "gate.after_commit=crash~/x@2+",
            "gate.after_commit=crash@1~/x@2",
            "gate.after_commit=crash~/x~/y",
            "gate.after_commit=crash~/",
            "gate.after_commit=crash~/x/",
            "gate.after_commit=crash~",
            "gate.after_commit = crash",
            "=crash",
        ],
    )
    def test_an_entry_that_cannot_be_read_is_named(self, entry: str) -> None:
        with pytest.raises(FailpointsInvalid, match=re.escape(repr(entry))) as caught:
            arm(f"{OTHER}=raise; {entry} ;")
        assert isinstance(caught.value, ValueError)
        assert caught.value.code == "failpoints_invalid"

    def test_a_point_that_there_is_not_is_named(self) -> None:
        with pytest.raises(FailpointsInvalid, match=r"no point 'send\.somewhere'"):
            arm("send.somewhere=crash")

    def test_the_order_of_the_parts_is_said_where_it_is_wrong(self) -> None:
        """Read as a file named x@2, it would strike at the first hit."""
        with pytest.raises(FailpointsInvalid, match=r"\[@N\[\+\]\]\[~FILE\], in this order"):
            arm(f"{POINT}=raise~/x@2")

    def test_a_point_is_armed_once(self) -> None:
        with pytest.raises(FailpointsInvalid, match=rf"'{re.escape(POINT)}' is armed twice"):
            arm(f"{POINT}=raise@1;{POINT}=crash@3")

    def test_what_cannot_be_read_leaves_everything_as_it_was(self) -> None:
        arm(f"{POINT}=raise")
        with pytest.raises(FailpointsInvalid):
            arm(f"{OTHER}=raise;nonsense")
        assert raised(1, OTHER) == []
        assert raised(1) == [1]

    def test_entries_are_separated_by_semicolons_and_arming_anew_forgets_the_old_ones(self) -> None:
        arm(f" {POINT}=raise ;; {OTHER}=raise@2;")
        assert raised(2) == [1]
        assert raised(2, OTHER) == [2]
        arm(f"{OTHER}=raise")
        assert raised(1) == []


class TestOff:
    @pytest.mark.parametrize("spec", ["", " ", ";;", " ; "])
    def test_nothing_armed_is_one_comparison_with_none(self, spec: str) -> None:
        arm(spec)
        assert failpoints._armed is None
        assert raised(3) == []

    def test_a_point_that_is_not_armed_does_nothing(self) -> None:
        arm(f"{OTHER}=raise")
        assert raised(3) == []


class TestWhen:
    @pytest.mark.parametrize(
        ("entry", "hits"),
        [("raise", [1]), ("raise@1", [1]), ("raise@3", [3]), ("raise@3+", [3, 4, 5]), ("raise@9", [])],
    )
    def test_once_at_the_hit_that_is_said_or_from_it_on(self, entry: str, hits: list[int]) -> None:
        arm(f"{POINT}={entry}")
        assert raised(5) == hits

    def test_a_file_lets_it_happen_once_over_all_processes(self, tmp_path: Path) -> None:
        once = tmp_path / "once"
        spec = f"{POINT}=crash@2+~{once}"
        assert run(spec) == (70, ["1 on"])
        assert once.exists()
        assert run(spec) == (0, ["1 on", "2 on", "3 on"])

    def test_a_file_that_is_there_from_the_start_keeps_it_from_happening(self, tmp_path: Path) -> None:
        (tmp_path / "once").touch()
        arm(f"{POINT}=raise@1+~{tmp_path / 'once'}")
        assert raised(3) == []

    def test_a_hit_that_is_not_meant_makes_no_file(self, tmp_path: Path) -> None:
        arm(f"{POINT}=raise@2~{tmp_path / 'once'}")
        assert raised(1) == []
        assert not (tmp_path / "once").exists()
        assert raised(1) == [1]
        assert (tmp_path / "once").exists()


class TestWhat:
    def test_raise_looks_like_a_lost_connection(self) -> None:
        arm(f"{POINT}=raise")
        with pytest.raises(OSError, match=re.escape(POINT)) as caught:
            failpoint(POINT)
        assert isinstance(caught.value, RebuildError)

    def test_crash_ends_the_process_at_once(self) -> None:
        assert run(f"{POINT}=crash") == (70, [])
        assert run(f"{POINT}=crash@3") == (70, ["1 on", "2 on"])

    def test_delay_stalls_and_goes_on(self) -> None:
        assert run(f"{POINT}=delay(0.2)@2") == (0, ["1 on", "2 late", "3 on"])

    def test_raise_in_another_process_does_no_more_than_that(self) -> None:
        assert run(f"{POINT}=raise@2+") == (0, ["1 on", "2 raised", "3 raised"])

    def test_stop_halts_the_process_until_it_is_continued(self) -> None:
        with child(f"{POINT}=stop@2") as process:
            try:
                assert _stopped(process.pid)
                os.kill(process.pid, signal.SIGCONT)
                said, _ = process.communicate(timeout=30)
            finally:
                process.kill()
        assert (process.returncode, [line.split()[0] for line in said.splitlines()]) == (0, ["1", "2", "3"])


def _stopped(pid: int) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WUNTRACED | os.WNOHANG)
        if found:
            return os.WIFSTOPPED(status)
        time.sleep(0.01)
    return False


def used() -> dict[str, list[str]]:
    """The points in the code, each with the files that have it."""
    found: dict[str, list[str]] = {}
    for folder in ("orchestrator", "workers"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for name in re.findall(r"""\bfailpoint\(\s*["']([^"']+)["']""", path.read_text(encoding="utf-8")):
                found.setdefault(name, []).append(str(path.relative_to(ROOT)))
    return found


def test_the_points_that_are_listed_are_those_of_the_code() -> None:
    """One that nothing reaches makes a drill that tests nothing."""
    assert used().keys() == POINTS.keys()


def test_every_point_says_in_a_sentence_what_has_happened() -> None:
    assert [p for p, says in POINTS.items() if not re.fullmatch(r"[A-Z].+\.", says)] == []
