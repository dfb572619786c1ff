"""The one place that knows which kinds of cloud there are."""

from orchestrator.clouds.config import CloudConfig, Kind
from orchestrator.clouds.openstack import OpenStackCloud
from orchestrator.clouds.pacing import Limiter
from orchestrator.clouds.protocol import Project
from orchestrator.clouds.sign_in import TokenCache
from orchestrator.errors import CloudConfigInvalid, Fault


def open_cloud(config: CloudConfig, tokens: TokenCache, *, reads: Limiter | None = None) -> OpenStackCloud:
    """The cloud, not yet signed in. Called inside a running event loop; `close()` it in the same.

    Raises `CloudConfigInvalid`.
    """
    match config.settings.kind:
        case Kind.NOVA:
            return OpenStackCloud(config, tokens, reads=reads)
        case Kind.HUAWEI:
            path = f"clouds.{config.name}.rebuild.kind"
            message = "huawei is not supported yet"
            raise CloudConfigInvalid(
                f"{path}: {message}.",
                errors=[Fault(path=path, code="not_supported_yet", message=message)],
                code="not_supported_yet",
            )


def pace_key(project: Project, kind: str) -> str:
    """The limiter's key for `read` or `write` calls of a project."""
    return f"{project.deployment}|{project.region}|{project.project_id}|{kind}"
