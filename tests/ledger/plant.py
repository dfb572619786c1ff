"""Plans as preparing and starting leave them, written through the ledger's own functions."""

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils.compat import uuid7

from orchestrator.domain.decide import Decision
from orchestrator.domain.states import JobState, PlanStatus, Verdict
from orchestrator.ledger.drive import Ownership
from orchestrator.ledger.holds import take_holds
from orchestrator.ledger.leases import acquire, drive_lease
from orchestrator.ledger.prepare import Prepared, PreparedJob, PreparedWave, note_project, publish
from orchestrator.ledger.second_gate import Intent
from orchestrator.ledger.submit import NewPlan, insert_plan
from orchestrator.ledger.transitions import JobChange, PlanMove, lock_plans, move_jobs, move_plan

DEPLOYMENT = "cloud.test"


async def plant(
    conn: AsyncConnection, servers: Sequence[str], *, sizes: Sequence[int] | None = None, running: bool = True,
    holds: bool = True, spec: dict[str, Any] | None = None,
) -> UUID:  # fmt: skip
    """A prepared plan for `servers`, in waves of `sizes` (one of all), started unless `running` is False."""
    plan_id: UUID = uuid7()
    await insert_plan(
        conn,
        NewPlan(id=plan_id, name="web", cloud="alpha", spec=spec or {"name": "web"}, user_data=None, labels={},
                hold=False, created_by="ci", idempotency_key=None, body_sha256="a" * 64,
                targets=[(s, None, None) for s in servers]),
    )  # fmt: skip
    project = await note_project(conn, "alpha", deployment=DEPLOYMENT, region="r", project_id="p")
    await lock_plans(conn, [plan_id])
    sizes = [len(servers)] if sizes is None else sizes
    wave_of = [i for i, n in enumerate(sizes) for _ in range(n)]
    await publish(
        conn,
        plan_id,
        prepared(
            project, [job(i, s, wave=w) for i, (s, w) in enumerate(zip(servers, wave_of, strict=True))], sizes=sizes
        ),
    )
    await conn.execute(text("DROP TABLE prepared"))  # a test may plant several plans in one transaction
    if running:
        if holds:
            assert not await take_holds(conn, DEPLOYMENT, plan_id)
        assert await move_plan(
            conn,
            PlanMove(plan_id=plan_id, expected=PlanStatus.PREPARING, status=PlanStatus.RUNNING, actor="prepare"),
        )
    return plan_id


def job(ord_: int, server_id: str, **more: Any) -> PreparedJob:
    """A prepared job; to be rebuilt in the first wave unless it is said otherwise."""
    wave = {} if more.get("verdict", Verdict.REBUILD) is not Verdict.REBUILD else {"wave": 0}
    return PreparedJob(ord=ord_, server_id=server_id, **{"previous_image": "old", "target_image": "new"} | wave | more)


def prepared(project: int, jobs: Sequence[PreparedJob], *, sizes: Sequence[int], **more: Any) -> Prepared:
    """What preparing publishes, with waves of these sizes."""
    waves = [
        PreparedWave(index=i, name=f"w{i}", size=n, max_errors=None, on_unresolved="continue")
        for i, n in enumerate(sizes)
    ]
    fields: dict[str, Any] = {"project": project, "image_id": "new", "image_name": "Image", "digest": "d" * 64,
                              "max_in_flight": 10, "rate": None, "max_errors": None, "expires_at": None}  # fmt: skip
    return Prepared(jobs=jobs, waves=waves, **fields | more)


async def own(conn: AsyncConnection, *, seconds: float = 60.0) -> Ownership:
    """The lease on the project of `plant`."""
    project = await note_project(conn, "alpha", deployment=DEPLOYMENT, region="r", project_id="p")
    fence = await acquire(conn, drive_lease(project), "me", seconds)
    assert fence is not None
    return Ownership(project=project, deployment=DEPLOYMENT, fence=fence)


def change(plan_id: UUID, ord_: int, server: str | None, before: JobState, after: JobState, **more: Any) -> JobChange:
    return JobChange(plan_id=plan_id, ord=ord_, server_id=server, expected=before,
                     decision=Decision(state=after), **more)  # fmt: skip


async def move(
    conn: AsyncConnection, plan_id: UUID, servers: Iterable[tuple[int, str]], before: JobState, after: JobState
) -> int:
    """Moves jobs under their plan's lock; how many moved."""
    await lock_plans(conn, [plan_id])
    return len(await move_jobs(conn, DEPLOYMENT, [change(plan_id, o, s, before, after) for o, s in servers]))


def intent(plan_id: UUID, ord_: int, server: str, number: int = 1) -> Intent:
    return Intent(plan_id=plan_id, ord=ord_, server_id=server, number=number, body_sha256="b" * 64,
                  baseline={"status": "ACTIVE", "image": "old-by-cloud"})  # fmt: skip


async def column(conn: AsyncConnection, statement: str, **parameters: Any) -> list[Any]:
    """The rows' only column, or the rows as tuples."""
    found = (await conn.execute(text(statement), parameters)).all()
    return [r[0] if len(r) == 1 else tuple(r) for r in found]


async def counters_agree(conn: AsyncConnection, plan_id: UUID) -> bool:
    """Whether the counters are what counting the rows gives."""
    counted = await column(
        conn, "SELECT coalesce(wave, -1), state, count(*) FROM jobs WHERE plan_id = :p GROUP BY 1, 2", p=plan_id
    )
    kept = await column(conn, "SELECT wave, state, n FROM job_counts WHERE plan_id = :p AND n <> 0", p=plan_id)
    return sorted(counted) == sorted(kept)
