"""Clouds as the workers last found them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.ledger.tables import Cloud, Project


@dataclass(frozen=True, kw_only=True)
class CloudRecord:
    """A cloud's row with its project's; everything but the name is None until a worker has signed in."""

    name: str
    healthy: bool | None
    error: str | None
    checked_at: datetime | None
    limiter: Mapping[str, Any] | None
    project: int | None
    deployment: str | None
    region: str | None
    project_id: str | None
    paused: bool | None
    paused_reason: str | None
    paused_by: str | None
    paused_at: datetime | None
    learned_write_rate: float | None
    """Calls per second."""
    learned_rebuild_seconds: float | None


async def cloud_records(conn: AsyncConnection, names: Sequence[str] | None = None) -> dict[str, CloudRecord]:
    """The clouds of these names (None: all) that the ledger knows, by name."""
    query = (
        select(
            Cloud.name, Cloud.healthy, Cloud.error, Cloud.checked_at, Cloud.limiter, Cloud.project,
            Project.deployment, Project.region, Project.project_id, Project.paused, Project.paused_reason,
            Project.paused_by, Project.paused_at,
            Project.learned_write_rate, Project.learned_rebuild_seconds,
        )
        .join(Project, Project.id == Cloud.project, isouter=True)
        .order_by(Cloud.name)
    )  # fmt: skip
    if names is not None:
        query = query.where(Cloud.name.in_(names))
    return {r.name: CloudRecord(**r._mapping) for r in await conn.execute(query)}  # noqa: SLF001
