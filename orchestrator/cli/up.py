"""`up`: the whole service on this machine, for the clouds of clouds.yaml."""

from pathlib import Path

import click

from orchestrator.cli import options
from orchestrator.cli.context import App, pass_app
from orchestrator.cli.exits import Exit
from orchestrator.cli.processes import until_told
from orchestrator.cli.site import Site, SiteOptions, running
from orchestrator.log import configure
from orchestrator.settings import Settings


@click.command()
@click.option("--state-dir", type=click.Path(path_type=Path, file_okay=False), help="Where data, logs and `env` live.")
@click.option("--port", type=click.IntRange(0, 65535), help="Of the API; 0 takes a free one. As REBUILD_BIND says.")
@click.option(
    "--workers",
    type=click.IntRange(0, 64),
    default=1,
    show_default=True,
    help="How many workers; 0 leaves them to be started apart.",
)
@pass_app
def up(app: App, state_dir: Path | None, port: int | None, workers: int) -> None:
    """Run everything here: PostgreSQL and Valkey (or those of the environment), the API, workers and beat.

    It runs until Ctrl-C or a TERM. What dies is started again within seconds.
    """
    settings = Settings.read()
    configure("warning" if settings.log_level == "info" else settings.log_level, settings.log_format)
    wanted = SiteOptions(
        state_dir=(state_dir or settings.state_dir).expanduser().absolute(),
        bind=settings.bind if port is None else f"{settings.bind.rpartition(':')[0]}:{port}",
        workers=workers,
        database_url=settings.database_url,
        redis_url=settings.redis_url,
    )
    options.run(_up(app, wanted, is_default=state_dir is None))


async def _up(app: App, wanted: SiteOptions, *, is_default: bool) -> int:
    async with until_told() as told, running(wanted, say=app.say) as site:
        for line in _welcome(site, is_default=is_default, workers=wanted.workers):
            app.say(line)
        await told.wait()
        app.say("Stopping; what is being sent is finished first …")
    app.say("Stopped.")
    return Exit.OK


def _welcome(site: Site, *, is_default: bool, workers: int) -> list[str]:
    here = "" if is_default else f"REBUILD_STATE_DIR={site.state_dir} "
    lines = [
        f"Up at {site.api_url}",
        f"  token    in {site.env_file} (rebuildctl reads it; sign in to the dashboard with REBUILD_TOKEN)",
        f"  logs     {site.logs}",
        f"  next     {here}rebuildctl doctor; {here}rebuildctl preview plan.yaml",
    ]
    if not workers:
        lines.append(f"  workers  none: start them with {here}rebuildctl worker")
    return [*lines, "Ctrl-C stops everything."]
