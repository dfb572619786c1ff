"""A server belongs to one started plan at a time."""

import asyncio
from uuid import UUID

from sqlalchemy import text

from orchestrator.domain.states import JobState
from orchestrator.ledger.engine import open_engine, transaction
from orchestrator.ledger.holds import HeldElsewhere, release_plan_holds, take_holds, who_holds
from orchestrator.ledger.transitions import lock_plans
from tests.ledger.plant import DEPLOYMENT, column, move, plant


async def test_a_second_plan_gets_the_free_servers_and_is_told_who_has_the_others(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        first = await plant(conn, ["a", "b"])
        second = await plant(conn, ["c", "b", "a", "d"], running=False)
        assert await take_holds(conn, DEPLOYMENT, second) == tuple(
            HeldElsewhere(server_id=s, plan_id=first, plan_name="web", ord=o) for s, o in (("b", 1), ("a", 2))
        )
        assert await column(conn, "SELECT server_id FROM holds WHERE plan_id = :p ORDER BY 1", p=second) == ["c", "d"]
        assert await who_holds(conn, DEPLOYMENT, ["d", "b", "x"]) == (
            HeldElsewhere(server_id="b", plan_id=first, plan_name="web"),
            HeldElsewhere(server_id="d", plan_id=second, plan_name="web"),
        )
        assert await who_holds(conn, "other.test", ["b"]) == ()
        await release_plan_holds(conn, first)
        assert await take_holds(conn, DEPLOYMENT, second) == ()
        assert await take_holds(conn, DEPLOYMENT, second) == ()


async def test_a_hold_that_is_given_back_while_others_are_taken_is_taken_too(database_url: str) -> None:
    """Nobody would have it else, and a job without its hold is never claimed."""
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        first = await plant(conn, ["a", "b"])
        second = await plant(conn, ["b", "c"], running=False)
        await conn.execute(
            text(f"""
            CREATE FUNCTION give_back() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN DELETE FROM holds WHERE plan_id = '{first}' AND server_id = 'b'; RETURN NULL; END $$""")  # noqa: S608
        )
        await conn.execute(
            text("CREATE TRIGGER meanwhile AFTER INSERT ON holds FOR EACH STATEMENT EXECUTE FUNCTION give_back()")
        )
        assert await take_holds(conn, DEPLOYMENT, second) == ()
        assert await column(conn, "SELECT server_id FROM holds WHERE plan_id = :p ORDER BY 1", p=second) == ["b", "c"]


async def test_only_pending_jobs_are_held(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        plan = await plant(conn, ["a", "b"], running=False)
        await move(conn, plan, [(0, "a")], JobState.PENDING, JobState.SKIPPED)
        assert await take_holds(conn, DEPLOYMENT, plan) == ()
        assert await column(conn, "SELECT server_id FROM holds") == ["b"]


async def test_plans_that_overlap_in_opposite_orders_do_not_deadlock(database_url: str) -> None:
    """Holds are taken in the order of server ids, whatever the plan's: one plan gets all, the other is told."""
    servers = [f"s-{i:03}" for i in range(200)]
    async with open_engine(database_url, name="test") as engine:

        async def take(plan: UUID) -> int:
            async with transaction(engine) as conn:
                await lock_plans(conn, [plan])
                conflicts = await take_holds(conn, DEPLOYMENT, plan)
                if conflicts:
                    await release_plan_holds(conn, plan)
                return len(conflicts)

        for _ in range(5):
            async with transaction(engine) as conn:
                plans = [await plant(conn, order, running=False) for order in (servers, servers[::-1])]
            async with asyncio.timeout(20):
                assert sorted(await asyncio.gather(*map(take, plans))) == [0, 200]
            async with transaction(engine) as conn:
                for plan in plans:
                    await release_plan_holds(conn, plan)
