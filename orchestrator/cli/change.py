"""`change`: another pace for a plan that is under way."""

import click

from orchestrator.cli import options, shapes
from orchestrator.cli.context import App, output_option, pass_app
from orchestrator.cli.exits import Exit
from orchestrator.cli.output import Output, write_one


@click.command()
@options.plan_id
@click.option("--max-in-flight", type=click.IntRange(1), help="Servers that may be out at once.")
@click.option("--rate", help="Rebuild calls per second or minute, such as 10/s.")
@options.reason
@output_option
@pass_app
def change(app: App, plan_id: str, max_in_flight: int | None, rate: str | None, reason: str | None) -> None:
    """Change how fast a plan goes, within what its cloud allows. What is in flight goes on."""
    if max_in_flight is None and rate is None:
        raise click.UsageError("give --max-in-flight, --rate or both")
    options.run(_change(app, plan_id, max_in_flight=max_in_flight, rate=rate, reason=reason))


async def _change(app: App, plan_id: str, *, max_in_flight: int | None, rate: str | None, reason: str | None) -> int:
    async with app.client() as client:
        plan = await client.change(plan_id, max_in_flight=max_in_flight, rate=rate, reason=reason)
    write_one(plan.raw, app.output, shapes.PLAN if app.output is Output.TABLE else shapes.PLAN_CSV)
    return Exit.OK
