"""`rehearse`: the rehearsal cloud alone."""

from pathlib import Path
from typing import Any

import click

from orchestrator.cli.context import App, pass_app
from orchestrator.domain.units import parse_rate

BIG_NETWORK = "10.0.0.0/8"
"""For fleets that the rehearsal cloud's usual network has too few addresses for."""


class Seconds(click.ParamType[tuple[float, float]]):
    """`3` or `2-5`: seconds, or a range that each rebuild draws from."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        if isinstance(value, tuple):
            return value
        low, dash, high = str(value).partition("-")
        try:
            span = float(low), float(high if dash else low)
        except ValueError:
            span = -1.0, -1.0
        if not 0 <= span[0] <= span[1]:
            self.fail("give seconds such as 3, or a range such as 2-5", param, ctx)
        return span


class Rate(click.ParamType[str]):
    """`10/s` or `10/m`, as in plan files; a bare `10` is per second."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        said = str(value) if "/" in str(value) else f"{value}/s"
        try:
            parse_rate(said)
        except ValueError as e:
            self.fail(str(e), param, ctx)
        return said


@click.command()
@click.option("--servers", type=click.IntRange(1, 1_000_000), default=50, show_default=True)
@click.option("--rebuild-seconds", type=Seconds(), default="2-5", show_default=True, help="How long a rebuild takes.")
@click.option("--rate", type=Rate(), help="Changing calls let through, such as 10/s; more get a 429. Any number.")
@click.option("--read-rate", type=Rate(), help="The same for reads.")
@click.option("--fail-rate", type=click.FloatRange(0, 1), default=0.0, help="Share of rebuilds that fail on the host.")
@click.option("--locked", type=click.IntRange(0), default=0, help="How many servers are locked.")
@click.option("--error", type=click.IntRange(0), default=0, help="How many are in ERROR.")
@click.option("--shutoff", type=click.IntRange(0), default=0, help="How many are off.")
@click.option("--volume-booted", type=click.IntRange(0), default=0, help="How many boot from a volume.")
@click.option("--seed", type=int, default=1, help="Of the ids, durations and failures.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="0 takes a free one.")
@click.option("--clouds-file", type=click.Path(path_type=Path, dir_okay=False), help="Where to write a clouds.yaml.")
@click.option("--name", default="rehearsal", show_default=True, help="The cloud's name in that file.")
@pass_app
def rehearse(
    app: App,
    rebuild_seconds: tuple[float, float],
    rate: str | None,
    read_rate: str | None,
    host: str,
    port: int,
    clouds_file: Path | None,
    name: str,
    **config: Any,
) -> None:
    """Serve a cloud in memory, for rehearsing plans without wiping anything."""
    from orchestrator.rehearsal.command import run
    from orchestrator.rehearsal.config import RehearsalConfig

    if config["servers"] > 60_000:
        config["network"] = BIG_NETWORK
    try:
        made = RehearsalConfig(
            rebuild_seconds=rebuild_seconds,
            write_rate=None if rate is None else parse_rate(rate),
            read_rate=None if read_rate is None else parse_rate(read_rate),
            **config,
        )
    except ValueError as e:
        raise click.UsageError(str(e)) from None
    settings = {"kind": "nova", "write_rate": rate, "read_rate": read_rate}
    try:
        run(
            made,
            host,
            port,
            clouds_file,
            name=name,
            rebuild_settings={key: value for key, value in settings.items() if value is not None},
            say=app.say,
        )
    except OSError as e:
        raise click.UsageError(f"can't serve at {host}:{port}: {e}") from None
