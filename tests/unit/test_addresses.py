"""Addresses that are never called on a plan's behalf."""

import pytest

from orchestrator.domain.addresses import is_loopback, refusal

NEVER = [
    ("169.254.169.254", "metadata"),
    ("169.254.0.1", "link-local"),
    ("fd00:ec2::254", "metadata"),
    ("100.100.100.200", "metadata"),
    ("fe80::1", "link-local"),
    ("fe80::1%eth0", "link-local"),
    ("febf::1", "link-local"),
    ("224.0.0.1", "multicast"),
    ("ff02::1", "multicast"),
    ("0.0.0.0", "no host"),  # noqa: S104  nothing is bound to it
    ("0.1.2.3", "no host"),
    ("::", "no host"),
    ("255.255.255.255", "reserved"),
    ("240.0.0.1", "reserved"),
    ("::ffff:169.254.169.254", "metadata"),
    ("::ffff:0.0.0.0", "no host"),
    ("::169.254.169.254", "metadata"),
    ("2002:a9fe:a9fe::1", "metadata"),
    ("64:ff9b::a9fe:a9fe", "metadata"),
    ("64:ff9b::e000:1", "multicast"),
    ("64:ff9b:1::a9fe:a9fe", "any IPv4"),
    ("2001:0:a9fe:a9fe::1", "metadata"),
]


@pytest.mark.parametrize(("address", "why"), NEVER)
@pytest.mark.parametrize("loopback", [True, False])
def test_is_refused_whatever_its_form(address: str, why: str, loopback: bool) -> None:
    reason = refusal(address, loopback=loopback)
    assert reason is not None
    assert why in reason


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"])
def test_loopback_is_called_only_where_all_the_service_is_on_it(address: str) -> None:
    assert refusal(address, loopback=False)
    assert refusal(address, loopback=True) is None


@pytest.mark.parametrize(
    "address",
    ["10.0.0.1", "172.16.3.4", "192.168.1.1", "100.64.0.1", "8.8.8.8", "fd12::1", "2600::1", "::ffff:10.0.0.1",
     "64:ff9b::808:808", "2002:808:808::1"],
)  # fmt: skip
def test_private_and_public_networks_are_called(address: str) -> None:
    assert refusal(address, loopback=False) is None


def test_what_is_no_address_is_an_error() -> None:
    with pytest.raises(ValueError, match="localhost"):
        refusal("localhost", loopback=True)


@pytest.mark.parametrize(
    ("url", "is_so"),
    [("http://127.0.0.1:8080", True), ("http://[::1]:8080/", True), ("http://localhost", True),
     ("https://rebuild.example", False), ("http://10.0.0.1", False), ("http://localhost.example", False), ("", False)],
)  # fmt: skip
def test_a_service_on_one_machine_shows_by_its_address(url: str, is_so: bool) -> None:
    assert is_loopback(url) is is_so
