"""`clouds`: what the service knows of its clouds, and their emergency stop."""

import click

from orchestrator.cli import options, shapes
from orchestrator.cli.context import App, output_option, pass_app
from orchestrator.cli.exits import Exit
from orchestrator.cli.output import Output, write_document, write_list


@click.group(invoke_without_command=True)
@output_option
@click.pass_context
@pass_app
def clouds(app: App, ctx: click.Context) -> None:
    """List the clouds, with their health and pace."""
    if ctx.invoked_subcommand is None:
        options.run(_list(app))


async def _list(app: App) -> int:
    async with app.client() as client:
        page = await client.clouds()
    document = {"items": [cloud.raw for cloud in page.items], "next": page.next}
    write_list(document, app.output, shapes.CLOUDS, empty="No cloud is configured: see clouds.yaml.")
    return Exit.OK


@clouds.command()
@click.argument("name")
@options.reason
@output_option
@pass_app
def pause(app: App, name: str, reason: str | None) -> None:
    """The emergency stop: nothing more is sent to that cloud, whatever the plan."""
    options.run(_act(app, name, "pause", reason))


@clouds.command()
@click.argument("name")
@options.reason
@output_option
@pass_app
def resume(app: App, name: str, reason: str | None) -> None:
    """Take the emergency stop back."""
    options.run(_act(app, name, "resume", reason))


async def _act(app: App, name: str, action: str, reason: str | None) -> int:
    async with app.client() as client:
        answer = await client.act_on_cloud(name, action, reason=reason)
    if app.output is Output.TABLE:
        app.say(f"{name}: {action}d")
    else:
        write_document(answer, app.output)
    return Exit.OK
