"""Jobs and plans move together with their counters, holds, events and what is known of their servers."""

import asyncio
import random
from datetime import datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from orchestrator.domain.decide import Decision, Reason
from orchestrator.domain.states import FINAL_JOB_STATES, JobState, PlanStatus
from orchestrator.ledger.engine import open_engine, transaction
from orchestrator.ledger.prepare import known_actions, last_rebuild_states
from orchestrator.ledger.second_gate import commit_intents
from orchestrator.ledger.transitions import (
    AttemptAnswer,
    JobChange,
    PlanMove,
    lock_plans,
    move_jobs,
    move_plan,
    record_attempts,
)
from tests.ledger.plant import DEPLOYMENT, change, column, counters_agree, intent, move, own, plant

S = JobState
SERVERS = [f"s-{i}" for i in range(12)]


async def test_counters_are_what_counting_gives_after_any_moves(database_url: str) -> None:
    draw = random.Random(7)
    async with open_engine(database_url, name="test") as engine:
        async with transaction(engine) as conn:
            plan = await plant(conn, SERVERS, sizes=[2, 4, 6])
        state = dict.fromkeys(range(12), S.PENDING)
        for _ in range(40):
            async with transaction(engine) as conn:
                await lock_plans(conn, [plan])
                chosen = draw.sample(range(12), draw.randint(1, 6))
                changes = [
                    change(plan, o, SERVERS[o], draw.choice([state[o], state[o], S.STUCK]), draw.choice(list(S)))
                    for o in chosen
                ]
                applied = await move_jobs(conn, DEPLOYMENT, changes)
                expected = {c.key for c in changes if c.expected is state[c.ord]}
                assert set(applied) == expected
                state |= {o: c.decision.state for (_, o), c in applied.items()}
            async with engine.connect() as conn:
                assert await counters_agree(conn, plan)
                rows = await column(conn, "SELECT state FROM jobs WHERE plan_id = :p ORDER BY ord", p=plan)
                assert rows == [state[o].value for o in range(12)]


async def test_a_change_that_expects_another_state_is_dropped_whole(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        plan = await plant(conn, SERVERS[:2])
        before = await column(conn, "SELECT event_seq FROM plans WHERE id = :p", p=plan)
        late = change(plan, 0, "s-0", S.REBUILDING, S.FAILED)
        assert await move_jobs(conn, DEPLOYMENT, [late]) == {}
        assert await column(conn, "SELECT state FROM jobs WHERE plan_id = :p ORDER BY ord", p=plan) == ["pending"] * 2
        assert await column(conn, "SELECT event_seq FROM plans WHERE id = :p", p=plan) == before
        assert await column(conn, "SELECT server_id FROM holds ORDER BY 1") == ["s-0", "s-1"]
        assert await column(conn, "SELECT server_id FROM last_rebuilds") == []
        good = change(plan, 1, "s-1", S.PENDING, S.CHECKING)
        assert set(await move_jobs(conn, DEPLOYMENT, [late, good])) == {(plan, 1)}


async def _mover(engine: AsyncEngine, plans: list[UUID], ord_: int) -> None:
    for before, after in ((S.PENDING, S.CHECKING), (S.CHECKING, S.SENDING), (S.SENDING, S.REBUILDING)):
        async with transaction(engine) as conn:
            await lock_plans(conn, plans)
            await move_jobs(conn, DEPLOYMENT, [change(p, ord_, None, before, after) for p in plans])


async def test_events_are_dense_and_in_commit_order_though_many_write_at_once(database_url: str) -> None:
    """Whoever reads by number never meets a gap that is filled later."""
    async with open_engine(database_url, name="test", pool_size=9) as engine:
        async with transaction(engine) as conn:
            plans = [await plant(conn, [f"{p}-{i}" for i in range(8)]) for p in range(2)]
        done = asyncio.Event()

        async def watch() -> None:
            seen = 0
            while True:
                last = done.is_set()
                async with engine.connect() as conn:
                    seqs = await column(
                        conn, "SELECT seq FROM events WHERE plan_id = :p AND seq > :n ORDER BY seq", p=plans[0], n=seen
                    )
                assert seqs == list(range(seen + 1, seen + 1 + len(seqs)))
                seen += len(seqs)
                if last:
                    assert seen == 2 + 8 * 3
                    return

        watching = asyncio.create_task(watch())
        async with asyncio.timeout(30):
            await asyncio.gather(*(_mover(engine, draw, i) for i, draw in enumerate([plans, plans[::-1]] * 4)))
            done.set()
            await watching
        async with engine.connect() as conn:
            assert all([await counters_agree(conn, p) for p in plans])


async def test_a_hold_goes_with_the_terminal_step_and_never_before(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine:
        for state in S:
            async with transaction(engine) as conn:
                plan = await plant(conn, [f"{state}-0", f"{state}-1"])
                assert await move(conn, plan, [(0, f"{state}-0")], S.PENDING, state) == 1
                held = await column(conn, "SELECT server_id FROM holds WHERE plan_id = :p ORDER BY 1", p=plan)
                left = [f"{state}-1"] if state in FINAL_JOB_STATES else [f"{state}-0", f"{state}-1"]
                assert held == left, state


async def test_a_plan_drops_no_other_plans_hold(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        holder = await plant(conn, ["s-0"])
        other = await plant(conn, ["s-0"], holds=False)
        assert await move(conn, other, [(0, "s-0")], S.PENDING, S.CANCELLED) == 1
        assert await column(conn, "SELECT plan_id FROM holds") == [holder]


async def test_a_servers_newest_rebuild_is_remembered_and_one_without_effect_is_pending(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        plan = await plant(conn, ["s-0", "s-1", "s-2"])
        known = "SELECT server_id, state FROM last_rebuilds ORDER BY 1"
        for server in enumerate(["s-0", "s-1", "s-2"]):
            await move(conn, plan, [server], S.PENDING, S.CHECKING)
        assert await column(conn, known) == []
        await move(conn, plan, [(0, "s-0"), (1, "s-1"), (2, "s-2")], S.CHECKING, S.SENDING)
        assert await column(conn, known) == [("s-0", "sending"), ("s-1", "sending"), ("s-2", "sending")]
        await move(conn, plan, [(0, "s-0")], S.SENDING, S.PENDING)
        await move(conn, plan, [(1, "s-1")], S.SENDING, S.REBUILDING)
        await move(conn, plan, [(2, "s-2")], S.SENDING, S.RESOLVING)
        assert await column(conn, known) == [("s-0", "pending"), ("s-1", "rebuilding"), ("s-2", "resolving")]
        await move(conn, plan, [(1, "s-1")], S.REBUILDING, S.SUCCEEDED)
        await move(conn, plan, [(2, "s-2")], S.RESOLVING, S.PENDING)
        assert await column(conn, known) == [("s-0", "pending"), ("s-1", "succeeded"), ("s-2", "pending")]
        assert await last_rebuild_states(conn, DEPLOYMENT, ["s-0", "s-1", "s-2"]) == {"s-1": S.SUCCEEDED}


async def test_the_request_ids_of_a_servers_rebuilds_are_kept_the_newest_last(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        plan = await plant(conn, ["s-0"])
        for i in range(12):
            answer = AttemptAnswer(number=1, request_id=f"req-{i}")
            await move_jobs(conn, DEPLOYMENT, [change(plan, 0, "s-0", S.PENDING, S.REBUILDING, answer=answer)])
            await move(conn, plan, [(0, "s-0")], S.REBUILDING, S.PENDING)
        assert await known_actions(conn, DEPLOYMENT, ["s-0", "s-1"]) == {"s-0": [f"req-{i}" for i in range(2, 12)]}


async def test_an_answer_is_written_to_its_own_attempt_and_evidence_is_only_added(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        plan, mine = await plant(conn, ["s-0"]), await own(conn)
        await move(conn, plan, [(0, "s-0")], S.PENDING, S.CHECKING)
        assert await commit_intents(conn, mine, [intent(plan, 0, "s-0")], {plan: 0}) == {(plan, 0)}
        unknown = AttemptAnswer(number=1, classification="unknown/no_answer", evidence=[{"kind": "timeout"}])
        applied = AttemptAnswer(number=1, classification="applied/accepted", http_status=202, request_id="req-1",
                                evidence=[{"kind": "action"}])  # fmt: skip
        await move_jobs(conn, DEPLOYMENT, [change(plan, 0, "s-0", S.SENDING, S.RESOLVING, answer=unknown)])
        await move_jobs(conn, DEPLOYMENT, [change(plan, 0, "s-0", S.RESOLVING, S.REBUILDING, answer=applied)])
        ((*answer, evidence),) = await column(
            conn, "SELECT classification, http_status, request_id, evidence FROM attempts"
        )
        assert answer == ["applied/accepted", 202, "req-1"]
        assert [e["kind"] for e in evidence] == ["timeout", "action"]
        timed_out, acted = (datetime.fromisoformat(e["at"]) for e in evidence)
        assert timed_out <= acted


async def test_evidence_found_later_leaves_the_answer_and_its_time_alone(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        plan, mine = await plant(conn, ["s-0"]), await own(conn)
        await move(conn, plan, [(0, "s-0")], S.PENDING, S.CHECKING)
        await commit_intents(conn, mine, [intent(plan, 0, "s-0")], {plan: 0})
        answered = "SELECT classification, http_status, message, answered_at FROM attempts"
        said = AttemptAnswer(number=1, classification="unknown/server_error", http_status=500, message="Oops.")
        await record_attempts(conn, [((plan, 0), said)])
        before = await column(conn, answered)
        found = AttemptAnswer(number=1, evidence=[{"kind": "marker"}])
        await record_attempts(conn, [((plan, 0), found), ((plan, 0), AttemptAnswer(number=2, http_status=202))])
        assert await column(conn, answered) == before
        assert before[0][:3] == ("unknown/server_error", 500, "Oops.")
        assert await column(conn, "SELECT evidence -> 0 ->> 'kind' FROM attempts") == ["marker"]


async def test_busy_since_is_kept_over_claims_and_ends_with_being_busy(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine:
        async with transaction(engine) as conn:
            plan = await plant(conn, ["s-0"])
        since = []
        for before, decision in (
            (S.PENDING, Decision(state=S.CHECKING)),
            (S.CHECKING, Decision(state=S.PENDING, busy=True)),
            (S.PENDING, Decision(state=S.CHECKING)),
            (S.CHECKING, Decision(state=S.PENDING, busy=True)),
            (S.PENDING, Decision(state=S.CHECKING)),
            (S.CHECKING, Decision(state=S.SENDING)),
        ):
            async with transaction(engine) as conn:
                await lock_plans(conn, [plan])
                step = JobChange(plan_id=plan, ord=0, server_id="s-0", expected=before, decision=decision)
                assert await move_jobs(conn, DEPLOYMENT, [step])
                since += await column(conn, "SELECT busy_since FROM jobs")
        assert since[0] is None
        assert since[1] is not None
        assert since[1:5] == [since[1]] * 4
        assert since[5] is None


async def test_a_plan_moves_only_from_the_expected_status_and_stopping_moves_its_epoch(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        plan = await plant(conn, ["s-0"])
        pause = PlanMove(plan_id=plan, expected=PlanStatus.RUNNING, status=PlanStatus.PAUSED, actor="me",
                         reason=Reason(code="why", message="Because."), stop_sending=True)  # fmt: skip
        assert await move_plan(conn, pause)
        assert not await move_plan(conn, pause)
        (locked,) = (await lock_plans(conn, [plan])).values()
        assert (locked.status, locked.go_epoch) == (PlanStatus.PAUSED, 1)
        assert await column(
            conn, "SELECT type, from_state, to_state, actor, reason_code FROM events ORDER BY seq DESC LIMIT 1"
        ) == [("plan.paused", "running", "paused", "me", "why")]


async def test_an_ended_plan_stays_due_while_a_stuck_job_is_watched(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        for i, (state, due) in enumerate(((S.STUCK, True), (S.FAILED, False))):
            plan = await plant(conn, [f"s-{i}"])
            await move(conn, plan, [(0, f"s-{i}")], S.PENDING, state)
            end = PlanMove(plan_id=plan, expected=PlanStatus.RUNNING, status=PlanStatus.FAILED, actor="driver")
            assert await move_plan(conn, end)
            assert await column(conn, "SELECT due FROM plans WHERE id = :p", p=plan) == [due]
            assert await column(conn, "SELECT finished_at FROM plans WHERE id = :p", p=plan) != [None]


async def test_a_call_that_a_person_calls_not_applied_in_a_cancelled_plan_is_not_remembered_as_open(
    database_url: str,
) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        plan = await plant(conn, ["s-0"])
        for before, after in ((S.PENDING, S.CHECKING), (S.CHECKING, S.SENDING), (S.SENDING, S.UNRESOLVED),
                              (S.UNRESOLVED, S.CANCELLED)):  # fmt: skip
            await move(conn, plan, [(0, "s-0")], before, after)
        assert await last_rebuild_states(conn, DEPLOYMENT, ["s-0"]) == {}
