"""Looking for evidence: what a cloud shows of a server and of its actions right now."""

from orchestrator.clouds.protocol import Cloud
from orchestrator.domain.evidence import Look
from orchestrator.errors import CloudNotOffered


async def look(cloud: Cloud, server_id: str) -> Look:
    """One read of the server and one of its actions. Raises `CloudError`: a failed read is no look."""
    server, _ = await cloud.get_server(server_id)
    if server is None:
        return Look(server=None, actions=None)
    try:
        return Look(server=server, actions=await cloud.list_actions(server_id))
    except CloudNotOffered:
        return Look(server=server, actions=None)
