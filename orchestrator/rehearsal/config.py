"""What a rehearsal cloud is made of. Nothing here changes once the cloud serves."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network

_NAMES = uuid.UUID("7d0c52a6-3a0e-5c0e-9a61-5f0c1b8a4c11")


def stable_id(*parts: object) -> str:
    """An id that is the same in every run for the same parts, written as Nova and Glance write theirs."""
    return str(uuid.uuid5(_NAMES, "/".join(str(p) for p in parts)))


def stable_hex(*parts: object) -> str:
    """The same without dashes, as Keystone writes the ids of users and projects."""
    return stable_id(*parts).replace("-", "")


@dataclass(frozen=True, kw_only=True)
class RehearsalImage:
    """An image that the rehearsal cloud's Glance shows."""

    name: str
    id: str = ""
    """Made from the name where empty, so that demos can write it down."""
    status: str = "active"
    """active, queued or deactivated; only active ones can be rebuilt to."""
    min_disk: int = 0
    """GiB. The rehearsal flavor has `RehearsalConfig.disk`."""
    min_ram: int = 0
    """MiB."""
    visibility: str = "public"
    runnable: bool = True
    """False: no host can run it; a rebuild to it is accepted and ends in "No valid host was found"."""

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", stable_id("image", self.name))


@dataclass(frozen=True, kw_only=True)
class RehearsalUser:
    """Somebody who can sign in; the role is the one in their project."""

    name: str
    password: str = field(repr=False)
    project: str
    role: str = "member"
    """admin, member or reader."""

    @property
    def id(self) -> str:
        return stable_hex("user", self.name)

    @property
    def project_id(self) -> str:
        return stable_hex("project", self.project)

    @property
    def credential_id(self) -> str:
        """The id of the user's application credential; its secret is the password."""
        return stable_hex("credential", self.name)


FLEET = RehearsalUser(name="rehearsal", password="rehearsal", project="rehearsal")  # noqa: S106  a cloud in memory
USERS = (
    FLEET,
    RehearsalUser(name="rehearsal-reader", password="rehearsal", project="rehearsal", role="reader"),  # noqa: S106
    RehearsalUser(name="rehearsal-admin", password="rehearsal", project="admin", role="admin"),  # noqa: S106
    RehearsalUser(name="stranger", password="rehearsal", project="elsewhere"),  # noqa: S106
)


@dataclass(frozen=True, kw_only=True)
class RehearsalConfig:
    """The size, pace and temper of a rehearsal cloud.

    The first user's project owns all servers. The counts `locked`, `error`, `shutoff`, `paused` and `volume_booted`
    are taken from the end of the fleet, one after the other, so that `node-00001` and its neighbours are plain ones.
    """

    servers: int = 50
    name_pattern: str = "node-{index:05d}"
    images: tuple[RehearsalImage, ...] = (
        RehearsalImage(name="base-2026.10"),
        RehearsalImage(name="base-2026.11"),
        RehearsalImage(name="base-2026.12"),
    )
    """All servers were booted from the first."""
    rebuild_seconds: float | tuple[float, float] = (2.0, 5.0)
    """From the 202 to the end, or a range that each rebuild draws from."""
    power_seconds: float = 0.3
    """How long stop, start, pause, unpause, reboot and delete take; a SHUTOFF server's rebuild ends with a stop too."""
    action_lag: float = 0.05
    """Seconds by which the instance action is finished later than the server's task_state is null."""
    answer_seconds: float = 0.0
    """How long the compute API takes over each answer; the effect comes before it."""
    write_rate: float | None = None
    """Changing calls a second that the gateway in front lets through; the others get 429. None: any number."""
    read_rate: float | None = None
    rate_tolerance: float = 0.05
    """Seconds of rate let through on top, for the jitter of a client that paces itself at exactly the rate."""
    fail_rate: float = 0.0
    """Share of rebuilds (0 to 1) whose spawn fails on the host."""
    seed: int = 1
    """Of the ids, the durations and the failures."""
    locked: int = 0
    error: int = 0
    shutoff: int = 0
    paused: int = 0
    volume_booted: int = 0
    zones: tuple[str, ...] = ("az1", "az2", "az3")
    """Servers go round them in turn."""
    hosts_per_zone: int = 20
    metadata: Mapping[str, str] = field(default_factory=lambda: {"role": "rehearsal"})
    """Every server's, with its number as `index` added."""
    tags: tuple[str, ...] = ()
    network: str | None = "10.20.0.0/16"
    """Where the servers' addresses are from; 127.0.0.0/8 gives probes something that can answer. None: no addresses."""
    key_names: tuple[str, ...] = ("rehearsal",)
    """Key pairs that a rebuild may name."""
    disk: int = 20
    """GiB of the only flavor."""
    users: tuple[RehearsalUser, ...] = USERS
    region: str = "RegionOne"
    max_microversion: str = "2.93"
    page_limit: int = 1000
    """The most servers a page has, whatever `limit` says."""
    token_ttl: float = 3600.0
    """Seconds; a token is refused from that second on."""
    date_header: bool = True
    """Whether answers have a `Date`. Nova under uwsgi, with nothing in front, sends none."""

    def __post_init__(self) -> None:
        special = self.locked + self.error + self.shutoff + self.paused + self.volume_booted
        if special > self.servers:
            raise ValueError(f"{special} special servers were asked for, of {self.servers} in all")
        if not self.images or not self.users or not self.zones:
            raise ValueError("a rehearsal cloud needs at least one image, one user and one zone")
        if not self.max_microversion.startswith("2.") or not self.max_microversion[2:].isdigit():
            raise ValueError(f"{self.max_microversion!r} is no microversion")
        if self.network is not None and ip_network(self.network).num_addresses < self.servers + 2:
            raise ValueError(f"{self.network} has too few addresses for {self.servers} servers")

    @property
    def fleet_user(self) -> RehearsalUser:
        return self.users[0]

    @property
    def max_minor(self) -> int:
        """93 of 2.93."""
        return int(self.max_microversion[2:])

    @property
    def seconds_range(self) -> tuple[float, float]:
        """The shortest and the longest rebuild."""
        given = self.rebuild_seconds
        return given if isinstance(given, tuple) else (given, given)
