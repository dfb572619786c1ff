"""Pieces of the driver that need neither a cloud nor a ledger."""

import asyncio
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from orchestrator.domain.decide import Decision, FailurePolicy, Happened
from orchestrator.domain.lifecycle import JobEvent
from orchestrator.domain.states import JobState, PlanStatus
from orchestrator.ledger.drive import Ownership
from orchestrator.ledger.transitions import JobChange
from workers.driver import lease as lease_module
from workers.driver.desk import Desk
from workers.driver.lease import LEASE_SECONDS, MARGIN_SECONDS, LeaseKeeper
from workers.driver.record import Recorder, rounds

OWN = Ownership(project=1, deployment="d", fence=1)
ENGINE: Any = None
PLAN = UUID(int=1)


def change(place: int, state: JobState) -> JobChange:
    return JobChange(plan_id=PLAN, ord=place, server_id=f"s-{place}", expected=JobState.SENDING,
                     decision=Decision(state=state))  # fmt: skip


def test_a_lease_is_fresh_by_the_clock_that_goes_on_while_the_machine_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(lease_module, "boot_clock", lambda: now)
    keeper = LeaseKeeper(ENGINE, OWN, asked_at=100.0, database_now=datetime(2026, 11, 25, tzinfo=UTC), before=None)
    now = 100.0 + LEASE_SECONDS - MARGIN_SECONDS - 0.001
    assert keeper.fresh()
    assert (keeper.now() - datetime(2026, 11, 25, tzinfo=UTC)).total_seconds() == pytest.approx(now - 100.0)
    now = 100.0 + LEASE_SECONDS - MARGIN_SECONDS
    assert not keeper.fresh()


async def test_a_ledger_that_does_not_keep_up_makes_whoever_records_wait() -> None:
    recorder = Recorder(engine=ENGINE, own=OWN, recorded=lambda _: None, dropped=lambda _: None,
                        _queue=asyncio.Queue(3))  # fmt: skip
    for place in range(3):
        await recorder.put(change(place, JobState.REBUILDING))
    waiting = asyncio.create_task(recorder.put(change(3, JobState.REBUILDING)))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not waiting.done()
    assert recorder.backlog == 3
    recorder._queue.get_nowait()
    await waiting
    assert recorder.backlog == 3


def test_no_job_moves_twice_in_one_statement() -> None:
    batch = [change(0, JobState.RESOLVING), change(1, JobState.REBUILDING), change(0, JobState.UNRESOLVED)]
    assert [[c.ord for c in part] for part in rounds(batch)] == [[0, 1], [0]]


@pytest.mark.parametrize(("status", "state"), [("running", "pending"), ("failed", "failed"), ("succeeded", "failed")])
async def test_in_a_plan_that_has_ended_nothing_is_rebuilt_again_by_itself(status: str, state: str) -> None:
    """Nothing would claim it there; and a pipeline that was told of the end doesn't expect another wipe."""
    put: list[JobChange] = []

    async def keep(made: JobChange) -> None:
        put.append(made)

    plan = SimpleNamespace(row=SimpleNamespace(status=PlanStatus(status)), policy=FailurePolicy(rebuild_again=1))
    desk: Any = SimpleNamespace(plans={PLAN: plan}, recorder=SimpleNamespace(put=keep),
                                lease=SimpleNamespace(now=lambda: datetime(2026, 11, 25, tzinfo=UTC)))  # fmt: skip
    job: Any = SimpleNamespace(plan_id=PLAN, ord=0, server_id="s", refusals=0, rebuilt_again=0)
    happened = Happened(event=JobEvent.REBUILD_FAILED, final=True)
    assert await Desk.happen(desk, job, JobState.REBUILDING, happened) == state
    assert [c.decision.state for c in put] == [state]
