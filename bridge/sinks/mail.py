"""The bytes of a mail (RFC 5322, RFC 2045 to 2047).

The header is written here and not by Python's email package. That package decodes encoded words (`=?utf-8?q?...?=`) of
a subject or a name before it writes them, and before 3.11.10, 3.12.5 and 3.13 a line break in one became a header of
the mail (CVE-2024-6923). Here a value that looks like an encoded word is encoded itself, so that it is read as it was.
The package makes the bodies, whose headers hold no value, and `checked` looks at all bytes before they are sent.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime

from bridge.sinks.mailbox import Address

_LINE = 78  # characters, recommended: RFC 5322, 2.1.1
_LONGEST_LINE = 998  # characters, without CRLF: the same
_WORD = 64  # characters of an encoded word: with a field's name, a line of at most 76 (RFC 2047, 2)
_PLAIN = re.compile(r"[\x21-\x7e]+(?: [\x21-\x7e]+)*")  # ASCII, one blank between words: folding keeps it
_ATOMS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~ -]*")
_BREAKS = re.compile("\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
"""Everything that some reader takes for the end of a line."""
_BODY = SMTP.clone(cte_type="7bit")
_FIELD = re.compile(rb"([A-Za-z-]+):(?: |$)")
_NAMES = (b"From", b"To", b"Subject", b"Message-ID", b"Date", b"Auto-Submitted", b"Reply-To")


@dataclass(frozen=True, slots=True)
class Mail:
    """What is told. text, html: at least one."""

    identity: str
    sender: Address
    to: Sequence[Address]
    subject: str
    text: str | None = None
    html: str | None = None
    reply_to: Address | None = None
    date: datetime | None = None

    def whole(self) -> bytes:
        """ASCII, unless an address has letters outside it before the @. Raises ValueError for one that would not be
        what it is meant to be."""
        fields = [
            ("From", _mailbox(self.sender)),
            ("To", ",\r\n ".join(map(_mailbox, self.to))),
            ("Subject", unstructured(self.subject)),
            ("Message-ID", f"<{self.identity}@{self.sender.domain}>"),
            ("Date", format_datetime(self.date or datetime.now(UTC))),
            ("Auto-Submitted", "auto-generated"),
        ]
        if self.reply_to is not None:
            fields.append(("Reply-To", _mailbox(self.reply_to)))
        header = "".join(f"{name}: {value}\r\n" for name, value in fields).encode()
        return checked(header, self._body())

    def _body(self) -> bytes:
        """With its own headers: MIME-Version, Content-Type, Content-Transfer-Encoding."""
        made = EmailMessage(policy=_BODY)
        if self.text:
            made.set_content(self.text)
            if self.html:
                made.add_alternative(self.html, subtype="html")
        else:
            made.set_content(self.html or "", subtype="html")
        return made.as_bytes()


def checked(header: bytes, body: bytes) -> bytes:
    """The whole mail. Raises ValueError unless it has the fields that were written and no other, and lines that every
    server takes."""
    lines = header.removesuffix(b"\r\n").split(b"\r\n")
    found = [_FIELD.match(line) for line in lines if not line.startswith(b" ")]
    names = [field[1] if field else b"" for field in found]
    if len(set(names)) != len(names) or not set(names) <= set(_NAMES):
        raise ValueError("a field of the header is none of ours")
    mail = header + body
    whole = mail.split(b"\r\n")
    if any(len(line) > _LONGEST_LINE or b"\r" in line or b"\n" in line or b"\0" in line for line in whole):
        raise ValueError("a line is too long, has a NUL, or is not ended as RFC 5322 says")
    if not body.isascii():
        raise ValueError("the body is not ASCII")
    return mail


def _mailbox(address: Address) -> str:
    if not address.name:
        return address.spec
    name = phrase(address.name)
    return f"{name}\r\n <{address.spec}>" if "=?" in name else f"{name} <{address.spec}>"


def phrase(name: str) -> str:
    """A display name: as it is, quoted, or encoded."""
    if _PLAIN.fullmatch(name) and "=?" not in name and len(name) < _LINE - 10:
        if _ATOMS.fullmatch(name):
            return name
        inner = name.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{inner}"'
    return encoded(name)


def unstructured(text: str) -> str:
    """A subject: as it is, folded at blanks, or encoded."""
    if _PLAIN.fullmatch(text) and "=?" not in text:
        lines = [""]
        for word in text.split(" "):
            if len(lines[-1]) + len(word) > _LINE - 10 and lines[-1]:
                lines.append("")
            lines[-1] += f"{' ' if lines[-1] else ''}{word}"
        if all(len(line) < _LINE for line in lines):
            return "\r\n ".join(lines)
    return encoded(text)


def encoded(text: str) -> str:
    """Encoded words of UTF-8, as many as needed, one a line. What some reader takes for the end of a line
    becomes a blank."""
    text = _BREAKS.sub(" ", text)
    if not text:
        return ""
    quoted = sum(3 - 2 * (byte < 128 and chr(byte).isalnum()) for byte in text.encode())
    form = _q if quoted <= len(text.encode()) * 4 / 3 else _b
    words: list[str] = []
    taken = ""
    for character in text:
        if len(form(taken + character)) > _WORD:
            words.append(form(taken))
            taken = ""
        taken += character
    return "\r\n ".join([*words, form(taken)])


def _b(text: str) -> str:
    return f"=?utf-8?b?{b64encode(text.encode()).decode()}?="


def _q(text: str) -> str:
    """With only what RFC 2047, 5, (3) allows everywhere."""
    spelled = (
        chr(byte) if byte < 128 and chr(byte).isalnum() else "_" if byte == 32 else f"={byte:02X}"
        for byte in text.encode()
    )
    return f"=?utf-8?q?{''.join(spelled)}?="
