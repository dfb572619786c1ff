"""`resolve`: a person settles servers of which nobody knows what their rebuild call did."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

import click

from orchestrator.cli import options, shapes
from orchestrator.cli.context import App, output_option, pass_app
from orchestrator.cli.exits import Exit
from orchestrator.cli.output import Output, write_csv, write_document
from orchestrator.cli.render import attempt_lines, failure_line
from orchestrator.client import ApiProblem, ApiUnreachable, Decision, JobDetail
from orchestrator.domain.states import JobState
from orchestrator.errors import Conflict, RebuildError

T = TypeVar("T")
R = TypeVar("R")

AT_ONCE = 8
"""Requests under way at a time: enough for hundreds of servers, and no burst on a service that is in trouble."""

MEANING: dict[Decision, str] = {
    "applied": "watched as a rebuild from now on",
    "not_applied": "looked at once more; if the cloud shows no trace of the call, it may be wiped by a new one",
    "give_up": "counted as failed and no longer held, so another plan may wipe it",
}
"""What a decision does to a server, for the question."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A server before the decision: its job, or why the API would not show it."""

    server_id: str
    job: JobDetail | None = None
    problem: RebuildError | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the decision came to for one server; settled where there is no problem."""

    seen: Seen
    decision: Decision
    attempt: int | None
    """The attempt that the decision was about; None where the server wasn't shown."""
    job: JobDetail | None = None
    """As it is afterwards."""
    problem: RebuildError | None = None

    @property
    def line(self) -> str:
        """For people: `s-1 (web-1): attempt 2 settled as applied, now rebuilding`."""
        name = self.seen.job.name if self.seen.job else None
        who = f"{self.seen.server_id} ({name})" if name else self.seen.server_id
        which = f"attempt {self.attempt} " if self.attempt else ""
        if self.problem is not None:
            said = " ".join(self.problem.message.split())
            return f"{who}: {which}not settled: {self.problem.reason_code}: {said}"
        return f"{who}: {which}settled as {self.decision}, now {self.job.state if self.job else 'unknown'}"

    @property
    def document(self) -> dict[str, Any]:
        """For programs."""
        problem = self.problem
        return {
            "server_id": self.seen.server_id,
            "name": self.seen.job.name if self.seen.job else None,
            "decision": self.decision,
            "attempt": self.attempt,
            "settled": problem is None,
            "job": self.job.raw if self.job else None,
            "problem": None if problem is None else {
                "code": problem.reason_code, "detail": problem.message,
                "errors": [{"path": f.path, "code": f.code, "message": f.message} for f in problem.errors],
            },
        }  # fmt: skip


@click.command()
@options.plan_id
@click.argument("servers", metavar="[SERVER]...", nargs=-1)
@click.option("--all", "all_unresolved", is_flag=True, help="Every unresolved server of the plan (not the stuck ones).")
@click.option(
    "--decision", type=click.Choice(get_args(Decision)), required=True, help="What became of the rebuild call."
)
@click.option(
    "--attempt", type=click.IntRange(1), help="The attempt that was looked at; without it, the one that is shown now."
)
@click.option("--yes", "-y", is_flag=True, help="Don't ask.")
@options.reason
@output_option
@pass_app
def resolve(
    app: App, plan_id: str, servers: tuple[str, ...], *, all_unresolved: bool, decision: Decision,
    attempt: int | None, yes: bool, reason: str | None,
) -> None:  # fmt: skip
    """Settle servers whose rebuild call's effect is unknown, or give up stuck ones.

    \b
    applied      the call took effect: the server is watched as a rebuild
    not_applied  it did not: the cloud is looked at once more, and where nothing
                 speaks for the call the server is rebuilt anew
    give_up      it counts as failed, and its hold goes (stuck servers take only this)

    On a terminal it shows each server's evidence first and asks; --yes, or no terminal, doesn't. Exit code 1 says that
    some servers were not settled; the others are.
    """
    if all_unresolved == bool(servers):
        raise click.UsageError("name the servers, or give --all for every unresolved one")
    if all_unresolved and attempt is not None:
        raise click.UsageError("--attempt is of a server that is named; with --all each one's own is taken")
    all_seen = asyncio.run(_look(app, plan_id, list(dict.fromkeys(servers)) if servers else None))
    if app.human.isatty():
        _show(app, all_seen)
    shown = [seen for seen in all_seen if seen.job is not None]
    # Asked outside of the event loop, so that Ctrl-C reaches the question.
    if app.is_interactive and shown and not yes:
        many = "this server" if len(shown) == 1 else f"these {len(shown):,} servers"
        question = f"Settle {many} as {decision} ({MEANING[decision]})?"
        if not click.confirm(question, default=False, err=app.human is sys.stderr):
            app.note("Nothing was settled.")
            click.get_current_context().exit(int(Exit.FAILED))
    options.run(_settle(app, plan_id, all_seen, decision=decision, attempt=attempt, reason=reason))


async def _look(app: App, plan_id: str, servers: Sequence[str] | None) -> list[Seen]:
    """The servers with their evidence, in their order; None: all that are unresolved."""
    async with app.client() as client:
        if servers is None:
            jobs = [job async for job in client.all_jobs(plan_id, state=JobState.UNRESOLVED)]
            servers = [job.server_id for job in jobs if job.server_id]
        else:
            await client.get_plan(plan_id)  # or each server would be said to be missing where the plan is

        async def look(server_id: str) -> Seen:
            try:
                return Seen(server_id=server_id, job=await client.job(plan_id, server_id))
            except ApiProblem as e:
                _raise_if_not_allowed(e)
                return Seen(server_id=server_id, problem=e)

        seen: list[Seen] = []
        await _each(servers, look, seen.append)
        return seen


def _show(app: App, all_seen: Iterable[Seen]) -> None:
    """What a person judges by: the newest attempt's answer, the server before it, and all that was seen since."""
    for seen in all_seen:
        if seen.job is not None:
            app.say(f"{seen.server_id}  {failure_line(seen.job)}")
            for line in attempt_lines(seen.job.attempt_log[-1]) if seen.job.attempt_log else ():
                app.say(f"  {line}")
            app.say()


async def _settle(
    app: App, plan_id: str, all_seen: Sequence[Seen], *, decision: Decision, attempt: int | None, reason: str | None
) -> int:
    """One decision a server; a refused one doesn't stop the rest, an API that is away does."""
    outcomes: list[Outcome] = []
    away = False

    async def settle(seen: Seen) -> Outcome:
        nonlocal away
        number = (attempt or seen.job.attempts or None) if seen.job else None
        problem, job = seen.problem, None
        if problem is None:
            try:
                job = await send(seen.server_id, number)
            except (ApiProblem, ApiUnreachable, Conflict) as e:
                _raise_if_not_allowed(e)
                away = away or isinstance(e, ApiUnreachable)
                problem = e
        return Outcome(seen=seen, decision=decision, attempt=number, job=job, problem=problem)

    async def send(server_id: str, number: int | None) -> JobDetail:
        if number is None:
            raise Conflict("No call was made for it in this plan.", code="no_attempt")
        if away:
            raise ApiUnreachable("not tried: the API is out of reach")
        return await client.resolve(plan_id, server_id, decision=decision, attempt=number, reason=reason)

    def tell(outcome: Outcome) -> None:
        outcomes.append(outcome)
        app.say(outcome.line)
        for fault in outcome.problem.errors if outcome.problem else ():
            app.note(f"  {fault.path}: {fault.message}" if fault.path else f"  {fault.message}")

    async with app.client() as client:
        await _each(all_seen, settle, tell)
    if not outcomes:
        app.say("The plan has no unresolved servers.")
    documents = [outcome.document for outcome in outcomes]
    if app.output is Output.CSV:
        write_csv(documents, shapes.RESOLVED)
    elif app.output is not Output.TABLE:
        write_document({"items": documents, "next": None}, app.output)
    if away:
        return Exit.UNREACHABLE
    return Exit.OK if all(outcome.problem is None for outcome in outcomes) else Exit.FAILED


async def _each(items: Sequence[T], work: Callable[[T], Awaitable[R]], done: Callable[[R], None]) -> None:
    """Works on a few at a time, and tells the results in the items' order. What one raises ends the rest."""
    places = asyncio.Semaphore(AT_ONCE)

    async def placed(item: T) -> R:
        async with places:
            return await work(item)

    tasks = [asyncio.create_task(placed(item)) for item in items]
    try:
        for task in tasks:
            done(await task)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _raise_if_not_allowed(problem: RebuildError) -> None:
    """The token isn't good for one server, so it isn't for any."""
    if isinstance(problem, ApiProblem) and problem.status in (401, 403):
        raise problem
