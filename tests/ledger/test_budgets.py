"""Disruption budgets in the ledger: who is out, and what may be claimed within the room that is left."""

from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.states import JobState
from orchestrator.ledger.budgets import PreparedGroup, add_groups, group_places, pending_within, regroup, servers_out
from orchestrator.ledger.engine import open_engine, transaction
from orchestrator.ledger.outages import acknowledge_outage, forget_acknowledgements
from tests.ledger.plant import DEPLOYMENT, column, move, own, plant

SERVERS = [f"s-{i}" for i in range(8)]
P, C, S, F, U = JobState.PENDING, JobState.CHECKING, JobState.SENDING, JobState.FAILED, JobState.UNRESOLVED


async def grouped(conn: AsyncConnection, groups: str, sizes: list[int] | None = None) -> UUID:
    """A running plan of eight servers; the n-th is in the group that the n-th letter names."""
    plan = await plant(conn, SERVERS, sizes=sizes)
    for i, group in enumerate(groups):
        await conn.execute(
            text("UPDATE jobs SET budget_group = :g WHERE plan_id = :p AND ord = :o"), {"p": plan, "o": i, "g": group}
        )
    return plan


async def test_each_group_gives_as_many_as_it_has_room_for_in_the_plans_order(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        plan = await grouped(conn, "aaabbbcc", [4, 4])

        async def claimable(rooms: dict[str, int], *, wave: int = 1, limit: int = 10, out: str = "") -> list[str]:
            jobs = await pending_within(conn, DEPLOYMENT, plan, wave=wave, limit=limit, rooms=rooms,
                                        out={f"s-{i}" for i in out})  # fmt: skip
            return [j.server_id for j in jobs]

        assert await claimable({"a": 2, "b": 1, "c": 5}) == ["s-0", "s-1", "s-3", "s-6", "s-7"]
        assert await claimable({"a": 2, "b": 1, "c": 5}, limit=3) == ["s-0", "s-1", "s-3"]
        assert await claimable({"b": 3, "c": 1}, wave=0) == ["s-3"]
        assert await claimable({"a": 0, "b": 0}) == []
        assert await claimable({}) == []
        assert await claimable({"a": 1}, out="27") == ["s-0", "s-2", "s-7"], "what is out already costs no room"
        await conn.execute(text("UPDATE jobs SET due_at = now() + interval '1 min' WHERE server_id = 's-0'"))
        await conn.execute(text("DELETE FROM holds WHERE server_id = 's-1'"))
        assert await claimable({"a": 1}, out="01") == ["s-2"], "neither what waits nor what it doesn't hold"
        await move(conn, plan, [(2, "s-2")], P, C)
        assert await claimable({"a": 1}) == []


async def test_two_claimers_at_once_never_take_the_same_job_of_a_group(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine:
        async with transaction(engine) as conn:
            plan = await grouped(conn, "aaaaaaaa")
        async with engine.connect() as one, engine.connect() as two:
            await two.execute(text("SET LOCAL lock_timeout = '1s'"))
            first = await pending_within(one, DEPLOYMENT, plan, wave=0, limit=9, rooms={"a": 4}, out=())
            second = await pending_within(two, DEPLOYMENT, plan, wave=0, limit=9, rooms={"a": 4}, out=())
            assert [j.server_id for j in first] == SERVERS[:4]
            assert second == []


async def test_out_are_those_in_flight_or_drained_and_those_that_went_wrong_until_acknowledged(
    database_url: str,
) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        plan = await grouped(conn, "aaaabbbb")
        lease = await own(conn)
        await move(conn, plan, [(i, f"s-{i}") for i in range(4)], P, C)
        await move(conn, plan, [(i, f"s-{i}") for i in range(1, 4)], C, S)
        await move(conn, plan, [(2, "s-2")], S, F)
        await move(conn, plan, [(3, "s-3")], S, JobState.RESOLVING)
        await move(conn, plan, [(3, "s-3")], JobState.RESOLVING, U)
        await conn.execute(text("UPDATE jobs SET drained_at = now() WHERE server_id = 's-5'"))

        async def out() -> tuple[set[str], set[str], set[str]]:
            found = await servers_out(conn, lease.project, DEPLOYMENT)
            return set(found.moving), set(found.idle), set(found.acknowledged)

        assert await out() == ({"s-0", "s-1"}, {"s-2", "s-3", "s-5"}, set())
        assert await acknowledge_outage(conn, DEPLOYMENT, "s-2", "ops")
        assert await out() == ({"s-0", "s-1"}, {"s-3", "s-5"}, {"s-2"})
        assert not await acknowledge_outage(conn, DEPLOYMENT, "s-7", "ops")
        await forget_acknowledgements(conn, DEPLOYMENT, ["s-2"])
        assert await out() == ({"s-0", "s-1"}, {"s-2", "s-3", "s-5"}, set())


async def test_a_server_that_moved_to_another_group_takes_its_place_there(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        plan = await grouped(conn, "aaaabbbb")
        await add_groups(conn, plan, [PreparedGroup(name=n, size=4, places=2) for n in "ab"])
        await add_groups(conn, plan, [PreparedGroup(name=n, size=9, places=3) for n in "bc"])
        assert await group_places(conn, [plan]) == {plan: {"a": 2, "b": 2, "c": 3}}
        await regroup(conn, [(plan, 4, "c"), (plan, 1, "b")])
        groups = await column(conn, "SELECT budget_group FROM jobs ORDER BY ord")
        assert "".join(groups) == "abaacbbb"
