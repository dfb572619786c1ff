"""Plays a script: starts everything, submits a plan, does the script's deeds, waits for the end, and judges."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self
from uuid import UUID

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from orchestrator.client import RebuildClient
from orchestrator.hints import Hints
from orchestrator.ledger.engine import open_engine
from tests.chaos.ledger import leases, snapshot
from tests.chaos.script import Act, Deed, Script
from tests.chaos.stage import Stage, api_is_ready, pid_of, staged
from tests.chaos.stalls import Stalls
from tests.chaos.verdicts import ENDED, Loss, Outcome, judge
from tests.driver.site import NEW, Site, Workers
from tests.parts import eventually

PLAN_SECONDS = 120.0
SETTLE_SECONDS = 15.0
"""From the plan's end until the last late evidence is in, and leases of the dead have expired."""
_CAUSE = re.compile(r"^[ |]*((?:\w+\.)*\w+(?:Error|Exception|Lost|Hit|Invalid|Timeout)\b.*)$", re.MULTILINE)
ACT_SECONDS = 25.0
"""An act is done after so long at the latest, however little was accepted."""


@dataclass(kw_only=True)
class Result:
    """What came of one run: JSON, one line."""

    seed: int
    failpoint: str = ""
    faults_found: list[str] = field(default_factory=list)
    """Everything that is wrong; empty: the run passed."""
    servers: int = 0
    accepted: int = 0
    received: int = 0
    accepted_twice: int = 0
    done: dict[str, int] = field(default_factory=dict)
    """Deeds by kind."""
    faults: dict[str, int] = field(default_factory=dict)
    """Faults of the cloud that struck, by kind."""
    states: dict[str, int] = field(default_factory=dict)
    takeovers: list[float] = field(default_factory=list)
    plan_seconds: float = 0.0
    seconds: float = 0.0
    busiest: str = ""
    """Writes in the busiest second, and the rate."""
    stall: float = 0.0
    """Seconds for which the rehearsal cloud could not run at the longest."""
    struck: bool = False
    """Whether a process crashed at the failpoint."""
    errors: dict[str, int] = field(default_factory=dict)
    """Lines of the workers' logs that no run should have, by event and exception."""

    @classmethod
    def read(cls, line: str) -> Self:
        """From its JSON, of this version or another."""
        known = {f.name for f in fields(cls)}
        return cls(**{key: value for key, value in json.loads(line).items() if key in known})

    @property
    def passed(self) -> bool:
        return not self.faults_found


@dataclass(kw_only=True)
class _Play:
    script: Script
    stage: Stage
    engine: AsyncEngine
    done: list[Deed] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    away: list[tuple[float, float]] = field(default_factory=list)
    holder: str = ""
    takes: list[float] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    stalls: Stalls = field(default_factory=Stalls)

    # What is done.

    async def perform(self) -> None:
        """All acts, each at its time."""
        for act in self.script.acts:
            wanted = act.share * (self.script.servers - sum(len(m.numbers) for m in self.script.mishaps))

            async def reached(enough: float = wanted) -> bool:
                return self.accepted() >= enough

            with suppress(AssertionError):
                await eventually(reached, deadline=ACT_SECONDS, every=0.02)
            await asyncio.sleep(act.pause)
            began = time.time()
            self.done.append(act.deed)
            await self.do(act)
            self.away.append((began, time.time()))

    def accepted(self) -> int:
        return sum(s.accepted for s in list(self.stage.cloud.cloud.account.servers.values()))

    async def do(self, act: Act) -> None:
        crew, servers = self.stage.crew, self.stage.servers
        match act.deed:
            case Deed.KILL_DRIVE:
                await self._restart([self._driving()], act)
            case Deed.KILL_WORKERS:
                await self._restart([n for n in crew.running if n.startswith(("drive", "control", "prepare"))], act)
            case Deed.KILL_CONTROL | Deed.KILL_PREPARE | Deed.KILL_BEAT | Deed.KILL_API:
                await self._restart(crew.named(act.deed.removeprefix("kill_")), act)
            case Deed.KILL_DRIVE_CHILD:
                for pid in crew.pids(self._driving()):
                    self._lose(pid, act.deed)
                    os.kill(pid, signal.SIGKILL)
            case Deed.FREEZE_DRIVE:
                pids = crew.pids(self._driving())
                for pid in pids:
                    os.kill(pid, signal.SIGSTOP)
                await asyncio.sleep(act.away)
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)
            case Deed.LEAVE_DRIVE:
                name = self._driving()
                process = crew.running[name]
                process.terminate()
                try:
                    await asyncio.to_thread(process.wait, 60)
                except subprocess.TimeoutExpired:
                    self.said.append("a warm shutdown took longer than 60 s")
                crew.kill(name) if process.returncode is None else crew.running.pop(name)
                crew.start(name)
            case Deed.KILL_VALKEY | Deed.KILL_POSTGRES:
                server = servers.valkey if act.deed is Deed.KILL_VALKEY else servers.postgres
                await asyncio.to_thread(server.kill)
                await asyncio.sleep(act.away)
                await asyncio.to_thread(server.start)
            case Deed.FLUSH_VALKEY:
                await asyncio.to_thread(self.stage.flush)
            case Deed.FAILOVER:
                await asyncio.to_thread(self.stage.fail_over, lambda: time.sleep(0.1 + act.away / 3))
                await asyncio.to_thread(servers.postgres.start)
            case Deed.STORM:
                await self.stage.order({"kind": "storm", "lasts": act.away, "delay": 1.0})
                await asyncio.sleep(act.away)
            case Deed.OUTAGE:
                status = 0 if act.pause < 0.2 else 503
                await self.stage.order({"kind": "outage", "lasts": act.away, "status": status})
                await asyncio.sleep(act.away)
            case Deed.REVOKE:
                await self.stage.revoke()

    async def _restart(self, names: list[str], act: Act) -> None:
        for name in names:
            for pid in self.stage.crew.pids(name):
                self._lose(pid, act.deed)
            await asyncio.to_thread(self.stage.crew.kill, name)
        await asyncio.sleep(act.away)
        for name in names:
            self.stage.crew.start(name)

    def _driving(self) -> str:
        """The drive worker whose child has the lease, or any."""
        crew = self.stage.crew
        names = crew.named("drive")
        return next((n for n in names if self._has_lease(crew.pids(n))), names[0])

    def _has_lease(self, pids: list[int]) -> bool:
        return pid_of(self.holder) in pids

    def _lose(self, pid: int, deed: str) -> None:
        if self._has_lease([pid]):
            self.losses.append(Loss(deed=deed, at=time.time()))

    # What is seen.

    async def look_at_leases(self) -> None:
        """Notes who has the lease, and every time at which somebody took it."""
        while True:
            try:
                async with self.engine.connect() as conn:
                    rows = await leases(conn)
                self.holder = next((r.holder for r in rows if r.live), "")
                for row in rows:
                    if (at := row.acquired_at.timestamp()) not in self.takes:
                        self.takes.append(at)
            except (DBAPIError, OSError):
                pass
            await asyncio.sleep(0.15)

    def takeovers(self) -> list[Loss]:
        """The losses with the first take after each; what else was away meanwhile is allowed for."""
        return [
            replace(
                loss,
                taken_at=min((t for t in self.takes if t > loss.at), default=None),
                allowed=loss.allowed + sum(end - begin for begin, end in self.away if end > loss.at),
            )
            for loss in self.losses
        ]

    def note_crash(self) -> bool:
        """Whether a process crashed at the script's failpoint; once, a driver's crash is a loss as any other."""
        mark = self.stage.crew.folder / "struck"
        if not mark.exists():
            return False
        point, at = self.script.failpoint.partition("@")[0], mark.stat().st_mtime
        if not point.startswith(("prepare.", "tick.", "slice.")) and all(loss.at != at for loss in self.losses):
            self.losses.append(Loss(deed=f"a crash at {point}", at=at))
        return True

    async def outcome(self, plan: UUID) -> Outcome:
        self.note_crash()
        pids = await asyncio.to_thread(self.stage.crew.drive_pids)
        ledger = await snapshot(self.engine, plan)
        drivers = frozenset(row.holder for row in ledger.leases if pid_of(row.holder) in pids)
        return Outcome(
            script=self.script, ledger=ledger, account=await self.stage.cloud_says("account?all=1"),
            servers=(await self.stage.cloud_says("servers"))["servers"], plan_id=str(plan), done=self.done,
            losses=self.takeovers(), drivers=drivers,
            stall=self.stalls.longest,
        )  # fmt: skip


async def play(script: Script, *, keep: Path | None = None) -> Result:
    """One run. `keep`: where the logs go when something is wrong."""
    result, began = Result(seed=script.seed, failpoint=script.failpoint, servers=script.servers), time.monotonic()
    async with staged(script) as stage:
        async with open_engine(stage.servers.urls.database_url, name="chaos", pool_size=3) as engine:
            one = _Play(script=script, stage=stage, engine=engine)
            for name in _cast(script):
                stage.crew.start(name)
            for mishap in script.mishaps:
                numbered = [f"node-{n:05d}" for n in mishap.numbers]
                await stage.order({"kind": mishap.kind, **_each(mishap.more, numbered), "servers": numbered})
            plan = await _submit(script, stage, engine)
            submitted = time.monotonic()
            looks, acts = asyncio.create_task(one.look_at_leases()), asyncio.create_task(one.perform())
            try:
                with one.stalls:
                    last = await _finish(one, plan, acts, result, submitted)
            finally:
                for task in (looks, acts):
                    task.cancel()
                await asyncio.gather(looks, acts, return_exceptions=True)
            _sum_up(result, one, last)
        result.errors = _errors(stage.crew.folder)
        if keep is not None and (result.faults_found or result.errors):
            _keep(stage, keep / (f"seed-{script.seed}" if not script.failpoint else script.failpoint), last)
    result.seconds = round(time.monotonic() - began, 1)
    return result


def _cast(script: Script) -> list[str]:
    """Names of the processes, in the order in which they are started."""
    drives = [f"drive-{number + 1}" for number in range(script.drives)]
    optional = {"api": script.with_api, "beat": script.with_beat, "control-1": script.with_control}
    return [*(name for name, there in optional.items() if there), "prepare-1", *drives]


def _each(more: Any, numbered: list[str]) -> dict[str, Any]:
    """`times` is meant for each of the servers."""
    return {**more, "times": more["times"] * len(numbered)} if "times" in more else dict(more)


async def _submit(script: Script, stage: Stage, engine: AsyncEngine) -> UUID:
    ids = [s.id for s in sorted(stage.cloud.cloud.servers.values(), key=lambda s: s.number)]
    document = {
        "name": f"chaos-{script.seed}",
        "cloud": "rehearsal",
        "image": NEW,
        "targets": {"servers": ids},
        "rollout": {"waves": [{"size": "100%", "max_errors": "100%"}], "max_in_flight": 200},
        "failure": {
            "max_errors": "100%", "same_cause": 0, "on_unresolved": "continue", "timeout": script.timeout,
            "backoff": {"initial": "1s", "max": "1s"},
        },
    }  # fmt: skip
    if not script.with_api:
        hints = Hints(stage.servers.urls.redis_url)
        try:
            site = Site(cloud=stage.cloud, engine=engine, hints=hints, workers=Workers({}, stage.crew.folder))
            return await site.submit(document)
        finally:
            hints.close()
    await eventually(lambda: api_is_ready(stage), deadline=60, message="the API answers", every=0.1)
    async with RebuildClient(stage.api_url, stage.token) as client:
        return UUID(str((await client.submit(document, idempotency_key="chaos")).id))


async def _finish(
    one: _Play, plan: UUID, acts: "asyncio.Task[None]", result: Result, submitted: float
) -> Outcome | None:
    """Waits until the plan has ended and all acts are over, then until nothing is wrong any more, or time is up."""
    last: Outcome | None = None

    async def ended() -> bool:
        with suppress(DBAPIError, OSError):
            return (await snapshot(one.engine, plan)).status in ENDED
        return False

    try:
        await eventually(ended, deadline=PLAN_SECONDS, every=0.15, message="the plan ends")
    except AssertionError:
        result.faults_found.append(f"the plan did not end within {PLAN_SECONDS:g} s")
    result.plan_seconds = round(time.monotonic() - submitted, 1)
    await acts

    async def sound() -> bool:
        nonlocal last
        last = await one.outcome(plan)
        return not judge(last)

    with suppress(AssertionError):
        await eventually(sound, deadline=SETTLE_SECONDS, every=0.3)
    if last is not None:
        result.faults_found += judge(last)
    if one.script.with_api:
        result.faults_found += await _asked_of_the_api(one, plan, last)
    return last


async def _asked_of_the_api(one: _Play, plan: UUID, last: Outcome | None) -> list[str]:
    """The API answers again, and counts as the ledger does."""
    await eventually(lambda: api_is_ready(one.stage), deadline=60, message="the API answers again", every=0.2)
    async with RebuildClient(one.stage.api_url, one.stage.token) as client:
        shown = await client.get_plan(str(plan))
    if last is not None and any(shown.count(state) != n for state, n in last.ledger.counted.items()):
        return [f"the API does not count as the ledger does: {dict(last.ledger.counted)}"]
    return []


def _sum_up(result: Result, one: _Play, last: Outcome | None) -> None:
    result.faults_found += [*one.said, *one.stage.crew.dead()]
    result.struck, result.stall = one.note_crash(), round(one.stalls.longest, 3)
    result.done = dict(Counter(str(deed) for deed in one.done))
    result.takeovers = [round(t.seconds, 1) for t in one.takeovers() if t.seconds is not None]
    if last is not None:
        account = last.account
        result.busiest = f"{account['busiest_second']['writes']} at {one.script.write_rate}/s"
        result.accepted, result.received = account["accepted"], account["received"]
        result.accepted_twice = len(account["accepted_twice"])
        result.faults = {str(kind): n for kind, n in account["faults"].items()}
        result.states = dict(Counter(job.state for job in last.ledger.jobs.values()))


def _errors(folder: Path) -> dict[str, int]:
    """What the service's own log lines call an error. Celery's say only what was killed."""
    found: Counter[str] = Counter()
    for log in folder.glob("*.log"):
        for line in log.read_text(errors="replace").splitlines():
            if not line.startswith("{") or '"level": "error"' not in line:
                continue
            said = json.loads(line)
            if str(said.get("event")).isidentifier():
                causes = _CAUSE.findall(str(said.get("exception", ""))) or [""]
                found[f"{said['event']}: {causes[-1][:100]}"] += 1
    return dict(found)


def _keep(stage: Stage, target: Path, last: Outcome | None) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for log in stage.crew.folder.glob("*.log"):
        shutil.copy(log, target)
    if last is not None:
        seen = {"ledger": asdict(last.ledger), "account": last.account, "servers": last.servers}
        (target / "outcome.json").write_text(json.dumps(seen, indent=1, default=str))
