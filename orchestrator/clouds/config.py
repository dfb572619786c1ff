"""Clouds as the OpenStack tools find them, plus our own `rebuild:` settings beside each connection.

The connection itself is read by openstacksdk, so every file, variable and old spelling that the OpenStack tools
know works here too.
"""

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Literal

from keystoneauth1.exceptions import ClientException
from openstack.config.cloud_region import CloudRegion
from openstack.config.loader import OpenStackConfig
from openstack.exceptions import ConfigException
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from orchestrator.domain.units import parse_duration, parse_rate
from orchestrator.errors import CloudConfigInvalid, CloudUnknown, Fault
from orchestrator.log import get_logger

log = get_logger(__name__)


class Kind(StrEnum):
    """Which API a cloud speaks."""

    NOVA = "nova"
    """OpenStack Nova's server action `rebuild`."""
    HUAWEI = "huawei"
    """Huawei Cloud ECS."""


def _text_through(parse: Any, example: str) -> BeforeValidator:
    def read(value: object) -> object:
        if not isinstance(value, str):
            raise ValueError(f"must be text such as {example}")
        return parse(value)

    return BeforeValidator(read)


Rate = Annotated[float, _text_through(parse_rate, "5/s or 10/m"), Field(gt=0)]
"""Calls per second, written `5/s` or `10/m`."""
Duration = Annotated[float, _text_through(parse_duration, "10m"), Field(ge=0)]
"""Seconds, written `30s`, `10m`, `2h` or `1d`."""


class Protect(BaseModel):
    """What marks a server that must never be rebuilt, whatever a plan says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metadata: Mapping[str, Annotated[str, Field(strict=True)]] = Field(default_factory=dict)
    """Any of these pairs protects."""
    tags: tuple[Annotated[str, Field(strict=True)], ...] = ()
    """Any of these tags protects."""


class Approval(BaseModel):
    """What a cloud wants of approvals."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    start: Annotated[bool, Field(strict=True)] = False
    """Whether a plan needs one before it starts; between waves the plan itself says so."""
    by_other: Annotated[bool, Field(strict=True)] = False
    """Whether even an admin's own plan must be approved by somebody else; an approver's must anyway."""
    expires: Duration = 86400.0
    """Seconds after which an approval that nobody gave is no longer possible."""


class CloudSettings(BaseModel):
    """The `rebuild:` section of a cloud: how hard it may be driven, and what it can do."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind = Kind.NOVA
    write_rate: Rate = 5.0
    """Rebuild calls per second, at most."""
    read_rate: Rate = 10.0
    """Reads per second, at most."""
    max_in_flight: Annotated[int, Field(strict=True, ge=1)] = 500
    """Servers being rebuilt at once in one project, over all plans."""
    quiescence: Duration = 600.0
    """Seconds after which an unanswered call can't take effect any more: longer than any timeout in the cloud."""
    resend: Literal["never", "after_quiescence"] = "never"
    """Whether a call without an answer, and without evidence after `quiescence`, is sent again by itself."""
    marker: Annotated[bool, Field(strict=True)] = True
    """Whether a marker of ours is written into the rebuild's metadata."""
    error_rebuild: Annotated[bool, Field(strict=True)] = True
    """Whether the cloud rebuilds servers in ERROR."""
    protect: Protect = Protect()
    approval: Approval = Approval()

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_kind(cls, value: object) -> object:
        if isinstance(value, Mapping) and value.get("kind") == Kind.HUAWEI:
            # No figure is published for ECS (cloud-api-facts 5); its metadata also holds the platform's own keys.
            return {"write_rate": "10/m", "marker": False, "error_rebuild": False, **value}
        return value


@dataclass(frozen=True, kw_only=True)
class CloudConfig:
    """One cloud: its connection and our settings for it."""

    name: str
    region: CloudRegion = field(repr=False)
    """openstacksdk's view of the connection; holds secrets."""
    settings: CloudSettings
    source: str
    """The file it comes from, or `the environment (OS_*)`."""
    notes: tuple[str, ...] = ()
    """What openstacksdk found odd about it."""

    @property
    def region_name(self) -> str | None:
        """The region as configured; None leaves it to the catalog."""
        return self.region.get_region_name("compute") or None

    @property
    def auth_url(self) -> str:
        """The identity service's address as configured."""
        return str(self.region.get_auth_args().get("auth_url") or "")

    @property
    def user(self) -> str:
        """Who signs in, for messages: a name or an id, never a secret."""
        auth = self.region.get_auth_args()
        keys = ("username", "user_id", "application_credential_name", "application_credential_id")
        return next((str(auth[key]) for key in keys if auth.get(key)), "")

    @property
    def project(self) -> str:
        """The project as configured, for messages."""
        auth = self.region.get_auth_args()
        keys = ("project_name", "project_id", "tenant_name", "tenant_id")
        return next((str(auth[key]) for key in keys if auth.get(key)), "")

    @property
    def secrets(self) -> tuple[str, ...]:
        """Texts that must be cut out of anything the identity service says."""
        auth = self.region.get_auth_args()
        return tuple(str(v) for k, v in auth.items() if v and re.search(r"password|secret|token|passcode|key$", k))

    @property
    def compute_endpoint(self) -> str | None:
        """`compute_endpoint_override`, where given."""
        return self.region.get_endpoint("compute") or None

    @property
    def image_endpoint(self) -> str | None:
        """`image_endpoint_override`, where given."""
        return self.region.get_endpoint("image") or None

    @property
    def verify(self) -> bool | str:
        """False, True, or the path of a CA file or folder."""
        return self.region.get_requests_verify_args()[0] or False

    @property
    def cert(self) -> tuple[str, str | None] | None:
        """The client certificate and its key, where given."""
        cert = self.region.get_requests_verify_args()[1]
        if not cert:
            return None
        return (cert, None) if isinstance(cert, str) else (cert[0], cert[1])

    @property
    def api_timeout(self) -> float | None:
        """Seconds of `api_timeout`, where given."""
        value = self.region.config.get("api_timeout")
        return float(value) if value else None

    @property
    def microversion_cap(self) -> tuple[int, int] | None:
        """`compute_api_version` (or `compute_default_microversion`) where it names a microversion: `2.60`, not `2`."""
        for key in ("compute_api_version", "compute_default_microversion"):
            match = re.fullmatch(r"2\.([1-9]\d*)", str(self.region.config.get(key) or ""))
            if match:
                return (2, int(match[1]))
        return None


def load_cloud(name: str, *, allowed: Sequence[str] = ()) -> CloudConfig:
    """The cloud of that name. `allowed`: names that may be used; empty allows all.

    Raises `CloudUnknown` (naming the known ones) and `CloudConfigInvalid` (naming the path of the fault).
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", message=".*InfluxDB")  # openstacksdk's own business
        config = _read()
        known = _names(config, allowed)
        if name not in known:
            where = config.config_filename or "clouds.yaml (none was found) or the environment"
            raise CloudUnknown(
                f"No cloud named {name!r} in {where}" + (f"; known: {', '.join(known)}." if known else ".")
            )
        entry = config.cloud_config["clouds"][name]
        settings = _settings(name, entry)
        if isinstance(entry, Mapping):  # an empty key, which openstacksdk trips over, is an absent one
            config.cloud_config["clouds"][name] = {k: v for k, v in entry.items() if v is not None}
        region = _region(config, name)
    notes = tuple(dict.fromkeys(str(w.message) for w in caught))
    for note in notes:
        log.debug("cloud_config_note", cloud=name, note=note)
    from_env = name == config.envvar_key
    return CloudConfig(
        name=name,
        region=region,
        settings=settings,
        source="the environment (OS_*)" if from_env else str(config.config_filename),
        notes=notes,
    )


def cloud_names(allowed: Sequence[str] = ()) -> list[str]:
    """Names of the clouds that are configured and may be used, sorted. `envvars` is the one that OS_* describe."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _names(_read(), allowed)


def default_cloud() -> str | None:
    """The cloud meant where none is named: OS_CLOUD, that of OS_*, or the only one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = _read()
    return config.default_cloud if config.default_cloud in _names(config, ()) else None


def _read() -> OpenStackConfig:
    try:
        return OpenStackConfig()
    except (ConfigException, OSError, TypeError, AttributeError) as e:
        raise CloudConfigInvalid(f"clouds.yaml can't be read: {e}") from None


def _names(config: OpenStackConfig, allowed: Sequence[str]) -> list[str]:
    clouds = config.cloud_config["clouds"]
    if config.default_cloud == "defaults" and "auth" not in (clouds.get("defaults") or {}):
        clouds = {}  # openstacksdk's stand-in where nothing is configured
    return sorted(str(n) for n in clouds if not allowed or n in allowed)


def _settings(name: str, entry: object) -> CloudSettings:
    base = f"clouds.{name}.rebuild"
    raw = entry.get("rebuild") if isinstance(entry, Mapping) else None
    if raw is None:
        return CloudSettings()
    if not isinstance(raw, Mapping):
        raise _invalid([Fault(path=base, code="mapping_type", message="must be a mapping, such as {write_rate: 5/s}")])
    try:
        return CloudSettings.model_validate(raw)
    except ValidationError as e:
        raise _invalid([_fault(base, err) for err in e.errors()]) from None


def _fault(base: str, err: Any) -> Fault:
    path = ".".join([base, *map(str, err["loc"])])
    message = str(err["msg"]).removeprefix("Value error, ")
    if err["type"] == "extra_forbidden":
        message = "is not a setting; take it out or correct its name"
    elif err["type"] == "string_type":
        message = "must be text; put it in quotes"
    return Fault(path=path, code=str(err["type"]), message=message)


def _invalid(faults: Sequence[Fault]) -> CloudConfigInvalid:
    return CloudConfigInvalid("; ".join(f"{f.path}: {f.message}" for f in faults), errors=faults)


def _region(config: OpenStackConfig, name: str) -> CloudRegion:
    """openstacksdk's region of a cloud. A cloud of several regions is refused: none is the one to wipe servers in."""
    chosen = os.environ.get("OS_REGION_NAME") or ""
    try:
        regions = [str(r["name"]) for r in config._get_regions(name)]  # noqa: SLF001  a profile's regions show only there
        if len(regions) > 1 and chosen not in regions:
            raise _invalid(
                [
                    Fault(
                        path=f"clouds.{name}.region_name",
                        code="ambiguous_region",
                        message=f"names several regions ({', '.join(regions)}); make one entry of clouds.yaml for each",
                    )
                ]
            )
        return config.get_one(name, region_name=chosen if len(regions) > 1 else None)
    except CloudConfigInvalid:
        raise
    except (ConfigException, ClientException, ValueError, TypeError, KeyError, AttributeError) as e:
        raise CloudConfigInvalid(
            f"clouds.{name}: {e}", errors=[Fault(path=f"clouds.{name}", code="connection", message=str(e))]
        ) from None
