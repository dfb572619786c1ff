"""`serve`, `worker`, `beat` and `migrate`: the processes of a deployment, each in the foreground."""

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import click

from orchestrator.cli import options
from orchestrator.cli.context import App, pass_app
from orchestrator.cli.exits import Exit
from orchestrator.errors import SettingsInvalid
from orchestrator.hints import DRIVE_QUEUE, PREPARE_QUEUE, TICK_QUEUE
from orchestrator.log import configure
from orchestrator.settings import Settings

QUEUES = (TICK_QUEUE, PREPARE_QUEUE, DRIVE_QUEUE)
WARM_SECONDS = 90.0
"""A Celery worker's time to finish the calls being sent and give its leases back, before it is killed."""
ECHO_SECONDS = 0.2
KEEP_BYTES = 1_000_000
"""Of a worker's output that has been passed on; then its file begins anew."""


@click.command()
@pass_app
def serve(app: App) -> None:
    """Run the API and the dashboard, at REBUILD_BIND."""
    from orchestrator.api.serve import serve as serve_api

    settings = _with_servers(app.settings)
    configure(settings.log_level, settings.log_format)
    serve_api(settings)


@click.command()
@click.option("--queues", default=",".join(QUEUES), show_default=True, help="Which queues to work for.")
@click.option("--concurrency", type=click.IntRange(1, 64), default=1, show_default=True, help="Drive processes.")
@pass_app
def worker(app: App, queues: str, concurrency: int) -> None:
    """Run workers: one Celery worker for each queue, restarted when it dies.

    TERM or Ctrl-C stops them warmly: what is being sent is finished, and the leases are given back.
    """
    wanted = list(dict.fromkeys(q.strip() for q in queues.split(",") if q.strip()))
    if not wanted or set(wanted) - set(QUEUES):
        raise click.UsageError(f"--queues takes some of {','.join(QUEUES)}, not {queues!r}")
    settings = _with_servers(app.settings)
    configure(settings.log_level, settings.log_format)
    options.run(_work(wanted, concurrency, environment(settings)))


async def _work(queues: Sequence[str], concurrency: int, env: Mapping[str, str]) -> int:
    from orchestrator.embedded import ChildSpec, Supervisor

    # A folder of its own: any number of workers may run beside each other, and under any state folder's `up`.
    with tempfile.TemporaryDirectory(prefix="rebuild-worker-") as folder:
        async with until_told() as told, Supervisor(Path(folder)) as supervisor:
            echoes = [asyncio.create_task(_echo(supervisor.log_path(queue))) for queue in queues]
            try:
                for queue in queues:
                    await supervisor.start(
                        ChildSpec(
                            name=queue,
                            argv=celery_worker(queue, concurrency if queue == DRIVE_QUEUE else 1),
                            env=env,
                            group="workers",
                            grace_seconds=WARM_SECONDS,
                        )
                    )
                await told.wait()
            finally:
                await supervisor.stop()
                await asyncio.sleep(2 * ECHO_SECONDS)  # the last lines
                for echo in echoes:
                    echo.cancel()
    return Exit.OK


def celery_worker(queue: str, concurrency: int) -> list[str]:
    """The program of one queue's worker. Its name has our process id, since several may run on one host."""
    return [
        sys.executable, "-m", "celery", "-A", "workers.app:app", "worker",
        "-Q", queue, "-n", f"{queue}-{os.getpid()}@%h",
        "--concurrency", str(concurrency), "--prefetch-multiplier", "1",
        "--without-gossip", "--without-mingle", "--without-heartbeat",
    ]  # fmt: skip


@click.command()
@pass_app
def beat(app: App) -> None:
    """Run Celery's beat, the second source of ticks. One is enough; a worker without any goes on as well."""
    settings = _with_servers(app.settings)
    settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    argv = [
        sys.executable, "-m", "celery", "-A", "workers.app:app", "beat",
        "--schedule", str(settings.state_dir / "beat-schedule"), "--pidfile=",
    ]  # fmt: skip
    os.execve(argv[0], argv, environment(settings))  # noqa: S606  becomes it, signals and all


@click.command()
@pass_app
def migrate(app: App) -> None:
    """Bring the database to this version's schema; safe beside running processes, and to call again."""
    from orchestrator.ledger.migrate import upgrade

    if not app.settings.database_url:
        raise SettingsInvalid("REBUILD_DATABASE_URL is not set")
    configure(app.settings.log_level, app.settings.log_format)
    asyncio.run(upgrade(app.settings.database_url))
    app.say("The database is up to date.")


def environment(settings: Settings, **more: str) -> dict[str, str]:
    """A child's environment: this process's, with the settings' addresses. Secrets travel here, never in arguments."""
    return {
        **os.environ,
        "REBUILD_DATABASE_URL": settings.database_url,
        "REBUILD_REDIS_URL": settings.redis_url,
        "REBUILD_STATE_DIR": str(settings.state_dir),
        "PYTHONUNBUFFERED": "1",
        **more,
    }


@asynccontextmanager
async def until_told() -> AsyncIterator[asyncio.Event]:
    """An event that TERM and Ctrl-C set. A second one leaves at once; what was started then ends by itself."""
    told, loop = asyncio.Event(), asyncio.get_running_loop()

    def tell() -> None:
        if told.is_set():
            print("Leaving; the rest ends by itself.", file=sys.stderr, flush=True)
            os._exit(Exit.INTERRUPTED)
        told.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, tell)
    try:
        yield told
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def _echo(path: Path) -> None:
    """Passes a child's output on to our stderr, and keeps its file small. The file may begin anew at any time."""
    at = 0
    while True:
        try:
            with path.open("r+b") as file:
                if file.seek(0, os.SEEK_END) < at:
                    at = 0
                file.seek(at)
                if content := file.read():
                    at += len(content)
                    sys.stderr.buffer.write(content)
                    sys.stderr.buffer.flush()
                elif at > KEEP_BYTES:
                    # Children append, so they go on at the new end.
                    file.truncate(0)
                    at = 0
        except FileNotFoundError:
            pass
        await asyncio.sleep(ECHO_SECONDS)


def _with_servers(settings: Settings) -> Settings:
    """Raises `SettingsInvalid` where the database or the broker is not named."""
    missing = [
        name
        for name, value in (("REBUILD_DATABASE_URL", settings.database_url), ("REBUILD_REDIS_URL", settings.redis_url))
        if not value
    ]
    if missing:
        raise SettingsInvalid(
            f"{' and '.join(missing)} must be set; `rebuildctl up` writes them to `env` in its state folder"
        )
    return settings
