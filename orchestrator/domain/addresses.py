"""Which addresses must not be called on a plan's behalf: pure.

Plans name hooks, probes and notifications, and whoever writes a plan must not be able to reach through the workers what
he couldn't reach himself: a cloud's metadata service above all. Private networks are allowed: fleets live there.
"""

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from urllib.parse import urlsplit

METADATA = frozenset(
    ip_address(a)
    for a in ("169.254.169.254", "fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "192.0.0.192", "168.63.129.16")
)
"""Metadata services of clouds; most are link-local, too: OpenStack and most others; Amazon's and Google's by IPv6;
Alibaba's; Oracle's; Azure's."""

NAT64 = IPv6Network("64:ff9b::/96")
LOCAL_NAT64 = IPv6Network("64:ff9b:1::/48")
"""RFC 8215: where in it the IPv4 address stands is each network's own choice."""
COMPATIBLE = IPv6Network("::/96")


def refusal(ip: IPv4Address | IPv6Address | str, *, loopback: bool) -> str | None:
    """Why `ip` must not be called; None: it may. `loopback`: this machine itself may be, since all the service is on
    it. Raises `ValueError` where `ip` is no address."""
    address = ip_address(ip)
    if address in METADATA:
        return f"{address} is a cloud's metadata service"
    if address.is_unspecified or (isinstance(address, IPv4Address) and address.packed[0] == 0):
        return f"{address} is no host's address"
    if address.is_loopback:
        return None if loopback else f"{address} is the worker itself"
    if address.is_link_local:
        return f"{address} is link-local"
    if address.is_multicast:
        return f"{address} is a multicast address"
    if isinstance(address, IPv4Address):
        return f"{address} is reserved" if address.is_reserved else None
    if address in LOCAL_NAT64:
        return f"{address} may stand for any IPv4 address"
    if inner := _inner(address):
        reasons = (refusal(i, loopback=loopback) for i in inner)
        return next((f"{address} stands for another: {reason}" for reason in reasons if reason), None)
    return f"{address} is reserved" if address.is_reserved else None


def is_loopback(url: str) -> bool:
    """Whether a URL's host is this machine itself, by its address or the name `localhost`."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _inner(address: IPv6Address) -> tuple[IPv4Address, ...]:
    """The IPv4 addresses that an IPv6 one stands for: mapped, 6to4, Teredo, NAT64, and the old compatible form."""
    if address.ipv4_mapped:
        return (address.ipv4_mapped,)
    if address.sixtofour:
        return (address.sixtofour,)
    if address.teredo:
        return address.teredo
    if address in NAT64 or address in COMPATIBLE:
        return (IPv4Address(address.packed[-4:]),)
    return ()
