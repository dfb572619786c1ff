"""What a pool process finds that was forked while the watchdog's thread was at work."""

import json
import os
import subprocess
import sys
from pathlib import Path

from orchestrator.embedded import Embedded

PROGRAM = """
import asyncio, json, sys
import workers.tasks
from workers.app import watchdog
before = set(sys.modules)
asyncio.run(watchdog._free_leases_of([1]))
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_giving_a_dead_process_leases_back_imports_nothing(own: Embedded, own_database_url: str) -> None:
    """A fork amid an import leaves that module's lock held for ever: the child's own import of it never ends, and the
    watchdog sees a process that runs its task."""
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("REBUILD_")},
        "REBUILD_DATABASE_URL": own_database_url,
        "REBUILD_REDIS_URL": own.urls.redis_url,
    }
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=env, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "leases_freed" in ran.stdout + ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1]) == []
