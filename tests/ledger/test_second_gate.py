"""The second gate: what it lets through may be sent, and nothing else."""

from dataclasses import replace
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.states import JobState, PlanStatus
from orchestrator.errors import LeaseLost
from orchestrator.ledger.drive import Ownership
from orchestrator.ledger.engine import open_engine, transaction
from orchestrator.ledger.second_gate import commit_intents
from orchestrator.ledger.transitions import PlanMove, move_plan
from tests.ledger.plant import column, counters_agree, intent, move, own, plant

S = JobState
SERVERS = ["s-0", "s-1", "s-2"]


async def checked(conn: AsyncConnection, servers: list[str] | None = None) -> tuple[UUID, Ownership]:
    """A running plan, all of whose jobs are being checked, and the right to drive it."""
    servers = servers or SERVERS
    plan = await plant(conn, servers)
    assert await move(conn, plan, enumerate(servers), S.PENDING, S.CHECKING) == len(servers)
    return plan, await own(conn)


async def nothing_was_written(conn: AsyncConnection) -> bool:
    return (
        await column(conn, "SELECT 1 FROM attempts") == []
        and await column(conn, "SELECT 1 FROM events WHERE type = 'job.sending'") == []
        and await column(conn, "SELECT 1 FROM jobs WHERE state = 'sending' OR attempts > 0") == []
    )


async def test_checked_and_held_jobs_get_through_with_their_attempts(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        plan, mine = await checked(conn)
        through = await commit_intents(conn, mine, [intent(plan, 2, "s-2"), intent(plan, 0, "s-0", 4)], {plan: 0})
        assert through == {(plan, 0), (plan, 2)}
        assert await column(conn, "SELECT ord, state, attempts, previous_image FROM jobs ORDER BY ord") == [
            (0, "sending", 4, "old-by-cloud"),
            (1, "checking", 0, "old"),
            (2, "sending", 1, "old-by-cloud"),
        ]
        assert await column(
            conn, "SELECT ord, number, fence, body_sha256, baseline, answered_at FROM attempts ORDER BY ord"
        ) == [
            (0, 4, mine.fence, "b" * 64, {"status": "ACTIVE", "image": "old-by-cloud"}, None),
            (2, 1, mine.fence, "b" * 64, {"status": "ACTIVE", "image": "old-by-cloud"}, None),
        ]
        assert await column(conn, "SELECT server_id, data FROM events WHERE type = 'job.sending' ORDER BY 1") == [
            ("s-0", {"attempt": 4}),
            ("s-2", {"attempt": 1}),
        ]
        assert await counters_agree(conn, plan)


@pytest.mark.parametrize("status", [s for s in PlanStatus if s is not PlanStatus.RUNNING])
async def test_nothing_passes_of_a_plan_that_is_not_running(database_url: str, status: PlanStatus) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        plan, mine = await checked(conn)
        assert await move_plan(
            conn, PlanMove(plan_id=plan, expected=PlanStatus.RUNNING, status=status, actor="me")
        )  # fmt: skip
        assert await commit_intents(conn, mine, [intent(plan, 0, "s-0")], {plan: 0}) == set()
        assert await nothing_was_written(conn)


async def test_nothing_passes_after_a_stop_though_the_plan_runs_again(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        plan, mine = await checked(conn)
        stop = PlanMove(plan_id=plan, expected=PlanStatus.RUNNING, status=PlanStatus.PAUSED, actor="me",
                        stop_sending=True)  # fmt: skip
        again = PlanMove(plan_id=plan, expected=PlanStatus.PAUSED, status=PlanStatus.RUNNING, actor="me")
        assert await move_plan(conn, stop)
        assert await move_plan(conn, again)
        assert await commit_intents(conn, mine, [intent(plan, 0, "s-0")], {plan: 0}) == set()
        assert await commit_intents(conn, mine, [intent(plan, 0, "s-0")], {}) == set()
        assert await nothing_was_written(conn)
        assert await commit_intents(conn, mine, [intent(plan, 0, "s-0")], {plan: 1}) == {(plan, 0)}


async def test_nothing_passes_while_the_project_is_paused(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        plan, mine = await checked(conn)
        await conn.execute(text("UPDATE projects SET paused = true"))
        assert await commit_intents(conn, mine, [intent(plan, 0, "s-0")], {plan: 0}) == set()
        assert await nothing_was_written(conn)


async def test_a_job_without_its_hold_stays_behind_and_the_others_pass(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        other = await plant(conn, ["s-9"])
        plan, mine = await checked(conn)
        await conn.execute(text("DELETE FROM holds WHERE server_id = 's-0'"))
        await conn.execute(text("UPDATE holds SET plan_id = :o WHERE server_id = 's-1'"), {"o": other})
        intents = [intent(plan, i, s) for i, s in enumerate(SERVERS)]
        assert await commit_intents(conn, mine, intents, {plan: 0}) == {(plan, 2)}
        assert await column(conn, "SELECT ord FROM attempts") == [2]


async def test_a_hold_in_another_cloud_does_not_count(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        plan, mine = await checked(conn)
        elsewhere = replace(mine, deployment="other.test")
        assert await commit_intents(conn, elsewhere, [intent(plan, 0, "s-0")], {plan: 0}) == set()
        assert await nothing_was_written(conn)


@pytest.mark.parametrize("state", [s for s in JobState if s is not JobState.CHECKING])
async def test_only_a_job_that_is_being_checked_passes(database_url: str, state: JobState) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        plan, mine = await checked(conn)
        await conn.execute(text("UPDATE jobs SET state = :s WHERE ord = 0"), {"s": state.value})
        through = await commit_intents(conn, mine, [intent(plan, 0, "s-0"), intent(plan, 1, "s-1")], {plan: 0})
        assert through == {(plan, 1)}
        assert await column(conn, "SELECT ord FROM attempts") == [1]


async def test_the_same_job_passes_once(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        plan, mine = await checked(conn)
        assert await commit_intents(conn, mine, [intent(plan, 0, "s-0")], {plan: 0}) == {(plan, 0)}
        assert await commit_intents(conn, mine, [intent(plan, 0, "s-0", 2)], {plan: 0}) == set()
        assert await column(conn, "SELECT number FROM attempts") == [1]


async def test_an_expired_lease_lets_nothing_pass(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        plan, mine = await checked(conn)
        await conn.execute(text("UPDATE leases SET expires_at = clock_timestamp() - interval '1 ms'"))
        with pytest.raises(LeaseLost):
            await commit_intents(conn, mine, [intent(plan, 0, "s-0")], {plan: 0})
        assert await nothing_was_written(conn)


async def test_another_fence_lets_nothing_pass(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        plan, mine = await checked(conn)
        for fence in (mine.fence - 1, mine.fence + 1):
            with pytest.raises(LeaseLost):
                await commit_intents(conn, replace(mine, fence=fence), [intent(plan, 0, "s-0")], {plan: 0})
        assert await nothing_was_written(conn)


async def test_each_plan_is_judged_by_itself(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        stopped, mine = await checked(conn, ["a-0"])
        running = await plant(conn, ["b-0"])
        await move(conn, running, [(0, "b-0")], S.PENDING, S.CHECKING)
        await move_plan(
            conn, PlanMove(plan_id=stopped, expected=PlanStatus.RUNNING, status=PlanStatus.HALTED, actor="driver")
        )
        intents = [intent(stopped, 0, "a-0"), intent(running, 0, "b-0")]
        assert await commit_intents(conn, mine, intents, {stopped: 0, running: 0}) == {(running, 0)}
