"""What these tests ask of the machine's processes, and a parent of its own to kill."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

PARENT = """
import asyncio, json, sys
from pathlib import Path
from orchestrator.embedded import EmbeddedFailed, Supervisor, start_servers

async def main():
    try:
        async with Supervisor(Path(sys.argv[1])) as supervisor:
            urls = await start_servers(supervisor)
            children = {name: [c.pid, c.guard_pid] for name, c in supervisor.children.items()}
            told = {"database_url": urls.database_url, "redis_url": urls.redis_url, "children": children}
            print(json.dumps(told), flush=True)
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    except EmbeddedFailed as e:
        print(json.dumps({"error": e.message, "code": e.code}), flush=True)

asyncio.run(main())
"""


def is_alive(pid: int) -> bool:
    """Whether it runs; a zombie doesn't."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def processes_below(folder: Path) -> list[str]:
    """The command lines of all processes that name that folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line and int(entry.name) != os.getpid() and is_alive(int(entry.name)):
            found.append(f"{entry.name}: {line}")
    return found


@dataclass(frozen=True, kw_only=True)
class Parent:
    """A process that runs embedded servers. `told` is what it said once they were ready."""

    process: asyncio.subprocess.Process
    told: dict[str, object]

    def pids(self) -> dict[str, tuple[int, int]]:
        """By name of the child: its pid and its guard's."""
        children = self.told["children"]
        assert isinstance(children, dict)
        return {name: (pid, guard) for name, (pid, guard) in children.items()}


@asynccontextmanager
async def parent(state_dir: Path, *, uid: int | None = None, python: str = sys.executable) -> AsyncIterator[Parent]:
    """Such a process, as that user; it has ended at the end."""
    path = os.pathsep.join([str(ROOT), *(entry for entry in sys.path if entry.endswith("site-packages"))])
    process = await asyncio.create_subprocess_exec(
        *(python, "-c", PARENT, str(state_dir)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        cwd="/",
        user=uid,
        group=uid,
        extra_groups=None if uid is None else [],
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        while (line := await process.stdout.readline()) and not line.startswith(b"{"):
            pass  # log lines of children go to stderr or stand before
        yield Parent(process=process, told=json.loads(line or b"{}"))
    finally:
        process.stdin.close()
        await process.wait()
