"""Calls whose answer proves nothing: what becomes of them, by what the cloud shows."""

from typing import Any
from uuid import UUID

from sqlalchemy import text

from orchestrator.rehearsal import Fault, FaultKind
from tests.driver.site import Site
from tests.parts import eventually

UNREADABLE = (FaultKind.DROP_AFTER, FaultKind.TRUNCATED, FaultKind.HTML)


async def evidence(site: Site, plan: UUID, server_id: str) -> tuple[str, list[str], list[str]]:
    """(classification, kinds of evidence, findings) of a job's newest attempt."""
    async with site.engine.connect() as conn:
        row = (
            await conn.execute(
                text("""
                SELECT a.classification, a.evidence FROM attempts a JOIN jobs j USING (plan_id, ord)
                WHERE plan_id = :plan AND server_id = :server ORDER BY number DESC LIMIT 1"""),
                {"plan": plan, "server": server_id},
            )
        ).one()
    kinds = [e["kind"] for e in row.evidence]
    return (
        row.classification,
        kinds,
        [str(e["value"]).partition(":")[0] for e in row.evidence if e["kind"] == "finding"],
    )


async def test_a_call_that_took_effect_is_found_by_its_traces_and_watched_to_its_end(site: Site) -> None:
    """The connection is cut after the effect, the answer is broken off, or is a page; or a 503 comes instead."""
    cut, broken, page, error = site.named(10, 11, 12, 13)
    site.cloud.cloud.fail(
        *(Fault(kind=k, servers=frozenset({i})) for k, i in zip(UNREADABLE, (cut, broken, page), strict=True)),
        Fault(kind=FaultKind.ERROR_AFTER, servers=frozenset({error}), status=503),
    )
    ids = [cut, broken, page, error]
    plan, status = await site.run({"targets": {"servers": ids}})
    assert status == "succeeded"
    assert [site.received(i) for i in ids] == [1, 1, 1, 1]
    for server_id in ids:
        classification, kinds, findings = await evidence(site, plan, server_id)
        assert classification.startswith("unknown/")
        assert {"server", "actions"} <= set(kinds)
        assert findings[-1] == "applied"
    await site.assert_ledger_is_sound(plan)


async def test_a_500_with_a_request_id_and_no_action_is_sent_again_at_once(site: Site) -> None:
    (server_id,) = site.named(14)
    site.cloud.cloud.fail(Fault(kind=FaultKind.ERROR_BEFORE, servers=frozenset({server_id}), status=500, times=1))
    failure = {"max_errors": "100%", "on_unresolved": "continue", "backoff": {"initial": "1s", "max": "1s"}}
    plan, status = await site.run({"targets": {"servers": [server_id]}, "failure": failure})
    assert status == "succeeded"
    assert (site.received(server_id), site.accepted(server_id)) == (2, 1)
    await site.assert_ledger_is_sound(plan)


async def test_a_500_whose_action_is_there_was_carried_out(site: Site) -> None:
    (server_id,) = site.named(15)
    site.cloud.cloud.fail(Fault(kind=FaultKind.ERROR_AFTER, servers=frozenset({server_id}), status=500))
    plan, status = await site.run({"targets": {"servers": [server_id]}})
    assert status == "succeeded"
    assert site.received(server_id) == 1
    await site.assert_ledger_is_sound(plan)


async def test_silence_after_the_quiescence_period_is_left_to_a_person(site: Site) -> None:
    """Nothing arrived, and nothing shows that it did: `unresolved`, and the hold stays."""
    dropped, error = site.named(16, 17)
    site.cloud.cloud.fail(
        Fault(kind=FaultKind.DROP_BEFORE, servers=frozenset({dropped})),
        Fault(kind=FaultKind.ERROR_BEFORE, servers=frozenset({error}), status=504),
    )
    plan, status = await site.run({"targets": {"servers": [dropped, error]}})
    assert status == "failed"
    assert await site.jobs(plan) == dict.fromkeys((dropped, error), ("unresolved", "unknown_answer"))
    assert [site.received(i) for i in (dropped, error)] == [1, 1]
    _, _, findings = await evidence(site, plan, dropped)
    assert findings[-1] == "nothing"
    await site.assert_ledger_is_sound(plan)
    site.cloud.cloud.faults.clear()
    clash, status = await site.run({"targets": {"servers": [dropped]}})
    assert status == "rejected"
    assert "held" in str((await site.status(clash))[2])


async def test_silence_is_sent_again_only_where_the_clouds_settings_opt_in(site: Site) -> None:
    (server_id,) = site.named(18)
    site.cloud.cloud.fail(Fault(kind=FaultKind.DROP_BEFORE, servers=frozenset({server_id}), times=1))
    failure = {"max_errors": "100%", "on_unresolved": "continue", "backoff": {"initial": "1s", "max": "1s"}}
    document: dict[str, Any] = {"cloud": "resending", "targets": {"servers": [server_id]}, "failure": failure}
    plan, status = await site.run(document)
    assert status == "succeeded"
    assert (site.received(server_id), site.accepted(server_id)) == (2, 1)
    await site.assert_ledger_is_sound(plan)


async def test_an_effect_that_shows_only_later_is_seen_before_anything_is_sent_again(site: Site) -> None:
    """The call hangs in the cloud for two seconds after its client was cut off."""
    (server_id,) = site.named(19)
    site.cloud.cloud.fail(Fault(kind=FaultKind.SLOW_BEFORE, servers=frozenset({server_id}), delay=8.0))
    plan = await site.submit({"cloud": "resending", "targets": {"servers": [server_id]}})

    async def sending() -> bool:
        return (await site.states(plan))["sending"] == 1 and site.received(server_id) == 1

    await eventually(sending, deadline=30, message="the call hangs")
    site.workers.kill("drive")
    site.workers.start("drive")
    assert await site.ended(plan) == "succeeded"
    assert (site.received(server_id), site.accepted(server_id)) == (1, 1)
    await site.assert_ledger_is_sound(plan)


async def test_a_409_that_answers_a_copy_of_our_own_call_is_seen_through(site: Site) -> None:
    """A gateway sent the call twice: the first took effect, and we get the second's 409."""
    (server_id,) = site.named(20)
    site.cloud.cloud.fail(Fault(kind=FaultKind.DUPLICATED, servers=frozenset({server_id})))
    plan, status = await site.run({"targets": {"servers": [server_id]}})
    assert status == "succeeded"
    assert site.accepted(server_id) == 1
    classification, _, findings = await evidence(site, plan, server_id)
    assert (classification, findings[-1]) == ("not_applied/busy", "applied")
    await site.assert_ledger_is_sound(plan)


async def test_a_server_whose_accepted_rebuild_failed_is_wiped_again_only_on_consent(site: Site) -> None:
    once, never = site.named(21, 22)
    site.cloud.cloud.fail(Fault(kind=FaultKind.SPAWN_FAILS, servers=frozenset({once}), times=1),
                          Fault(kind=FaultKind.SPAWN_FAILS, servers=frozenset({never}), times=2))  # fmt: skip
    failure = {"max_errors": "100%", "rebuild_again": 1, "backoff": {"initial": "1s", "max": "1s"}}
    plan, status = await site.run({"targets": {"servers": [once, never]}, "failure": failure})
    assert status == "failed"
    assert await site.jobs(plan) == {once: ("succeeded", None), never: ("failed", "rebuild_failed_on_host")}
    assert [site.accepted(i) for i in (once, never)] == [2, 2]
    await site.assert_ledger_is_sound(plan)


async def test_a_server_that_is_not_shown_for_a_moment_is_not_taken_for_gone(site: Site) -> None:
    (server_id,) = site.named(23)
    plan = await site.submit({"targets": {"servers": [server_id]}, "hold": True})

    async def ready() -> bool:
        return (await site.status(plan))[0] == "ready"

    await eventually(ready, deadline=30, message="the plan is prepared")
    site.cloud.cloud.fail(Fault(kind=FaultKind.VANISHED, servers=frozenset({server_id}), lasts=3.0))
    await site.start(plan)
    assert await site.ended(plan) == "succeeded"
    assert site.accepted(server_id) == 1


async def test_a_cell_that_is_down_for_a_moment_changes_nothing(site: Site) -> None:
    """One server's cell goes down before its check, another's while it is rebuilt, a third's with its answer lost."""
    before, meanwhile, lost = site.named(25, 26, 27)
    plan = await site.submit({"targets": {"servers": [before, meanwhile, lost]}, "hold": True})

    async def ready() -> bool:
        return (await site.status(plan))[0] == "ready"

    await eventually(ready, deadline=30, message="the plan is prepared")
    site.cloud.cloud.fail(
        Fault(kind=FaultKind.CELL_DOWN, servers=frozenset({before}), lasts=4.0),
        Fault(kind=FaultKind.DROP_AFTER, servers=frozenset({lost})),
    )
    await site.start(plan)
    await eventually(lambda: site.accepted(meanwhile) == site.accepted(lost) == 1, deadline=30, message="two calls")
    site.cloud.cloud.fail(Fault(kind=FaultKind.CELL_DOWN, servers=frozenset({meanwhile, lost}), lasts=4.0))
    assert await site.ended(plan) == "succeeded"
    assert [site.accepted(i) for i in (before, meanwhile, lost)] == [1, 1, 1]
    await site.assert_ledger_is_sound(plan)


async def test_a_server_deleted_under_way_is_failed_and_says_so(site: Site) -> None:
    (server_id,) = site.named(24)
    site.cloud.cloud.fail(Fault(kind=FaultKind.STUCK, servers=frozenset({server_id})))
    plan = await site.submit({"targets": {"servers": [server_id]}})
    await eventually(lambda: site.accepted(server_id) == 1, deadline=30, message="the call was accepted")
    site.cloud.cloud.fail(Fault(kind=FaultKind.VANISHED, servers=frozenset({server_id})))
    assert await site.ended(plan) == "failed"
    assert await site.jobs(plan) == {server_id: ("failed", "server_deleted")}


async def test_a_cloud_in_trouble_gets_no_more_calls_and_the_plan_says_why(site: Site) -> None:
    ids = site.named(*range(30, 70))
    plan = await site.submit({"targets": {"servers": ids}, "rollout": {"rate": "20/s", "waves": [{"size": "100%"}]}})
    await eventually(lambda: sum(site.accepted(i) for i in ids) >= 3, deadline=30, message="the plan is under way")
    site.cloud.cloud.fail(Fault(kind=FaultKind.OUTAGE, lasts=6.0))

    async def told(kind: str) -> bool:
        async with site.engine.connect() as conn:
            found = await conn.execute(
                text("SELECT 1 FROM events WHERE plan_id = :id AND type = :kind"), {"id": plan, "kind": kind}
            )
            return found.first() is not None

    await eventually(
        lambda: told("plan.cloud_trouble"), deadline=30, message="the plan says that its cloud is in trouble"
    )
    assert await site.ended(plan, within=90) in ("succeeded", "failed")
    assert await told("plan.cloud_recovered")
    # 5 calls in a row open the breaker, and those already on their way at that moment still go.
    assert sum(site.received(i) - site.accepted(i) for i in ids) <= 15
    assert all(site.accepted(i) <= 1 for i in ids)
    await site.assert_ledger_is_sound(plan)
