"""What a person's word reads and writes: jobs to settle and to retry, and the driver that is told of it."""

from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.gate import Halt, gate
from orchestrator.domain.states import JobState, PlanStatus, Verdict
from orchestrator.ledger.acknowledging import acknowledge_failures
from orchestrator.ledger.drive import due_projects, figures, plans_of
from orchestrator.ledger.engine import open_engine, transaction
from orchestrator.ledger.holds import take_holds
from orchestrator.ledger.prepare import note_project, publish
from orchestrator.ledger.second_gate import commit_intents
from orchestrator.ledger.settle import Retryable, job_to_settle, jobs_to_retry, note_retries, tell_driver
from orchestrator.ledger.transitions import AttemptAnswer, PlanMove, move_jobs, move_plan
from tests.ledger.plant import (
    DEPLOYMENT,
    change,
    column,
    counters_agree,
    intent,
    job,
    move,
    own,
    plant,
    prepared,
)

S = JobState
SERVERS = ["s-0", "s-1", "s-2", "s-3"]


async def refused_by_preparing(conn: AsyncConnection, refused: int, *, sizes: list[int]) -> UUID:
    """A running plan: `sizes` servers in waves, after them so many that preparing refused and gave no wave."""
    in_waves = sum(sizes)
    servers = [f"s-{i}" for i in range(in_waves + refused)]
    plan = await plant(conn, servers, running=False, sizes=[len(servers)])
    project = await note_project(conn, "alpha", deployment=DEPLOYMENT, region="r", project_id="p")
    wave_of = [i for i, n in enumerate(sizes) for _ in range(n)]
    jobs = [job(i, f"s-{i}", wave=wave_of[i]) for i in range(in_waves)]
    jobs += [job(i, f"s-{i}", verdict=Verdict.REFUSE) for i in range(in_waves, len(servers))]
    await conn.execute(text("DELETE FROM waves"))
    await publish(conn, plan, prepared(project, jobs, sizes=sizes))
    await conn.execute(text("DROP TABLE prepared"))
    assert not await take_holds(conn, DEPLOYMENT, plan)
    assert await move_plan(
        conn, PlanMove(plan_id=plan, expected=PlanStatus.PREPARING, status=PlanStatus.RUNNING, actor="prepare")
    )
    assert await counters_agree(conn, plan)
    return plan


async def waves(conn: AsyncConnection) -> list[tuple[int, str, int]]:
    """(index, name, size) of all."""
    return await column(conn, "SELECT index, name, size FROM waves ORDER BY index")


async def test_a_job_to_settle_comes_with_its_newest_attempt(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        plan, other = await plant(conn, SERVERS[:2]), await plant(conn, ["s-9"])
        mine = await own(conn)
        for number in (1, 2):
            await move(conn, plan, [(1, "s-1")], S.PENDING, S.CHECKING)
            assert await commit_intents(conn, mine, [intent(plan, 1, "s-1", number)], {plan: 0})
            answer = AttemptAnswer(number=number, classification="unknown/server_error", http_status=500 + number,
                                   request_id=f"req-{number}")  # fmt: skip
            after = S.PENDING if number == 1 else S.UNRESOLVED
            await move_jobs(conn, DEPLOYMENT, [change(plan, 1, "s-1", S.SENDING, after, answer=answer)])
        found = await job_to_settle(conn, plan, "s-1")
        assert found is not None
        assert (found.key, found.state, found.attempt) == ((plan, 1), S.UNRESOLVED, 2)
        assert (found.request_id, found.http_status, found.classification) == ("req-2", 502, "unknown/server_error")
        assert found.baseline == {"status": "ACTIVE", "image": "old-by-cloud"}
        assert await job_to_settle(conn, plan, "s-9") is None
        assert await job_to_settle(conn, other, "s-1") is None


async def test_a_job_that_was_never_sent_comes_without_an_attempt(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        plan = await plant(conn, ["s-0"])
        found = await job_to_settle(conn, plan, "s-0")
        assert found is not None
        assert (found.state, found.attempt, found.baseline, found.intended_at) == (S.PENDING, 0, None, None)


async def test_all_that_failed_is_retried_where_no_servers_are_named_and_named_ones_come_in_any_state(
    database_url: str,
) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        plan, other = await plant(conn, SERVERS), await plant(conn, ["s-9"])
        for ord_, state in ((3, S.FAILED), (0, S.FAILED), (1, S.REFUSED), (2, S.STUCK)):
            await move(conn, plan, [(ord_, f"s-{ord_}")], S.PENDING, state)
        await move(conn, other, [(0, "s-9")], S.PENDING, S.FAILED)
        assert await jobs_to_retry(conn, plan, None) == [
            Retryable(ord=0, server_id="s-0", state=S.FAILED),
            Retryable(ord=3, server_id="s-3", state=S.FAILED),
        ]
        assert await jobs_to_retry(conn, plan, ["s-2", "s-1", "s-9", "s-7"]) == [
            Retryable(ord=1, server_id="s-1", state=S.REFUSED),
            Retryable(ord=2, server_id="s-2", state=S.STUCK),
        ]
        assert await jobs_to_retry(conn, plan, []) == []


async def test_a_retry_is_counted_and_begins_with_fresh_tries(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        plan = await plant(conn, SERVERS[:2], sizes=[1, 1])
        await conn.execute(text("UPDATE jobs SET refusals = 3, rebuilt_again = 1, busy_since = now(), attempts = 4"))
        await note_retries(conn, plan, [0])
        tries = "SELECT retries, refusals, rebuilt_again, busy_since IS NULL, attempts, wave FROM jobs ORDER BY ord"
        assert await column(conn, tries) == [(1, 0, 0, True, 4, 0), (0, 3, 1, False, 4, 1)]
        await note_retries(conn, plan, [0])
        assert (await column(conn, tries))[0][0] == 2
        assert await waves(conn) == [(0, "w0", 1), (1, "w1", 1)]
        assert await counters_agree(conn, plan)


async def test_what_preparing_refused_goes_into_the_last_wave_when_it_is_retried(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        plan = await refused_by_preparing(conn, 3, sizes=[1, 2])
        await move(conn, plan, [(0, "s-0")], S.PENDING, S.FAILED)
        await note_retries(conn, plan, [0, 3, 5])
        assert await column(conn, "SELECT wave FROM jobs ORDER BY ord") == [0, 1, 1, 1, None, 1]
        assert await waves(conn) == [(0, "w0", 1), (1, "w1", 4)]
        assert await counters_agree(conn, plan)
        assert not await take_holds(conn, DEPLOYMENT, plan, ["s-0", "s-3", "s-5"])
        assert await move(conn, plan, [(3, "s-3"), (5, "s-5")], S.REFUSED, S.PENDING) == 2
        assert await counters_agree(conn, plan)
        await note_retries(conn, plan, [3])
        assert await waves(conn) == [(0, "w0", 1), (1, "w1", 4)]
        assert await counters_agree(conn, plan)


async def test_a_plan_without_any_wave_gets_one_for_its_retries(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        plan = await refused_by_preparing(conn, 3, sizes=[])
        await note_retries(conn, plan, [0, 2])
        assert await waves(conn) == [(0, "retry", 2)]
        assert await column(conn, "SELECT wave FROM jobs ORDER BY ord") == [0, None, 0]
        assert await counters_agree(conn, plan)
        await note_retries(conn, plan, [1])
        assert await waves(conn) == [(0, "retry", 3)]
        assert await counters_agree(conn, plan)


async def test_one_plans_retries_touch_no_other_plan(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        other = await plant(conn, ["t-0"])
        plan = await plant(conn, ["s-0"])
        await note_retries(conn, plan, [0])
        assert await column(conn, "SELECT retries FROM jobs WHERE plan_id = :p", p=other) == [0]
        assert await counters_agree(conn, other)


async def test_telling_the_driver_moves_the_epoch_and_brings_a_plan_without_one_back(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        plan = await plant(conn, ["s-0"])
        await move(conn, plan, [(0, "s-0")], S.PENDING, S.FAILED)
        await move_plan(
            conn, PlanMove(plan_id=plan, expected=PlanStatus.RUNNING, status=PlanStatus.FAILED, actor="driver")
        )
        assert await due_projects(conn) == []
        await tell_driver(conn, plan)
        assert len(await due_projects(conn)) == 1
        assert await column(conn, "SELECT go_epoch, due FROM plans") == [(1, True)]


async def test_a_plan_that_no_project_is_known_of_gets_no_driver(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        plan = await plant(conn, ["s-0"], running=False)
        await conn.execute(text("UPDATE plans SET project = NULL"))
        await tell_driver(conn, plan)
        assert await column(conn, "SELECT due FROM plans") == [False]
        assert await due_projects(conn) == []


async def test_a_failure_that_was_acknowledged_and_retried_counts_when_it_fails_again(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        plan = await plant(conn, SERVERS[:2])
        await conn.execute(text("UPDATE plans SET max_errors = 0"))
        await move(conn, plan, [(0, "s-0")], S.PENDING, S.FAILED)
        await acknowledge_failures(conn, plan, failures=1, unresolved=0)
        await note_retries(conn, plan, [0])
        await move(conn, plan, [(0, "s-0")], S.FAILED, S.PENDING)
        await move(conn, plan, [(0, "s-0")], S.PENDING, S.FAILED)
        (row,) = (await plans_of(conn, await note_project(conn, "alpha", deployment=DEPLOYMENT, region="r",
                                                          project_id="p"))).values()  # fmt: skip
        assert isinstance(gate((await figures(conn, [row]))[plan], datetime.now(UTC)), Halt)
