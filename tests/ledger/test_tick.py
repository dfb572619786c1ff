"""What moves because time has come."""

from sqlalchemy import text

from orchestrator.domain.states import PlanStatus
from orchestrator.ledger.begin import begin, due_to_begin
from orchestrator.ledger.engine import open_engine, transaction
from orchestrator.ledger.holds import release_plan_holds
from orchestrator.ledger.plans import expire_at
from orchestrator.ledger.tick import begin_scheduled, expire_plans, gone, living, seen, try_tick_lock
from orchestrator.ledger.transitions import PlanMove, lock_plans, move_plan
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


async def test_an_approval_that_nobody_gave_ends_a_plan_before_its_start_and_halts_one_between_waves(
    database_url: str,
) -> None:
    async with open_engine(database_url, name="test") as engine:
        async with transaction(engine) as conn:
            early = await plant(conn, ["a"], running=False)
            between = await plant(conn, ["b"])
            in_time = await plant(conn, ["c"])
            for plan, before in ((early, PlanStatus.PREPARING), (between, PlanStatus.RUNNING),
                                 (in_time, PlanStatus.RUNNING)):  # fmt: skip
                asks = PlanMove(plan_id=plan, expected=before, status=PlanStatus.AWAITING_APPROVAL, actor="driver")
                assert await move_plan(conn, asks)
                await expire_at(conn, plan, 60.0 if plan == in_time else -1.0)
        async with transaction(engine) as conn:
            assert await expire_plans(conn) == 2
            assert await expire_plans(conn) == 0
        async with engine.connect() as conn:
            assert await column(conn, "SELECT status, reason_code, go_epoch FROM plans ORDER BY id") == [
                ("expired", "approval_expired", 0), ("halted", "approval_expired", 1), ("awaiting_approval", None, 0),
            ]  # fmt: skip


async def test_what_is_due_begins_by_priority_then_age_and_queued_plans_once_their_server_is_free(
    database_url: str,
) -> None:
    async with open_engine(database_url, name="test") as engine:
        async with transaction(engine) as conn:
            holder = await plant(conn, ["x"])
            plans = [
                await plant(conn, servers, running=False, spec={"name": "n", "on_conflict": "queue", "priority": p})
                for servers, p in ((["a"], 0), (["b"], 5), (["c"], 0), (["x", "y"], 9), (["z"], 9))
            ]
            await conn.execute(
                text("UPDATE plans SET start_at = now() + interval '1 h' WHERE id = :p"), {"p": plans[4]}
            )
            for plan in plans[:3]:
                await conn.execute(text("UPDATE plans SET status = 'scheduled' WHERE id = :p"), {"p": plan})
        for plan in plans[3:]:
            async with transaction(engine) as conn:
                await lock_plans(conn, [plan])
                assert (await begin(conn, plan, actor="prepare")).status is PlanStatus.SCHEDULED
        async with transaction(engine) as conn:
            assert await due_to_begin(conn) == [plans[1], plans[0], plans[2]]
            assert await begin_scheduled(conn, plans[1]) is PlanStatus.RUNNING
            assert await begin_scheduled(conn, plans[1]) is None
            assert await begin_scheduled(conn, plans[3]) is PlanStatus.SCHEDULED
            assert await column(conn, "SELECT server_id FROM holds ORDER BY 1") == ["b", "x"]
            await release_plan_holds(conn, holder)
            assert await due_to_begin(conn) == [plans[3], plans[0], plans[2]]
            assert await begin_scheduled(conn, plans[3]) is PlanStatus.RUNNING
            assert await column(conn, "SELECT server_id FROM holds ORDER BY 1") == ["b", "x", "y"]


async def test_a_scheduled_plan_of_a_restored_backup_does_not_begin(database_url: str) -> None:
    """It may have run after the backup was taken."""
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        plan = await plant(conn, ["a"], running=False, spec={"name": "n", "on_conflict": "reject"})
        await conn.execute(text("UPDATE plans SET status = 'scheduled'"))
        await conn.execute(text("UPDATE projects SET incarnation = 'another/1'"))
        assert await begin_scheduled(conn, plan) is PlanStatus.REJECTED
        assert await column(conn, "SELECT status, reason_code FROM plans") == [("rejected", "database_restored")]
        assert await column(conn, "SELECT server_id FROM holds") == []


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
