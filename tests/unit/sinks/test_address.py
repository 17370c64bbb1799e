"""Which addresses a webhook may reach."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest

from bridge.sinks.reachable import AddressGuard


@pytest.mark.security(14)
@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
        *("100.64.0.1", "100.127.255.254", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1"),
        *(
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fe80::1%eth0",
            "fc00::1",
            "fd12::1",
            "fec0::1",
            "ff02::1",
        ),
        *("::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:127.0.0.1", "64:ff9b::a00:1", "::10.0.0.1"),
        *("2002:a00:1::", "2002:7f00:1::1", "2001:db8::1", "2001:0:7f00:1::1"),
        # IANA's registries of special-purpose addresses, whatever Python knows of them
        *(
            "192.0.0.1",
            "192.0.0.8",
            "192.0.0.9",
            "192.0.0.170",
            "192.0.0.255",
            "192.88.99.1",
            "255.255.255.255",
        ),
        *(
            "64:ff9b:1::1",
            "100::1",
            "100:0:0:1::1",
            "2001:2::1",
            "2001:10::1",
            "2001:20::1",
            "3fff::1",
            "5f00::1",
        ),
        *("::ffff:192.0.0.1", "64:ff9b::c000:1", "2002:c000:1::", "4000::1", "f000::1", "fdff::1", "feff::1"),
        *("", "localhost", "0x7f000001", "2130706433", "010.0.0.1", "127.1"),
    ],
)
def test_what_is_not_public_is_refused(address: str) -> None:
    assert not AddressGuard().permits(address)


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "93.184.215.14", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]
)
def test_what_is_public_is_permitted(address: str) -> None:
    assert AddressGuard().permits(address)


@pytest.mark.security(14)
@pytest.mark.parametrize("answer", [True, False])
def test_what_is_public_does_not_depend_on_pythons_tables(
    answer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.11 and 3.13 differ about 192.0.0.0/24, 2001::/23, 64:ff9b:1::/48 and more."""
    for family in (IPv4Address, IPv6Address):
        for name in ("global", "private", "reserved", "multicast", "loopback", "link_local", "unspecified"):
            monkeypatch.setattr(family, f"is_{name}", property(lambda _: answer))
    guard = AddressGuard()
    for address in ("1.1.1.1", "192.31.196.1", "191.255.255.255", "192.0.1.1", "2606:4700::1", "2a00::1"):
        assert guard.permits(address), address
    for address in (
        "10.0.0.1",
        "192.0.0.8",
        "127.0.0.1",
        "224.0.0.1",
        "::1",
        "fe80::1",
        "ff02::1",
        "3fff::1",
    ):
        assert not guard.permits(address), address


def test_an_allowed_network_is_permitted_in_every_spelling_and_no_other_is() -> None:
    guard = AddressGuard((ip_network("10.20.0.0/16"), ip_network("fd00::/8")))
    assert guard.permits("10.20.3.4")
    assert guard.permits("::ffff:10.20.3.4")
    assert guard.permits("fd00::7")
    assert not guard.permits("10.21.0.1")
    assert not guard.permits("::ffff:10.21.0.1")
    assert not guard.permits("fc00::1")
    assert guard.permits("1.1.1.1")
