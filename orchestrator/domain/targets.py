"""Whether a server is one of those that a plan selects, or leaves out."""

from fnmatch import fnmatchcase

from orchestrator.domain.seen import SeenServer
from orchestrator.domain.spec import Exclude, Select


def matches(select: Select, server: SeenServer) -> bool:
    """Whether all filters of `select` match.

    `select.image` is compared with the server's image id: put the id there first, where the plan has a name or URL
    (`select.model_copy(update={"image": …})`). A volume-booted server shows no image and matches none.
    """
    return (
        (select.name is None or fnmatchcase(server.name, select.name))
        and (select.status is None or server.status.upper() in select.status)
        and (select.availability_zone is None or server.zone in select.availability_zone)
        and (select.image is None or (server.image is not None and server.image.lower() == select.image.lower()))
        and (select.tags is None or set(select.tags).issubset(server.tags))
        and (select.metadata is None or select.metadata.items() <= server.metadata.items())
    )


def excluded(exclude: Exclude | None, server: SeenServer) -> bool:
    """Whether any of the exclusions matches, wherever the server came from."""
    return exclude is not None and (
        server.id.lower() in exclude.servers
        or not set(exclude.tags).isdisjoint(server.tags)
        or (exclude.metadata is not None and not exclude.metadata.items().isdisjoint(server.metadata.items()))
    )
