"""Positions in the WAL, as integers so that they compare and pack without cost."""

from __future__ import annotations

from typing import NewType

Lsn = NewType("Lsn", int)

ZERO = Lsn(0)


def parse_lsn(text: str) -> Lsn:
    """'16/B374D848' (PostgreSQL manual, 8.20 pg_lsn Type) to an integer."""
    high, low = text.split("/")
    return Lsn((int(high, 16) << 32) | int(low, 16))


def format_lsn(lsn: int) -> str:
    """The form that Postgres prints."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"
