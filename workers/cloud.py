"""How tasks come by a signed-in cloud, noting in the ledger how that went."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from orchestrator.clouds.config import CloudConfig, CloudSettings
from orchestrator.clouds.factory import open_cloud, pace_key
from orchestrator.clouds.openstack import OpenStackCloud
from orchestrator.clouds.pacing import Limiter
from orchestrator.clouds.protocol import Project
from orchestrator.clouds.sign_in import TokenCache
from orchestrator.domain.verdict import Limits
from orchestrator.errors import CloudError
from orchestrator.ledger.prepare import note_cloud, note_project


@asynccontextmanager
async def signed_in(
    engine: AsyncEngine, redis: Any, config: CloudConfig, tokens: TokenCache
) -> AsyncIterator[tuple[OpenStackCloud, Project]]:
    """A signed-in cloud whose reads are paced, closed at the end. Raises `CloudError`."""
    cloud = open_cloud(config, tokens)
    try:
        try:
            project = await cloud.sign_in()
        except CloudError as e:
            async with engine.begin() as conn:
                await note_cloud(conn, config.name, project=None, error=e.message)
            raise
        async with engine.begin() as conn:
            await note_project(conn, config.name, deployment=project.deployment, region=project.region,
                               project_id=project.project_id)  # fmt: skip
        cloud.pace_reads(Limiter(redis, pace_key(project, "read"), config.settings.read_rate))
        yield cloud, project
    finally:
        await cloud.close()


def limits_of(settings: CloudSettings, project_id: str) -> Limits:
    """What is refused in this project whatever a plan says."""
    return Limits(project_id=project_id, error_rebuild=settings.error_rebuild,
                  protect_metadata=settings.protect.metadata, protect_tags=settings.protect.tags)  # fmt: skip
