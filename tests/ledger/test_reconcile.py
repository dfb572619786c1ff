"""Another database answers: leases are void on it, and what it may have lost is looked for before anything is sent."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.decide import Reason
from orchestrator.domain.states import JobState, PlanStatus
from orchestrator.errors import LeaseLost
from orchestrator.ledger import leases
from orchestrator.ledger.drive import moving_jobs
from orchestrator.ledger.engine import open_engine, transaction
from orchestrator.ledger.leases import acquire, guard, incarnation, renew
from orchestrator.ledger.prepare import note_project
from orchestrator.ledger.reconcile import (
    RESTORED_AFTER,
    LastSeen,
    LostAttempt,
    changed,
    doubtful_jobs,
    insert_lost_attempts,
    known_effects,
    last_seen,
    pause_all,
    reconciled,
    restored,
    retake_holds,
)
from orchestrator.ledger.second_gate import commit_intents
from orchestrator.ledger.settle import tell_driver
from orchestrator.ledger.transitions import PlanMove, lock_plans, move_jobs, move_plan
from tests.ledger.plant import DEPLOYMENT, change, column, counters_agree, intent, move, own, plant

S = JobState
WHY = Reason(code="database_restored", message="Restored.")
OTHER_TIMELINE = "UPDATE leases SET incarnation = split_part(incarnation, '/', 1) || '/000000FF'"
OTHER_SYSTEM = "UPDATE leases SET incarnation = '1/' || split_part(incarnation, '/', 2)"


@asynccontextmanager
async def ledger(url: str) -> AsyncIterator[AsyncConnection]:
    """One transaction in a ledger of its own."""
    async with open_engine(url, name="test") as engine, transaction(engine) as conn:
        yield conn


async def the_project(conn: AsyncConnection) -> int:
    return await note_project(conn, "alpha", deployment=DEPLOYMENT, region="r", project_id="p")


async def known_on(conn: AsyncConnection, value: str | None) -> int:
    """The project of `plant`, last known to be true on that database."""
    project = await the_project(conn)
    await conn.execute(text("UPDATE projects SET incarnation = :v WHERE id = :id"), {"v": value, "id": project})
    return project


async def end(conn: AsyncConnection, plan: UUID, status: PlanStatus = PlanStatus.SUCCEEDED) -> None:
    """The driver has finished the plan and nothing of it is watched."""
    assert await move_plan(conn, PlanMove(plan_id=plan, expected=PlanStatus.RUNNING, status=status, actor="driver"))
    await conn.execute(text("UPDATE plans SET due = false WHERE id = :p"), {"p": plan})


class TestLeases:
    async def test_the_database_that_answers_has_a_name_that_stays(self, database_url: str) -> None:
        async with ledger(database_url) as conn:
            first = await incarnation(conn)
            system, _, timeline = first.partition("/")
            assert system.isdigit()
            assert timeline == "00000001"
            assert await incarnation(conn) == first
            await acquire(conn, "drive:1", "a", 60)
            assert await column(conn, "SELECT incarnation FROM leases") == [first]

    @pytest.mark.parametrize("elsewhere", [OTHER_TIMELINE, OTHER_SYSTEM])
    async def test_a_living_lease_of_another_database_is_void_at_once(self, database_url: str, elsewhere: str) -> None:
        async with ledger(database_url) as conn:
            fence = await acquire(conn, "drive:1", "a", 60)
            assert fence is not None
            assert await acquire(conn, "drive:1", "b", 60) is None
            await conn.execute(text(elsewhere))
            assert not await renew(conn, "drive:1", fence, 60)
            for unexpired in (False, True):
                with pytest.raises(LeaseLost):
                    await guard(conn, "drive:1", fence, unexpired=unexpired)
            taken = await acquire(conn, "drive:1", "b", 60)
            assert taken is not None
            assert taken > fence
            await guard(conn, "drive:1", taken, unexpired=True)
            with pytest.raises(LeaseLost):
                await guard(conn, "drive:1", fence)

    async def test_an_intent_under_a_lease_of_another_database_moves_nothing(self, database_url: str) -> None:
        async with ledger(database_url) as conn:
            plan, mine = await plant(conn, ["s-0"]), await own(conn)
            await move(conn, plan, [(0, "s-0")], S.PENDING, S.CHECKING)
            await conn.execute(text(OTHER_TIMELINE))
            with pytest.raises(LeaseLost):
                await commit_intents(conn, mine, [intent(plan, 0, "s-0")], {plan: 0})
            assert await column(conn, "SELECT state, attempts FROM jobs") == [("checking", 0)]

    @pytest.mark.parametrize("kept", ["the lease before", "nothing"])
    async def test_a_holder_whose_taking_was_lost_is_no_holder_though_the_next_gets_the_same_number(
        self, database_url: str, kept: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The failed-over database knows less: the old driver's own `acquire` may be among what it lost."""
        async with ledger(database_url) as conn:
            with monkeypatch.context() as elsewhere:
                elsewhere.setattr(leases, "INCARNATION", "'1/000000FF'")
                if kept == "the lease before":
                    await acquire(conn, "drive:1", "before", 60)
                    await conn.execute(text("UPDATE leases SET expires_at = '-infinity'"))
                failed_over = await conn.begin_nested()
                old = await acquire(conn, "drive:1", "old", 60)
                await failed_over.rollback()
            assert old is not None
            await acquire(conn, "drive:1", "new", 60)
            with pytest.raises(LeaseLost):
                await guard(conn, "drive:1", old)


class TestLastSeen:
    async def test_there_is_nothing_of_a_project_that_was_never_driven(self, database_url: str) -> None:
        async with ledger(database_url) as conn:
            assert await last_seen(conn, "drive:1") is None

    async def test_a_lease_says_how_long_its_driver_was_alive_at_least(self, database_url: str) -> None:
        async with ledger(database_url) as conn:
            await acquire(conn, "drive:1", "a", 60)
            seen = await last_seen(conn, "drive:1")
            assert seen is not None
            assert seen.incarnation == await incarnation(conn)
            assert seen.alive_at is not None
            assert seen.alive_at > seen.now
            await conn.execute(text("UPDATE leases SET expires_at = '-infinity', acquired_at = now() - interval '1 h'"))
            seen = await last_seen(conn, "drive:1")
            assert seen is not None
            assert seen.alive_at is not None
            assert timedelta(minutes=59) < seen.now - seen.alive_at < timedelta(minutes=61)


class TestChanged:
    async def test_a_project_that_is_driven_for_the_first_time_is_noted_and_trusted(self, database_url: str) -> None:
        async with ledger(database_url) as conn:
            project = await known_on(conn, None)
            assert await changed(conn, project, None) is None
            assert await column(conn, "SELECT incarnation FROM projects") == [await incarnation(conn)]
            assert await changed(conn, project, None) is None

    async def test_the_same_database_is_trusted_however_long_nobody_drove(self, database_url: str) -> None:
        async with ledger(database_url) as conn:
            project = await known_on(conn, now := await incarnation(conn))
            assert await changed(conn, project, await self.seen(conn, timedelta(days=9))) is None
            assert await column(conn, "SELECT incarnation FROM projects") == [now]

    @pytest.mark.parametrize("silent", [None, timedelta(), RESTORED_AFTER])
    async def test_another_timeline_soon_after_is_a_failover(self, database_url: str, silent: timedelta | None) -> None:
        async with ledger(database_url) as conn:
            now = await incarnation(conn)
            before = f"{now.partition('/')[0]}/000000FF"
            project = await known_on(conn, before)
            found = await changed(conn, project, await self.seen(conn, silent))
            assert found is not None
            assert (found.now, found.restored, found.first) == (now, False, True)
            assert not await restored(conn, project)
            assert await column(conn, "SELECT incarnation FROM projects") == [before], "only reconciling settles it"
            await reconciled(conn, project, found.now)
            assert await changed(conn, project, None) is None

    async def test_what_was_noticed_once_stays_so_from_that_time_on_until_it_is_reconciled(
        self, database_url: str
    ) -> None:
        """The next driver's lease is new and tells nothing of the silence before."""
        async with ledger(database_url) as conn:
            project = await known_on(conn, f"{(await incarnation(conn)).partition('/')[0]}/000000FF")
            found = await changed(conn, project, await self.seen(conn, RESTORED_AFTER * 2))
            assert found is not None
            for silent in (timedelta(), None):
                again = await changed(conn, project, await self.seen(conn, silent))
                assert again == replace(found, first=False)
                assert again.restored
            assert await restored(conn, project)
            await reconciled(conn, project, found.now)
            assert await changed(conn, project, None) is None
            assert not await restored(conn, project)

    @pytest.mark.parametrize(("value", "says"), [(None, False), ("1/00000001", True)])
    async def test_a_backup_of_another_system_is_told_before_a_driver_has_noticed(
        self, database_url: str, value: str | None, says: bool
    ) -> None:
        async with ledger(database_url) as conn:
            assert await restored(conn, await known_on(conn, value)) is says

    async def test_another_timeline_after_a_long_silence_is_a_restored_backup(self, database_url: str) -> None:
        async with ledger(database_url) as conn:
            project = await known_on(conn, f"{(await incarnation(conn)).partition('/')[0]}/000000FF")
            found = await changed(conn, project, await self.seen(conn, RESTORED_AFTER + timedelta(seconds=1)))
            assert found is not None
            assert found.restored

    async def test_another_system_is_a_restored_backup_however_soon(self, database_url: str) -> None:
        async with ledger(database_url) as conn:
            project = await known_on(conn, "1/00000001")
            found = await changed(conn, project, await self.seen(conn, timedelta()))
            assert found is not None
            assert found.restored

    async def seen(self, conn: AsyncConnection, silent: timedelta | None) -> LastSeen | None:
        """A lease whose driver was last alive so long ago; None: there is none."""
        if silent is None:
            return None
        (now,) = await column(conn, "SELECT clock_timestamp()")
        return LastSeen(incarnation="x", alive_at=now - silent, now=now)


PAUSABLE = {PlanStatus.RUNNING, PlanStatus.BAKING, PlanStatus.AWAITING_APPROVAL}


async def test_a_restored_backups_plans_are_paused_whose_life_cycle_has_that(database_url: str) -> None:
    async with ledger(database_url) as conn:
        plans = {status: await plant(conn, [f"{status}-0"]) for status in PlanStatus}
        undriven = await plant(conn, ["s-0"])
        for status, plan in plans.items():
            await conn.execute(
                text("UPDATE plans SET status = :s, due = true WHERE id = :p"), {"s": status.value, "p": plan}
            )
        await conn.execute(text("UPDATE plans SET due = false WHERE id = :p"), {"p": undriven})
        assert await pause_all(conn, await the_project(conn), WHY) == len(PAUSABLE)
        for status, plan in plans.items():
            now = await column(conn, "SELECT status, go_epoch FROM plans WHERE id = :p", p=plan)
            stopped = {**dict.fromkeys(PAUSABLE, ("paused", 1)), PlanStatus.SCHEDULED: ("rejected", 0)}
            assert now == [stopped.get(status, (status.value, 0))]
        assert await column(conn, "SELECT DISTINCT actor, reason_code FROM events WHERE type = 'plan.paused'") == [
            ("reconcile", "database_restored")
        ]
        assert await column(conn, "SELECT status FROM plans WHERE id = :p", p=undriven) == ["running"]
        assert await pause_all(conn, await the_project(conn), WHY) == 0


class TestDoubtfulJobs:
    async def test_they_are_those_that_the_ledger_takes_for_unsent_or_ended(self, database_url: str) -> None:
        doubted = {S.PENDING, S.CHECKING, S.SUCCEEDED, S.FAILED, S.REFUSED, S.CANCELLED}
        async with ledger(database_url) as conn:
            plan = await plant(conn, list(S))
            for ord_, state in enumerate(S):
                if state is not S.PENDING:
                    await move(conn, plan, [(ord_, state)], S.PENDING, state)
            found = await doubtful_jobs(conn, await the_project(conn))
            assert {j.state for j, _ in found} == doubted
            under_way = {j.state for j in await moving_jobs(conn, await the_project(conn))}
            assert under_way | doubted == set(S) - {S.SKIPPED}, "every job that may have a call is looked at by someone"

    async def test_each_comes_with_the_time_from_which_an_unknown_rebuild_would_be_its_own(
        self, database_url: str
    ) -> None:
        async with ledger(database_url) as conn:
            plan, mine = await plant(conn, ["s-0", "s-1"]), await own(conn)
            await conn.execute(text("UPDATE plans SET started_at = now() - interval '1 h'"))
            await move(conn, plan, [(1, "s-1")], S.PENDING, S.CHECKING)
            await commit_intents(conn, mine, [intent(plan, 1, "s-1")], {plan: 0})
            await conn.execute(text("UPDATE attempts SET intended_at = now() - interval '5 min'"))
            await move(conn, plan, [(1, "s-1")], S.SENDING, S.FAILED)
            (started,) = await column(conn, "SELECT started_at FROM plans")
            (intended,) = await column(conn, "SELECT intended_at FROM attempts")
            found = await doubtful_jobs(conn, await the_project(conn))
            assert [(j.ord, j.attempt, since) for j, since in found] == [(0, 0, started), (1, 1, intended)]

    async def test_plans_that_ended_lately_are_looked_at_and_others_are_not(self, database_url: str) -> None:
        async with ledger(database_url) as conn:
            late, old, unstarted = [await plant(conn, [f"{n}-0"]) for n in "abc"]
            for plan, ago in ((late, "59 min"), (old, "61 min")):
                await end(conn, plan)
                await conn.execute(
                    text("UPDATE plans SET finished_at = now() - CAST(CAST(:ago AS text) AS interval) WHERE id = :p"),
                    {"ago": ago, "p": plan},
                )
            await conn.execute(text("UPDATE plans SET started_at = NULL WHERE id = :p"), {"p": unstarted})
            found = await doubtful_jobs(conn, await the_project(conn))
            assert [j.plan_id for j, _ in found] == [late]


def lost(plan: UUID, ord_: int, number: int = 1) -> LostAttempt:
    return LostAttempt(plan_id=plan, ord=ord_, number=number, request_id=f"req-{ord_}", marker=f"{plan}/{number}")


class TestLostAttempts:
    async def test_they_are_written_down_with_what_is_known_and_the_jobs_go_on_counting_from_them(
        self, database_url: str
    ) -> None:
        async with ledger(database_url) as conn:
            plan, mine = await plant(conn, ["s-0", "s-1", "s-2"]), await own(conn)
            await lock_plans(conn, [plan])
            await insert_lost_attempts(conn, mine.fence, [lost(plan, 0), lost(plan, 2, 3)])
            assert await column(conn, "SELECT ord, number, fence, request_id, baseline FROM attempts ORDER BY ord") == [
                (0, 1, mine.fence, "req-0", {"marker": f"{plan}/1", "lost": True}),
                (2, 3, mine.fence, "req-2", {"marker": f"{plan}/3", "lost": True}),
            ]
            assert await column(conn, "SELECT attempts FROM jobs ORDER BY ord") == [1, 0, 3]
            moves = [change(plan, o, f"s-{o}", S.PENDING, S.REBUILDING) for o in (0, 2)]
            assert len(await move_jobs(conn, DEPLOYMENT, moves)) == 2
            found = {j.ord: j for j in await moving_jobs(conn, await the_project(conn))}
            assert {o: (j.attempt, j.request_id) for o, j in found.items()} == {0: (1, "req-0"), 2: (3, "req-2")}
            assert await counters_agree(conn, plan)

    async def test_one_that_is_known_keeps_its_intent_and_is_known_to_have_had_an_effect(
        self, database_url: str
    ) -> None:
        async with ledger(database_url) as conn:
            plan, mine = await plant(conn, ["s-0"]), await own(conn)
            await move(conn, plan, [(0, "s-0")], S.PENDING, S.CHECKING)
            await commit_intents(conn, mine, [intent(plan, 0, "s-0")], {plan: 0})
            assert await known_effects(conn, [(plan, 0, 1)]) == {}
            (before,) = await column(conn, "SELECT to_jsonb(attempts) FROM attempts")
            await insert_lost_attempts(conn, mine.fence + 1, [lost(plan, 0)])
            (after,) = await column(conn, "SELECT to_jsonb(attempts) FROM attempts")
            assert after == before | {"effect": "applied", "request_id": "req-0"}
            assert await known_effects(conn, [(plan, 0, 1), (plan, 0, 2), (plan, 9, 1)]) == {(plan, 0, 1): "applied"}

    async def test_an_older_one_does_not_set_back_the_count_nor_take_anothers_request_id(
        self, database_url: str
    ) -> None:
        async with ledger(database_url) as conn:
            plan, mine = await plant(conn, ["s-0"]), await own(conn)
            await insert_lost_attempts(conn, mine.fence, [lost(plan, 0, 3)])
            again = replace(lost(plan, 0, 1), request_id="req-x")
            await insert_lost_attempts(conn, mine.fence, [again, replace(again, number=3)])
            assert await column(conn, "SELECT attempts FROM jobs") == [3]
            assert await column(conn, "SELECT number, request_id FROM attempts ORDER BY 1") == [
                (1, "req-x"), (3, "req-0")]  # fmt: skip

    async def test_a_lost_call_of_an_ended_plan_is_watched(self, database_url: str) -> None:
        async with ledger(database_url) as conn:
            plan, mine = await plant(conn, ["s-0"]), await own(conn)
            await move(conn, plan, [(0, "s-0")], S.PENDING, S.SUCCEEDED)
            await end(conn, plan)
            ((job, _),) = await doubtful_jobs(conn, mine.project)
            await lock_plans(conn, [plan])
            await retake_holds(conn, DEPLOYMENT, [job])
            await insert_lost_attempts(conn, mine.fence, [lost(plan, 0)])
            assert await move_jobs(conn, DEPLOYMENT, [change(plan, 0, "s-0", S.SUCCEEDED, S.REBUILDING)])
            await tell_driver(conn, plan)
            assert [j.server_id for j in await moving_jobs(conn, mine.project)] == ["s-0"]

    async def test_two_plans_jobs_of_one_server_may_move_in_one_statement(self, database_url: str) -> None:
        """A call that a failover lost may look like either plan's: both are adopted together."""
        async with ledger(database_url) as conn:
            ended = await plant(conn, ["s-0"])
            await move(conn, ended, [(0, "s-0")], S.PENDING, S.SUCCEEDED)
            running = await plant(conn, ["s-0"])
            both = [
                change(ended, 0, "s-0", S.SUCCEEDED, S.REBUILDING),
                change(running, 0, "s-0", S.PENDING, S.REBUILDING),
            ]
            assert len(await move_jobs(conn, DEPLOYMENT, both)) == 2


class TestHoldsAfterwards:
    async def test_what_moves_again_takes_its_hold_unless_another_plan_has_it(self, database_url: str) -> None:
        async with ledger(database_url) as conn:
            ended = await plant(conn, ["s-0", "s-1"])
            await move(conn, ended, [(0, "s-0"), (1, "s-1")], S.PENDING, S.SUCCEEDED)
            await end(conn, ended)
            running = await plant(conn, ["s-1"])
            jobs = [j for j, _ in await doubtful_jobs(conn, await the_project(conn)) if j.plan_id == ended]
            await retake_holds(conn, DEPLOYMENT, jobs)
            assert await column(conn, "SELECT server_id, plan_id FROM holds ORDER BY 1") == [
                ("s-0", ended), ("s-1", running)]  # fmt: skip

    async def test_a_job_without_the_hold_ends_without_dropping_that_of_a_plan_in_the_same_batch(
        self, database_url: str
    ) -> None:
        async with ledger(database_url) as conn:
            holder = await plant(conn, ["s-0", "s-1"])
            other = await plant(conn, ["s-1"], holds=False)
            await move(conn, holder, [(0, "s-0"), (1, "s-1")], S.PENDING, S.REBUILDING)
            await lock_plans(conn, [holder, other])
            together = [
                change(holder, 0, "s-0", S.REBUILDING, S.SUCCEEDED),
                change(other, 0, "s-1", S.PENDING, S.CANCELLED),
            ]
            assert len(await move_jobs(conn, DEPLOYMENT, together)) == 2
            assert await column(conn, "SELECT server_id, plan_id FROM holds") == [("s-1", holder)]
