"""Waits for a plan: shows how it goes, puts up with an API that restarts, and ends with the plan as it stood."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from rich.console import Console
from rich.live import Live

from orchestrator.cli.context import App
from orchestrator.cli.exits import Exit, exit_of
from orchestrator.cli.render import TROUBLE, Picture, counts_line, failure_line, plain_line
from orchestrator.client import ApiProblem, ApiUnreachable, Job, Plan, RebuildClient
from orchestrator.domain.states import JobState, PlanStatus

AWAY_SECONDS = 60.0
"""How long the API may be away, as it is while it restarts, before a wait gives up."""
HEARTBEAT_SECONDS = 30.0
"""A quiet log line at least so often, or CI systems take the job for dead."""
COUNTS_SECONDS = 2.0
"""Lines that only tell of counts come at most so often."""
POLL_SECONDS = 0.5
SHOWN_FAILURES = 5

Until = Callable[[Plan], bool]


def ended(plan: Plan) -> bool:
    """A plan moves no more without a person."""
    return plan.is_final or plan.status == PlanStatus.HALTED


def prepared(plan: Plan) -> bool:
    """Preparing is over, one way or the other."""
    return plan.status != PlanStatus.PREPARING


@dataclass(frozen=True, kw_only=True)
class Waited:
    """How a wait ended."""

    plan: Plan
    """As it was last seen."""
    exit: Exit
    reached: bool = True
    """False where the time or the API went away first."""


class View(Protocol):
    """Whoever shows a plan's progress."""

    def show(self, plan: Plan) -> None: ...

    def show_failures(self, jobs: Sequence[Job]) -> None: ...

    def remark(self, text: str) -> None:
        """Something about the waiting itself; an empty text takes it back."""


class Lines:
    """Plain lines: for pipelines, for logs and for several plans at once."""

    def __init__(self, say: Callable[[str], None], *, prefix: str = ""):
        self._say, self._prefix = say, prefix
        self._status, self._counts = "", dict[str, int]()
        self._said_at = float("-inf")

    def show(self, plan: Plan) -> None:
        now, quiet = time.monotonic(), time.monotonic() - self._said_at
        moved, counted = plan.status != self._status, plan.counts != self._counts
        if moved or quiet >= HEARTBEAT_SECONDS or (counted and (quiet >= COUNTS_SECONDS or ended(plan))):
            self._say(self._prefix + plain_line(plan, datetime.now(UTC)))
            if moved and plan.reason is not None:
                self._say(f"{self._prefix}  {plan.reason.message or plan.reason.code}")
            self._status, self._counts, self._said_at = plan.status, dict(plan.counts), now

    def show_failures(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self._say(f"{self._prefix}  {failure_line(job)}")

    def remark(self, text: str) -> None:
        if text:
            self._say(self._prefix + text)


class Screen:
    """A live picture on a terminal."""

    def __init__(self, live: Live, picture: Picture):
        self._live, self._picture = live, picture

    def show(self, plan: Plan) -> None:
        self._picture.plan = plan
        self._live.refresh()

    def show_failures(self, jobs: Sequence[Job]) -> None:
        self._picture.failures = (*self._picture.failures, *jobs)[-SHOWN_FAILURES:]

    def remark(self, text: str) -> None:
        self._picture.remark = text
        self._live.refresh()


@contextlib.contextmanager
def view_for(app: App, plan: Plan) -> Iterator[View]:
    """A live picture where lines for people go to a terminal, plain lines elsewhere."""
    if not app.human.isatty() or os.environ.get("TERM", "") in ("", "dumb") or os.environ.get("CI"):
        yield Lines(app.say)
        return
    picture = Picture(plan)
    with Live(picture, console=Console(file=app.human, highlight=False), auto_refresh=False) as live:
        yield Screen(live, picture)


async def wait_for(
    client: RebuildClient, plan: Plan, view: View, *, until: Until = ended, timeout: float | None = None
) -> Waited:
    """Polls the plan until it is where it should be.

    Raises `ApiProblem` when the API refuses. An API that is away for longer than `AWAY_SECONDS` ends the wait with
    `Exit.UNREACHABLE`, and the time with the plan's own.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    seen_at, away, known = time.monotonic(), False, _Failures(client, view)
    while True:
        view.show(plan)
        await known.look(plan)
        if until(plan):
            return Waited(plan=plan, exit=exit_of(plan) if ended(plan) else Exit.OK)
        now = time.monotonic()
        if deadline is not None and now >= deadline:
            return Waited(plan=plan, exit=exit_of(plan), reached=False)
        await asyncio.sleep(POLL_SECONDS if deadline is None else min(POLL_SECONDS, deadline - now))
        try:
            plan = await client.get_plan(plan.id)
        except (ApiUnreachable, ApiProblem) as e:
            if isinstance(e, ApiProblem) and e.status < 500 and e.status != 429:
                raise
            if time.monotonic() - seen_at > AWAY_SECONDS:
                view.remark("")
                return Waited(plan=plan, exit=Exit.UNREACHABLE, reached=False)
            if not away:
                view.remark(f"The API is away; trying again for {AWAY_SECONDS:.0f} s. The plan goes on.")
                away = True
            continue
        if away:
            view.remark("")
            away = False
        seen_at = time.monotonic()


class _Failures:
    """Shows each failed server once, the first few of them."""

    def __init__(self, client: RebuildClient, view: View):
        self._client, self._view = client, view
        self._count, self._shown = 0, set[str]()

    async def look(self, plan: Plan) -> None:
        count = plan.count(*TROUBLE)
        if count <= self._count or len(self._shown) >= SHOWN_FAILURES or plan.status == PlanStatus.PREPARING:
            return
        fresh: list[Job] = []
        try:
            for state in TROUBLE:
                if plan.count(state):
                    fresh += (await self._client.jobs(plan.id, state=state, limit=SHOWN_FAILURES)).items
        except (ApiUnreachable, ApiProblem):
            return  # progress is what counts; the summary looks again
        self._count = count
        fresh = [job for job in fresh if (job.server_id or job.name or "") not in self._shown]
        fresh = fresh[: SHOWN_FAILURES - len(self._shown)]
        self._shown |= {job.server_id or job.name or "" for job in fresh}
        self._view.show_failures(fresh)


@asynccontextmanager
async def stopping_at_term() -> AsyncIterator[None]:
    """A TERM ends the block as Ctrl-C does: CI systems send it when a job is cancelled."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None  # noqa: S101  # a coroutine always runs in one
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


def say_end(app: App, waited: Waited) -> None:
    """What the wait came to: counts, duration, why, and what to do next."""
    plan = waited.plan
    took = ""
    if plan.started_at and plan.finished_at:
        from orchestrator.cli.output import span

        took = f" in {span((plan.finished_at - plan.started_at).total_seconds())}"
    if ended(plan):
        app.say(f"{plan.status}{took}: {counts_line(plan)}")
    say_faults(app, plan)
    match waited.exit:
        case Exit.UNREACHABLE:
            app.note(
                f"The API was away for {AWAY_SECONDS:.0f} s; the plan goes on. Wait again: rebuildctl wait {plan.id}"
            )
        case Exit.TIMED_OUT:
            app.note(f"The wait timed out; the plan goes on ({plan.status}). Wait again: rebuildctl wait {plan.id}")
        case Exit.WAITS_FOR_PERSON if plan.status == PlanStatus.PAUSED:
            app.note(f"The wait timed out; the plan is paused. Go on: rebuildctl resume {plan.id}")
        case Exit.WAITS_FOR_PERSON:
            app.note(f"The wait timed out; the plan awaits approval: rebuildctl approve {plan.id}")
        case Exit.FAILED if plan.status == PlanStatus.HALTED:
            _say_what_is_left(app, plan)
            app.note(f"Go on all the same: rebuildctl resume {plan.id}")
        case Exit.FAILED:
            _say_what_is_left(app, plan)
        case _:
            pass


def _say_what_is_left(app: App, plan: Plan) -> None:
    """Where to look, and what a person can do about each kind of trouble."""
    states = [state for state in TROUBLE if plan.count(state)]
    for state in states or [JobState.FAILED]:
        app.note(f"Look: rebuildctl jobs {plan.id} --state {state}")
    if JobState.FAILED in states:
        app.note(f"Try failed servers again: rebuildctl retry {plan.id}")
    if JobState.UNRESOLVED in states:
        app.note(f"Decide: rebuildctl resolve {plan.id} SERVER --decision applied|not_applied|give_up")


def say_faults(app: App, plan: Plan) -> None:
    """Why a plan was rejected or ended, itemised on stderr."""
    if plan.reason is not None and (ended(plan) or plan.status in (PlanStatus.REJECTED, PlanStatus.FAILED)):
        app.note(f"{plan.reason.code}: {plan.reason.message}")
    for fault in plan.raw.get("errors") or ():
        if isinstance(fault, dict):
            app.note(f"{fault.get('path')}: {fault.get('message')}")
