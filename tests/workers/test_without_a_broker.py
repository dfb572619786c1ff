"""What the tasks do when they want to send a hint and the broker is away: they say so in the log, and end."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.workers.site import ROOT

PROGRAM = """
import sys, time
from types import SimpleNamespace
from uuid import uuid4
from orchestrator.log import configure
from workers import tasks

configure()

async def over(*_, **__):
    print("the slice is over")

async def found(_):
    return SimpleNamespace(to_prepare=[uuid4() for _ in range(20)], undriven=True)

tasks.run_slice, tasks.tick_once = over, found
began = time.monotonic()
getattr(tasks, sys.argv[1])()
print(f"seconds {time.monotonic() - began:.2f}")
"""


@pytest.fixture(params=["refuses", "never answers"])
def broker(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a broker that isn't one."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"redis://127.0.0.1:{server.getsockname()[1]}/0"
        if request.param == "refuses":
            server.close()
        yield url


@pytest.mark.parametrize("task", ["drive", "tick"])
def test_a_task_ends_within_seconds(broker: str, task: str, database_url: str) -> None:
    """Twenty hints that can't be sent are one wait."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OS_", "REBUILD_"))}
    env = {**kept, "REBUILD_REDIS_URL": broker, "REBUILD_DATABASE_URL": database_url}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, task],
        env=env, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *said, seconds = done.stdout.strip().splitlines()
    assert said == (["the slice is over"] if task == "drive" else [])
    assert float(seconds.removeprefix("seconds ")) < 3, done.stderr
    print(seconds)  # noqa: T201  a measurement
