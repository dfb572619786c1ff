"""How long claiming takes within disruption budgets, on a plan of 20,000 pending jobs in 200 groups:
`python -m bench.budgets [jobs] [groups]`. Fails where a claim takes 50 ms or more, or doesn't go by the group index.
"""

import asyncio
import statistics
import sys
import time
from dataclasses import replace
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils.compat import uuid7

from bench.ledger import DEPLOYMENT, Bench, S, move, server
from orchestrator.domain.budget import Candidate, choose, rooms
from orchestrator.domain.states import PlanStatus
from orchestrator.ledger import budgets
from orchestrator.ledger.engine import open_engine, transaction
from orchestrator.ledger.holds import take_holds
from orchestrator.ledger.migrate import upgrade
from orchestrator.ledger.prepare import Prepared, PreparedGroup, PreparedJob, PreparedWave, note_project, publish
from orchestrator.ledger.submit import NewPlan, insert_plan
from orchestrator.ledger.transitions import PlanMove, lock_plans, move_plan

ROUNDS, AT_ONCE, MOST_MS = 20, 100, 50.0
OUTAGES = 500


async def seed(bench: Bench, total: int, groups: int) -> tuple[UUID, int, dict[str, str]]:
    """A running plan with a budget of a fifth of each group, and some outages; its groups by server."""
    plan: UUID = uuid7()
    ids = [f"00000000-0000-4000-9000-{i:012}" for i in range(total)]
    group = {s: f"g-{i % groups}" for i, s in enumerate(ids)}
    jobs = [PreparedJob(ord=i, server_id=s, wave=0, target_image="new", budget_group=group[s])
            for i, s in enumerate(ids)]  # fmt: skip
    size = total // groups
    async with transaction(bench.engine) as conn:
        await insert_plan(
            conn,
            NewPlan(id=plan, name="bench", cloud="alpha", spec={}, user_data=None, labels={}, hold=False,
                    created_by="bench", idempotency_key=None, body_sha256="a" * 64,
                    targets=[(s, None, None) for s in ids]),
        )  # fmt: skip
        project = await note_project(conn, "alpha", deployment=DEPLOYMENT, region="r", project_id="p")
        await lock_plans(conn, [plan])
        prepared = Prepared(
            project=project, image_id="new", image_name="Image", digest="d" * 64, jobs=jobs, max_in_flight=5000,
            waves=[PreparedWave(index=0, name="all", size=total, max_errors=None, on_unresolved="continue")],
            rate=None, max_errors=None, expires_at=None,
        )  # fmt: skip
        places = max(1, size // 5)
        named = [PreparedGroup(name=f"g-{i}", size=size, places=places) for i in range(groups)]
        await publish(conn, plan, replace(prepared, groups=named))
        assert not await take_holds(conn, DEPLOYMENT, plan)
        await move_plan(
            conn, PlanMove(plan_id=plan, expected=PlanStatus.PREPARING, status=PlanStatus.RUNNING, actor="bench")
        )
        await conn.execute(
            text("INSERT INTO outages (deployment, server_id, plan_id) SELECT :d, server_id, plan_id FROM jobs "
                 "ORDER BY ord DESC LIMIT :n"),
            {"d": DEPLOYMENT, "n": OUTAGES},
        )  # fmt: skip
    async with transaction(bench.engine) as conn:
        await conn.execute(text("ANALYZE"))
    return plan, project, group


async def main(total: int, groups: int) -> int:
    """Measures; 1 where it is too slow or goes by another index."""
    with server() as url:
        await upgrade(url)
        async with open_engine(url, name="bench") as engine:
            bench = Bench(engine)
            plan, project, group = await seed(bench, total, groups)

            async def claim(conn: AsyncConnection) -> float:
                """One claim as the driver does it, but for the transition; its milliseconds."""
                begun = time.perf_counter()
                await lock_plans(conn, [plan])
                limits = (await budgets.group_places(conn, [plan]))[plan]
                out = await budgets.servers_out(conn, project, DEPLOYMENT)
                room = rooms(limits, [(i, group[i]) for i in out.moving | out.idle])
                jobs = await budgets.pending_within(conn, DEPLOYMENT, plan, wave=0, limit=AT_ONCE, rooms=room,
                                                    out=out.idle - out.moving)  # fmt: skip
                found = [Candidate(ord=j.ord, wave=0, server_id=j.server_id, group=j.budget_group) for j in jobs]
                chosen = {c.ord for c in choose(found, AT_ONCE, room, out.idle)}
                took = 1000 * (time.perf_counter() - begun)
                claimed = [j for j in jobs if j.ord in chosen]
                await move(conn, claimed, S.PENDING, S.CHECKING)
                print(f"claimed {len(claimed)} in {took:.1f} ms, with the transition "
                      f"{1000 * (time.perf_counter() - begun):.1f} ms", flush=True)  # fmt: skip
                return took

            whole = []
            for _ in range(ROUNDS):
                begun = time.perf_counter()
                async with transaction(engine) as conn:
                    await claim(conn)
                whole.append(1000 * (time.perf_counter() - begun))
            median = statistics.median(whole)
            print(f"{total:,} jobs in {groups} groups: {AT_ONCE} claimed and committed in {median:.1f} ms (median), "
                  f"{max(whole):.1f} ms (longest)", flush=True)  # fmt: skip

            async def within(conn: AsyncConnection) -> None:
                room = {f"g-{i}": 5 for i in range(groups)}
                await budgets.pending_within(conn, DEPLOYMENT, plan, wave=0, limit=AT_ONCE, rooms=room, out=())

            used = await bench.explain("claim", within)
    return 1 if median >= MOST_MS or "ix_jobs_group" not in used or bench.scans else 0


if __name__ == "__main__":
    given = [int(a) for a in sys.argv[1:]]
    sys.exit(asyncio.run(main(*(given + [20_000, 200][len(given) :]))))
