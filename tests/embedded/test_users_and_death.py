"""Facts about who the servers run as, and that none is left when their parent is killed."""

# ruff: noqa: ASYNC240  # these tests look at files and processes; their loop has nothing else to run

import asyncio
import os
import shutil
import signal
import stat
import sys
from pathlib import Path

import asyncpg
import pytest

from orchestrator.embedded import EmbeddedFailed, state
from orchestrator.embedded import embedded as run_embedded
from tests.embedded.processes import PARENT, ROOT, is_alive, parent, processes_below
from tests.parts import eventually

NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def a_python_for_others() -> str:
    """An interpreter of this version that another user can run."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    user = state.ServerUser(uid=NOBODY, gid=NOBODY, name="nobody", drop=True)
    for candidate in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        real = Path(candidate).resolve()
        if real.exists() and all(state._may_enter(folder, user) for folder in real.parents):
            return candidate
    pytest.skip(f"no {version} that another user can run")


async def count(url: str) -> int:
    conn = await asyncpg.connect(url)
    try:
        return int(await conn.fetchval("SELECT count(*) FROM kept"))
    finally:
        await conn.close()


async def write(url: str) -> None:
    conn = await asyncpg.connect(url)
    await conn.execute("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS value")
    conn.terminate()


@pytest.mark.parametrize("guards_too", [False, True], ids=["parent", "parent-and-guards"])
async def test_none_is_left_when_the_parent_is_killed_and_the_next_start_has_all_data(
    state_dir: Path, guards_too: bool
) -> None:
    async with parent(state_dir) as victim:
        await write(str(victim.told["database_url"]))
        pids = victim.pids()
        assert set(pids) == {"postgres", "valkey"}
        victim.process.kill()
        if guards_too:
            for _, guard in pids.values():
                os.kill(guard, signal.SIGKILL)
        # At once: the new one waits for the old servers instead of starting beside them.
        async with run_embedded(state_dir) as urls:
            assert not any(is_alive(pid) for pair in pids.values() for pid in pair)
            assert await count(urls.database_url) == 1000
    await eventually(lambda: not processes_below(state_dir), deadline=5.0, message="nothing is left")


async def test_none_is_left_when_the_parent_is_killed_while_it_starts(state_dir: Path) -> None:
    half_made = state_dir / "servers" / "postgres.new" / "base"
    path = os.pathsep.join([str(ROOT), *(entry for entry in sys.path if entry.endswith("site-packages"))])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PARENT, str(state_dir)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path},
    )
    await eventually(half_made.exists, deadline=30.0, message="initdb is at work")
    process.kill()
    await process.wait()
    await eventually(lambda: not processes_below(state_dir), deadline=10.0, message="nothing is left")
    async with run_embedded(state_dir, durable=False) as urls:
        await write(urls.database_url)


@as_root
async def test_root_gives_its_rights_up_for_the_servers(state_dir: Path) -> None:
    async with parent(state_dir) as running:
        for pid, guard in running.pids().values():
            status = Path(f"/proc/{pid}/status").read_text()
            assert f"Uid:\t{NOBODY}\t{NOBODY}\t{NOBODY}\t{NOBODY}" in status
            assert "Groups:\t \n" in status
            assert "CapEff:\t0000000000000000" in status
            assert "Uid:\t0" in Path(f"/proc/{guard}/status").read_text()


@as_root
async def test_root_runs_the_servers_as_the_owner_of_the_state_folder(state_dir: Path) -> None:
    uid = 2  # bin: a user of every system
    state_dir.mkdir(mode=0o700)
    os.chown(state_dir, uid, uid)
    async with parent(state_dir) as running:
        assert {Path(f"/proc/{pid}").stat().st_uid for pid, _ in running.pids().values()} == {uid}


@as_root
async def test_root_opens_no_folder_above_the_state_folder(state_dir: Path) -> None:
    """Below a closed folder, such as /root, the servers live elsewhere and `servers` is a link there."""
    state_dir.parent.chmod(0o700)
    link = state_dir / "servers"
    async with run_embedded(state_dir, durable=False) as urls:
        await write(urls.database_url)
    far = link.resolve()
    try:
        assert link.is_symlink()
        assert stat.S_IMODE(state_dir.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(state_dir.stat().st_mode) == 0o700
        assert stat.S_IMODE(far.stat().st_mode) & 0o067 == 0
        async with run_embedded(state_dir, durable=False) as again:
            assert again == urls
            assert await count(again.database_url) == 1000
    finally:
        shutil.rmtree(far)


@as_root
async def test_an_ordinary_user_runs_them_as_itself(state_dir: Path) -> None:
    python = a_python_for_others()
    state_dir.mkdir(mode=0o700)
    os.chown(state_dir, NOBODY, NOBODY)
    async with parent(state_dir, uid=NOBODY, python=python) as running:
        assert "error" not in running.told, running.told
        await write(str(running.told["database_url"]))
        owners = {Path(f"/proc/{pid}").stat().st_uid for pair in running.pids().values() for pid in pair}
        assert owners == {NOBODY}
        assert not (state_dir / "servers" / "programs").exists()  # it reads the wheels where they are
        running.process.kill()
        await eventually(lambda: not processes_below(state_dir), message="nothing is left")
    async with parent(state_dir, uid=NOBODY, python=python) as again:
        assert again.told["database_url"] == running.told["database_url"]
        assert await count(str(again.told["database_url"])) == 1000


@as_root
async def test_a_user_id_without_a_passwd_entry_gets_a_clear_error(state_dir: Path) -> None:
    uid = 54321
    state_dir.mkdir(mode=0o700)
    os.chown(state_dir, uid, uid)
    async with parent(state_dir, uid=uid, python=a_python_for_others()) as refused:
        assert refused.told["code"] == "embedded_failed"
        assert "user id 54321: it has no entry in the user database" in str(refused.told["error"])
        assert "REBUILD_DATABASE_URL" in str(refused.told["error"])


async def test_data_of_another_user_is_refused(state_dir: Path) -> None:
    user = state.server_user(Path("/tmp"))
    folder = state_dir / "postgres"
    folder.mkdir(parents=True)
    other = state.ServerUser(uid=user.uid + 1 if user.uid < NOBODY else 1, gid=1, name="other", drop=False)
    with pytest.raises(EmbeddedFailed, match="belongs to user id"):
        state.give_folder(folder, other)
