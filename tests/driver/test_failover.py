"""A database that lost its last commits: the ledger says that nothing was sent, the cloud knows better."""

from uuid import UUID

from sqlalchemy import text

from orchestrator.domain.states import PlanStatus
from orchestrator.ledger.transitions import PlanMove, lock_plans, move_plan
from tests.driver.site import Site
from tests.parts import eventually

TABLES = ("plans", "waves", "jobs", "job_counts", "attempts", "events", "holds", "last_rebuilds")


async def keep(site: Site) -> None:
    """What a standby, or a backup, has."""
    async with site.engine.begin() as conn:
        for table in TABLES:
            await conn.execute(text(f"CREATE TABLE kept_{table} AS SELECT * FROM {table}"))  # noqa: S608


async def fail_over(site: Site, incarnation: str) -> None:
    """The kept state is the ledger, on another database."""
    async with site.engine.begin() as conn:
        for table in reversed(TABLES):
            await conn.execute(text(f"DELETE FROM {table}"))  # noqa: S608
        for table in TABLES:
            await conn.execute(text(f"INSERT INTO {table} SELECT * FROM kept_{table}"))  # noqa: S608
            await conn.execute(text(f"DROP TABLE kept_{table}"))
        # Seen from here, it is the old database that was another one.
        await conn.execute(text(f"UPDATE projects SET incarnation = {incarnation}"))  # noqa: S608
        await conn.execute(text(f"UPDATE leases SET incarnation = {incarnation}"))  # noqa: S608


async def pause_project(site: Site, *, paused: bool) -> None:
    async with site.engine.begin() as conn:
        await conn.execute(text("UPDATE projects SET paused = :paused"), {"paused": paused})


async def sent_and_lost(site: Site, ids: list[str], incarnation: str) -> UUID:
    """A plan of which a few calls were made, none of which the ledger remembers."""
    await site.run({"targets": {"servers": site.named(9)}})  # so that the project is known
    await pause_project(site, paused=True)
    plan = await site.submit({"targets": {"servers": ids}, "rollout": {"rate": "4/s", "waves": [{"size": "100%"}]}})

    async def running() -> bool:
        return (await site.status(plan))[0] == "running"

    await eventually(running, deadline=30, message="the plan runs")
    await keep(site)
    await pause_project(site, paused=False)
    await eventually(lambda: sum(site.accepted(i) for i in ids) >= 4, deadline=30, message="four calls were accepted")
    site.workers.kill("drive")
    await fail_over(site, incarnation)
    assert (await site.states(plan)) == {"pending": len(ids)}
    return plan


async def test_after_a_failover_lost_calls_are_found_before_anything_is_sent(site: Site) -> None:
    ids = list(site.named(*range(10, 22)))
    plan = await sent_and_lost(site, ids, "split_part(incarnation, '/', 1) || '/00000099'")
    site.workers.start("drive")
    assert await site.ended(plan) == "succeeded"
    assert [site.accepted(i) for i in ids] == [1] * len(ids)
    assert [site.received(i) for i in ids] == [1] * len(ids)
    await site.assert_ledger_is_sound(plan)
    async with site.engine.connect() as conn:
        told = await conn.execute(
            text("SELECT count(*) FROM events WHERE plan_id = :id AND actor = 'reconcile' AND to_state = 'rebuilding'"),
            {"id": plan},
        )
        assert told.scalar_one() >= 4


async def test_a_restored_backup_starts_with_its_plans_paused(site: Site) -> None:
    ids = list(site.named(*range(30, 42)))
    plan = await sent_and_lost(site, ids, "'7000000000000000000/00000001'")
    site.workers.start("drive")

    async def paused() -> bool:
        return (await site.status(plan))[:2] == ("paused", "database_restored")

    await eventually(paused, deadline=40, message="the plan is paused and says why")
    before = sum(site.received(i) for i in ids)

    async def found() -> bool:
        return (await site.states(plan))["succeeded"] == before

    await eventually(found, deadline=40, message="what was sent is found though the plan is paused")
    assert sum(site.received(i) for i in ids) == before
    async with site.engine.begin() as conn:
        await lock_plans(conn, [plan])
        await move_plan(conn, PlanMove(plan_id=plan, expected=PlanStatus.PAUSED, status=PlanStatus.RUNNING,
                                       actor="tests"))  # fmt: skip
    assert await site.ended(plan) == "succeeded"
    assert [site.accepted(i) for i in ids] == [1] * len(ids)
    await site.assert_ledger_is_sound(plan)
