"""Looking at plans, and cancelling their pending jobs."""

from sqlalchemy import text

from orchestrator.domain.decide import Reason
from orchestrator.domain.states import PlanStatus
from orchestrator.ledger.engine import open_engine, transaction
from orchestrator.ledger.plans import (
    PlanFilter,
    cancel_pending_jobs,
    job_counts,
    plan_page,
    plan_record,
    plans_by_status,
    unfinished_jobs_by_state,
)
from orchestrator.ledger.submit import insert_plan
from orchestrator.ledger.transitions import lock_plans
from tests.ledger.test_submit import new_plan, rows


async def test_cancelling_moves_pending_jobs_only_and_keeps_counters_and_numbers_exact(database_url: str) -> None:
    plan = new_plan(targets=[(f"s-{i}", None, None) for i in range(6)])
    other = new_plan()
    async with open_engine(database_url, name="test") as engine:
        async with transaction(engine) as conn:
            await insert_plan(conn, plan)
            await insert_plan(conn, other)
            await conn.execute(
                text("""
                UPDATE jobs SET wave = CASE WHEN ord < 2 THEN 0 WHEN ord < 5 THEN 1 END,
                  state = CASE WHEN ord = 1 THEN 'rebuilding' WHEN ord = 5 THEN 'skipped' ELSE 'pending' END
                WHERE plan_id = :id"""),
                {"id": plan.id},
            )
            await conn.execute(text("DELETE FROM job_counts WHERE plan_id = :id"), {"id": plan.id})
            await conn.execute(
                text("""
                INSERT INTO job_counts (plan_id, wave, state, n)
                SELECT plan_id, coalesce(wave, -1), state, count(*) FROM jobs WHERE plan_id = :id GROUP BY 1, 2, 3"""),
                {"id": plan.id},
            )
        async with transaction(engine) as conn:
            await lock_plans(conn, [plan.id])
            moved = await cancel_pending_jobs(
                conn, plan.id, actor="me", reason=Reason(code="cancelled", message="never mind")
            )
        assert moved == 4
        async with engine.connect() as conn:
            real = await rows(
                conn, "SELECT plan_id, coalesce(wave, -1), state, count(*) FROM jobs GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
            )
            counted = await rows(
                conn, "SELECT plan_id, wave, state, n FROM job_counts WHERE n <> 0 ORDER BY plan_id, wave, state"
            )
            assert counted == real
            events = await rows(
                conn, "SELECT seq, server_id, type, actor, reason_message FROM events WHERE server_id IS NOT NULL"
            )
            assert events == [
                (seq, server, "job.cancelled", "me", "never mind")
                for seq, server in ((2, "s-0"), (3, "s-2"), (4, "s-3"), (5, "s-4"))
            ]
            assert await rows(conn, f"SELECT event_seq FROM plans WHERE id = '{plan.id}'") == [(5,)]  # noqa: S608
            assert (await job_counts(conn, [other.id]))[other.id] == {-1: {"pending": 3}}


async def test_cancelling_a_plan_without_pending_jobs_adds_no_events(database_url: str) -> None:
    plan = new_plan(targets=[])
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        await insert_plan(conn, plan)
        assert await cancel_pending_jobs(conn, plan.id, actor="me", reason=None) == 0
        assert await rows(conn, "SELECT event_seq FROM plans") == [(1,)]


async def test_pages_go_back_in_time_under_every_filter_at_once(database_url: str) -> None:
    plans = [new_plan(cloud="alpha" if i % 2 else "beta", labels={"n": str(i % 3), "team": "web"}) for i in range(12)]
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        for plan in plans:
            await insert_plan(conn, plan)
        newest = await plan_page(conn, PlanFilter(), before=None, limit=5)
        assert [p.id for p in newest] == [p.id for p in plans[::-1][:5]]
        older = await plan_page(conn, PlanFilter(), before=newest[-1].id, limit=100)
        assert [p.id for p in older] == [p.id for p in plans[::-1][5:]]
        wanted = PlanFilter(statuses=[PlanStatus.PREPARING], labels={"n": "1", "team": "web"}, clouds=["alpha"])
        found = await plan_page(conn, wanted, before=None, limit=100)
        assert [p.id for p in found] == [plans[7].id, plans[1].id]
        assert await plan_page(conn, PlanFilter(clouds=[]), before=None, limit=100) == []
        assert await plan_record(conn, new_plan().id) is None


async def test_figures_for_the_metrics_leave_finished_plans_jobs_out(database_url: str) -> None:
    done = new_plan()
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        await insert_plan(conn, new_plan())
        await insert_plan(conn, done)
        await conn.execute(text("UPDATE plans SET status = 'cancelled' WHERE id = :id"), {"id": done.id})
        assert await plans_by_status(conn) == {"preparing": 1, "cancelled": 1}
        assert await unfinished_jobs_by_state(conn) == {"pending": 3}
