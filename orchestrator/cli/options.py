"""Options and arguments that several commands share."""

import asyncio
import uuid
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import click

from orchestrator.domain.units import parse_duration

F = TypeVar("F", bound=Callable[..., Any])


class Duration(click.ParamType[float]):
    """`90s`, `30m`, `2h`, `1d`, as in plan files; a number of seconds for the command."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        try:
            return parse_duration(str(value))
        except ValueError as e:
            self.fail(str(e), param, ctx)


class PlanId(click.ParamType[str]):
    """A plan's id, or its address in the API or the dashboard."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value).rstrip("/").rpartition("/")[2]
        try:
            return str(uuid.UUID(text))
        except ValueError:
            self.fail(f"{value!r} is no plan's id; `rebuildctl status` lists them", param, ctx)


def plan_id_of(text: str) -> str | None:
    """The id, where a text is a plan's id or address and no file is named so."""
    if Path(text).exists():
        return None
    try:
        return str(uuid.UUID(text.rstrip("/").rpartition("/")[2]))
    except ValueError:
        return None


plan_id = click.argument("plan_id", metavar="ID", type=PlanId())
plan_file = click.argument("file", metavar="FILE", type=click.Path(allow_dash=True, dir_okay=False))
reason = click.option("--reason", help="Why; it stands in the plan's history.")


def wait_options(command: F) -> F:
    """`--wait` and `--timeout`."""
    command = click.option("--timeout", type=Duration(), help="How long to wait, such as 2h; as long as it takes.")(
        command
    )
    return click.option("--wait", is_flag=True, help="Wait for the plan's end; the exit code says how it went.")(
        command
    )


def run(work: Coroutine[Any, Any, int]) -> None:
    """Runs a command's work in an event loop of its own; its result is the exit code."""
    click.get_current_context().exit(int(asyncio.run(work)))
