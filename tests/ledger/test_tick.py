"""What moves because time has come."""

from sqlalchemy import text

from orchestrator.domain.states import PlanStatus
from orchestrator.ledger.engine import open_engine, transaction
from orchestrator.ledger.tick import expire_plans, gone, living, seen, try_tick_lock
from orchestrator.ledger.transitions import PlanMove, move_plan
from tests.ledger.plant import column, plant


async def test_a_held_plan_expires_when_its_time_has_come_and_not_before(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine:
        async with transaction(engine) as conn:
            plans = [await plant(conn, [f"s-{i}"], running=False) for i in range(4)]
            for plan in plans[:3]:
                await move_plan(
                    conn,
                    PlanMove(plan_id=plan, expected=PlanStatus.PREPARING, status=PlanStatus.READY, actor="prepare"),
                )
            expires = text("UPDATE plans SET expires_at = now() + make_interval(secs => :s) WHERE id = :p")
            for plan, seconds in ((plans[0], -1), (plans[1], 60), (plans[3], -1)):
                await conn.execute(expires, {"p": plan, "s": seconds})
        async with transaction(engine) as conn:
            assert await expire_plans(conn) == 1
            assert await expire_plans(conn) == 0
        async with engine.connect() as conn:
            assert await column(conn, "SELECT status FROM plans ORDER BY id") == [
                "expired", "ready", "ready", "preparing",
            ]  # fmt: skip
            assert await column(conn, "SELECT plan_id, actor, reason_code FROM events WHERE type = 'plan.expired'") == [
                (plans[0], "tick", "hold_expired")
            ]
            assert await column(conn, "SELECT finished_at IS NULL FROM plans ORDER BY id") == [False, True, True, True]


async def test_one_tick_runs_at_a_time(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, engine.connect() as one, engine.connect() as two:
        assert await try_tick_lock(one)
        assert not await try_tick_lock(two)
        await two.rollback()
        await one.rollback()
        assert await try_tick_lock(two)


async def test_processes_count_while_they_are_heard_of(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        for process, kind in (("a", "drive"), ("b", "drive"), ("c", "prepare")):
            await seen(conn, process, kind)
        assert await living(conn, "drive") == 2
        await conn.execute(
            text("UPDATE processes SET seen_at = clock_timestamp() - interval '11 s' WHERE id = 'a'")
        )  # fmt: skip
        assert await living(conn, "drive") == 1
        await seen(conn, "a", "drive")
        assert await living(conn, "drive") == 2
        await conn.execute(text("UPDATE processes SET seen_at = clock_timestamp() - interval '2 min' WHERE id = 'b'"))
        await gone(conn, "a")
        assert await column(conn, "SELECT id FROM processes") == ["c"]
