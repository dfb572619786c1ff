"""Celery workers under the real supervisor, on servers of their own that a test may kill."""

import asyncio
import os
import signal
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from orchestrator.cli.processes import celery_worker
from orchestrator.embedded import Child, ChildSpec, Embedded
from orchestrator.hints import DRIVE_QUEUE, Hints

ROOT = Path(__file__).parents[2]
DRIVE_PROCESSES = 2
SILENT_SECONDS = 3.0
"""These workers' patience with a deaf consumer."""


class LostHints(Hints):
    """Every hint is lost."""

    async def prepare(self, plan_id: UUID) -> None:
        """Never gets there."""

    async def drive(self) -> None:
        """Never gets there."""


@dataclass(frozen=True)
class Supervised:
    """One Celery worker a queue, as `rebuildctl worker` runs them."""

    servers: Embedded
    env: Mapping[str, str]

    def start(self, queue: str) -> None:
        """Starts that queue's worker, and keeps it running."""
        words = celery_worker(queue, DRIVE_PROCESSES if queue == DRIVE_QUEUE else 1)
        argv = ["tests.workers.quick:app" if word == "workers.app:app" else word for word in words]
        spec = ChildSpec(name=queue, argv=argv, env=self.env, cwd=ROOT, group="workers", grace_seconds=30)
        self.servers.wait_for(self.servers.supervisor.start(spec))

    def stop(self, *queues: str) -> None:
        """Stops those side by side, warmly."""

        async def all_of_them() -> None:
            await asyncio.gather(*map(self.servers.supervisor.stop_child, queues))

        self.servers.wait_for(all_of_them())

    def child(self, queue: str) -> Child:
        """What the supervisor knows of it: its pid is the Celery parent's."""
        return self.servers.supervisor.children[queue]

    def pool(self, queue: str) -> list[int]:
        """The pids of its pool's processes."""
        return [pid for pid in children_of(self.child(queue).pid) if b"workers.standin" not in _words(pid)]

    def kill_pool(self, queue: str, *, but: int = 0) -> list[int]:
        """kill -9 of the pool's processes but for so many, and of nothing else."""
        pids = self.pool(queue)
        for pid in pids[but:]:
            os.kill(pid, signal.SIGKILL)
        return pids[but:]

    def node(self, queue: str) -> str:
        """Its name for Celery's remote control."""
        return f"{queue}-{os.getpid()}@{socket.gethostname()}"

    def log(self, queue: str) -> str:
        """What it said."""
        return self.child(queue).log_path.read_text(errors="replace")


async def drivers(engine: AsyncEngine) -> set[int]:
    """The pids of the drive processes that said within the last seconds that they live."""
    async with engine.connect() as conn:
        rows = await conn.execute(
            text("SELECT id FROM processes WHERE kind = 'drive' AND seen_at > clock_timestamp() - interval '4 s'")
        )
        return {int(r.id.rpartition(":")[2]) for r in rows}


def _words(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def stand_ins_of(parent: int | None) -> list[int]:
    """Pids of a worker's stand-ins."""
    return [pid for pid in children_of(parent) if b"workers.standin" in _words(pid)]


def children_of(parent: int | None) -> Iterator[int]:
    """Pids of a process's living children."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent and fields[0] not in "ZX":
            yield int(entry.name)
