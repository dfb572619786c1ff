"""Everything that a run needs, as real processes: a rehearsal cloud, PostgreSQL, Valkey, workers, beat and the API."""

import asyncio
import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import redis
import yaml

from orchestrator.client import RebuildClient
from orchestrator.embedded import Embedded, start_embedded
from orchestrator.embedded.state import free_port
from orchestrator.ledger.engine import open_engine
from orchestrator.ledger.migrate import upgrade
from orchestrator.rehearsal import RehearsalConfig, Running, serve_in_thread
from orchestrator.service.roles import Role
from orchestrator.service.tokens import create_token
from tests.chaos.script import Script
from tests.parts import short_folder

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def _ends_with_us() -> None:
    """In a child, before its program: the kernel kills it when this process is gone, whatever that died of."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def children_of(pid: int) -> list[int]:
    """Pids of a process's children."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


@dataclass
class Crew:
    """Our own processes, by name: `drive-1`, `control-1`, `prepare-1`, `beat`, `api`."""

    env: Mapping[str, str]
    folder: Path
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str) -> None:
        """Starts it; its output is appended to NAME.log."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                self._argv(name), env=dict(self.env), stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True, preexec_fn=_ends_with_us,  # noqa: PLW1509  one call into libc, no locks
            )  # fmt: skip

    def kill(self, name: str) -> None:
        """kill -9 of the process and its group."""
        process = self.running.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def pids(self, name: str) -> list[int]:
        """Children of that process: of a drive worker, the drive processes."""
        return children_of(self.running[name].pid) if name in self.running else []

    def dead(self) -> list[str]:
        """What nobody here ended, and doesn't run: each with its exit code."""
        return [f"{n} ended by itself, code {p.returncode}" for n, p in self.running.items() if p.poll() is not None]

    def drive_pids(self) -> set[int]:
        """All drive processes there are."""
        return {pid for name in self.running if name.startswith("drive") for pid in self.pids(name)}

    def named(self, prefix: str) -> list[str]:
        """Names of what runs, of one kind."""
        return sorted(name for name in self.running if name.startswith(prefix))

    def stop(self) -> None:
        """kill -9 of all: nothing that a run leaves behind is worth a warm shutdown's time."""
        for name in list(self.running):
            self.kill(name)

    def _argv(self, name: str) -> list[str]:
        celery = [sys.executable, "-m", "celery", "-A", "workers.app:app"]
        match name.partition("-")[0]:
            case "api":
                return [sys.executable, "-m", "orchestrator.cli", "serve"]
            case "beat":
                return [*celery, "beat", "--schedule", str(self.folder / "beat-schedule"), "--pidfile="]
            case queue:
                return [
                    *celery, "worker", "-Q", queue, "-n", f"{name}@chaos", "--concurrency", "1",
                    "--prefetch-multiplier", "1", "--without-mingle", "--without-gossip", "--without-heartbeat",
                ]  # fmt: skip


@dataclass(kw_only=True)
class Stage:
    """A running service with its cloud, and the levers to hurt it."""

    cloud: Running
    servers: Embedded
    crew: Crew
    api_url: str
    token: str
    session: aiohttp.ClientSession

    async def cloud_says(self, path: str) -> dict[str, Any]:
        """A document of the rehearsal cloud's own: `account`, `servers`."""
        async with self.session.get(f"{self.cloud.url}/rehearsal/{path}") as answer:
            document: dict[str, Any] = await answer.json()
            return document

    async def order(self, *faults: Mapping[str, Any]) -> None:
        """Faults for the rehearsal cloud."""
        async with self.session.post(f"{self.cloud.url}/rehearsal/faults", json={"faults": list(faults)}) as answer:
            assert answer.status == 201, await answer.text()

    async def revoke(self) -> None:
        """All tokens of the cloud become invalid."""
        async with self.session.post(f"{self.cloud.url}/rehearsal/tokens/revoke") as answer:
            assert answer.status == 200

    def flush(self) -> None:
        """All of Valkey's data are gone."""
        with redis.Redis.from_url(self.servers.urls.redis_url) as client:
            client.flushall()

    def fail_over(self, until_death: Callable[[], None]) -> None:
        """PostgreSQL dies, and a copy takes its place that was made before `until_death` returned.

        The copy is of one instant, for all its processes are stopped meanwhile; it recovers as a standby that is
        promoted does, onto a new timeline.
        """
        postgres = self.servers.postgres
        data, user = Path(str(postgres._spec.cwd)), postgres._spec.user
        copy = data.with_name("copy")
        pid = postgres.pid
        assert pid is not None
        everyone = [pid, *children_of(pid)]
        for one in everyone:
            _signal(one, signal.SIGSTOP)
        try:
            subprocess.run(["cp", "-a", str(data), str(copy)], check=True)
        finally:
            for one in everyone:
                _signal(one, signal.SIGCONT)
        until_death()
        postgres.kill()
        shutil.rmtree(data)
        copy.rename(data)
        (data / "postmaster.pid").unlink(missing_ok=True)
        wanted = data / "recovery.signal"
        wanted.touch(0o600)
        if user is not None and user.drop:
            os.chown(wanted, user.uid, user.gid)
        with (data / "postgresql.auto.conf").open("a") as settings:
            settings.write("restore_command = 'false'\n")


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _clouds_yaml(cloud: Running, script: Script) -> str:
    settings = {
        "write_rate": f"{script.write_rate}/s", "read_rate": "200/s", "max_in_flight": 1000, "quiescence": "3s",
        "resend": script.resend, "marker": script.marker,
    }  # fmt: skip
    document = yaml.safe_load(cloud.clouds_yaml("rehearsal", settings))
    return str(yaml.safe_dump({"clouds": {"rehearsal": document["clouds"]["rehearsal"]}}))


@asynccontextmanager
async def staged(script: Script) -> AsyncIterator[Stage]:
    """Starts everything for a script in a folder of its own; ends and removes it all afterwards."""
    config = RehearsalConfig(
        servers=script.servers, rebuild_seconds=(0.7 * script.rebuild_seconds, 1.3 * script.rebuild_seconds),
        write_rate=float(script.write_rate), seed=script.seed,
    )  # fmt: skip
    with short_folder() as folder, serve_in_thread(config) as cloud:
        servers = await asyncio.to_thread(start_embedded, folder / "state", durable=False)
        try:
            await upgrade(servers.urls.database_url)
            async with open_engine(servers.urls.database_url, name="chaos", pool_size=1) as engine:
                _, token = await create_token(engine, "chaos", Role.ADMIN, created_by="chaos")
            (folder / "clouds.yaml").write_text(_clouds_yaml(cloud, script))
            port = free_port()
            kept = {k: v for k, v in os.environ.items() if not k.startswith(("OS_", "REBUILD_"))}
            env = kept | {
                "REBUILD_DATABASE_URL": servers.urls.database_url,
                "REBUILD_REDIS_URL": servers.urls.redis_url,
                "REBUILD_BIND": f"127.0.0.1:{port}",
                "REBUILD_STATE_DIR": str(folder / "home"),
                "REBUILD_LOG_FORMAT": "json",
                "OS_CLIENT_CONFIG_FILE": str(folder / "clouds.yaml"),
                "PYTHONUNBUFFERED": "1",
            }
            if script.failpoint:
                name, _, hit = script.failpoint.partition("@")
                env["REBUILD_FAILPOINTS"] = f"{name}=crash@{hit or 1}~{folder / 'struck'}"
            crew = Crew(env, folder)
            async with aiohttp.ClientSession() as session:
                try:
                    yield Stage(cloud=cloud, servers=servers, crew=crew, api_url=f"http://127.0.0.1:{port}",
                                token=token, session=session)  # fmt: skip
                finally:
                    await asyncio.to_thread(crew.stop)
        finally:
            await asyncio.to_thread(servers.stop)


async def api_is_ready(stage: Stage) -> bool:
    """Whether the API answers."""
    async with RebuildClient(stage.api_url, "", patience=0, timeout=2) as client:
        return await client.is_ready()


def pid_of(holder: str) -> int:
    """Of a process by the name that it has in its leases: `host/worker:pid`; 0 for no name."""
    return int(holder.rpartition(":")[2] or 0)
