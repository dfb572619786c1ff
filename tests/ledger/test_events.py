"""Events are read by their number."""

from orchestrator.domain.states import PlanStatus
from orchestrator.ledger.engine import open_engine, transaction
from orchestrator.ledger.events import (
    Head,
    NewEvent,
    append_events,
    event_heads,
    events_after,
    latest_events,
    server_events,
    status_before_pause,
)
from orchestrator.ledger.submit import insert_plan
from tests.ledger.test_submit import new_plan


async def test_events_are_read_from_a_number_on_backwards_and_by_server(database_url: str) -> None:
    plan, other = new_plan(), new_plan()
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        await insert_plan(conn, plan)
        await insert_plan(conn, other)
        await append_events(
            conn,
            [
                NewEvent(plan_id=plan.id, type="job.checking", actor="driver", server_id=f"s-{i % 2}", data={"i": i})
                for i in range(6)
            ],
        )
        assert [e.seq for e in await events_after(conn, plan.id, 0, 100)] == [1, 2, 3, 4, 5, 6, 7]
        assert [e.seq for e in await events_after(conn, plan.id, 3, 2)] == [4, 5]
        assert await events_after(conn, plan.id, 7, 100) == []
        assert [e.seq for e in await latest_events(conn, plan.id, 2)] == [7, 6]
        mine = await server_events(conn, plan.id, "s-1", 2)
        assert [(e.seq, e.data) for e in mine] == [(5, {"i": 3}), (7, {"i": 5})]
        heads = await event_heads(conn, [plan.id, other.id, new_plan().id])
        assert heads == {
            plan.id: Head(seq=7, status=PlanStatus.PREPARING),
            other.id: Head(seq=1, status=PlanStatus.PREPARING),
        }


async def test_the_newest_pause_says_where_the_plan_was(database_url: str) -> None:
    plan = new_plan()
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        await insert_plan(conn, plan)
        assert await status_before_pause(conn, plan.id) is None
        for status in ("running", "baking"):
            await append_events(
                conn, [NewEvent(plan_id=plan.id, type="plan.paused", actor="me", from_state=status, to_state="paused")]
            )
        assert await status_before_pause(conn, plan.id) is PlanStatus.BAKING
