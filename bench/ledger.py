"""How long the ledger's statements take on a plan of 100,000 jobs: `python -m bench.ledger [jobs]`.

Runs on a durable PostgreSQL of its own, or on an empty database at `REBUILD_DATABASE_URL`. Fails where one of the hot
queries reads all of `jobs`.
"""

import asyncio
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from uuid_utils.compat import uuid7

from orchestrator.domain.decide import Decision
from orchestrator.domain.states import JobState, PlanStatus
from orchestrator.embedded import start_embedded
from orchestrator.ledger import drive
from orchestrator.ledger.drive import ClaimedJob, Ownership
from orchestrator.ledger.engine import open_engine, transaction
from orchestrator.ledger.holds import take_holds
from orchestrator.ledger.leases import acquire, drive_lease
from orchestrator.ledger.migrate import upgrade
from orchestrator.ledger.prepare import Prepared, PreparedJob, PreparedWave, note_project, publish
from orchestrator.ledger.second_gate import Intent, commit_intents
from orchestrator.ledger.submit import NewPlan, insert_plan
from orchestrator.ledger.transitions import JobChange, PlanMove, lock_plans, move_jobs, move_plan
from orchestrator.ledger.waves import enter_wave

S = JobState
DEPLOYMENT = "bench.test"
ROUNDS = 10


@contextmanager
def server() -> Iterator[str]:
    """The URL of a PostgreSQL: the environment's, or an own one that commits durably."""
    if url := os.environ.get("REBUILD_DATABASE_URL"):
        yield url
        return
    folder = Path(tempfile.mkdtemp(prefix="rebuild-bench-"))
    folder.chmod(0o711)
    try:
        own = start_embedded(folder / "state", durable=True)
        try:
            yield own.urls.database_url
        finally:
            own.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Bench:
    """Times transactions, and explains what they ran."""

    def __init__(self, engine: AsyncEngine):
        self.engine = engine
        self.scans: list[str] = []

    @asynccontextmanager
    async def timed(self, name: str) -> AsyncIterator[AsyncConnection]:
        """One transaction with its commit, timed once."""
        begun = time.perf_counter()
        async with transaction(self.engine) as conn:
            yield conn
        print(f"| {name} | {1000 * (time.perf_counter() - begun):.1f} | |", flush=True)

    async def repeated(self, name: str, work: Callable[[AsyncConnection], Awaitable[object]]) -> None:
        """`ROUNDS` transactions: median and longest, in milliseconds."""
        took = []
        for _ in range(ROUNDS):
            begun = time.perf_counter()
            async with transaction(self.engine) as conn:
                await work(conn)
            took.append(1000 * (time.perf_counter() - begun))
        print(f"| {name} | {statistics.median(took):.1f} | {max(took):.1f} |", flush=True)

    async def explain(
        self, name: str, work: Callable[[AsyncConnection], Awaitable[object]], *, hot: bool = True
    ) -> set[str]:
        """Prints how each statement of `work` was run; notes hot ones that read all of `jobs`. What they read by."""
        used: set[str] = set()
        ran: list[tuple[str, Any]] = []

        def note(_c: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
            ran.append((statement, parameters))

        event.listen(self.engine.sync_engine, "before_cursor_execute", note)
        try:
            async with self.engine.connect() as conn:
                await work(conn)
                await conn.rollback()
        finally:
            event.remove(self.engine.sync_engine, "before_cursor_execute", note)
        async with self.engine.connect() as conn:
            for statement, parameters in ran:
                row = await conn.exec_driver_sql(
                    "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + statement, tuple(parameters or ())
                )
                found = row.scalar_one()[0]
                nodes = list(_nodes(found["Plan"]))
                said = ", ".join(
                    dict.fromkeys(f"{n['Node Type']} {n.get('Index Name') or n['Relation Name']}" for n in nodes)
                )
                used |= {n.get("Index Name") or n["Relation Name"] for n in nodes}
                buffers = found["Plan"]["Shared Hit Blocks"] + found["Plan"]["Shared Read Blocks"]
                print(f"  {name}: {found['Execution Time']:.2f} ms, {buffers} buffers: {said}", flush=True)
                if hot and any(n["Node Type"] == "Seq Scan" and n["Relation Name"] == "jobs" for n in nodes):
                    self.scans.append(name)
            await conn.rollback()
        return used


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "Relation Name" in plan or "Index Name" in plan:
        yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


async def seed(bench: Bench, total: int) -> tuple[UUID, Ownership]:
    """A running plan of `total` jobs, and the right to drive it."""
    plan: UUID = uuid7()
    ids = [f"00000000-0000-4000-8000-{i:012}" for i in range(total)]
    async with bench.timed(f"submit: COPY {total:,} targets") as conn:
        await insert_plan(
            conn,
            NewPlan(id=plan, name="bench", cloud="alpha", spec={"failure": {"same_cause": 500}}, user_data=None,
                    labels={}, hold=False, created_by="bench", idempotency_key=None, body_sha256="a" * 64,
                    targets=[(s, None, None) for s in ids]),
        )  # fmt: skip
        project = await note_project(conn, "alpha", deployment=DEPLOYMENT, region="r", project_id="p")
    small = max(1, total // 100)
    jobs = [PreparedJob(ord=i, server_id=s, name=f"web-{i}", wave=0 if i < small else 1, previous_image="old",
                        target_image="new", zone="z", host=f"h-{i % 500}") for i, s in enumerate(ids)]  # fmt: skip
    waves = [PreparedWave(index=i, name=f"w{i}", size=n, max_errors=None, on_unresolved="continue")
             for i, n in enumerate((small, total - small))]  # fmt: skip
    async with bench.timed(f"publish {total:,} jobs") as conn:
        await lock_plans(conn, [plan])
        await publish(
            conn,
            plan,
            Prepared(project=project, image_id="new", image_name="Image", digest="d" * 64, jobs=jobs, waves=waves,
                     max_in_flight=5000, rate=None, max_errors=None, expires_at=None),
        )  # fmt: skip
    async with bench.timed(f"take_holds {total:,}") as conn:
        await lock_plans(conn, [plan])
        assert not await take_holds(conn, DEPLOYMENT, plan)
        await move_plan(
            conn, PlanMove(plan_id=plan, expected=PlanStatus.PREPARING, status=PlanStatus.RUNNING, actor="bench")
        )
    async with transaction(bench.engine) as conn:
        await enter_wave(conn, plan, 1)
        fence = await acquire(conn, drive_lease(project), "bench", 3600)
    assert fence is not None
    return plan, Ownership(project=project, deployment=DEPLOYMENT, fence=fence)


async def move(conn: AsyncConnection, jobs: list[ClaimedJob], before: JobState, after: JobState) -> None:
    await lock_plans(conn, {j.plan_id for j in jobs})
    fingerprint = "failed_on_host:500" if after is S.FAILED else None
    moved = await move_jobs(
        conn,
        DEPLOYMENT,
        [JobChange(plan_id=j.plan_id, ord=j.ord, server_id=j.server_id, expected=before,
                   decision=Decision(state=after, fingerprint=fingerprint)) for j in jobs],
    )  # fmt: skip
    assert len(moved) == len(jobs)


async def measure(bench: Bench, plan: UUID, own: Ownership) -> None:
    """Each hot path of a driver, on the plan."""
    checked: list[ClaimedJob] = []
    sent: list[ClaimedJob] = []

    async def claim(conn: AsyncConnection) -> None:
        await lock_plans(conn, [plan])
        jobs = await drive.pending_jobs(conn, DEPLOYMENT, plan, wave=1, limit=500)
        await move(conn, jobs, S.PENDING, S.CHECKING)
        checked.extend(jobs)

    async def intents(conn: AsyncConnection, n: int) -> None:
        batch, checked[:] = checked[:n], checked[n:]
        through = await commit_intents(
            conn,
            own,
            [Intent(plan_id=plan, ord=j.ord, server_id=j.server_id, number=1, body_sha256="b" * 64,
                    baseline={"status": "ACTIVE", "image": "old"}) for j in batch],
            {plan: 0},
        )  # fmt: skip
        assert len(through) == n
        sent.extend(batch)

    async def finish(conn: AsyncConnection, after: JobState) -> None:
        batch, checked[:] = checked[:300], checked[300:]
        await move(conn, batch, S.CHECKING, after)

    await bench.repeated("claim 500", claim)
    await bench.repeated("commit_intents of 5", lambda c: intents(c, 5))
    await bench.repeated("commit_intents of 50", lambda c: intents(c, 50))
    await bench.repeated("move_jobs of 300, to failed (holds go)", lambda c: finish(c, S.FAILED))
    async with transaction(bench.engine) as conn:
        plans = list((await drive.plans_of(conn, own.project)).values())
    await bench.repeated("figures (3,000 failed)", lambda c: drive.figures(c, plans))
    await bench.repeated("pulse", lambda c: drive.pulse(c, own.project))
    await bench.repeated("due_projects", drive.due_projects)
    await bench.repeated("moving_jobs (1,450 moving)", lambda c: drive.moving_jobs(c, own.project))
    await bench.repeated("next_due", lambda c: drive.next_due(c, own.project))
    for statistics_are in ("as they come", "fresh"):
        print(f"\nPlans, statistics {statistics_are}:")
        await bench.explain("claim", lambda c: drive.pending_jobs(c, DEPLOYMENT, plan, wave=1, limit=500))
        await bench.explain("pulse", lambda c: drive.pulse(c, own.project))
        await bench.explain("figures and causes", lambda c: drive.figures(c, plans))
        await bench.explain("moving_jobs", lambda c: drive.moving_jobs(c, own.project))
        await bench.explain("next_due", lambda c: drive.next_due(c, own.project), hot=False)
        await bench.explain("due_projects", drive.due_projects)
        async with transaction(bench.engine) as conn:
            await conn.execute(text("ANALYZE"))


async def main(total: int) -> int:
    """Measures; 1 where a hot query read all of `jobs`."""
    with server() as url:
        await upgrade(url)
        async with open_engine(url, name="bench") as engine:
            bench = Bench(engine)
            print(f"{os.cpu_count()} cores\n\n| what | median ms | longest ms |\n| --- | --- | --- |")
            plan, own = await seed(bench, total)
            await measure(bench, plan, own)
    if bench.scans:
        print(f"\nRead all of jobs: {', '.join(bench.scans)}")
    return 1 if bench.scans else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)))
