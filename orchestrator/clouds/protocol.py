"""What the driver and preparing need of a cloud: one protocol, whatever the cloud's kind.

Everything here is plain frozen data, so that it can be kept in the driver's mirror, stored in the ledger and made in
a test. No method retries a POST; no method lets a secret out.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from orchestrator.domain.causes import Cause as Cause
from orchestrator.domain.causes import Effect as Effect


@dataclass(frozen=True, kw_only=True)
class Project:
    """The real identity behind a cloud's name: two clouds can name one project."""

    deployment: str
    """The identity service's address without scheme, version or trailing slash, lower-cased."""
    region: str
    project_id: str


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server as the cloud shows it, without secrets (`adminPass`, `user_data` are dropped on parsing)."""

    id: str
    name: str
    status: str
    """Upper case, as Nova writes it: ACTIVE, SHUTOFF, ERROR, REBUILD, …"""
    task_state: str | None = None
    vm_state: str | None = None
    image: str | None = None
    """The image's id; None for a volume-booted server (Nova shows `"image": ""`)."""
    volume_booted: bool = False
    launched_at: datetime | None = None
    updated: datetime | None = None
    created: datetime | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    zone: str | None = None
    host: str | None = None
    """`OS-EXT-SRV-ATTR:host` where shown, else `hostId`: names the host, opaque."""
    host_id: str | None = None
    locked: bool = False
    project_id: str | None = None
    user_id: str | None = None
    flavor: Mapping[str, Any] = field(default_factory=dict)
    addresses: Mapping[str, Any] = field(default_factory=dict)
    links: tuple[Mapping[str, str], ...] = ()
    disk_config: str | None = None
    progress: int | None = None
    fault_code: int | None = None
    fault_message: str | None = None
    key_name: str | None = None


@dataclass(frozen=True, kw_only=True)
class ServerPage:
    """One page of a list, and the `Date` of the answer (the cloud's clock, to the second; see `Answer.date`)."""

    servers: tuple[Server, ...]
    date: datetime


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image as the image service shows it."""

    id: str
    name: str
    status: str
    """Lower case: active, queued, deactivated, …"""
    min_disk: int = 0
    """GiB."""
    min_ram: int = 0
    """MiB."""


@dataclass(frozen=True, kw_only=True)
class ActionEvent:
    """A step of an instance action."""

    event: str
    result: str | None
    start_time: datetime | None
    finish_time: datetime | None


@dataclass(frozen=True, kw_only=True)
class Action:
    """An instance action: the cloud's own account of one call."""

    request_id: str
    action: str
    start_time: datetime
    user_id: str | None = None
    message: str | None = None
    """None, or "Error"."""
    events: tuple[ActionEvent, ...] = ()

    @property
    def succeeded(self) -> bool:
        """The host says that the rebuild was done (nova-facts, "Most to mind" 2)."""
        return self.message is None and any(
            e.event == "compute_rebuild_instance" and e.result == "Success" and e.finish_time for e in self.events
        )

    @property
    def failed(self) -> bool:
        """The action ended with an error; nothing of it is still to come."""
        return self.message is not None

    @property
    def final(self) -> bool:
        """Whether the action has ended, either way."""
        return self.succeeded or self.failed


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The classified answer to one rebuild call."""

    effect: Effect
    cause: Cause
    http_status: int | None = None
    request_id: str | None = None
    date: datetime | None = None
    """The cloud's clock, to the second: the answer's `Date`; without one (Nova under uwsgi sends none, and so does an
    answer that never came) the clock carried on from the sign-in to just before the call."""
    message: str = ""
    """The cloud's own words, without the request's body; at most 500 characters."""
    retry_after: float | None = None
    """Seconds, where the cloud said so."""
    allowed_rate: float | None = None
    """Calls per second that the cloud said it allows."""
    server: Server | None = None
    """The server of a 202."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Filters that the cloud applies itself to narrow a list; the caller still matches every server."""

    statuses: tuple[str, ...] = ()
    image: str | None = None
    tags: tuple[str, ...] = ()
    zone: str | None = None


class Cloud(Protocol):
    """A signed-in connection to one project. Made inside a running event loop, closed in the same."""

    name: str

    @property
    def user_id(self) -> str | None:
        """Who we are to the cloud: its instance actions carry it. Known after `sign_in`."""

    async def sign_in(self) -> Project:
        """Signs in (again only if the token is near its end) and says which project this is.

        Raises `CloudSignInRefused`, `CloudUnreachable`, `CloudConfigInvalid`.
        """

    async def renew_token(self) -> None:
        """Drops the token that the cloud answered 401 to and fetches a new one."""

    def list_servers(
        self,
        *,
        changes_since: datetime | None = None,
        selection: Selection | None = None,
        name: str | None = None,
        page: int = 1000,
    ) -> AsyncIterator[ServerPage]:
        """Pages of servers in detail, `page` at a time (Nova gives at most 1,000); with `changes_since` also
        deleted ones (status DELETED).
        ones (status DELETED).

        `name`: exact; the cloud's regular expression is anchored and escaped by the client.
        At least one page is yielded, perhaps empty, so that there is always a `date`.
        Raises `CloudUnreachable`, `CloudThrottled`, `CloudTokenExpired` (after one renewal), `CloudAnswerInvalid`.
        """

    async def get_server(self, server_id: str) -> tuple[Server | None, datetime]:
        """One server (None: 404 itemNotFound) and the answer's `Date`. Raises as `list_servers` does."""

    async def get_action(self, server_id: str, request_id: str) -> Action | None:
        """The action of one request (None: 404 "Action … not found"). Raises as `list_servers` does, and
        `CloudNotOffered` where the cloud has no such thing."""

    async def list_actions(self, server_id: str) -> Sequence[Action]:
        """The server's actions, newest first, without events. Raises as `get_action` does."""

    async def find_images(self, reference: str) -> Sequence[Image]:
        """Images by id, by URL (its last part is the id) or by exact name: none, one or several candidates."""

    async def rebuild(
        self, server_id: str, body: bytes, *, reimage_boot_volume: bool = False, ready: "Ready | None" = None
    ) -> Answer:
        """Sends `body` once as the server action `rebuild` and classifies what comes back. Never raises for an
        answer, never retries, follows no redirect.

        `ready` is called after a connection was acquired and right before the first byte is written, with no await
        in between; where it returns False nothing is sent and the answer is `never_sent`.
        """

    async def close(self) -> None:
        """Closes the connections."""


class Ready(Protocol):
    """The last look before the write."""

    def __call__(self) -> bool: ...
