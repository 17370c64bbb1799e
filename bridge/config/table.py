"""`schema.table` as it stands in the file, to its two names."""

from __future__ import annotations

import re

_PART = r'(?:"(?:[^"\x00]|"")+"|[A-Za-z_\u0080-\U0010ffff][A-Za-z0-9_$\u0080-\U0010ffff]*)'
_TABLE = re.compile(rf"({_PART})\.({_PART})")


def split_table(text: str) -> tuple[str, str] | None:
    """(schema, table); quoted parts keep their case, others fold to lower, as in SQL. None: not qualified."""
    match = _TABLE.fullmatch(text)
    return (_name(match[1]), _name(match[2])) if match else None


def _name(part: str) -> str:
    return part[1:-1].replace('""', '"') if part.startswith('"') else part.lower()


def table_names(text: str) -> tuple[str, str]:
    """(schema, table), in schema public where none is named; a text that SQL would not read is taken as it is."""
    split = split_table(text)
    if split is None:
        schema, _, table = text.rpartition(".")
        split = (schema, table) if schema else split_table(f"public.{text}") or ("public", text)
    return split
