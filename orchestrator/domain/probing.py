"""Probing a rebuilt server: which address by the plan's rule, and when enough was seen. Pure; times come in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from orchestrator.domain.spec.extras import HttpProbe, Probe, TcpProbe

FIXED = "fixed"
"""What an address is that doesn't say: the extension that tells may be left out by a cloud's policy."""


@dataclass(frozen=True, kw_only=True)
class Address:
    """One of a server's addresses."""

    ip: IPv4Address | IPv6Address
    network: str


def kind_of(probe: Probe) -> TcpProbe:
    """The one of its kinds that a probe is; an `HttpProbe` is a `TcpProbe`, too."""
    found = probe.tcp or probe.http
    if found is None:
        raise ValueError("a probe is exactly one of tcp and http")
    return found


def label_of(probe: TcpProbe) -> str:
    """A probe's short name, such as `tcp/22` or `http/80`; equal for equal probes of other servers."""
    return f"{'http' if isinstance(probe, HttpProbe) else 'tcp'}/{probe.port}"


def choose_address(addresses: Mapping[str, Any], probe: TcpProbe) -> Address | None:
    """The address that the probe's rule names, of Nova's `addresses` ({network: [{addr, version,
    OS-EXT-IPS:type}]}); None: the server has none such.

    Without a network in the rule it is the first by name that has one; within a network the first that Nova lists.
    """
    networks = sorted(addresses) if probe.network is None else [probe.network]
    for network in networks:
        listed = addresses.get(network)
        for entry in listed if isinstance(listed, Sequence) and not isinstance(listed, str) else ():
            ip = _matching(entry, probe)
            if ip is not None:
                return Address(ip=ip, network=network)
    return None


def _matching(entry: object, probe: TcpProbe) -> IPv4Address | IPv6Address | None:
    if not isinstance(entry, Mapping) or (entry.get("OS-EXT-IPS:type") or FIXED) != probe.address:
        return None
    try:
        ip = ip_address(str(entry.get("addr")))
    except ValueError:
        return None
    return ip if ip.version == probe.version else None


def wanted_address(probe: TcpProbe) -> str:
    """The rule in words: `fixed IPv4 address in the network web`."""
    where = f" in the network {probe.network}" if probe.network is not None else ""
    return f"{probe.address} IPv{probe.version} address{where}"


class Standing(StrEnum):
    """Where one probe of one server stands."""

    OPEN = "open"
    """Goes on."""
    PASSED = "passed"
    """Succeeded as often in a row as asked for."""
    FAILED = "failed"
    """Had not, when its time was over."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """The tries of one probe so far. Times in seconds of one clock, whichever."""

    needed: int
    interval: float
    deadline: float
    next_at: float
    """When the next try is due, while `open`."""
    standing: Standing = Standing.OPEN
    in_a_row: int = 0
    tries: int = 0
    error: str | None = None
    """How the last try that failed did."""

    @classmethod
    def begin(cls, probe: TcpProbe, now: float) -> "Course":
        """Verification begins: the first try is due at once, and the probe's timeout runs."""
        return cls(needed=probe.successes, interval=probe.interval, deadline=now + probe.timeout, next_at=now)

    def tried(self, error: str | None, *, began: float, now: float) -> "Course":
        """After a try that `began` and has ended `now`; `error` None: it succeeded.

        After a failure there is always a last try when the time is over: it counts however late it gets its turn.
        After a success the next is an interval later, or it is over, since fewer in a row is no success.
        """
        after = replace(self, tries=self.tries + 1, in_a_row=0 if error else self.in_a_row + 1,
                        error=error or self.error, next_at=max(began + self.interval, now))  # fmt: skip
        if after.in_a_row >= self.needed:
            return replace(after, standing=Standing.PASSED)
        if error is None:
            return after if after.next_at <= self.deadline else replace(after, standing=Standing.FAILED)
        if began >= self.deadline or now >= self.deadline:
            return replace(after, standing=Standing.FAILED)
        return replace(after, next_at=min(after.next_at, self.deadline))

    @property
    def says(self) -> str:
        """How it went, for a person."""
        tries = "1 try" if self.tries == 1 else f"{self.tries} tries"
        if self.standing is Standing.PASSED:
            row = f" ({self.needed} in a row)" if self.needed > 1 else ""
            return f"passed after {tries}{row}"
        if self.needed > 1:
            tries += f", {self.in_a_row} of {self.needed} in a row at the end"
        return f"{'failed' if self.standing is Standing.FAILED else 'not over'} after {tries}: " + (
            self.error or "every try succeeded, but too few came before the timeout"
        )
