"""What preparing publishes, and when it is due."""

from sqlalchemy import text
from uuid_utils.compat import uuid7

from orchestrator.domain.decide import Reason
from orchestrator.domain.states import JobState, PlanStatus, Verdict
from orchestrator.ledger.engine import open_engine, transaction
from orchestrator.ledger.leases import acquire, prepare_lease
from orchestrator.ledger.prepare import (
    explicit_targets,
    last_rebuild_states,
    note_cloud,
    note_project,
    plan_to_prepare,
    plans_to_prepare,
    postpone_preparing,
    publish,
)
from orchestrator.ledger.submit import insert_plan
from orchestrator.ledger.transitions import PlanMove, lock_plans, move_plan
from tests.ledger.plant import DEPLOYMENT, column, counters_agree, job, move, plant, prepared
from tests.ledger.test_submit import new_plan

SKIP = Reason(code="already_there", message="As wanted.")
REFUSE = Reason(code="locked", message="It is locked.")


async def test_ten_thousand_jobs_are_published_with_counters_waves_and_events(database_url: str) -> None:
    jobs = [
        job(i, f"s-{i:05}", verdict=Verdict.SKIP, reason=SKIP) if i % 10 == 3
        else job(i, f"s-{i:05}", verdict=Verdict.REFUSE, reason=REFUSE, overrides={"image": "other"}) if i % 10 == 7
        else job(i, f"s-{i:05}", wave=0 if i < 100 else 1, host=f"h-{i % 7}", zone="z")
        for i in range(10_000)
    ]  # fmt: skip
    targets = [(f"s-{i:05}", None, None) for i in range(5_000)]
    async with open_engine(database_url, name="test") as engine:
        plan = new_plan(targets=targets)
        async with transaction(engine) as conn:
            await insert_plan(conn, plan)
            project = await note_project(conn, "alpha", deployment=DEPLOYMENT, region="r", project_id="p")
        async with transaction(engine) as conn:
            await lock_plans(conn, [plan.id])
            await publish(conn, plan.id, prepared(project, jobs, sizes=[80, 7_920]))
        async with engine.connect() as conn:
            assert await column(conn, "SELECT wave, state, n FROM job_counts WHERE n <> 0 ORDER BY 1, 2") == [
                (-1, "refused", 1_000), (-1, "skipped", 1_000), (0, "pending", 80), (1, "pending", 7_920),
            ]  # fmt: skip
            assert await counters_agree(conn, plan.id)
            assert await column(conn, "SELECT index, name, size, on_unresolved FROM waves ORDER BY 1") == [
                (0, "w0", 80, "continue"),
                (1, "w1", 7_920, "continue"),
            ]
            assert await column(conn, "SELECT total, explicit, project, event_seq, prepare_at FROM plans") == [
                (10_000, 5_000, project, 2_001, None)
            ]
            assert await column(conn, "SELECT seq FROM events ORDER BY seq") == list(range(1, 2_002))
            assert await column(
                conn,
                """SELECT seq, server_id, type, from_state, to_state, actor, reason_code FROM events
                WHERE seq > 1 ORDER BY seq LIMIT 2""",
            ) == [
                (2, "s-00003", "job.skipped", "pending", "skipped", "prepare", "already_there"),
                (3, "s-00007", "job.refused", "pending", "refused", "prepare", "locked"),
            ]
            assert await column(
                conn,
                """SELECT server_id, state, verdict, overrides, wave, zone, host, previous_image, target_image
                FROM jobs WHERE ord IN (7, 9999) ORDER BY ord""",
            ) == [
                ("s-00007", "refused", "refuse", {"image": "other"}, None, None, None, "old", "new"),
                ("s-09999", "pending", "rebuild", None, 1, "z", "h-3", "old", "new"),
            ]


async def test_explicit_targets_are_read_in_their_order(database_url: str) -> None:
    plan = new_plan()
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        await insert_plan(conn, plan)
        assert [(t.ord, t.server_id, t.find, t.overrides) for t in await explicit_targets(conn, plan.id)] == [
            (0, "s-1", None, None),
            (1, None, "web-2", None),
            (2, "s-3", None, {"image": "other"}),
        ]


async def test_a_plan_is_given_out_once_and_again_when_its_hint_may_be_lost(database_url: str) -> None:
    plan = new_plan()
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        await insert_plan(conn, plan)
        assert await plans_to_prepare(conn) == [plan.id]
        assert await plans_to_prepare(conn) == []
        due = text("UPDATE plans SET prepare_at = now()")
        await conn.execute(due)
        assert await plans_to_prepare(conn) == [plan.id]
        await conn.execute(due)
        await acquire(conn, prepare_lease(plan.id), "me", 60)
        assert await plans_to_prepare(conn) == []


async def test_two_ticks_at_once_give_out_different_plans(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine:
        async with transaction(engine) as conn:
            plans = [new_plan(), new_plan()]
            for plan in plans:
                await insert_plan(conn, plan)
        async with engine.connect() as one, engine.connect() as two:
            first = await plans_to_prepare(one, limit=1)
            second = await plans_to_prepare(two, limit=2)
            assert (len(first), len(second)) == (1, 1)
            assert {*first, *second} == {p.id for p in plans}


async def test_a_postponed_plan_says_why_and_a_decided_one_is_not_prepared_again(database_url: str) -> None:
    plan = new_plan()
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        await insert_plan(conn, plan)
        await postpone_preparing(conn, plan.id, 60, Reason(code="cloud_unreachable", message="No answer."))
        assert await plans_to_prepare(conn) == []
        found = await plan_to_prepare(conn, plan.id)
        assert found is not None
        assert (found.tries, found.cloud, found.user_data) == (1, "alpha", b"secret")
        assert await column(conn, "SELECT reason_code FROM plans") == ["cloud_unreachable"]
        await move_plan(
            conn, PlanMove(plan_id=plan.id, expected=PlanStatus.PREPARING, status=PlanStatus.REJECTED, actor="prepare")
        )
        assert await plan_to_prepare(conn, plan.id) is None
        assert await plan_to_prepare(conn, uuid7()) is None


async def test_two_names_of_one_project_are_one_project(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        one = await note_project(conn, "alpha", deployment=DEPLOYMENT, region="r", project_id="p")
        two = await note_project(conn, "beta", deployment=DEPLOYMENT, region="r", project_id="p")
        three = await note_project(conn, "gamma", deployment=DEPLOYMENT, region="r", project_id="q")
        assert one == two != three
        await note_cloud(conn, "beta", project=None, error="No answer.")
        assert await column(conn, "SELECT name, project, healthy, error FROM clouds ORDER BY 1") == [
            ("alpha", one, True, None),
            ("beta", one, False, "No answer."),
            ("gamma", three, True, None),
        ]


async def test_last_rebuilds_are_those_of_the_asked_servers_in_this_cloud(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        plan = await plant(conn, ["s-0", "s-1"])
        await move(conn, plan, [(0, "s-0"), (1, "s-1")], JobState.PENDING, JobState.SUCCEEDED)
        assert await last_rebuild_states(conn, DEPLOYMENT, ["s-0", "s-7"]) == {"s-0": JobState.SUCCEEDED}
        assert await last_rebuild_states(conn, "other.test", ["s-0"]) == {}
