"""Which microversion to speak, and what it offers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

from orchestrator.errors import CloudConfigInvalid

Version = tuple[int, int]

CEILING: Version = (2, 73)
"""From 2.75 Nova asks Neutron for its answer after it sent the rebuild off: a 500 to a rebuild under way."""
REIMAGE: Version = (2, 93)
"""From here on a rebuild re-images the boot volume of a volume-booted server."""


class Feature(StrEnum):
    """What a cloud offers at the microversion that we speak to it."""

    LOCKED = "locked"
    """Servers say whether they are locked."""
    TAGS = "tags"
    """Servers say their tags, and lists can be narrowed by them."""
    ACTION_EVENTS = "action_events"
    """Instance actions show their events to ordinary users."""
    KEY_NAME = "key_name"
    """A rebuild can change the key pair."""
    USER_DATA = "user_data"
    """A rebuild can change the user data."""


_SINCE: Mapping[Feature, Version] = {
    Feature.LOCKED: (2, 9),
    Feature.TAGS: (2, 26),
    Feature.ACTION_EVENTS: (2, 51),
    Feature.KEY_NAME: (2, 54),
    Feature.USER_DATA: (2, 57),
}


@dataclass(frozen=True, kw_only=True)
class Microversions:
    """What the cloud offers (None: no microversions at all) under the cap of clouds.yaml."""

    offered: Version | None
    cap: Version | None = None

    @property
    def best(self) -> Version | None:
        """The highest that may be used at all."""
        return min(self.offered, self.cap or self.offered) if self.offered else None

    @property
    def spoken(self) -> Version | None:
        """For reads and rebuild calls."""
        return min(self.best, CEILING) if self.best else None

    @property
    def supports_reimage(self) -> bool:
        """Whether a volume-booted server's disk can be replaced."""
        return self.best is not None and self.best >= REIMAGE

    @property
    def features(self) -> frozenset[Feature]:
        """What the spoken microversion offers."""
        spoken = self.spoken
        return frozenset(f for f, since in _SINCE.items() if spoken is not None and spoken >= since)


def headers_for(version: Version | None) -> dict[str, str]:
    """Both spellings of the header; none where the cloud knows no microversions."""
    if version is None:
        return {}
    text = f"{version[0]}.{version[1]}"
    return {"OpenStack-API-Version": f"compute {text}", "X-OpenStack-Nova-API-Version": text}


def offered_by(document: Mapping[str, Any]) -> Version | None:
    """The highest microversion of a version document: of `/v2.1/` or of the list at the service's root."""
    listed = document.get("versions")
    candidates = [document.get("version"), *(listed if isinstance(listed, list) else [])]
    for candidate in candidates:
        if isinstance(candidate, Mapping) and candidate.get("id") == "v2.1":
            match = re.fullmatch(r"(\d+)\.(\d+)", str(candidate.get("version") or ""))
            return (int(match[1]), int(match[2])) if match else None
    return None


def compute_root(url: str, project_id: str) -> str:
    """The service's root of a compute endpoint, which may end in `/v2.1`, in the project's id, or in neither.

    Raises `CloudConfigInvalid` where it names another project or is no http(s) address.
    """
    if urlsplit(url).scheme not in {"http", "https"} or not urlsplit(url).hostname:
        raise CloudConfigInvalid(f"The compute endpoint {url!r} is not an http(s) address.")
    match = re.fullmatch(r"(?P<root>.+?)/v2(\.\d+)?(/(AUTH_)?(?P<project>[^/]+))?", url.rstrip("/"))
    if match is None:
        return url.rstrip("/")
    if match["project"] and match["project"] != project_id:
        raise CloudConfigInvalid(
            f"The compute endpoint {url!r} is that of another project than {project_id}, which the sign-in is for."
        )
    return match["root"]
