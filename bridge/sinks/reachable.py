"""Which addresses may be reached: those that are public, and those that a connection allows.

What is public stands in our own tables, because Python's change with its version.

Copied from IANA's registries of special-purpose addresses (iana.org/assignments/iana-ipv4-special-registry and
iana-ipv6-special-registry, as of 2025-10): every block that is not globally reachable. Python 3.11 lets 192.0.0.0/24
through, for example, and later ones do not (python/cpython 113171). Small exceptions inside of a block (192.0.0.9, an
anycast address of the network's own relay) are refused too: no webhook is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

_NOT_PUBLIC_V4 = tuple(
    IPv4Network(block)
    for block in (
        "0.0.0.0/8",  # this network: RFC 791
        "10.0.0.0/8",  # private: RFC 1918
        "100.64.0.0/10",  # shared, behind a carrier's NAT: RFC 6598
        "127.0.0.0/8",  # loopback: RFC 1122
        "169.254.0.0/16",  # link-local: RFC 3927; clouds serve credentials here
        "172.16.0.0/12",  # private: RFC 1918
        "192.0.0.0/24",  # IETF protocol assignments: RFC 6890
        "192.0.2.0/24",  # documentation: RFC 5737
        "192.88.99.0/24",  # 6to4 relays, deprecated: RFC 7526
        "192.168.0.0/16",  # private: RFC 1918
        "198.18.0.0/15",  # benchmarks: RFC 2544
        "198.51.100.0/24",  # documentation: RFC 5737
        "203.0.113.0/24",  # documentation: RFC 5737
        "224.0.0.0/4",  # multicast: RFC 5771
        "240.0.0.0/4",  # reserved, and broadcast: RFC 1112, RFC 919
    )
)

_GLOBAL_UNICAST = IPv6Network("2000::/3")
"""All that IANA gives out (RFC 4291, 2.4). Outside of it: loopback, mapped, unique local, link-local, multicast, ..."""

_NOT_PUBLIC_V6 = tuple(
    IPv6Network(block)
    for block in (
        "2001::/23",  # IETF protocol assignments, Teredo, ORCHID: RFC 2928
        "2001:db8::/32",  # documentation: RFC 3849
        "3fff::/20",  # documentation: RFC 9637
    )
)


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Is it in no block that is not globally reachable? Addresses inside of an address are the caller's."""
    if isinstance(address, IPv4Address):
        return not any(address in block for block in _NOT_PUBLIC_V4)
    return address in _GLOBAL_UNICAST and not any(address in block for block in _NOT_PUBLIC_V6)


Network = IPv4Network | IPv6Network

_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address


@dataclass(frozen=True, slots=True)
class AddressGuard:
    """Checks addresses. allow: networks that may be reached although they are not public."""

    allow: tuple[Network, ...] = ()

    def permits(self, address: str) -> bool:
        """True if a connection to this numeric address is allowed; False if it is not an address."""
        try:
            found = ip_address(address.partition("%")[0])
        except ValueError:
            return False
        inner = _embedded(found)
        if any(one.version == network.version and one in network for network in self.allow for one in inner):
            return True
        return all(is_public(one) for one in inner)


def _embedded(address: IPv4Address | IPv6Address) -> list[IPv4Address | IPv6Address]:
    """The addresses that a packet to this address can reach: mapped, translated and tunnelled IPv4 addresses."""
    if isinstance(address, IPv4Address):
        return [address]
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address in _NAT64:
        return [IPv4Address(int(address) & 0xFFFFFFFF)]
    if address.sixtofour is not None:
        return [address, address.sixtofour]
    if address.teredo is not None:
        return [address, *address.teredo]
    return [address]
