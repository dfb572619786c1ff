"""The second gate: the one transaction that commits intents, and says which of them may be sent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.decide import Decision
from orchestrator.domain.states import JobState, PlanStatus
from orchestrator.failpoints import failpoint
from orchestrator.ledger.drive import Ownership
from orchestrator.ledger.leases import guard
from orchestrator.ledger.sql import columns_of, sql, unnest
from orchestrator.ledger.transitions import JobChange, JobKey, lock_plans, move_jobs


@dataclass(frozen=True, kw_only=True)
class Intent:
    """What is about to be sent for a checked job."""

    plan_id: UUID
    ord: int
    server_id: str
    number: int
    body_sha256: str
    baseline: Mapping[str, Any]


async def commit_intents(
    conn: AsyncConnection, own: Ownership, intents: Sequence[Intent], epochs: Mapping[UUID, int]
) -> set[JobKey]:
    """The second gate. Only what it returns may be sent, and only once the commit has been answered.

    It locks the lease (this fence, not expired) FOR SHARE and the plans FOR NO KEY UPDATE, and lets a job through
    only if the project isn't paused, its plan is running with the `go_epoch` that the driver checked under, the plan
    holds its server, and the job is still `checking`. Raises `LeaseLost`.
    """
    await guard(conn, own.lease, own.fence, unexpired=True)
    paused = (await conn.execute(sql("SELECT paused FROM projects WHERE id = :id"), {"id": own.project})).scalar_one()
    if paused:
        return set()
    plans = await lock_plans(conn, [i.plan_id for i in intents])
    go = {p.id for p in plans.values() if p.status is PlanStatus.RUNNING and p.go_epoch == epochs.get(p.id)}
    held = await _held(conn, own.deployment, [i for i in intents if i.plan_id in go])
    allowed = [i for i in intents if (i.plan_id, i.server_id) in held]
    moved = await move_jobs(
        conn,
        own.deployment,
        [
            JobChange(plan_id=i.plan_id, ord=i.ord, server_id=i.server_id, expected=JobState.CHECKING,
                      decision=Decision(state=JobState.SENDING), data={"attempt": i.number})
            for i in allowed
        ],
    )  # fmt: skip
    through = [i for i in allowed if (i.plan_id, i.ord) in moved]
    columns = {"plan_id": "uuid", "ord": "int", "number": "int", "body_sha256": "text", "baseline": "jsonb",
               "previous_image": "text"}  # fmt: skip
    parameters = columns_of(
        columns,
        [(i.plan_id, i.ord, i.number, i.body_sha256, dict(i.baseline), i.baseline.get("image")) for i in through],
    )
    if through:
        await conn.execute(
            sql(f"""
            WITH i AS (SELECT * FROM {unnest("t", columns)}), counted AS (
              UPDATE jobs j SET attempts = i.number, previous_image = coalesce(i.previous_image, j.previous_image)
              FROM i WHERE j.plan_id = i.plan_id AND j.ord = i.ord)
            INSERT INTO attempts (plan_id, ord, number, fence, body_sha256, baseline)
            SELECT plan_id, ord, number, :fence, body_sha256, CAST(baseline AS jsonb) FROM i"""),  # noqa: S608
            parameters | {"fence": own.fence},
        )
    failpoint("gate.before_commit")
    return set(moved)


async def _held(conn: AsyncConnection, deployment: str, intents: Sequence[Intent]) -> set[tuple[UUID, str]]:
    if not intents:
        return set()
    rows = await conn.execute(
        sql("""
        SELECT plan_id, server_id FROM holds
        WHERE deployment = :deployment AND server_id = ANY(CAST(:ids AS text[])) ORDER BY server_id FOR SHARE"""),
        {"deployment": deployment, "ids": [i.server_id for i in intents]},
    )
    return {(r.plan_id, r.server_id) for r in rows}
