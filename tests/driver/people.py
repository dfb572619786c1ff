"""People at a running service: the use cases, as the API calls them."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import redis.asyncio as redis
from sqlalchemy import text

from orchestrator.service import actions, gates, reads
from orchestrator.service.clouds import CloudBook
from orchestrator.service.deps import Deps
from orchestrator.service.roles import Principal, Role
from orchestrator.service.views import PlanView
from tests.driver.site import Site
from tests.parts import eventually

SUBMITTER = Principal(token_id=uuid4(), name="tests", role=Role.APPROVER)
"""Whoever submitted the site's plans, having become an approver since."""
APPROVER = Principal(token_id=uuid4(), name="anna", role=Role.APPROVER)
OPERATOR = Principal(token_id=uuid4(), name="otto", role=Role.OPERATOR)


@dataclass(kw_only=True)
class People:
    """What they do and see."""

    site: Site
    deps: Deps

    async def see(self, plan: UUID) -> PlanView:
        """The plan as it is answered."""
        return await reads.get_plan(self.deps, OPERATOR, plan)

    async def wait(self, plan: UUID, status: str, *, code: str | None = None, within: float = 30.0) -> PlanView:
        """The plan, once it stands so."""

        async def so() -> PlanView | None:
            seen = await self.see(plan)
            right = seen.status == status and (code is None or (seen.reason and seen.reason.code == code))
            return seen if right else None

        return await eventually(so, deadline=within, message=f"plan {plan} is {status} {code or ''}", every=0.05)

    async def approve(self, plan: UUID) -> PlanView:
        """By somebody else."""
        return await gates.approve(self.deps, APPROVER, plan)

    async def reject(self, plan: UUID) -> PlanView:
        """By somebody else."""
        return await gates.reject(self.deps, APPROVER, plan, reason="not today")

    async def promote(self, plan: UUID) -> PlanView:
        """By an operator."""
        return await gates.promote(self.deps, OPERATOR, plan)

    async def resume(self, plan: UUID) -> PlanView:
        """By an operator."""
        return await actions.resume(self.deps, OPERATOR, plan)

    async def pause(self, plan: UUID) -> PlanView:
        """By an operator."""
        return await actions.pause(self.deps, OPERATOR, plan)

    async def cancel(self, plan: UUID) -> PlanView:
        """By an operator."""
        return await actions.cancel(self.deps, OPERATOR, plan)

    async def let_expire(self, plan: UUID) -> None:
        """Its time runs out now."""
        await self.site_execute("UPDATE plans SET expires_at = now() - interval '1 s' WHERE id = :id", plan)

    async def holds(self, plan: UUID) -> int:
        """How many servers it holds."""
        async with self.site.engine.connect() as conn:
            rows = await conn.execute(text("SELECT count(*) FROM holds WHERE plan_id = :id"), {"id": plan})
            return int(rows.scalar_one())

    async def site_execute(self, statement: str, plan: UUID, **parameters: Any) -> None:
        """Changes the ledger behind everybody's back."""
        async with self.site.engine.begin() as conn:
            await conn.execute(text(statement), {"id": plan, **parameters})


def window(opens: timedelta, closes: timedelta) -> dict[str, Any]:
    """A window of the plan file that opens and closes so long from now, every day; in UTC."""
    now = datetime.now(UTC)
    return {
        "days": ["mon", "tue", "wed", "thu", "fri", "sat", "sun"], "tz": "UTC",
        "from": f"{now + opens:%H:%M}", "to": f"{now + closes:%H:%M}",
    }  # fmt: skip


@pytest.fixture
async def people(site: Site, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[People]:
    """They know the clouds that the workers know."""
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", site.workers.env["OS_CLIENT_CONFIG_FILE"])
    paces = redis.Redis.from_url(site.workers.env["REBUILD_REDIS_URL"])
    try:
        yield People(
            site=site,
            deps=Deps(engine=site.engine, hints=site.hints, clouds=CloudBook(), paces=paces, api_url="http://test"),
        )
    finally:
        await paces.aclose()
