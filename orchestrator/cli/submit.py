"""`preview`, `submit`, `start` and `wait`: from a plan file to a plan's end."""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import click

from orchestrator.cli import options
from orchestrator.cli.context import App, output_option, pass_app
from orchestrator.cli.exits import Exit, gravest
from orchestrator.cli.output import Output, write_csv, write_document, write_table
from orchestrator.cli.planfile import default_key, encode_plan, load_plan_file
from orchestrator.cli.render import counts_line, eta_of, failure_line
from orchestrator.cli.shapes import PLAN_CSV, WAVES
from orchestrator.cli.watch import (
    Lines,
    Until,
    Waited,
    ended,
    prepared,
    say_end,
    stopping_at_term,
    view_for,
    wait_for,
)
from orchestrator.client import Plan, RebuildClient
from orchestrator.domain.states import JobState, PlanStatus

SHOWN_REFUSALS = 20


@click.command()
@options.plan_file
@click.option("--timeout", type=options.Duration(), help="How long to wait for the preview, such as 10m.")
@output_option
@pass_app
def preview(app: App, file: str, timeout: float | None) -> None:
    """Prepare a plan without starting it, and show what it would do.

    FILE may be the id of a plan: that is copied, and shows what it would do now. The preview is saved: `rebuildctl
    start ID` runs exactly it. Exit code 8 says that some servers are refused.
    """
    options.run(_preview(app, file, timeout))


async def _preview(app: App, file: str, timeout: float | None) -> int:
    source = options.plan_id_of(file)
    document = {} if source else {**load_plan_file(file), "hold": True}
    async with app.client() as client:
        if source:
            plan = await client.clone(source, reason="previewed")
            say_plan(app, plan)
        else:
            plan = await _submit(app, client, document, file, None)
        return await show_preview(app, client, plan, timeout)


async def show_preview(app: App, client: RebuildClient, plan: Plan, timeout: float | None) -> int:
    """Waits until a held plan is prepared, and shows it."""
    waited = await _watch(app, client, plan, until=prepared, timeout=timeout)
    plan = waited.plan
    write_plan(app, plan)
    if plan.status != PlanStatus.READY:
        say_end(app, waited)
        return waited.exit
    refused = plan.count(JobState.REFUSED)
    await _say_preview(app, client, plan)
    app.say(f"Start exactly this: rebuildctl start {plan.id}" + (f" --digest {plan.digest}" if plan.digest else ""))
    return Exit.REFUSALS if refused else Exit.OK


async def _say_preview(app: App, client: RebuildClient, plan: Plan) -> None:
    """The verdicts, the waves and the time it will take."""
    to_rebuild = plan.count(JobState.PENDING)
    app.say(
        f"{plan.name}: {to_rebuild:,} to rebuild, {plan.count(JobState.SKIPPED):,} to skip,"
        f" {plan.count(JobState.REFUSED):,} refused, of {plan.counts.get('total', 0):,} servers"
    )
    if app.output is Output.TABLE and plan.waves:
        write_table([wave.raw for wave in plan.waves], WAVES[:2])
    if eta := eta_of(plan, datetime.now(UTC)):
        limit = plan.eta.limited_by if plan.eta else None
        app.say(f"It takes about {eta}" + (f", limited by {limit}." if limit else "."))
    if plan.count(JobState.REFUSED):
        page = await client.jobs(plan.id, state=JobState.REFUSED, limit=SHOWN_REFUSALS)
        for job in page.items:
            app.say(f"  {failure_line(job)}")
        if page.next is not None:
            app.say(f"  and more: rebuildctl jobs {plan.id} --state refused")


@click.command()
@options.plan_file
@click.option(
    "--idempotency-key", metavar="K", help="The same key again finds the same plan. In CI there is a default."
)
@click.option("--yes", "-y", is_flag=True, help="Don't ask.")
@options.wait_options
@output_option
@pass_app
def submit(app: App, file: str, idempotency_key: str | None, *, yes: bool, wait: bool, timeout: float | None) -> None:
    """Submit a plan file, YAML or JSON (- for stdin).

    On a terminal it shows what was found and asks before anything is rebuilt; --yes, or no terminal, doesn't.
    """
    document = load_plan_file(file)
    held = document.get("hold") is True
    if yes or held or not app.is_interactive:
        until = prepared if held else ended
        options.run(_submit_now(app, document, file, idempotency_key, wait=wait, until=until, timeout=timeout))
        return
    ask_and_start(
        app, asyncio.run(_submit_held(app, document, file, idempotency_key, timeout)), wait=wait, timeout=timeout
    )


def ask_and_start(app: App, plan: Plan | Exit, *, wait: bool, timeout: float | None) -> None:
    """Asks whether a plan that was shown is to be started; leaves with the exit code."""
    if isinstance(plan, Exit):
        click.get_current_context().exit(int(plan))
    if plan.status != PlanStatus.READY:  # an earlier submit with this key was started
        options.run(act_and_wait(app, plan.id, None, wait=wait, timeout=timeout))
    # Asked outside of the event loop, so that Ctrl-C reaches the question.
    try:
        agreed = click.confirm("Start?", default=False, err=app.human is sys.stderr)
    except click.Abort:
        app.note(f"Nothing was started; the preview is kept. Start it: rebuildctl start {plan.id}")
        raise
    if agreed:
        options.run(act_and_wait(app, plan.id, "start", wait=wait, timeout=timeout, digest=plan.digest))
    options.run(_decline(app, plan.id))


async def _submit_now(
    app: App, document: dict[str, Any], file: str, key: str | None, *, wait: bool, until: Until, timeout: float | None
) -> int:
    async with app.client() as client:
        plan = await _submit(app, client, document, file, key)
        if wait:
            return await wait_and_end(app, client, plan, until=until, timeout=timeout)
        write_plan(app, plan)
        return Exit.OK


async def _submit_held(
    app: App, document: dict[str, Any], file: str, key: str | None, timeout: float | None
) -> Plan | Exit:
    """The plan, prepared and shown, for the question; or how it ended before there was anything to ask."""
    async with app.client() as client:
        plan = await _submit(app, client, {**document, "hold": True}, file, key)
        return await shown_held(app, client, plan, timeout)


async def shown_held(app: App, client: RebuildClient, plan: Plan, timeout: float | None) -> Plan | Exit:
    """A held plan, prepared and shown, for the question; or how it ended before there was anything to ask."""
    waited = await _watch(app, client, plan, until=prepared, timeout=timeout)
    if ended(waited.plan) or not waited.reached:
        write_plan(app, waited.plan)
        say_end(app, waited)
        return waited.exit
    if waited.plan.status == PlanStatus.READY:
        await _say_preview(app, client, waited.plan)
    return waited.plan


async def _decline(app: App, plan_id: str) -> int:
    async with app.client() as client:
        write_plan(app, await client.cancel(plan_id, reason="declined before the start"))
    app.note("Cancelled; nothing was rebuilt.")
    return Exit.CANCELLED


async def _submit(app: App, client: RebuildClient, document: dict[str, Any], file: str, key: str | None) -> Plan:
    body = encode_plan(document)
    system = None
    if key is None:
        key, system = default_key(file, body)
    if system is not None:
        app.note(f"Idempotency-Key {key} (of this {system} job)")
    plan, is_new = await client.submit_once(body, idempotency_key=key)
    say_plan(app, plan)
    if not is_new:
        app.note(f"This was submitted before, with the same key; the plan is {plan.status}.")
    return plan


@click.command()
@options.plan_id
@click.option("--digest", help="Start only if the preview is still this one.")
@click.option("--yes", "-y", is_flag=True, help="For scripts; start never asks.")
@options.reason
@options.wait_options
@output_option
@pass_app
def start(
    app: App,
    plan_id: str,
    digest: str | None,
    reason: str | None,
    *,
    yes: bool,  # noqa: ARG001  submit takes it, so start does
    wait: bool,
    timeout: float | None,
) -> None:
    """Start a plan that was prepared and held."""
    options.run(act_and_wait(app, plan_id, "start", wait=wait, timeout=timeout, reason=reason, digest=digest))


@click.command()
@click.argument("plan_ids", metavar="ID...", type=options.PlanId(), nargs=-1, required=True)
@click.option("--timeout", type=options.Duration(), help="How long to wait, such as 2h; as long as it takes.")
@output_option
@pass_app
def wait(app: App, plan_ids: tuple[str, ...], timeout: float | None) -> None:
    """Wait until plans end (also: are halted). Of several plans the gravest end makes the exit code."""
    options.run(_wait(app, list(dict.fromkeys(plan_ids)), timeout))


async def _wait(app: App, plan_ids: list[str], timeout: float | None) -> int:
    async with app.client() as client:
        plans = [await client.get_plan(plan_id) for plan_id in plan_ids]
        for plan in plans:
            say_plan(app, plan)
        if len(plans) == 1:
            return await wait_and_end(app, client, plans[0], timeout=timeout)
        async with _reattachable(app, *plan_ids):
            all_waited = await asyncio.gather(
                *(wait_for(client, plan, Lines(app.say, prefix=f"{plan.id[-6:]} "), timeout=timeout) for plan in plans)
            )
        write_plans(app, [waited.plan for waited in all_waited])
        for waited in all_waited:
            say_end(app, waited)
        return gravest(waited.exit for waited in all_waited)


async def act_and_wait(
    app: App, plan_id: str, action: str | None, *, wait: bool = False, timeout: float | None = None, **body: Any
) -> int:
    """One of the plan's actions (None: none), and with `wait` its end."""
    async with app.client() as client:
        plan = await (client.get_plan(plan_id) if action is None else client.act(plan_id, action, **body))
        say_plan(app, plan)
        if wait:
            return await wait_and_end(app, client, plan, timeout=timeout)
        write_plan(app, plan)
        app.say(f"{plan.status}: {counts_line(plan)}")
        return Exit.OK


async def wait_and_end(
    app: App, client: RebuildClient, plan: Plan, *, until: Until = ended, timeout: float | None = None
) -> int:
    """Waits, writes the plan as it ended and says how it went."""
    waited = await _watch(app, client, plan, until=until, timeout=timeout)
    write_plan(app, waited.plan)
    say_end(app, waited)
    return waited.exit


async def _watch(app: App, client: RebuildClient, plan: Plan, *, until: Until, timeout: float | None) -> Waited:
    async with _reattachable(app, plan.id):
        with view_for(app, plan) as view:
            return await wait_for(client, plan, view, until=until, timeout=timeout)


@asynccontextmanager
async def _reattachable(app: App, *plan_ids: str) -> AsyncIterator[None]:
    """Ctrl-C, or a TERM, stops the waiting and not the plan; says so."""
    try:
        async with stopping_at_term():
            yield
    except asyncio.CancelledError:
        app.note(f"Stopped waiting; the plan goes on. Wait again: rebuildctl wait {' '.join(plan_ids)}")
        raise


def say_plan(app: App, plan: Plan) -> None:
    """The id and the address, before anything else."""
    app.say(f"Plan {plan.id}")
    if plan.url:
        app.say(plan.url)


def write_plan(app: App, plan: Plan) -> None:
    """The one document on stdout; a table has said everything already."""
    if app.output is Output.CSV:
        write_csv([plan.raw], PLAN_CSV)
    elif app.output is not Output.TABLE:
        write_document(plan.raw, app.output)


def write_plans(app: App, plans: Sequence[Plan]) -> None:
    """As `write_plan`, for several: one page."""
    if app.output is Output.CSV:
        write_csv([plan.raw for plan in plans], PLAN_CSV)
    elif app.output is not Output.TABLE:
        write_document({"items": [plan.raw for plan in plans], "next": None}, app.output)
