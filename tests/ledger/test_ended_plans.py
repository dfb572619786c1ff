"""A plan that has ended: its status always says how its servers ended, also when that turns out otherwise later."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.states import JobState, PlanStatus
from orchestrator.ledger.drive import plans_of
from orchestrator.ledger.engine import open_engine, transaction
from orchestrator.ledger.transitions import PlanMove, lock_plans, move_plan
from tests.ledger.plant import column, move, plant
from workers.driver.claim import _settle_ended

S, P = JobState, PlanStatus


@asynccontextmanager
async def ended(database_url: str, status: PlanStatus, state: JobState) -> AsyncIterator[tuple[AsyncConnection, UUID]]:
    """A plan of two servers that ended so, one of them well and one in `state`, and is driven for a late job."""
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        plan = await plant(conn, ["s-0", "s-1"])
        await move(conn, plan, [(0, "s-0")], S.PENDING, S.SUCCEEDED)
        await move(conn, plan, [(1, "s-1")], S.PENDING, state)
        assert await move_plan(conn, PlanMove(plan_id=plan, expected=P.RUNNING, status=status, actor="driver"))
        yield conn, plan


async def settle(conn: AsyncConnection, plan: UUID) -> tuple[str, str | None, bool]:
    """What the driver leaves of a plan whose status is looked at: (status, reason's code, still driven)."""
    (project,) = await column(conn, "UPDATE plans SET due = true RETURNING project")
    await lock_plans(conn, [plan])
    await _settle_ended(conn, await plans_of(conn, project))
    (row,) = await column(conn, "SELECT status, reason_code, due FROM plans WHERE id = :p", p=plan)
    return row


@pytest.mark.parametrize(
    ("state", "driven"), [(S.FAILED, False), (S.REFUSED, False), (S.STUCK, True), (S.UNRESOLVED, True)]
)
async def test_a_plan_that_had_succeeded_fails_with_a_job_that_a_failover_brought_back_and_says_why(
    database_url: str, state: JobState, driven: bool
) -> None:
    async with ended(database_url, P.SUCCEEDED, S.REBUILDING) as (conn, plan):
        assert await settle(conn, plan) == ("succeeded", None, True), "while it is under way nothing is known"
        await move(conn, plan, [(1, "s-1")], S.REBUILDING, state)
        assert await settle(conn, plan) == ("failed", "jobs_not_done", driven)
        told = "SELECT from_state, to_state, reason_message FROM events WHERE plan_id = :p ORDER BY seq DESC LIMIT 1"
        assert await column(conn, told, p=plan) == [("succeeded", "failed", f"Finished with 1 {state}.")]


async def test_a_plan_that_had_succeeded_stays_so_where_the_lost_rebuild_ends_well(database_url: str) -> None:
    async with ended(database_url, P.SUCCEEDED, S.REBUILDING) as (conn, plan):
        await move(conn, plan, [(1, "s-1")], S.REBUILDING, S.SUCCEEDED)
        before = await column(conn, "SELECT event_seq FROM plans WHERE id = :p", p=plan)
        assert await settle(conn, plan) == ("succeeded", None, False)
        assert await column(conn, "SELECT event_seq FROM plans WHERE id = :p", p=plan) == before


async def test_a_plan_that_had_failed_succeeds_with_its_late_job_and_keeps_no_reason(database_url: str) -> None:
    async with ended(database_url, P.FAILED, S.STUCK) as (conn, plan):
        assert await settle(conn, plan) == ("failed", None, True)
        await move(conn, plan, [(1, "s-1")], S.STUCK, S.SUCCEEDED)
        assert await settle(conn, plan) == ("succeeded", None, False)


async def test_a_cancelled_plan_stays_cancelled_whatever_its_late_jobs_come_to(database_url: str) -> None:
    async with ended(database_url, P.CANCELLED, S.STUCK) as (conn, plan):
        await move(conn, plan, [(1, "s-1")], S.STUCK, S.FAILED)
        assert await settle(conn, plan) == ("cancelled", None, False)
