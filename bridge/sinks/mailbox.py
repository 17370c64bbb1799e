"""Mailboxes: `ada@example.com`, `Ada <ada@example.com>`, `"Acme \\"The Best\\"" <o@example.com>` (RFC 5322, 3.4).

The domain is taken to its ASCII form (IDNA 2008, RFC 5891, with the mapping of UTS 46), which every mail server takes.
Letters outside ASCII before the @ have no such form: they need SMTPUTF8 (RFC 6531).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address

from bridge.sinks.model import is_reference, one_line

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]|[^\x00-\x7f]"
_LOCAL = re.compile(rf"(?:{_ATOM})+(?:\.(?:{_ATOM})+)*|\"(?:[^\"\\\x00-\x1f\x7f]|\\[\x20-\x7e])*\"")
_UNSEEN = re.compile(r"[\x80-\xa0\u1680\u2000-\u200f\u2028-\u202f\u205f-\u2069\u3000\ufeff]")
"""Blanks beyond ASCII, line separators and signs that nobody sees: they come from a copied text, never from an
address."""
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_LITERAL = re.compile(r"\[(IPv6:)?([0-9A-Fa-f.:]+)\]")
_LONGEST_LOCAL = 64  # octets: RFC 5321, 4.5.3.1.1
_LONGEST = 254  # octets: RFC 5321, 4.5.3.1.3, less the brackets
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class Address:
    """A display name, which may be empty, and an address. The domain is ASCII."""

    name: str
    local: str
    domain: str

    @property
    def spec(self) -> str:
        return f"{self.local}@{self.domain}"


def address_of(text: str) -> Address:
    """Raises ValueError, without the text, for anything that is no mailbox."""
    one_line(text)
    name, spec = _split(text.strip())
    local, at, domain = spec.rpartition("@")
    try:
        fits = bool(at) and _LOCAL.fullmatch(local) is not None and _UNSEEN.search(local) is None
        found = Address(name, local, ascii_domain(domain)) if fits else None
    except ValueError:
        found = None
    if found is None or len(local.encode()) > _LONGEST_LOCAL or len(found.spec.encode()) > _LONGEST:
        raise ValueError("must be an address such as ada@example.com or Ada <ada@example.com>")
    return found


def _split(text: str) -> tuple[str, str]:
    """Display name and address."""
    if not text.endswith(">"):
        return "", text
    name, _, spec = text[:-1].rpartition("<")
    name = name.strip()
    quoted = _QUOTED.fullmatch(name)
    return (re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else name), spec.strip()


def ascii_domain(domain: str) -> str:
    """A host's name in ASCII, or an address literal such as `[192.0.2.1]`. Raises ValueError."""
    literal = _LITERAL.fullmatch(domain)
    if literal is not None:
        if (ip_address(literal[2]).version == 6) != bool(literal[1]):
            raise ValueError("an IPv6 address is written [IPv6:...]")
        return domain
    if not domain.isascii():
        import idna  # noqa: PLC0415  # large tables, and most domains need none

        try:
            domain = idna.encode(domain, uts46=True).decode()
        except UnicodeError:  # idna's own error is one
            raise ValueError("is no domain name") from None
    if len(domain) > 253 or not all(map(_LABEL.fullmatch, domain.split("."))):
        raise ValueError("is no domain name")
    return domain


def mailbox(text: str) -> str:
    """A mailbox of the configuration or of a message, as written. Raises ValueError, without the text."""
    if not is_reference(text):
        address_of(text)
    return text
