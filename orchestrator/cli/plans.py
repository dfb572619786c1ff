"""Looking at plans, and acting on them: `status`, `jobs`, `events`, `pause`, `resume`, `cancel` and the rest."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import click

from orchestrator.cli import options, shapes
from orchestrator.cli.context import App, output_option, pass_app
from orchestrator.cli.exits import Exit
from orchestrator.cli.output import Output, clean, write_csv, write_document, write_list, write_one, write_table
from orchestrator.cli.submit import act_and_wait, say_plan, wait_and_end
from orchestrator.cli.watch import ended
from orchestrator.client import Event, Plan, RebuildClient
from orchestrator.client.models import Document
from orchestrator.domain.states import FINAL_PLAN_STATUSES, JobState, PlanStatus

PAGE = 1000
RECENT_PLANS = 20


@click.command()
@click.argument("plan_id", metavar="[ID]", type=options.PlanId(), required=False)
@click.option("--watch", "-w", is_flag=True, help="Watch it until it ends; the exit code says how it went.")
@click.option("--status", type=click.Choice([str(s) for s in PlanStatus]), help="Only plans that stand so.")
@click.option("--label", metavar="KEY=VALUE", help="Only plans with this label.")
@click.option("--cloud", help="Only plans of this cloud.")
@click.option("--limit", type=click.IntRange(1), default=RECENT_PLANS, show_default=True, help="How many plans.")
@output_option
@pass_app
def status(app: App, plan_id: str | None, *, watch: bool, **filters: Any) -> None:
    """Show one plan, or list the newest ones."""
    if plan_id is None:
        if watch:
            raise click.UsageError("--watch takes the id of a plan")
        options.run(_list_plans(app, **filters))
    options.run(_show_plan(app, plan_id or "", watch=watch))


async def _list_plans(app: App, *, limit: int, **filters: str | None) -> int:
    items: list[Plan] = []
    cursor = None
    async with app.client() as client:
        while len(items) < limit:
            page = await client.list_plans(limit=min(PAGE, limit - len(items)), cursor=cursor, **filters)
            items += page.items
            cursor = page.next
            if cursor is None:
                break
    columns = shapes.PLANS if app.output is Output.TABLE else shapes.PLAN_CSV
    write_list(_document(items, cursor), app.output, columns, empty="There are no such plans.")
    return Exit.OK


async def _show_plan(app: App, plan_id: str, *, watch: bool) -> int:
    async with app.client() as client:
        plan = await client.get_plan(plan_id)
        if watch and not ended(plan):
            say_plan(app, plan)
            return await wait_and_end(app, client, plan)
    write_one(plan.raw, app.output, shapes.PLAN if app.output is Output.TABLE else shapes.PLAN_CSV)
    if app.output is Output.TABLE:
        for fault in plan.raw.get("errors") or ():
            print(clean(f"  {fault.get('path')}: {fault.get('message')}"))
        if plan.waves:
            print()
            write_table([wave.raw for wave in plan.waves], shapes.WAVES)
    return Exit.OK


@click.command()
@options.plan_id
@click.argument("server", required=False)
@click.option("--state", type=click.Choice([str(s) for s in JobState]))
@click.option("--wave", type=click.IntRange(0), help="The wave's index, from 0.")
@click.option("--cause", help="The reason's code.")
@click.option("--query", "-q", "q", help="A part of the server's name, or its id.")
@click.option("--limit", type=click.IntRange(1), help="How many at most; all.")
@output_option
@pass_app
def jobs(app: App, plan_id: str, server: str | None, **filters: Any) -> None:
    """List a plan's servers, or show one of them with its attempts and their evidence."""
    options.run(_show_job(app, plan_id, server) if server else _list_jobs(app, plan_id, **filters))


async def _list_jobs(app: App, plan_id: str, *, limit: int | None, **filters: Any) -> int:
    items: list[Document] = []
    cursor = None
    async with app.client() as client:
        while limit is None or len(items) < limit:
            size = PAGE if limit is None else min(PAGE, limit - len(items))
            page = await client.jobs(plan_id, limit=size, cursor=cursor, **filters)
            items += page.items
            cursor = page.next
            if cursor is None:
                break
    columns = shapes.JOBS if app.output is Output.TABLE else shapes.JOBS_CSV
    write_list(_document(items, cursor), app.output, columns, empty="The plan has no such servers.")
    return Exit.OK


async def _show_job(app: App, plan_id: str, server_id: str) -> int:
    async with app.client() as client:
        job = await client.job(plan_id, server_id)
    write_one(job.raw, app.output, shapes.JOBS_CSV)
    if app.output is Output.TABLE:
        evidence = [{**e, "attempt": a.get("number")} for a in job.attempt_log for e in a.get("evidence") or ()]
        history = [e.raw for e in job.events]
        for rows, columns in (
            (job.attempt_log, shapes.ATTEMPTS), (evidence, shapes.EVIDENCE), (history, shapes.EVENTS),
        ):  # fmt: skip
            if rows:
                print()
                write_table(list(rows), columns)
    return Exit.OK


@click.command()
@options.plan_id
@click.option("--follow", "-f", is_flag=True, help="Go on as they happen, until the plan ends.")
@click.option("--after", type=click.IntRange(0), default=0, help="Only those after this number.")
@output_option
@pass_app
def events(app: App, plan_id: str, *, follow: bool, after: int) -> None:
    """List a plan's history. With --follow, JSON and YAML are one document for each event, JSON on one line."""
    options.run(_events(app, plan_id, follow=follow, after=after))


async def _events(app: App, plan_id: str, *, follow: bool, after: int) -> int:
    async with app.client() as client:
        was_final = follow and (await client.get_plan(plan_id)).is_final
        shown = [event for event in await _all_events(client, plan_id) if event.seq > after]
        if not follow:
            write_list(_document(shown, None), app.output, shapes.EVENTS, empty="Nothing has happened yet.")
            return Exit.OK
        write_event = _event_writer(app.output)
        for event in shown:
            write_event(event)
        if was_final:
            return Exit.OK
        async for event in client.follow(plan_id, after=shown[-1].seq if shown else after):
            write_event(event)
            if event.server_id is None and event.to_state in FINAL_PLAN_STATUSES:
                break
    return Exit.OK


async def _all_events(client: RebuildClient, plan_id: str) -> list[Event]:
    found: list[Event] = []
    cursor = None
    while True:
        page = await client.events(plan_id, limit=PAGE, cursor=cursor)
        found += page.items
        cursor = page.next
        if cursor is None:
            return found


def _event_writer(form: Output) -> Callable[[Event], None]:
    """Writes one event at a time: a line, a line of JSON, a YAML document or a CSV row."""
    header = True

    def write(event: Event) -> None:
        nonlocal header
        match form:
            case Output.JSON:
                print(json.dumps(event.raw, ensure_ascii=False), flush=True)
            case Output.YAML:
                print("---")
                write_document(event.raw, form)
            case Output.CSV:
                write_csv([event.raw], shapes.EVENTS, header=header)
                header = False
            case Output.TABLE:
                values = {name: str(find(event.raw) or "") for name, find in shapes.EVENTS}
                move = f"{values['from']} → {values['to']}" if values["from"] else values["to"]
                parts = (values["at"], values["type"], values["server_id"], move, values["actor"], values["reason"])
                print(clean(f"{values['seq']:>6}  " + "  ".join(part for part in parts if part)), flush=True)

    return write


def _document(items: Sequence[Document], cursor: str | None) -> dict[str, Any]:
    """The page as the API gives it."""
    return {"items": [item.raw for item in items], "next": cursor}


def _action(name: str, text: str, *, waits: bool = False) -> click.Command:
    """A command that is one action of the plan and nothing else."""

    def act(app: App, plan_id: str, *, wait: bool = False, timeout: float | None = None, **body: Any) -> None:
        options.run(act_and_wait(app, plan_id, name, wait=wait, timeout=timeout, **body))

    act.__doc__ = text
    decorated: Any = pass_app(act)
    if name == "retry":
        decorated = click.option(
            "--server", "servers", multiple=True, callback=lambda _c, _p, value: list(value) or None,
            help="Only this server's id; may be given again.",
        )(decorated)  # fmt: skip
    if waits:
        decorated = options.wait_options(decorated)
    return click.command(name, help=text)(options.plan_id(options.reason(output_option(decorated))))


_ACTIONS = (
    _action("pause", "Stop sending; what is in flight goes on."),
    _action("resume", "Go on after a pause or a halt; after a halt the failures so far are acknowledged."),
    _action("cancel", "Stop new work and let what is in flight finish."),
    _action("approve", "Let a plan pass the gate that it waits at."),
    _action("reject", "Stop a plan at the gate that it waits at."),
    _action("promote", "Start the next wave without waiting for the bake time's end."),
    _action("retry", "Try failed servers again: each is wiped once more.", waits=True),
)


def _job_action(name: str, text: str) -> click.Command:
    """A command that is one action on each of some servers of a plan."""

    def act(app: App, plan_id: str, servers: tuple[str, ...], **body: Any) -> None:
        options.run(_act_on_jobs(app, plan_id, servers, name, {k: v for k, v in body.items() if v is not None}))

    decorated: Any = click.argument("servers", metavar="SERVER...", nargs=-1, required=True)(pass_app(act))
    return click.command(name, help=text)(options.plan_id(options.reason(output_option(decorated))))


async def _act_on_jobs(app: App, plan_id: str, servers: Sequence[str], action: str, body: dict[str, Any]) -> int:
    async with app.client() as client:
        done = [await client.act_on_job(plan_id, server, action, body) for server in servers]
    write_list(_document(done, None), app.output, shapes.JOBS, empty="")
    return Exit.OK


_JOB_ACTIONS = (
    _job_action("skip", "Leave servers out of a plan."),
    _job_action("acknowledge", "Say that a person looks after servers that are out, so that others may go on."),
)

COMMANDS = {str(command.name): command for command in (*_ACTIONS, *_JOB_ACTIONS)}
"""The commands of this module that are made from a table."""
