"""Sign-in through keystoneauth, in a thread, and the process's cache of tokens.

The cache outlives an event loop: each slice of a worker opens its HTTP sessions anew, but signs in only when a
token is near its end.
"""

import asyncio
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import requests  # type: ignore[import-untyped, unused-ignore]
from keystoneauth1 import exceptions as ks
from keystoneauth1 import session as ks_session
from keystoneauth1.access.access import AccessInfo
from keystoneauth1.access.service_catalog import ServiceCatalog

from orchestrator.clouds.answers import retry_after
from orchestrator.clouds.config import CloudConfig
from orchestrator.clouds.protocol import Project
from orchestrator.errors import (
    CloudConfigInvalid,
    CloudError,
    CloudSignInRefused,
    CloudThrottled,
    CloudUnreachable,
    Fault,
)

SIGN_IN_TIMEOUT = 30.0
"""Seconds for each request of a sign-in, unless `api_timeout` says otherwise."""


def boot_clock() -> float:
    """Seconds since boot, also those asleep: a token ages while its machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


@dataclass(frozen=True, kw_only=True)
class SignedIn:
    """A token, what it is for, and where its project's services are."""

    token: str = field(repr=False)
    project: Project
    user_id: str | None
    compute_url: str
    """As the catalog or `compute_endpoint_override` gives it."""
    image_url: str | None
    signed_at: float
    """`boot_clock()` when the sign-in began."""
    issued_at: datetime
    """The cloud's clock at that moment."""
    lifetime: float
    """Seconds from `signed_at` to the token's end, by the cloud's own two times: clock skew doesn't matter."""

    @property
    def near_its_end(self) -> bool:
        """Whether to renew before the next use: 5 minutes, or a fifth of a short life, before the end."""
        return boot_clock() >= self.signed_at + self.lifetime - min(300.0, self.lifetime / 5)

    def cloud_now(self) -> datetime:
        """The cloud's clock, carried on from the sign-in, to the second (rounded down).

        For answers without a `Date`: Nova under uwsgi sends none. Taken before a request, it is never too late.
        """
        now = self.issued_at + timedelta(seconds=boot_clock() - self.signed_at)
        return now.replace(microsecond=0)


class TokenCache:
    """Tokens by cloud, for one process. Signs in once however many ask at the same time, also from several loops."""

    def __init__(self, sign_in: "Callable[[CloudConfig], SignedIn] | None" = None) -> None:
        self._sign_in = sign_in or sign_in_blocking
        self._held: dict[str, SignedIn] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()
        self._tasks: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, asyncio.Task[SignedIn]]] = (
            WeakKeyDictionary()
        )

    async def get(self, config: CloudConfig) -> SignedIn:
        """A token that is good for a while. Raises as `sign_in_blocking` does."""
        held = self._held.get(config.name)
        return held if held and not held.near_its_end else await self.renew(config, held)

    async def renew(self, config: CloudConfig, old: SignedIn | None) -> SignedIn:
        """A token other than `old`: signs in, unless somebody did or is doing so meanwhile."""
        held = self._held.get(config.name)
        if held and held is not old and not held.near_its_end:
            return held
        tasks = self._tasks.setdefault(asyncio.get_running_loop(), {})
        task = tasks.get(config.name)
        if task is None:
            task = tasks[config.name] = asyncio.create_task(asyncio.to_thread(self._renew, config, old))

            def ended(task: "asyncio.Task[SignedIn]") -> None:
                tasks.pop(config.name, None)
                task.cancelled() or task.exception()  # those who waited may be gone

            task.add_done_callback(ended)
        return await asyncio.shield(task)

    def forget(self, name: str) -> None:
        """Drops a cloud's token, for changed credentials."""
        self._held.pop(name, None)

    def _renew(self, config: CloudConfig, old: SignedIn | None) -> SignedIn:
        with self._guard:
            lock = self._locks.setdefault(config.name, threading.Lock())
        with lock:
            held = self._held.get(config.name)
            if held and held is not old and not held.near_its_end:
                return held
            new = self._held[config.name] = self._sign_in(config)
            return new


def sign_in_blocking(config: CloudConfig) -> SignedIn:
    """Signs in, once, without retries; blocks for at most a few timeouts.

    Raises `CloudSignInRefused`, `CloudUnreachable`, `CloudThrottled`, `CloudConfigInvalid`; no message holds a secret.
    """
    auth = config.region.get_auth()
    if auth is None or not hasattr(auth, "get_auth_ref"):
        kind = config.region.config.get("auth_type")
        raise _invalid(config, "auth_type", f"{kind!r} names no project; use one that signs in to an identity service")
    session = ks_session.Session(
        verify=config.verify,
        cert=config.region.get_requests_verify_args()[1],
        timeout=config.api_timeout or SIGN_IN_TIMEOUT,
        app_name="fleet-rebuild",
    )
    began = boot_clock()
    try:
        access = auth.get_auth_ref(session)
        if access is None:
            raise _invalid(config, "auth_type", "signs in without a token")
        return _signed_in(config, access, began)
    except CloudError:
        raise
    except (ks.ClientException, requests.exceptions.RequestException, ValueError, KeyError, TypeError) as e:
        raise _explained(config, e) from None
    finally:
        session.close()


def _signed_in(config: CloudConfig, access: AccessInfo, began: float) -> SignedIn:
    token, project_id = access.auth_token, access.project_id
    if not token or not project_id:
        raise _invalid(config, "auth", "the sign-in names no project; add project_name or project_id")
    if not access.has_service_catalog() and not config.compute_endpoint:
        raise _invalid(config, "auth", "the token has no catalog of services; set compute_endpoint_override")
    catalog = access.service_catalog
    region = config.region_name or _only_region(config, catalog)
    compute = _endpoint(config, catalog, "compute", region, project_id)
    if compute is None:
        raise _invalid(config, "region_name", _no_endpoint(config, catalog, region))
    issued, expires = _utc(access.issued), _utc(access.expires)
    return SignedIn(
        token=token,
        project=Project(deployment=_deployment(config, catalog, region), region=region or "", project_id=project_id),
        user_id=access.user_id,
        compute_url=compute,
        image_url=_endpoint(config, catalog, "image", region, project_id),
        signed_at=began,
        issued_at=issued,
        lifetime=max(0.0, (expires - issued).total_seconds()),
    )


def _utc(value: datetime | None) -> datetime:
    if value is None:
        raise ValueError("the token has no times")
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _only_region(config: CloudConfig, catalog: ServiceCatalog) -> str | None:
    found = catalog.get_endpoints_data(service_type="compute", interface=config.region.get_interface("compute"))
    regions = sorted({str(e.region_name) for endpoints in found.values() for e in endpoints if e.region_name})
    if len(regions) > 1:
        raise _invalid(config, "region_name", f"is needed: the cloud has the regions {', '.join(regions)}")
    return regions[0] if regions else None


def _endpoint(
    config: CloudConfig, catalog: ServiceCatalog, service: str, region: str | None, project: str
) -> str | None:
    override = config.compute_endpoint if service == "compute" else config.image_endpoint
    if override:
        return re.sub(r"[%$]\((project|tenant)_id\)s", project, override).rstrip("/")
    found = catalog.get_endpoints_data(
        service_type=config.region.get_service_type(service),
        interface=config.region.get_interface(service),
        region_name=region,
        service_name=config.region.get_service_name(service),
    )
    return next((str(e.url).rstrip("/") for endpoints in found.values() for e in endpoints), None)


def _no_endpoint(config: CloudConfig, catalog: ServiceCatalog, region: str | None) -> str:
    offered = sorted(
        f"{e.interface} in {e.region_name}"
        for endpoints in catalog.get_endpoints_data(service_type="compute").values()
        for e in endpoints
    )
    wanted = f"{config.region.get_interface('compute') or 'public'} in {region}"
    return f"the catalog has no compute endpoint {wanted}; it offers: {', '.join(offered) or 'none'}"


def _deployment(config: CloudConfig, catalog: ServiceCatalog, region: str | None) -> str:
    """The identity service's public address by the catalog, so that ways in (internal, public) name one deployment."""
    found = catalog.get_endpoints_data(service_type="identity", interface="public")
    endpoints = [e for group in found.values() for e in group if e.url]
    here = [e for e in endpoints if e.region_name == region] or endpoints
    url = min((str(e.url) for e in here), default=config.auth_url)
    parts = urlsplit(url.lower())
    default_port = {"http": ":80", "https": ":443"}.get(parts.scheme, ":")
    return parts.netloc.removesuffix(default_port) + re.sub(r"(/v[23](\.\d+)?)?/*$", "", parts.path)


def _explained(config: CloudConfig, error: Exception) -> CloudError:
    host = urlsplit(config.auth_url).netloc or config.auth_url or "the identity service"
    who = f"user {config.user!r}" if config.user else "the credentials"
    project = f" for project {config.project!r}" if config.project else ""
    said = str(error)
    for secret in config.secrets:
        said = said.replace(secret, "***")
    said = " ".join(said.split())
    match error:
        case ks.Unauthorized() | ks.Forbidden():
            return CloudSignInRefused(
                f"{host} refused {who}{project} ({error.http_status}). "
                f"Check clouds.{config.name}.auth: user, password or secret, project and their domains."
            )
        case ks.TooManyRequests():
            headers = error.response.headers if error.response is not None else {}
            return CloudThrottled(f"{host} asks to sign in less often (429).", retry_after=retry_after(headers))
        case ks.HttpServerError() | ks.RequestTimeout():
            return CloudUnreachable(f"{host} can't sign anybody in now ({error.http_status}).")
        case _ if tls := _in_chain(error, ks.SSLError, requests.exceptions.SSLError):
            return CloudUnreachable(
                f"{host}: the TLS connection failed; check cacert and verify. {_cause(str(tls))}".rstrip()
            )
        case ks.ConnectTimeout() | requests.exceptions.Timeout():
            return CloudUnreachable(f"{host} did not answer in time.")
        case ks.ConnectionError() | requests.exceptions.ConnectionError():
            return CloudUnreachable(f"{host} can't be reached. {_cause(said)}".rstrip())
        case ks.DiscoveryFailure() if _in_chain(error, ks.ConnectionError, requests.exceptions.ConnectionError):
            return CloudUnreachable(f"{host} can't be reached.")
        case _:
            return _invalid(config, "auth", f"the sign-in at {host} failed: {said[:300]}")


def _cause(said: str) -> str:
    """The operating system's or TLS library's own words at the end of a chain of wrapped errors."""
    known = re.search(
        r"(Connection refused|Name or service not known|Temporary failure in name resolution|No route to host"
        r"|Network is unreachable|Connection reset by peer|certificate verify failed: [\w ,'.-]+|WRONG_VERSION_NUMBER"
        r"|nodename nor servname provided|Remote end closed connection|EOF occurred|Connection aborted)",
        said,
    )
    return f"({known[1]})" if known else ""


def _in_chain(error: BaseException | None, *kinds: type[BaseException]) -> BaseException | None:
    """The error of one of these kinds that led to this one."""
    while error is not None and not isinstance(error, kinds):
        error = error.__cause__ or error.__context__
    return error


def _invalid(config: CloudConfig, key: str, message: str) -> CloudConfigInvalid:
    path = f"clouds.{config.name}.{key}"
    return CloudConfigInvalid(f"{path}: {message}", errors=[Fault(path=path, code="connection", message=message)])
