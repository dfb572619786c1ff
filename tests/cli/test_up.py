"""`rebuildctl up` with the real servers, API and processes."""

import asyncio
import json
import os
import re
import signal
import stat
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from orchestrator.client import RebuildClient
from tests.parts import eventually, short_folder

pytestmark = pytest.mark.timeout(170)


@pytest.fixture
def env(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Nothing of this machine's clouds or settings."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("REBUILD_", "OS_"))}
    empty = state_dir.parent / "clouds.yaml"
    empty.write_text("clouds: {}\n")
    return {**kept, "REBUILD_STATE_DIR": str(state_dir), "OS_CLIENT_CONFIG_FILE": str(empty)}


async def call(env: Mapping[str, str], *arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "orchestrator.cli", *arguments, env=dict(env),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def up(env: Mapping[str, str], *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`rebuildctl up` once it says that all runs; ended at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "orchestrator.cli", "up", "--port", "0", *arguments, env=dict(env),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        said = ""
        async with asyncio.timeout(60):
            while "Ctrl-C stops everything" not in said:
                line = await process.stdout.readline()
                assert line, said
                said += line.decode()
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), 110)


def descendants(pid: int) -> set[int]:
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, row = set[int](), {pid}
    while row:
        row = {child for child, parent in parents.items() if parent in row} - found
        found |= row
    return found


def alive(pids: set[int]) -> set[int]:
    """Zombies are dead; who reaps them is not our matter."""
    there = set()
    for pid in pids:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                there.add(pid)
        except OSError:
            continue
    return there


def read_env(state_dir: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in (state_dir / "env").read_text().splitlines())


async def test_up_writes_its_env_serves_and_leaves_nothing_behind(env: dict[str, str], state_dir: Path) -> None:
    async with up(env, "--workers", "0") as process:
        known = read_env(state_dir)
        assert set(known) == {"REBUILD_DATABASE_URL", "REBUILD_REDIS_URL", "REBUILD_API_URL", "REBUILD_TOKEN"}
        assert stat.S_IMODE((state_dir / "env").stat().st_mode) == 0o600

        code, out, _ = await call(env, "doctor", "-o", "json")
        found = {item["check"]: item["result"] for item in json.loads(out)["items"]}
        assert code == 0
        assert {found[c] for c in ("settings", "api", "token", "database", "migrations", "broker")} == {"ok"}

        code, out, _ = await call(env, "token", "create", "ci", "--role", "viewer", "--expires", "90d")
        assert (code, out.count("\n")) == (0, 1), "the secret stands alone on stdout"
        viewer = {**env, "REBUILD_API_URL": known["REBUILD_API_URL"], "REBUILD_TOKEN": out.strip()}
        assert (await call(viewer, "status"))[0] == 0
        plan = state_dir.parent / "plan.yaml"
        plan.write_text(
            "name: x\ncloud: c\nimage: i\ntargets: {select: {name: 'a*'}}\nrollout: {rate: fast, wave: 1}\n"
        )
        code, _, err = await call(env, "submit", str(plan))
        assert code == 2
        assert re.search(r"^rollout\.rate: ", err, re.M)
        assert re.search(r"^rollout\.wave: ", err, re.M)
        plan.write_text("name: x\ncloud: c\nimage: i\ntargets: {select: {name: 'a*'}}\n")
        assert (await call(viewer, "submit", str(plan)))[0] == 7
        assert (await call(env, "token", "revoke", "ci"))[0] == 0

        code, _, err = await call(env, "up", "--port", "0")
        assert code == 1
        assert f"in use by process {process.pid}" in err

        below = descendants(process.pid)
        assert len(below) > 4
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 60) == 0
        assert not alive(below)
    # Also from a shell that has read the env file: the servers named there are up's own to start.
    async with up({**env, **known}, "--workers", "0"):
        assert read_env(state_dir)["REBUILD_TOKEN"] == known["REBUILD_TOKEN"]
        assert read_env(state_dir)["REBUILD_DATABASE_URL"] == known["REBUILD_DATABASE_URL"]


async def test_what_dies_below_up_comes_back_and_nothing_outlives_a_killed_up(
    env: dict[str, str], state_dir: Path
) -> None:
    async with up(env) as process:
        below = descendants(process.pid)
        api = next(pid for pid in below if _words(pid)[-2:-1] == ["serve"])
        await eventually(lambda: any("drive" in _words(p) for p in descendants(process.pid)), deadline=30, every=0.1)
        os.kill(api, signal.SIGKILL)
        known = read_env(state_dir)
        await eventually(lambda: not alive({api}))
        async with RebuildClient(known["REBUILD_API_URL"], known["REBUILD_TOKEN"], patience=0) as client:
            await eventually(client.is_ready, deadline=15, every=0.1, message="the API is back")

        below = descendants(process.pid)
        process.kill()
        await process.wait()
        await eventually(lambda: not alive(below), deadline=60, every=0.1, message="all that up started is gone")


async def test_a_worker_is_one_process_for_each_queue_restarted_and_stopped_warmly(
    env: dict[str, str], database_url: str, redis_url: str
) -> None:
    env = {**env, "REBUILD_DATABASE_URL": database_url, "REBUILD_REDIS_URL": redis_url}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "orchestrator.cli", "worker", "--queues", "control,drive", "--concurrency", "2", env=env,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip

    def mains() -> dict[str, int]:
        """Each queue's Celery process, the parent of its pool."""
        found = {}
        for pid in descendants(process.pid):
            words = _words(pid)
            if "celery" in words and "guard.py" not in " ".join(words) and _parent_is_guard(pid):
                found[words[words.index("-Q") + 1]] = pid
        return found

    async def drain() -> bytes:
        assert process.stderr is not None
        return await process.stderr.read()

    reading = asyncio.create_task(drain())
    try:
        await eventually(lambda: set(mains()) == {"control", "drive"}, deadline=30, every=0.1)
        await eventually(lambda: len(descendants(mains()["drive"])) == 2, deadline=30, every=0.1, message="its pool")
        first = mains()["drive"]
        os.kill(first, signal.SIGKILL)
        await eventually(
            lambda: mains().get("drive", first) != first, deadline=10, every=0.1, message="back within 5 s"
        )
        below = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 100) == 0
        assert not alive(below)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert await reading, "what the workers say is passed on to stderr"


def _words(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


def _parent_is_guard(pid: int) -> bool:
    try:
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return False
    return any(word.endswith("guard.py") for word in _words(parent))


async def test_the_demo_rebuilds_every_server_once_and_leaves_nothing_behind() -> None:
    with short_folder() as folder:
        env = {**os.environ, "TMPDIR": str(folder), "REBUILD_DATABASE_URL": "postgresql://nobody@127.0.0.1:9/none"}
        code, out, err = await asyncio.wait_for(_demo(env), 150)
        assert code == 0, out + err
        assert json.loads(out)["counts"]["succeeded"] == 12
        assert "each of the 12 servers accepted exactly one rebuild" in err
        assert not list(folder.glob("rebuild-demo-*"))


async def _demo(env: Mapping[str, str]) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "orchestrator.cli", "demo", "--servers", "12", "--exit", "-o", "json", env=dict(env),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()
