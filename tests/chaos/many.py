"""Many runs as processes of their own: `python -m tests.chaos.many --seeds 1-200 --jobs 2 --out /tmp/chaos.jsonl`.

Each result is appended to the file as a line of JSON, so that an interrupted batch can be summed up:
`--summarise FILE`.
"""

import argparse
import asyncio
import json
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from orchestrator.log import configure
from tests.chaos.play import Result, play
from tests.chaos.script import script_of

RUN_SECONDS = 300.0
"""A run that takes longer is killed and counts as one that went wrong."""


def main() -> int:
    """Plays, or sums up. 1 when anything was wrong."""
    given = _arguments()
    if given.one is not None:
        configure("error", "json")
        result = asyncio.run(play(script_of(given.one), keep=given.keep))
        print(json.dumps(asdict(result)), flush=True)
        return 0
    if given.summarise is None:
        results = asyncio.run(_batch(_seeds(given.seeds), given.jobs, given.out, given.keep))
    else:
        results = [Result.read(line) for line in given.summarise.read_text().splitlines()]
    print(summary(results))
    return 0 if results and all(r.passed for r in results) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.many", description=__doc__)
    parser.add_argument("--seeds", default="1-20", help="such as 1-200 or 3,7,11")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--out", type=Path, default=Path("chaos.jsonl"))
    parser.add_argument("--keep", type=Path, help="where the logs of runs go in which something is wrong")
    parser.add_argument("--summarise", type=Path, metavar="FILE", help="sum up an earlier batch's file instead")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def _seeds(said: str) -> Sequence[int]:
    found: list[int] = []
    for part in said.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


async def _batch(seeds: Sequence[int], jobs: int, out: Path, keep: Path | None) -> list[Result]:
    """Plays all seeds, some at a time."""
    left, results = list(reversed(seeds)), []

    async def player() -> None:
        while left:
            result = await _apart(left.pop(), keep)
            results.append(result)
            with out.open("a") as file:
                file.write(json.dumps(asdict(result)) + "\n")
            print(line_of(result, len(results), len(seeds)), flush=True)

    await asyncio.gather(*(player() for _ in range(jobs)))
    return results


async def _apart(seed: int, keep: Path | None) -> Result:
    """One run in a process of its own."""
    argv = [sys.executable, "-m", "tests.chaos.many", "--one", str(seed)]
    if keep is not None:
        argv += ["--keep", str(keep)]
    process = await asyncio.create_subprocess_exec(
        *argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        said, complaint = await asyncio.wait_for(process.communicate(), RUN_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
        return Result(seed=seed, faults_found=[f"the run did not end within {RUN_SECONDS:g} s"])
    except BaseException:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)  # it ends what it started, and removes its folder
            await process.wait()
        raise
    try:
        return Result.read(said.decode().strip().rpartition("\n")[2])
    except ValueError:
        tail = complaint.decode(errors="replace").strip().rpartition("\n")[2]
        return Result(seed=seed, faults_found=[f"the run broke off, code {process.returncode}: {tail}"])


def line_of(result: Result, number: int, of: int) -> str:
    """A run on one line; what is wrong follows, indented."""
    states = " ".join(f"{state}={n}" for state, n in sorted(result.states.items()))
    verdict = "ok  " if result.passed else "WRONG"
    line = (
        f"[{number}/{of}] seed {result.seed:4} {verdict} {result.seconds:5.1f} s  {result.accepted}/{result.servers} "
        f"accepted  {states}  {' '.join(sorted(result.done))}"
    )
    return "\n    ".join([line, *result.faults_found[:5], *(f"log: {e} ({n})" for e, n in result.errors.items())])


def summary(results: Sequence[Result]) -> str:
    """The table at the end."""

    def added(name: str) -> str:
        total: Counter[str] = Counter()
        for result in results:
            total.update(getattr(result, name))
        return "  ".join(f"{key} {n}" for key, n in sorted(total.items())) or "none"

    takeovers = [s for r in results for s in r.takeovers]
    rows = {
        "runs": f"{len(results)}, wrong: {sum(not r.passed for r in results)}",
        "wrong seeds": " ".join(str(r.seed) for r in results if not r.passed) or "none",
        "servers": sum(r.servers for r in results),
        "calls received": sum(r.received for r in results),
        "rebuilds accepted": sum(r.accepted for r in results),
        "accepted twice": sum(r.accepted_twice for r in results),
        "terminal states": added("states"),
        "deeds": added("done"),
        "faults that struck": added("faults"),
        "takeovers": f"{len(takeovers)}, longest {max(takeovers, default=0.0):.1f} s",
        "seconds a run": f"{sum(r.seconds for r in results) / max(1, len(results)):.1f}, "
        f"longest {max((r.seconds for r in results), default=0.0):.1f}",
        "errors in logs": added("errors"),
    }
    return "\n".join(f"{name:>20}  {value}" for name, value in rows.items())


if __name__ == "__main__":
    sys.exit(main())
