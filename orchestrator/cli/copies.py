"""`clone` and `rollback`: plans made of plans."""

import asyncio

import click

from orchestrator.cli import options
from orchestrator.cli.context import App, output_option, pass_app
from orchestrator.cli.exits import Exit
from orchestrator.cli.render import counts_line
from orchestrator.cli.submit import ask_and_start, say_plan, show_preview, shown_held, wait_and_end, write_plan
from orchestrator.client import Plan
from orchestrator.domain.rollback import DATA_IS_GONE


@click.command()
@options.plan_id
@options.reason
@output_option
@pass_app
def clone(app: App, plan_id: str, reason: str | None) -> None:
    """Make a new, held plan of the same content.

    `rebuildctl preview ID` does the same, and shows what it would do now.
    """
    options.run(_clone(app, plan_id, reason))


async def _clone(app: App, plan_id: str, reason: str | None) -> int:
    async with app.client() as client:
        plan = await client.clone(plan_id, reason=reason)
        say_plan(app, plan)
        write_plan(app, plan)
        app.say(f"It is held; run it: rebuildctl start {plan.id}")
        return Exit.OK


def _servers(_context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]) -> list[str] | None:
    return [part for one in given for part in one.replace(",", " ").split()] or None


@click.command()
@options.plan_id
@click.option(
    "--servers",
    "--server",
    "servers",
    metavar="ID[,ID…]",
    multiple=True,
    callback=_servers,
    help="Only these; may be given again.",
)
@click.option("--preview", is_flag=True, help="Prepare it only, and show what it would do.")
@click.option("--yes", "-y", is_flag=True, help="Don't ask.")
@options.reason
@options.wait_options
@output_option
@pass_app
def rollback(
    app: App, plan_id: str, servers: list[str] | None, reason: str | None, *, preview: bool, yes: bool, wait: bool,
    timeout: float | None,
) -> None:  # fmt: skip
    """Rebuild the servers that a plan changed to the images that they had before, by a new plan.

    Only the images come back: what was on the disks is gone, and is wiped once more. On a terminal it shows what was
    found and asks before anything is rebuilt; --yes, or no terminal, doesn't.
    """
    app.note(DATA_IS_GONE)
    if preview:
        options.run(_preview(app, plan_id, servers, reason, timeout))
    if yes or not app.is_interactive:
        options.run(_rollback_now(app, plan_id, servers, reason, wait=wait, timeout=timeout))
    held = asyncio.run(_rollback_held(app, plan_id, servers, reason, timeout))
    ask_and_start(app, held, wait=wait, timeout=timeout)


async def _preview(
    app: App, plan_id: str, servers: list[str] | None, reason: str | None, timeout: float | None
) -> int:  # fmt: skip
    async with app.client() as client:
        plan = await client.rollback(plan_id, servers=servers, hold=True, reason=reason)
        say_plan(app, plan)
        return await show_preview(app, client, plan, timeout)


async def _rollback_now(
    app: App, plan_id: str, servers: list[str] | None, reason: str | None, *, wait: bool, timeout: float | None
) -> int:
    async with app.client() as client:
        plan = await client.rollback(plan_id, servers=servers, reason=reason)
        say_plan(app, plan)
        if wait:
            return await wait_and_end(app, client, plan, timeout=timeout)
        write_plan(app, plan)
        app.say(f"{plan.status}: {counts_line(plan)}")
        return Exit.OK


async def _rollback_held(
    app: App, plan_id: str, servers: list[str] | None, reason: str | None, timeout: float | None
) -> Plan | Exit:
    async with app.client() as client:
        plan = await client.rollback(plan_id, servers=servers, hold=True, reason=reason)
        say_plan(app, plan)
        return await shown_held(app, client, plan, timeout)
