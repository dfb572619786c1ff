"""What a resumed plan's acknowledged failures hide: themselves, and nothing that comes after them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.states import JobState, PlanStatus
from orchestrator.ledger.acknowledging import acknowledge_failures
from orchestrator.ledger.drive import figures, plans_of
from orchestrator.ledger.engine import open_engine, transaction
from orchestrator.ledger.transitions import lock_plans
from tests.ledger.plant import column, move, plant

S, P = JobState, PlanStatus


@asynccontextmanager
async def resumed(database_url: str, state: JobState) -> AsyncIterator[tuple[AsyncConnection, UUID]]:
    """A plan of three that went on after a halt over its first server, which was in `state`."""
    async with open_engine(database_url, name="test") as engine:
        async with transaction(engine) as conn:
            plan = await plant(conn, ["s-0", "s-1", "s-2"])
            await move(conn, plan, [(0, "s-0")], S.PENDING, state)
        async with transaction(engine) as conn:
            bad = int(state is not S.UNRESOLVED)
            await acknowledge_failures(conn, plan, failures=bad, unresolved=1 - bad)
        async with transaction(engine) as conn:
            yield conn, plan


async def hidden(conn: AsyncConnection, plan: UUID) -> tuple[int, int]:
    """How many failures, and how many unresolved jobs, the gate leaves out of its count."""
    (project,) = await column(conn, "SELECT project FROM plans WHERE id = :p", p=plan)
    found = (await figures(conn, list((await plans_of(conn, project)).values())))[plan]
    return found.acknowledged_failures, found.acknowledged_unresolved


@pytest.mark.parametrize(
    ("before", "after", "left"),
    [
        (S.STUCK, S.VERIFYING, (0, 0)),
        (S.FAILED, S.PENDING, (0, 0)),
        (S.FAILED, S.REBUILDING, (0, 0)),
        (S.STUCK, S.FAILED, (1, 0)),
        (S.UNRESOLVED, S.REBUILDING, (0, 0)),
        (S.UNRESOLVED, S.PENDING, (0, 0)),
        (S.UNRESOLVED, S.FAILED, (0, 0)),
    ],
)
async def test_an_acknowledged_job_that_recovers_hides_no_other(
    database_url: str, before: JobState, after: JobState, left: tuple[int, int]
) -> None:
    """A stuck one that is given up stays the failure that it was; an unresolved one is a failure from then on."""
    async with resumed(database_url, before) as (conn, plan):
        assert await hidden(conn, plan) == ((0, 1) if before is S.UNRESOLVED else (1, 0))
        assert await move(conn, plan, [(0, "s-0")], before, after) == 1
        assert await hidden(conn, plan) == left


async def test_a_job_that_failed_after_the_resume_takes_nothing_from_what_was_acknowledged(database_url: str) -> None:
    async with resumed(database_url, S.FAILED) as (conn, plan):
        await move(conn, plan, [(1, "s-1")], S.PENDING, S.FAILED)
        await lock_plans(conn, [plan])
        assert await move(conn, plan, [(1, "s-1")], S.FAILED, S.PENDING) == 1
        assert await hidden(conn, plan) == (1, 0)


async def test_a_change_that_finds_its_job_elsewhere_takes_nothing_either(database_url: str) -> None:
    async with resumed(database_url, S.FAILED) as (conn, plan):
        assert await move(conn, plan, [(0, "s-0")], S.STUCK, S.VERIFYING) == 0
        assert await hidden(conn, plan) == (1, 0)
