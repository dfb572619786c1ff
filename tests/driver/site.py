"""A running service without its API: a rehearsal cloud over HTTP, and real Celery workers as processes."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from uuid import UUID

import yaml
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from uuid_utils.compat import uuid7

from orchestrator.domain.spec import parse_spec
from orchestrator.domain.states import JobState, PlanStatus
from orchestrator.hints import Hints
from orchestrator.ledger.drive import due_projects
from orchestrator.ledger.engine import open_engine
from orchestrator.ledger.holds import take_holds
from orchestrator.ledger.submit import NewPlan, insert_plan
from orchestrator.ledger.transitions import PlanMove, lock_plans, move_plan
from orchestrator.ledger.waves import enter_wave
from orchestrator.rehearsal import Running
from tests.parts import eventually

ENDED = ("succeeded", "failed", "rejected", "halted", "cancelled")
QUEUES = ("control", "prepare", "drive")
OLD, NEW = "base-2026.10", "base-2026.11"


@dataclass
class Workers:
    """Celery workers, one a queue, each in a process group of its own."""

    env: Mapping[str, str]
    logs: Path
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, *queues: str) -> None:
        """Starts a worker for each queue."""
        for queue in queues:
            argv = [
                sys.executable, "-m", "celery", "-A", "workers.app:app", "worker", "-Q", queue, "-n", f"{queue}@t",
                "--concurrency", "1", "--prefetch-multiplier", "1", "--without-mingle", "--without-gossip",
            ]  # fmt: skip
            with (self.logs / f"{queue}.log").open("ab") as log:
                self.running[queue] = subprocess.Popen(
                    argv, env=dict(self.env), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
                )

    def kill(self, queue: str) -> None:
        """kill -9 of a worker and all its children."""
        process = self.running.pop(queue)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def terminate(self, queue: str) -> None:
        """A warm shutdown, waited for."""
        process = self.running.pop(queue)
        process.terminate()
        process.wait(timeout=60)

    def stop(self) -> None:
        """Ends what still runs."""
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.running.clear()


@dataclass(kw_only=True)
class Site:
    """Everything a test asks: submit a plan, wait for its end, and hold the ledger against the cloud's account."""

    cloud: Running
    engine: AsyncEngine
    hints: Hints
    workers: Workers

    @classmethod
    def environment(cls, cloud: Running, folder: Path, database_url: str, redis_url: str) -> dict[str, str]:
        """The workers' environment, with a clouds.yaml of the rehearsal cloud and two that can't be used."""
        settings = {"write_rate": "200/s", "read_rate": "200/s", "max_in_flight": 1000, "quiescence": "3s"}
        document = yaml.safe_load(cloud.clouds_yaml("rehearsal", settings))
        clouds = document["clouds"]
        wrong = clouds["wrong-password"] = json.loads(json.dumps(clouds["rehearsal"]))
        wrong["auth"]["password"] = "not-this-one"
        again = clouds["resending"] = json.loads(json.dumps(clouds["rehearsal"]))
        again["rebuild"]["resend"] = "after_quiescence"
        gated = clouds["gated"] = json.loads(json.dumps(clouds["rehearsal"]))
        gated["rebuild"]["approval"] = {"start": True}
        away = clouds["away"] = json.loads(json.dumps(clouds["rehearsal"]))
        away["auth"]["auth_url"] = "http://127.0.0.1:9/v3"
        (folder / "clouds.yaml").write_text(yaml.safe_dump(document))
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("OS_", "REBUILD_"))}
        return kept | {
            "REBUILD_DATABASE_URL": database_url,
            "REBUILD_REDIS_URL": redis_url,
            "OS_CLIENT_CONFIG_FILE": str(folder / "clouds.yaml"),
        }

    async def submit(self, document: Mapping[str, Any]) -> UUID:
        """Submits a plan; what it doesn't say is a small plan of one wave that puts up with failures."""
        spec = parse_spec(
            {
                "name": "test",
                "cloud": "rehearsal",
                "image": NEW,
                "rollout": {"waves": [{"size": "100%", "max_errors": "100%"}], "max_in_flight": 200},
                "failure": {"max_errors": "100%", "same_cause": 0, "on_unresolved": "continue"},
                **document,
            }
        )
        plan = NewPlan(
            id=uuid7(), name=spec.name, cloud=spec.cloud, spec=spec.without_servers(), user_data=spec.user_data,
            labels={}, hold=spec.hold, created_by="tests", idempotency_key=None, body_sha256="",
            targets=[(i, f, json.dumps(o) if o else None) for i, f, o in spec.targets.rows()],
        )  # fmt: skip
        async with self.engine.begin() as conn:
            await insert_plan(conn, plan)
        await self.hints.prepare(plan.id)
        return plan.id

    async def status(self, plan: UUID) -> tuple[str, str | None, list[Mapping[str, str]] | None]:
        """(status, reason's code, itemised faults)."""
        async with self.engine.connect() as conn:
            row = (
                await conn.execute(text("SELECT status, reason_code, faults FROM plans WHERE id = :id"), {"id": plan})
            ).one()
        return row.status, row.reason_code, row.faults

    async def ended(self, plan: UUID, *, within: float = 60.0) -> str:
        """The status in which the plan stopped."""

        async def there() -> str | None:
            status, _, _ = await self.status(plan)
            return status if status in ENDED else None

        return await eventually(there, deadline=within, message=f"plan {plan} ends", every=0.1)

    async def run(self, document: Mapping[str, Any], *, within: float = 60.0) -> tuple[UUID, str]:
        """Submits and waits."""
        plan = await self.submit(document)
        return plan, await self.ended(plan, within=within)

    async def jobs(self, plan: UUID) -> dict[str, tuple[str, str | None]]:
        """server id → (state, reason's code)."""
        async with self.engine.connect() as conn:
            rows = await conn.execute(
                text("SELECT server_id, state, reason_code FROM jobs WHERE plan_id = :id"), {"id": plan}
            )
            return {r.server_id: (r.state, r.reason_code) for r in rows}

    async def states(self, plan: UUID) -> Counter[str]:
        """How many jobs are in each state, by the rows."""
        return Counter(state for state, _ in (await self.jobs(plan)).values())

    async def cancel(self, plan: UUID) -> None:
        """What the use case does."""
        async with self.engine.begin() as conn:
            await lock_plans(conn, [plan])
            await move_plan(conn, PlanMove(plan_id=plan, expected=PlanStatus.RUNNING, status=PlanStatus.CANCELLING,
                                           actor="tests", stop_sending=True))  # fmt: skip

    async def start(self, plan: UUID) -> None:
        """What the use case does with a saved preview."""
        async with self.engine.begin() as conn:
            await lock_plans(conn, [plan])
            deployment = (await conn.execute(text("SELECT deployment FROM projects LIMIT 1"))).scalar_one()
            assert not await take_holds(conn, deployment, plan)
            await enter_wave(conn, plan, 0)
            await move_plan(conn, PlanMove(plan_id=plan, expected=PlanStatus.READY, status=PlanStatus.RUNNING,
                                           actor="tests"))  # fmt: skip

    async def undriven(self) -> None:
        """Waits until no driver has anything left to do."""

        async def idle() -> bool:
            async with self.engine.connect() as conn:
                return not await due_projects(conn)

        await eventually(idle, deadline=30, message="nothing is due")

    async def assert_ledger_is_sound(self, plan: UUID) -> None:
        """Counters equal rows, events are dense and complete, and a hold is there exactly for a job that keeps one."""
        async with self.engine.connect() as conn:
            counts = await conn.execute(
                text("SELECT state, sum(n) AS n FROM job_counts WHERE plan_id = :id GROUP BY state"), {"id": plan}
            )
            counted = {r.state: int(r.n) for r in counts if r.n}
            rows = (
                await conn.execute(
                    text("SELECT seq, server_id, to_state FROM events WHERE plan_id = :id ORDER BY seq"), {"id": plan}
                )
            ).all()
            last = (await conn.execute(text("SELECT event_seq FROM plans WHERE id = :id"), {"id": plan})).scalar_one()
            holds = await conn.execute(text("SELECT server_id FROM holds WHERE plan_id = :id"), {"id": plan})
            held = {r.server_id for r in holds}
        seqs = [r.seq for r in rows]
        final = {r.server_id: r.to_state for r in rows if r.server_id is not None and r.to_state is not None}
        jobs = await self.jobs(plan)
        assert counted == Counter(state for state, _ in jobs.values())
        assert seqs == list(range(1, last + 1))
        assert {i: s for i, (s, _) in jobs.items() if s != "pending"} == final
        kept = {s.value for s in (JobState.STUCK, JobState.UNRESOLVED)}
        assert held == {i for i, (state, _) in jobs.items() if state in kept}

    def assert_cloud_agrees(self, states: Mapping[str, tuple[str, str | None]]) -> None:
        """Every job that succeeded has the new image, and no server had two rebuilds accepted since `mark`."""
        images = {i.name: i.id for i in self.cloud.cloud.images.values()}
        for server_id, (state, _) in states.items():
            if state == JobState.SUCCEEDED:
                assert self.cloud.cloud.servers[server_id].image == images[NEW]

    def named(self, *numbers: int) -> Sequence[str]:
        """Ids of the servers node-NNNNN."""
        by_name = {s.name: s.id for s in self.cloud.cloud.servers.values()}
        return [by_name[f"node-{n:05d}"] for n in numbers]

    def accepted(self, server_id: str) -> int:
        """Rebuilds of a server that took effect in the cloud."""
        account = self.cloud.account.servers.get(server_id)
        return account.accepted if account else 0

    def received(self, server_id: str) -> int:
        """Rebuild calls for a server that arrived."""
        account = self.cloud.account.servers.get(server_id)
        return account.received if account else 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.workers.stop()


def opened(database_url: str) -> Any:
    """An engine for the test's loop."""
    return open_engine(database_url, name="tests", pool_size=3)
