"""What every command shares: settings, the state folder's `env` file, the chosen output and the client."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import click

from orchestrator.cli.output import Output, clean
from orchestrator.client import RebuildClient
from orchestrator.settings import Settings

ENV_FILE = "env"
PATIENCE_SECONDS = 5.0
"""How long a command tries an API that does not answer."""
FROM_FILE = ("REBUILD_DATABASE_URL", "REBUILD_REDIS_URL", "REBUILD_API_URL", "REBUILD_TOKEN")


def read_env_file(path: Path) -> dict[str, str]:
    """The `KEY=value` lines that `rebuildctl up` wrote there; nothing where there is no readable file."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.partition("=") for line in lines if "=" in line and not line.startswith("#"))
    return {key.strip(): value.strip() for key, _, value in pairs if key.strip() in FROM_FILE}


def settings_with_env_file() -> Settings:
    """The environment's settings; what it doesn't set of the four that `up` writes comes from the state folder's file.

    The file's token goes only to the file's API, never to another one. Raises `SettingsInvalid`.
    """
    settings = Settings.read()
    known = read_env_file(settings.state_dir / ENV_FILE)
    if os.environ.get("REBUILD_API_URL", known.get("REBUILD_API_URL")) != known.get("REBUILD_API_URL"):
        known.pop("REBUILD_TOKEN", None)
    update = {key.removeprefix("REBUILD_").lower(): value for key, value in known.items() if not os.environ.get(key)}
    return settings.model_copy(update=update)


@dataclass
class App:
    """One run of rebuildctl."""

    output: Output = Output.TABLE
    client_options: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def settings(self) -> Settings:
        return settings_with_env_file()

    def client(self) -> RebuildClient:
        """A client for the settings' API, not opened yet."""
        return RebuildClient(self.settings.api_url, self.settings.token, patience=PATIENCE_SECONDS)

    @property
    def human(self) -> IO[str]:
        """Where lines for people go: stdout belongs to the document unless that is a table."""
        return sys.stdout if self.output is Output.TABLE else sys.stderr

    def say(self, line: str = "") -> None:
        """A line for people."""
        print(clean(line), file=self.human, flush=True)

    def note(self, line: str) -> None:
        """A remark beside the result; always on stderr."""
        print(clean(line), file=sys.stderr, flush=True)

    @property
    def is_interactive(self) -> bool:
        """Whether a person can be asked."""
        return sys.stdin.isatty() and self.human.isatty()


pass_app: Callable[[Callable[..., Any]], Callable[..., Any]] = click.make_pass_decorator(App, ensure=True)


def _choose_output(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.find_root().ensure_object(App).output = Output(value)


output_option = click.option(
    "--output",
    "-o",
    type=click.Choice([o.value for o in Output]),
    callback=_choose_output,
    expose_value=False,
    is_eager=True,
    help="How the result is written to stdout (table).",
)
