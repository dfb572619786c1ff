"""`rebuildctl`: the command line. Here is the list of commands, and what becomes of errors."""

import asyncio
import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from typing import Any

import click

from orchestrator.cli.context import App, output_option
from orchestrator.cli.exits import Exit, exit_of_problem
from orchestrator.cli.output import clean
from orchestrator.client import ApiProblem, ApiUnreachable
from orchestrator.errors import Fault, RebuildError, SettingsInvalid

COMMANDS = {
    "demo": "demo:demo",
    "up": "up:up",
    "serve": "processes:serve",
    "worker": "processes:worker",
    "beat": "processes:beat",
    "migrate": "processes:migrate",
    "rehearse": "rehearse:rehearse",
    "preview": "submit:preview",
    "start": "submit:start",
    "submit": "submit:submit",
    "status": "plans:status",
    "wait": "submit:wait",
    "jobs": "plans:jobs",
    "events": "plans:events",
    **{name: f"plans:{name}" for name in ("pause", "resume", "cancel", "approve", "reject", "promote", "retry")},
    "rollback": "copies:rollback",
    "clone": "copies:clone",
    "change": "change:change",
    "resolve": "resolve:resolve",
    **{name: f"plans:{name}" for name in ("skip", "acknowledge")},
    "clouds": "clouds:clouds",
    "token": "tokens:token",
    "doctor": "doctor:doctor",
}
"""Each command's module and name. A command is imported when it is called: `status` needs no database driver."""


class Commands(click.Group):
    """The commands, in the order above."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click calls it so
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  click calls it so
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        found = importlib.import_module(f"orchestrator.cli.{module}")
        command = getattr(found, attribute, None) or found.COMMANDS[attribute]
        assert isinstance(command, click.Command)  # noqa: S101  by the table above
        return command


def _version() -> str:
    try:
        return metadata.version("fleet-rebuild")
    except metadata.PackageNotFoundError:
        return "of a source tree"


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(_version(), prog_name="rebuildctl")
@output_option
def cli() -> None:
    """Rebuild fleets of cloud servers onto a new image.

    \b
    Begin with:  rebuildctl demo
    Exit codes:  0 succeeded   1 failed, halted, or stuck or unresolved servers left
                 2 bad usage, bad plan or rejected   3 the wait timed out, the plan goes on
                 4 the same, and the plan is paused or awaits approval   5 cancelled
                 6 the API is out of reach   7 not allowed   8 preview: some servers are refused
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point: runs a command and leaves with its exit code."""
    code = run(arguments)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _give_up_stdout()
    sys.exit(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; its exit code. No error leaves here but with REBUILD_DEBUG=1, which lets the rest through."""
    try:
        result = cli.main(arguments, prog_name="rebuildctl", standalone_mode=False, obj=App())
        return result if isinstance(result, int) else Exit.OK
    except click.Abort:
        return Exit.INTERRUPTED
    except click.ClickException as e:
        e.show(sys.stderr)
        return Exit.BAD_INPUT
    except (KeyboardInterrupt, asyncio.CancelledError):
        return Exit.INTERRUPTED
    except BrokenPipeError:
        _give_up_stdout()
        return Exit.OK
    except ApiProblem as e:
        _say_faults(e.errors)
        _say(f"{e.message} ({e.reason_code})")
        if e.status == 401:
            _say("Set REBUILD_TOKEN; `rebuildctl up` keeps one in `env` in its state folder.")
        return exit_of_problem(e)
    except ApiUnreachable as e:
        _say(e.message)
        _say("Is it running? REBUILD_API_URL says where; `rebuildctl up` starts everything.")
        return Exit.UNREACHABLE
    except SettingsInvalid as e:
        _say_faults(e.errors) if e.errors else _say(e.message)
        return Exit.BAD_INPUT
    except RebuildError as e:
        _say_faults(e.errors)
        _say(e.message)
        return Exit.FAILED
    except Exception as e:
        if os.environ.get("REBUILD_DEBUG", "") not in ("", "0"):
            raise
        _say(_last_words(e))
        return Exit.FAILED if isinstance(e, OSError) else Exit.INTERNAL


def _say_faults(faults: Sequence[Fault]) -> None:
    for fault in faults:
        _say(f"{fault.path}: {fault.message}" if fault.path else fault.message)


def _last_words(error: Exception) -> str:
    """One line for an error that has no better one; SQL and its values stay out of it."""
    cause: Any = getattr(error, "orig", None) or error
    text = str(cause).strip().splitlines()
    what = f"{type(cause).__name__}: {text[0]}" if text else type(cause).__name__
    return f"{what} (REBUILD_DEBUG=1 shows where)"


def _say(text: str) -> None:
    with suppress(OSError):
        print(clean(text), file=sys.stderr, flush=True)


def _give_up_stdout() -> None:
    """Whoever read our output has left; so that Python's last flush doesn't complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
