"""Which jobs a driver may claim."""

from sqlalchemy import text

from orchestrator.domain.states import JobState
from orchestrator.ledger.drive import pending_jobs
from orchestrator.ledger.engine import open_engine, transaction
from orchestrator.ledger.waves import replenish_wave
from tests.ledger.plant import DEPLOYMENT, column, counters_agree, move, plant

SERVERS = [f"s-{i}" for i in range(6)]


async def test_held_and_due_jobs_of_the_waves_so_far_come_in_their_order(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        other = await plant(conn, ["s-9"])
        plan = await plant(conn, SERVERS, sizes=[2, 3, 1])
        await conn.execute(text("DELETE FROM holds WHERE server_id = 's-0'"))
        await conn.execute(text("UPDATE holds SET plan_id = :p WHERE server_id = 's-1'"), {"p": other})

        async def claimable(wave: int, limit: int = 10) -> list[str]:
            jobs = await pending_jobs(conn, DEPLOYMENT, plan, wave=wave, limit=limit)
            assert {j.plan_id for j in jobs} <= {plan}
            return [j.server_id for j in jobs]

        assert await claimable(0) == []
        assert await claimable(1) == ["s-2", "s-3", "s-4"]
        assert await claimable(1, limit=2) == ["s-2", "s-3"]
        assert await claimable(2) == ["s-2", "s-3", "s-4", "s-5"]
        await conn.execute(text("UPDATE jobs SET due_at = now() + interval '1 min' WHERE server_id = 's-2'"))
        await conn.execute(text("UPDATE jobs SET due_at = now() WHERE server_id = 's-3'"))
        assert await claimable(1) == ["s-3", "s-4"]
        await move(conn, plan, [(4, "s-4")], JobState.PENDING, JobState.CHECKING)
        assert await claimable(1) == ["s-3"]
        assert await pending_jobs(conn, "other.test", plan, wave=2, limit=10) == []


async def test_a_claimed_job_says_what_its_attempt_needs(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        plan = await plant(conn, ["s-0"])
        (job,) = await pending_jobs(conn, DEPLOYMENT, plan, wave=0, limit=1)
        assert (job.key, job.target_image, job.attempt, job.refusals) == ((plan, 0), "new", 0, 0)
        assert (job.state, job.wave, job.baseline) == (JobState.PENDING, 0, None)


async def test_two_claimers_at_once_never_take_the_same_job(database_url: str) -> None:
    """The second passes by what the first has locked, and does not wait for it."""
    async with open_engine(database_url, name="test") as engine:
        async with transaction(engine) as conn:
            plan = await plant(conn, SERVERS)
        async with engine.connect() as one, engine.connect() as two:
            await two.execute(text("SET LOCAL lock_timeout = '1s'"))
            first = await pending_jobs(one, DEPLOYMENT, plan, wave=0, limit=4)
            second = await pending_jobs(two, DEPLOYMENT, plan, wave=0, limit=4)
            assert [j.server_id for j in first] == SERVERS[:4]
            assert [j.server_id for j in second] == SERVERS[4:]
            await one.rollback()
            again = await pending_jobs(two, DEPLOYMENT, plan, wave=0, limit=6)
            assert [j.server_id for j in again] == SERVERS


async def test_a_wave_is_filled_up_from_all_that_follow_and_each_gives_what_was_its(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        plan = await plant(conn, SERVERS, sizes=[1, 2, 3])
        await move(conn, plan, [(0, "s-0")], JobState.PENDING, JobState.SKIPPED)
        assert await replenish_wave(conn, plan, 0, 3) == 3
        assert await column(conn, "SELECT size FROM waves ORDER BY index") == [4, 0, 2]
        assert await column(conn, "SELECT wave FROM jobs ORDER BY ord") == [0, 0, 0, 0, 2, 2]
        assert await counters_agree(conn, plan)
        assert await replenish_wave(conn, plan, 2, 3) == 0
