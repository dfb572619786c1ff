"""Submitting writes the plan and all its targets, or nothing."""

from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from uuid_utils.compat import uuid7

from orchestrator.ledger.engine import open_engine, transaction
from orchestrator.ledger.jobs import explicit_targets
from orchestrator.ledger.submit import NewPlan, insert_plan, submitted_before


def new_plan(**changes: Any) -> NewPlan:
    """A plan with three targets, of all kinds."""
    fields: dict[str, Any] = {
        "id": uuid7(), "name": "web", "cloud": "alpha", "spec": {"name": "web"}, "user_data": b"secret",
        "labels": {"team": "web"}, "hold": False, "created_by": "ci", "idempotency_key": None, "body_sha256": "a" * 64,
        "targets": [("s-1", None, None), (None, "web-2", None), ("s-3", None, '{"image": "other"}')],
    }  # fmt: skip
    return NewPlan(**fields | changes)


async def rows(conn: Any, sql: str) -> list[tuple[Any, ...]]:
    return [tuple(r) for r in await conn.execute(text(sql))]


async def test_targets_counters_and_the_first_event_come_with_the_plan(database_url: str) -> None:
    plan = new_plan()
    async with open_engine(database_url, name="test") as engine:
        async with transaction(engine) as conn:
            await insert_plan(conn, plan)
        async with engine.connect() as conn:
            assert await rows(conn, "SELECT ord, server_id, find, overrides, state FROM jobs ORDER BY ord") == [
                (0, "s-1", None, None, "pending"),
                (1, None, "web-2", None, "pending"),
                (2, "s-3", None, {"image": "other"}, "pending"),
            ]
            assert await rows(conn, "SELECT wave, state, n FROM job_counts") == [(-1, "pending", 3)]
            assert await rows(conn, "SELECT seq, type, to_state, actor FROM events") == [
                (1, "plan.preparing", "preparing", "ci")
            ]
            assert await rows(
                conn, "SELECT status, total, explicit, event_seq, due, prepare_at <= now(), user_data FROM plans"
            ) == [("preparing", 3, 3, 1, False, True, b"secret")]
            targets = await explicit_targets(conn, plan.id, 2)
            assert [(t.server_id, t.find) for t in targets] == [("s-1", None), (None, "web-2")]


async def test_a_rollback_takes_the_copied_targets_along(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine:
        async with engine.connect() as conn:
            await insert_plan(conn, new_plan())
            await conn.rollback()
        async with engine.connect() as conn:
            assert await rows(conn, "SELECT 1 FROM jobs UNION ALL SELECT 1 FROM plans") == []


async def test_a_key_is_used_once_by_each_token(database_url: str) -> None:
    first = new_plan(idempotency_key="k")
    async with open_engine(database_url, name="test") as engine:
        async with transaction(engine) as conn:
            await insert_plan(conn, first)
            await insert_plan(conn, new_plan(idempotency_key="k", created_by="other"))
        with pytest.raises(IntegrityError):
            async with transaction(engine) as conn:
                await insert_plan(conn, new_plan(idempotency_key="k"))
        async with engine.connect() as conn:
            found = await submitted_before(conn, "ci", "k")
            assert found is not None
            assert (found.plan_id, found.body_sha256) == (first.id, "a" * 64)
            assert await submitted_before(conn, "nobody", "k") is None


async def test_a_plan_of_selected_servers_only_has_no_jobs_and_no_counters_yet(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        await insert_plan(conn, new_plan(targets=[]))
        assert await rows(conn, "SELECT count(*) FROM jobs") == [(0,)]
        assert await rows(conn, "SELECT count(*) FROM job_counts") == [(0,)]
