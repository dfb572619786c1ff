"""A plan's progress for a person: one line for a log of 80 columns, a live picture for a terminal."""

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from orchestrator.cli.output import clean, local_time, short, span
from orchestrator.client import Job, Plan, Wave
from orchestrator.domain.states import FINISHED_JOB_STATES, IN_FLIGHT_JOB_STATES, JobState, PlanStatus

CONFIRMED = (JobState.SUCCEEDED, JobState.SKIPPED)
SENT = (JobState.SENDING, JobState.RESOLVING, JobState.REBUILDING, JobState.VERIFYING, JobState.CONFIGURING)
TROUBLE = (JobState.FAILED, JobState.REFUSED, JobState.STUCK, JobState.UNRESOLVED)
BAR_WIDTH = 30

STYLES = {
    PlanStatus.SUCCEEDED: "green",
    PlanStatus.FAILED: "red",
    PlanStatus.REJECTED: "red",
    PlanStatus.HALTED: "red",
    PlanStatus.PAUSED: "yellow",
    PlanStatus.AWAITING_APPROVAL: "yellow",
    PlanStatus.CANCELLING: "yellow",
    PlanStatus.CANCELLED: "yellow",
}


def total_of(wave: Wave) -> int:
    """How many jobs a wave has."""
    return wave.counts.get("total") or sum(n for s, n in wave.counts.items() if s != "total") or wave.size


def current_wave(plan: Plan) -> int | None:
    """The position of the first wave that has unfinished jobs; None when there is none."""
    for position, wave in enumerate(plan.waves):
        if sum(wave.counts.get(state, 0) for state in FINISHED_JOB_STATES) < total_of(wave):
            return position
    return None


def eta_of(plan: Plan, now: datetime) -> str:
    """How long it will take yet; empty where it isn't known."""
    if plan.eta is None or plan.eta.finish_at is None or plan.is_final:
        return ""
    finish = plan.eta.finish_at
    return span(((finish if finish.tzinfo else finish.replace(tzinfo=UTC)) - now).total_seconds())


def pace_of(plan: Plan) -> str:
    """`9.8/s`; empty where nothing is being sent."""
    used = plan.rate.used_per_second if plan.rate else None
    return f"{used:.1f}/s" if used and not plan.is_final else ""


def counts_line(plan: Plan) -> str:
    """What became of the jobs, without the zeros: `200 servers: 190 succeeded, 10 failed`."""
    parts = [f"{n:,} {state}" for state in JobState if (n := plan.counts.get(state, 0))]
    total = plan.counts.get("total", 0)
    return f"{total:,} server{'' if total == 1 else 's'}" + (": " + ", ".join(parts) if parts else "")


def plain_line(plan: Plan, now: datetime) -> str:
    """At most 80 columns: time, status, wave, progress, trouble, pace and ETA; what doesn't fit is left out."""
    head = f"{now.astimezone():%H:%M:%S} {plan.status}"
    parts = []
    at = current_wave(plan)
    if at is not None and plan.started_at is not None:
        parts.append(f"wave {at + 1}/{len(plan.waves)}")
    if total := plan.counts.get("total", 0):
        parts.append(f"{plan.count(*CONFIRMED)}/{total} done")
    if in_flight := plan.count(*IN_FLIGHT_JOB_STATES):
        parts.append(f"{in_flight} in flight")
    parts += [f"{n} {state}" for state in TROUBLE if (n := plan.count(state))]
    if pace := pace_of(plan):
        parts.append(pace)
    if eta := eta_of(plan, now):
        parts.append(f"ETA {eta}")
    line = head
    for part in parts:
        if len(line) + 2 + len(part) <= 80:
            line += (": " if line is head else ", ") + part
    return line[:80]


def bar(wave: Wave, *, ascii_only: bool = False) -> Text:
    """Confirmed, then sent and not yet confirmed, then failed, then the rest, by their shares."""
    total = total_of(wave) or 1
    shares = [sum(wave.counts.get(s, 0) for s in states) for states in (CONFIRMED, SENT, TROUBLE)]
    marks = ("#", "=", "x", ".") if ascii_only else ("█", "▒", "█", "·")
    edges = [round(BAR_WIDTH * sum(shares[: i + 1]) / total) for i in range(3)]
    widths = [edges[0], edges[1] - edges[0], edges[2] - edges[1], BAR_WIDTH - edges[2]]
    text = Text()
    for mark, width, style in zip(marks, widths, ("green", "cyan", "red", "bright_black"), strict=True):
        text.append(mark * max(0, width), style=style)
    return text


class Picture:
    """The live view; whoever watches sets its parts."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.failures: Sequence[Job] = ()
        self.remark = ""
        """Such as: the API is away."""
        self.began = time.monotonic()

    def __rich_console__(self, console: Console, _: ConsoleOptions) -> RenderResult:
        plan = self.plan
        ascii_only = not console.encoding.lower().startswith("utf")
        head = Text(clean(plan.name), style="bold")
        head.append(f"  {plan.status}", style=STYLES.get(PlanStatus(plan.status), "cyan") if _known(plan) else "")
        if plan.reason is not None:
            head.append(f"  {clean(plan.reason.message or plan.reason.code)}")
        parts: list[RenderableType] = [head]
        if plan.waves:
            table = Table(box=None, show_header=False, padding=(0, 1))
            for wave in plan.waves:
                confirmed = sum(wave.counts.get(s, 0) for s in CONFIRMED)
                sent = sum(wave.counts.get(s, 0) for s in SENT)
                trouble = sum(wave.counts.get(s, 0) for s in TROUBLE)
                table.add_row(
                    Text(clean(wave.name or f"wave {wave.index + 1}")),
                    bar(wave, ascii_only=ascii_only),
                    Text(f"{confirmed:,}/{total_of(wave):,}"),
                    Text(f"{sent:,} sent" if sent else "", style="cyan"),
                    Text(f"{trouble:,} failed" if trouble else "", style="red"),
                    Text(clean(wave.status), style="bright_black"),
                )
            parts.append(table)
        parts.append(Text(self._foot()))
        parts += [Text("  " + failure_line(job), style="red") for job in self.failures]
        if self.remark:
            parts.append(Text(self.remark, style="yellow"))
        yield Group(*parts)

    def _foot(self) -> str:
        plan, now = self.plan, datetime.now(UTC)
        parts = [counts_line(plan) if plan.counts.get("total") else "reading the cloud"]
        parts += [pace_of(plan), f"{plan.count(*IN_FLIGHT_JOB_STATES):,} in flight"]
        if eta := eta_of(plan, now):
            limit = plan.eta.limited_by if plan.eta else None
            parts.append(f"ETA {eta}" + (f" (limited by {clean(limit)})" if limit else ""))
        return " | ".join(p for p in parts if p)


def failure_line(job: Job) -> str:
    """`node-7 failed: build_failed: No valid host was found.`"""
    why = f": {job.reason.code}: {job.reason.message}" if job.reason else ""
    return clean(f"{job.name or job.server_id or 'a server'} {job.state}{why}").replace("\n", " ")


def attempt_lines(attempt: Mapping[str, Any]) -> list[str]:
    """An attempt for a person who judges it: its answer, the server right before it, and what was seen since."""
    status, request_id = attempt.get("http_status"), attempt.get("request_id")
    answer = [attempt.get("classification") or "no answer was recorded"]
    answer += [f"HTTP {status}"] if status else []
    answer += [f"request id {request_id}" if request_id else "no request id"]
    baseline = attempt.get("baseline") or {}
    before = {key: baseline.get(key) for key in ("status", "image", "launched_at", "marker", "marker_left_out")}
    lines = [
        f"attempt {attempt.get('number')}, sent {local_time(attempt.get('sent_at'))}: {', '.join(map(str, answer))}",
        f"before it: {short(before) or 'nothing is known'}",
    ]
    lines += [
        f"{local_time(seen.get('at'))}  {seen.get('kind')}: {short(seen.get('value')) or 'none'}"
        for seen in attempt.get("evidence") or ()
    ]
    return [clean(line).replace("\n", " ") for line in lines]


def _known(plan: Plan) -> bool:
    return plan.status in PlanStatus.__members__.values()
