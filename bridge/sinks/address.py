"""Which addresses a webhook may reach: public ones, and those that the connection allows.

A webhook's address can come from an event, so whoever writes events could point the bridge at the machines
beside it (server-side request forgery, OWASP). The name is resolved once, every answer is judged, and the
connection is made to an address that passed: a second resolution could say something else.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Network = IPv4Network | IPv6Network

_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address
_SITE_LOCAL = IPv6Network("fec0::/10")
_COMPATIBLE = IPv6Network("::/96")  # RFC 4291, 2.5.5.1: deprecated, and ::1 and :: are in it


@dataclass(frozen=True, slots=True)
class Guard:
    """Judges addresses. allow: networks that may be reached although they are not public."""

    allow: tuple[Network, ...] = ()

    def permits(self, address: str) -> bool:
        """True when a connection to this numeric address may be made; False for what is no address."""
        try:
            found = ip_address(address.partition("%")[0])
        except ValueError:
            return False
        inner = _embedded(found)
        if any(one.version == network.version and one in network for network in self.allow for one in inner):
            return True
        return all(_is_public(one) for one in inner)


def _embedded(address: IPv4Address | IPv6Address) -> list[IPv4Address | IPv6Address]:
    """What a packet to this address may end at: mapped, translated and tunnelled IPv4 addresses."""
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


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv6Address) and (address in _SITE_LOCAL or address in _COMPATIBLE):
        return False
    return address.is_global and not (
        address.is_multicast or address.is_reserved or address.is_unspecified or address.is_loopback
    )
