"""Workers that die, and workers that are told to leave."""

from orchestrator.rehearsal import Fault, FaultKind
from tests.driver.site import Site
from tests.parts import eventually


async def test_a_killed_driver_is_replaced_and_nothing_is_sent_twice(site: Site) -> None:
    """kill -9 of the worker and its children in the middle of sending; another worker takes over."""
    ids = site.named(*range(10, 90))
    plan = await site.submit({"targets": {"servers": ids}, "rollout": {"rate": "20/s", "waves": [{"size": "100%"}]}})
    await eventually(lambda: sum(site.accepted(i) for i in ids) >= 10, deadline=40, message="ten calls were accepted")
    site.workers.kill("drive")
    at_death = sum(site.accepted(i) for i in ids)
    site.workers.start("drive")
    await eventually(
        lambda: sum(site.accepted(i) for i in ids) > at_death, deadline=40, message="another driver goes on"
    )
    assert await site.ended(plan) in ("succeeded", "failed")
    jobs = await site.jobs(plan)
    assert {state for state, _ in jobs.values()} <= {"succeeded", "unresolved"}
    assert all(site.received(i) <= 1 for i in ids)
    assert all(site.accepted(i) == 1 for i, (state, _) in jobs.items() if state == "succeeded")
    await site.assert_ledger_is_sound(plan)


async def test_a_call_whose_answer_died_with_its_driver_is_settled_by_evidence(site: Site) -> None:
    """One call took effect and one never arrived; the driver dies before it hears of either."""
    applied, lost, plain = site.named(100, 101, 99)
    site.cloud.cloud.fail(
        Fault(kind=FaultKind.SLOW_AFTER, servers=frozenset({applied}), delay=30),
        Fault(kind=FaultKind.SLOW_BEFORE, servers=frozenset({lost}), delay=60),
    )
    plan = await site.submit({"targets": {"servers": [applied, lost, plain]}})

    async def waits() -> bool:
        return (await site.states(plan)) == {"sending": 2, "succeeded": 1}

    await eventually(waits, deadline=40, message="two calls wait for their answers")
    site.workers.kill("drive")
    site.workers.start("drive")
    assert await site.ended(plan) == "failed"
    assert await site.jobs(plan) == {
        applied: ("succeeded", None), lost: ("unresolved", "driver_lost"), plain: ("succeeded", None),
    }  # fmt: skip
    assert [site.received(i) for i in (applied, lost, plain)] == [1, 1, 1]


async def test_a_warm_shutdown_leaves_nothing_in_doubt(site: Site) -> None:
    """A worker that is told to leave finishes the calls being sent and gives its lease back."""
    ids = site.named(*range(102, 142))
    plan = await site.submit({"targets": {"servers": ids}, "rollout": {"rate": "20/s", "waves": [{"size": "100%"}]}})
    await eventually(lambda: sum(site.accepted(i) for i in ids) >= 5, deadline=40, message="five calls were accepted")
    site.workers.terminate("drive")
    states = await site.states(plan)
    assert set(states) <= {"pending", "rebuilding", "succeeded"}
    assert states["rebuilding"] + states["succeeded"] == sum(site.accepted(i) for i in ids)
    site.workers.start("drive")
    assert await site.ended(plan) == "succeeded"
    assert [site.received(i) for i in ids] == [1] * 40
