"""Facts about the embedded PostgreSQL and Valkey: what runs, who may connect, and that data is kept."""

# ruff: noqa: ASYNC220, ASYNC240  # these tests look at files and processes; their loop has nothing else to run

import asyncio
import os
import socket
import stat
import subprocess
import sys
from importlib import util
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest
from kombu import Connection
from redis import asyncio as redis
from redis.exceptions import AuthenticationError

from orchestrator.embedded import (
    Embedded,
    EmbeddedFailed,
    EmbeddedMissing,
    EmbeddedUrls,
    StateFolderBusy,
    start_embedded,
)
from orchestrator.embedded import embedded as run_embedded
from tests.embedded.processes import processes_below
from tests.parts import Servers


async def put(urls: EmbeddedUrls, value: int) -> None:
    conn = await asyncpg.connect(urls.database_url)
    try:
        await conn.execute("CREATE TABLE IF NOT EXISTS kept (value int)")
        await conn.execute("INSERT INTO kept VALUES ($1)", value)
    finally:
        await conn.close()
    async with redis.Redis.from_url(urls.redis_url) as client:
        await client.rpush("kept", value)


async def kept(urls: EmbeddedUrls) -> tuple[list[int], list[int]]:
    conn = await asyncpg.connect(urls.database_url)
    try:
        rows = [row["value"] for row in await conn.fetch("SELECT value FROM kept ORDER BY value")]
    finally:
        await conn.close()
    async with redis.Redis.from_url(urls.redis_url) as client:
        return rows, sorted(int(v) for v in await client.lrange("kept", 0, -1))


async def test_data_and_urls_stay_over_a_restart(state_dir: Path) -> None:
    async with run_embedded(state_dir) as first:
        await put(first, 1)
    assert not processes_below(state_dir)
    async with run_embedded(state_dir) as second:
        assert second == first
        assert await kept(second) == ([1], [1])


async def test_commits_are_durable_by_default_and_valkey_never_evicts(state_dir: Path) -> None:
    async with run_embedded(state_dir) as urls:
        conn = await asyncpg.connect(urls.database_url)
        names = ("fsync", "synchronous_commit", "full_page_writes", "max_connections", "server_encoding")
        settings = [await conn.fetchval("SELECT current_setting($1)", name) for name in names]
        await conn.close()
        assert settings == ["on", "on", "on", "200", "UTF8"]
        async with redis.Redis.from_url(urls.redis_url) as client:
            config = await client.config_get("appendonly", "appendfsync", "maxmemory-policy")
        assert config == {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction"}


@pytest.fixture
def own(servers: Servers) -> Embedded:
    """The suite's servers, where it runs its own."""
    if servers.embedded is None:
        pytest.skip("TEST_DATABASE_URL and TEST_REDIS_URL name servers that are not ours to look into")
    return servers.embedded


async def test_celery_transport_takes_the_same_url(own: Embedded) -> None:
    def round_trip() -> object:
        with Connection(own.urls.redis_url, connect_timeout=5) as connection, connection.SimpleQueue("hints") as queue:
            queue.put({"look": "now"})
            message = queue.get(timeout=5)
            message.ack()
            return message.payload

    assert await asyncio.to_thread(round_trip) == {"look": "now"}


async def test_nobody_connects_without_the_password(own: Embedded) -> None:
    database, broker = urlsplit(own.urls.database_url), urlsplit(own.urls.redis_url)
    for password in ("wrong", "rebuild"):
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(
                host="127.0.0.1", port=database.port, user="rebuild", database="rebuild", password=password
            )
    for url in (f"redis://127.0.0.1:{broker.port}/0", f"redis://:wrong@127.0.0.1:{broker.port}/0"):
        async with redis.Redis.from_url(url) as client:
            with pytest.raises(AuthenticationError):
                await client.get("kept")


async def test_the_servers_listen_on_loopback_only(own: Embedded) -> None:
    ports = {urlsplit(url).port for url in (own.urls.database_url, own.urls.redis_url)}
    places = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            if state == "0A" and int(local.rpartition(":")[2], 16) in ports:
                places.add(local.rpartition(":")[0])
    assert places == {"0100007F"}


async def test_passwords_stand_in_no_command_line_log_or_open_file(state_dir: Path) -> None:
    async with run_embedded(state_dir) as urls:
        secrets = [urlsplit(url).password for url in (urls.database_url, urls.redis_url)]
        assert all(secret and len(secret) == 64 for secret in secrets)
        assert secrets[0] != secrets[1]
        assert not any(secret in repr(urls) for secret in secrets if secret)
        shown = "\n".join(processes_below(state_dir))
        assert "postgres" in shown
        logs = "\n".join(path.read_text() for path in (state_dir / "log").iterdir())
        assert not any(secret in shown + logs for secret in secrets if secret)
        holders = 0
        for path in (state_dir / "servers").rglob("*"):
            if path.is_file() and path.suffix in (".json", ".conf", ".pw"):
                content = path.read_text()
                if any(secret in content for secret in secrets if secret):
                    holders += 1
                    assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        assert holders == 3  # the two remembered addresses, and Valkey's configuration
        assert stat.S_IMODE(state_dir.stat().st_mode) & 0o067 == 0


async def test_a_second_start_in_the_same_folder_is_refused_with_the_first_ones_pid(state_dir: Path) -> None:
    async with run_embedded(state_dir):
        with pytest.raises(StateFolderBusy, match=f"in use by process {os.getpid()}"):
            async with run_embedded(state_dir):
                pass


async def test_a_port_taken_meanwhile_is_replaced_and_the_data_stays(state_dir: Path) -> None:
    async with run_embedded(state_dir) as first:
        await put(first, 1)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # past the closed connections of before
        taken.bind(("127.0.0.1", urlsplit(first.database_url).port or 0))
        taken.listen()
        async with run_embedded(state_dir) as second:
            assert second.redis_url == first.redis_url
            assert urlsplit(second.database_url).port != urlsplit(first.database_url).port
            assert await kept(second) == ([1], [1])


def test_a_killed_server_starts_again_at_the_same_address_with_all_that_was_committed(state_dir: Path) -> None:
    own = start_embedded(state_dir)
    try:
        for value in range(3):
            asyncio.run(put(own.urls, value))
            for server in (own.postgres, own.valkey):
                server.kill()
                assert server.pid is None
                server.start()
                assert server.pid is not None
            assert asyncio.run(kept(own.urls)) == (list(range(value + 1)),) * 2
    finally:
        own.stop()
    own.stop()  # twice is once
    assert not processes_below(state_dir)


async def test_an_interrupted_first_start_is_made_good(state_dir: Path) -> None:
    """What a killed initdb left is thrown away: its folder has another name until it is whole."""
    async with run_embedded(state_dir, durable=False):
        pass
    home = (state_dir / "servers").resolve()
    (home / "postgres").rename(home / "postgres.new")
    (home / "postgres.new" / "PG_VERSION").unlink()
    async with run_embedded(state_dir, durable=False) as urls:
        await put(urls, 1)
    assert not (home / "postgres.new").exists()
    assert not (home / "postgres.pw").exists()


async def test_a_pid_file_that_names_another_process_is_no_obstacle(state_dir: Path) -> None:
    """In a container the small pids come again after a crash; PostgreSQL alone would refuse to start."""
    async with run_embedded(state_dir, durable=False):
        pass
    data = (state_dir / "servers" / "postgres").resolve()
    owner = data.stat()
    other = subprocess.Popen(["sleep", "600"], user=owner.st_uid if os.geteuid() == 0 else None)
    try:
        (data / "postmaster.pid").write_text(f"{other.pid}\n{data}\n1\n1\n\n127.0.0.1\n1 1\nready\n")
        os.chown(data / "postmaster.pid", owner.st_uid, owner.st_gid)
        async with run_embedded(state_dir, durable=False) as urls:
            await put(urls, 1)
    finally:
        other.kill()
        other.wait()


async def test_a_deep_state_folder_works(state_dir: Path) -> None:
    """A socket's path would end at 107 bytes."""
    deep = state_dir.joinpath(*["a-rather-long-folder-name"] * 8)
    deep.parent.mkdir(parents=True)
    async with run_embedded(deep, durable=False) as urls:
        await put(urls, 1)
        assert await kept(urls) == ([1], [1])


async def test_without_the_wheels_the_error_names_both_ways_out(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(util, "find_spec", lambda _: None)
    with pytest.raises(EmbeddedMissing, match=r"fleet-rebuild\[embedded\].*REBUILD_DATABASE_URL") as raised:
        async with run_embedded(state_dir):
            pass
    assert "REBUILD_REDIS_URL" in raised.value.message


async def test_data_of_a_version_that_the_wheel_lacks_is_left_alone(state_dir: Path) -> None:
    async with run_embedded(state_dir, durable=False):
        pass
    version = state_dir / "servers" / "postgres" / "PG_VERSION"
    version.write_text("12\n")
    with pytest.raises(EmbeddedFailed, match="written by PostgreSQL 12"):
        async with run_embedded(state_dir, durable=False):
            pass
    assert version.read_text() == "12\n"


def test_the_guard_starts_without_the_service_around_it() -> None:
    """It runs once for every child: it must stay small, so it imports nothing but the standard library."""
    code = (
        "import sys, runpy; runpy.run_path(sys.argv[1], run_name='guard'); "
        "sys.exit(sorted(m for m in sys.modules if m.startswith(('orchestrator', 'asyncio', 'subprocess'))) or 0)"
    )
    guard = Path(str(util.find_spec("orchestrator.embedded").origin)).with_name("guard.py")  # type: ignore[union-attr]
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, guard], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
