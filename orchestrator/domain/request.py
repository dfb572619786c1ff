"""The body of the rebuild call, and whether a server already is what it would make of it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.domain.evidence import MARKER
from orchestrator.domain.seen import SeenServer
from orchestrator.domain.spec.rebuild import PLACEHOLDER, Overrides, RebuildSpec, ServerRebuild
from orchestrator.domain.spec.text import metadata_key_fault, metadata_value_fault, server_name_fault
from orchestrator.errors import RebuildError

MAX_BODY = 114688
"""Bytes that Nova takes (nova-facts, 3)."""
METADATA_ITEMS = 128
"""Nova's usual quota of metadata items a server; clouds differ."""
MATCHING_STATUSES = frozenset({"ACTIVE", "SHUTOFF"})


class RequestInvalid(RebuildError, ValueError):
    """The rebuild call that the plan asks for can't be made for this server."""

    code = "request_invalid"


@dataclass(frozen=True, kw_only=True)
class Call:
    """The body of a rebuild call, and whether it carries our marker."""

    body: bytes
    marker: str | None = None
    marker_left_out: str | None = None
    """Why it carries none though it should."""


def build_call(
    rebuild: RebuildSpec, overrides: Overrides | None, server: SeenServer, image_id: str, *, marker: str | None,
    metadata_items: int = METADATA_ITEMS,
) -> Call:  # fmt: skip
    """The body, with `marker` in the server's metadata where there is room for it; None leaves it out.

    Raises `RequestInvalid` where the cloud would refuse the call even without the marker.
    """
    left_out = None
    if marker is not None:
        try:
            body = build_body(rebuild, overrides, server, image_id, marker=marker, metadata_items=metadata_items)
        except RequestInvalid as e:
            left_out = e.message
        else:
            return Call(body=body, marker=marker)
    body = build_body(rebuild, overrides, server, image_id, metadata_items=metadata_items)
    return Call(body=body, marker_left_out=left_out)


def build_body(
    rebuild: RebuildSpec,
    overrides: Overrides | None,
    server: SeenServer,
    image_id: str,
    *,
    marker: str | None = None,
    metadata_items: int = METADATA_ITEMS,
) -> bytes:
    """The JSON of `{"rebuild": {imageRef, name, metadata, key_name, user_data}}`, with what the plan gives only.

    The cloud replaces all metadata by what it gets, so a merge sends the server's own along, and so does the marker:
    it is evidence after a lost answer (domain/evidence.py). The same arguments give the same bytes. It may hold user
    data: a secret. Raises `RequestInvalid` where the cloud would refuse it.
    """
    own = _own(overrides)
    request: dict[str, Any] = {"imageRef": image_id}
    if (name := wanted_name(rebuild, overrides, server)) is not None:
        request["name"] = name
    metadata = wanted_metadata(rebuild, overrides, server)
    if marker is not None:
        metadata = {**(server.metadata if metadata is None else metadata), MARKER: marker}
    if metadata is not None:
        _check_metadata(metadata, max(metadata_items, len(server.metadata)))
        request["metadata"] = metadata
    if key_name := own.key_name or rebuild.key_name:
        request["key_name"] = key_name
    if user_data := own.user_data or rebuild.user_data:
        request["user_data"] = user_data.encoded
    body = json.dumps({"rebuild": request}).encode()
    if len(body) > MAX_BODY:
        raise RequestInvalid(
            f"The call would be {len(body)} bytes long; the cloud takes {MAX_BODY}. Shorten metadata or user_data.",
            code="request_too_long",
        )
    return body


def body_sha256(body: bytes) -> str:
    """What the ledger keeps of a body: its SHA-256, in hex."""
    return hashlib.sha256(body).hexdigest()


def matches_request(rebuild: RebuildSpec, overrides: Overrides | None, server: SeenServer, image_id: str) -> bool:
    """Whether the server shows the image, name, metadata and key that the plan asks for, and is ACTIVE or SHUTOFF.

    This is the part of `skip_matching` that can be seen; how its last rebuild ended must be known besides, and which
    user data it has the cloud doesn't show. A volume-booted server shows no image and never matches.
    """
    try:
        name = wanted_name(rebuild, overrides, server)
        metadata = wanted_metadata(rebuild, overrides, server)
    except RequestInvalid:
        return False
    key_name = _own(overrides).key_name or rebuild.key_name
    return (
        server.status.upper() in MATCHING_STATUSES
        and server.task_state is None
        and not server.volume_booted
        and server.image is not None
        and server.image.lower() == image_id.lower()
        and name in (None, server.name)
        and (metadata is None or _without_marker(metadata) == _without_marker(server.metadata))
        and key_name in (None, server.key_name)
    )


def wanted_name(rebuild: RebuildSpec, overrides: Overrides | None, server: SeenServer) -> str | None:
    """The name that the plan gives this server, its template filled in; None where it keeps its own.

    Raises `RequestInvalid` where a metadata key is missing or the name is none that the cloud takes.
    """
    template = _own(overrides).name or rebuild.name
    return None if template is None else render_name(template, server)


def wanted_metadata(rebuild: RebuildSpec, overrides: Overrides | None, server: SeenServer) -> dict[str, str] | None:
    """All metadata that the server is to have; None where the plan says nothing of it.

    A server's own changes are laid over the plan's, and both over what the server has (merge) or nothing (replace).
    """
    own = _own(overrides).metadata
    if rebuild.metadata is None and own is None:
        return None
    changes = {**(rebuild.metadata or {}), **(own or {})}
    before = server.metadata if rebuild.metadata_mode == "merge" else {}
    return {key: value for key, value in {**before, **changes}.items() if value is not None}


def render_name(template: str, server: SeenServer) -> str:
    """`{name}`, `{id}` and `{metadata.KEY}` filled in with what the server has now. Raises `RequestInvalid`."""

    def fill(match: Any) -> str:
        if (key := match["key"]) is None:
            return server.id if match[0] == "{id}" else server.name
        if key not in server.metadata:
            raise RequestInvalid(
                f"Its new name needs the metadata key {key}, which it hasn't got.", code="name_needs_metadata"
            )
        return server.metadata[key]

    name = PLACEHOLDER.sub(fill, template)
    if fault := server_name_fault(name):
        raise RequestInvalid(f"Its new name {fault}.", code="name_invalid")
    return name


def _without_marker(metadata: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in metadata.items() if key != MARKER}


def _own(overrides: Overrides | None) -> ServerRebuild:
    return (overrides.rebuild if overrides else None) or ServerRebuild()


def _check_metadata(metadata: Mapping[str, str], most: int) -> None:
    if len(metadata) > most:
        raise RequestInvalid(
            f"It would have {len(metadata)} metadata items; the cloud's usual quota is {most}.",
            code="metadata_too_many",
        )
    for key, value in metadata.items():
        if fault := metadata_key_fault(key) or metadata_value_fault(value):
            raise RequestInvalid(f"Metadata {key[:64]!r}: {fault}.", code="metadata_invalid")
