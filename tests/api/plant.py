"""Plans and jobs as preparing and driving leave them, planted in the ledger: the API's tests run no worker."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text

from orchestrator.domain.decide import Decision, Reason
from orchestrator.domain.states import JobState, PlanStatus, Verdict
from orchestrator.ledger.engine import transaction
from orchestrator.ledger.prepare import Prepared, PreparedJob, PreparedWave, note_project, publish
from orchestrator.ledger.transitions import AttemptAnswer, JobChange, PlanMove, lock_plans, move_jobs, move_plan
from tests.api.conftest import Api, plan_file, server_id


async def ready_plan(
    api: Api, *, servers: int = 3, first: int = 0, role: str = "operator", cloud: str = "alpha",
    ids: Sequence[str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """A held plan as preparing leaves it: one server in its first wave, the rest in the second."""
    ids = ids or [server_id(first + i) for i in range(servers)]
    plan: dict[str, Any] = (await api.post("/v1/plans", plan_file(list(ids), hold=True, cloud=cloud), role=role)).json
    async with transaction(api.engine) as conn:
        project = await note_project(conn, cloud, deployment="d", region="r", project_id="p")
        await lock_plans(conn, [UUID(plan["id"])])
        await publish(
            conn, UUID(plan["id"]),
            Prepared(
                project=project, image_id="i", image_name="n", digest="a" * 64, rate=None, max_errors=0,
                expires_at=None, max_in_flight=10,
                jobs=[PreparedJob(ord=i, server_id=s, name=f"web-{i}", verdict=Verdict.REBUILD, wave=0 if i == 0 else 1)
                      for i, s in enumerate(ids)],
                waves=[PreparedWave(index=0, name="canary", size=1, max_errors=0, on_unresolved="halt"),
                       PreparedWave(index=1, name="rest", size=len(ids) - 1, max_errors=None,
                                    on_unresolved="continue")],
            ),
        )  # fmt: skip
    await move(api, plan["id"], PlanStatus.PREPARING, PlanStatus.READY)
    return plan


async def move(api: Api, plan_id: str, before: PlanStatus, after: PlanStatus) -> None:
    async with transaction(api.engine) as conn:
        await lock_plans(conn, [UUID(plan_id)])
        assert await move_plan(conn, PlanMove(plan_id=UUID(plan_id), expected=before, status=after, actor="test"))


async def column(api: Api, plan_id: str, name: str) -> Any:
    async with api.engine.connect() as conn:
        return (await conn.execute(text(f"SELECT {name} FROM plans WHERE id = :id"), {"id": plan_id})).scalar_one()  # noqa: S608


async def holds(api: Api) -> list[str]:
    async with api.engine.connect() as conn:
        return list((await conn.execute(text("SELECT server_id FROM holds ORDER BY 1"))).scalars())


async def running_plan(api: Api, states: Mapping[str, JobState], *, cloud: str = "alpha") -> str:
    """The id of a running plan whose servers stand so; each that is no longer pending had one call, without answer."""
    plan_id: str = (await ready_plan(api, ids=list(states), cloud=cloud))["id"]
    assert (await api.post(f"/v1/plans/{plan_id}/start")).status == 200
    for place, (server, state) in enumerate(states.items()):
        if state is not JobState.PENDING:
            await stand(api, plan_id, place, server, state)
    return plan_id


async def stand(api: Api, plan_id: str, place: int, server: str, state: JobState) -> None:
    """Brings a pending job to a state, through the ledger's own way of moving jobs."""
    baseline = {
        "marker": f"{plan_id}/1", "rebuild_actions": [], "status": "ACTIVE", "image": "old", "metadata": {},
        "launched_at": datetime.now(UTC).isoformat(), "date": datetime.now(UTC).isoformat(),
    }  # fmt: skip
    change = JobChange(
        plan_id=UUID(plan_id), ord=place, server_id=server, expected=JobState.PENDING,
        decision=Decision(state=state, reason=Reason(code="planted", message="as a driver left it")),
        answer=AttemptAnswer(number=1, classification="unknown/no_answer",
                             evidence=[{"kind": "finding", "value": "nothing: Nothing shows that it took effect."}]),
    )  # fmt: skip
    async with transaction(api.engine) as conn:
        await lock_plans(conn, [UUID(plan_id)])
        await conn.execute(
            text("""INSERT INTO attempts (plan_id, ord, number, fence, body_sha256, baseline)
                    VALUES (:plan, :ord, 1, 1, 'b', CAST(:baseline AS jsonb))"""),
            {"plan": plan_id, "ord": place, "baseline": json.dumps(baseline)},
        )
        await conn.execute(
            text("UPDATE jobs SET attempts = 1 WHERE plan_id = :plan AND ord = :ord"), {"plan": plan_id, "ord": place}
        )
        assert await move_jobs(conn, "d", [change])
