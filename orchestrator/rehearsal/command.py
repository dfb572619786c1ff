"""`rebuildctl rehearse`: the rehearsal cloud alone, until it is told to stop."""

import asyncio
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.rehearsal.config import RehearsalConfig
from orchestrator.rehearsal.serve import serve


def run(
    config: RehearsalConfig,
    host: str,
    port: int,
    clouds_file: Path | None = None,
    *,
    name: str = "rehearsal",
    rebuild_settings: Mapping[str, Any] | None = None,
    say: Callable[[str], object] = print,
) -> None:
    """Serves until SIGINT or SIGTERM. Writes `clouds_file`, readable by its owner only, and says where things are.

    Raises `OSError` where the port is taken or the file can't be written.
    """

    async def until_stopped() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        async with serve(config, host=host, port=port) as running:
            if clouds_file is not None:
                write_private(clouds_file, running.clouds_yaml(name, rebuild_settings))
            say(f"{config.servers} servers at {running.url}")
            say(f"What they go through: {running.url}/rehearsal/account")
            if clouds_file is not None:
                say(f"OS_CLIENT_CONFIG_FILE={clouds_file} OS_CLOUD={name}")
            await stop.wait()

    asyncio.run(until_stopped())


def write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner can read, from its first byte on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(text)
