"""What servers say of the columns that a configuration names: of lookups and of tables.

`bridge doctor` asks the servers. `bridge doctor --snapshot` writes the answer beside the file (bridge.snapshot.json for
bridge.yaml), where lint, run and a reload read it: names and types, no row and no secret, in a stable order, to be
committed with the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from bridge.planning.column_fit import ColumnType
from bridge.problem import TOP, InvalidConfig, Problem

Columns = Mapping[str, ColumnType]
Key = TypeVar("Key", bound=tuple[str, ...])

_FORM = 1
_FIX = "write it again: bridge doctor --snapshot"
ALTERED_SINCE = "or, if the server was altered since the snapshot: `bridge doctor --snapshot` writes it again"


@dataclass(frozen=True, slots=True)
class Facts:
    """lookups: by ("source" or a connection, digest_of(sql)), the columns in their order. tables: by (connection,
    schema, table)."""

    lookups: Mapping[tuple[str, str], Columns] = field(default_factory=dict)
    tables: Mapping[tuple[str, str, str], Columns] = field(default_factory=dict)
    written: bool = False  # they are of a snapshot, which may be older than the file

    def lookup(self, source: str, sql: str) -> Columns | None:
        """The columns of a lookup's query; None: not known."""
        return self.lookups.get((source, digest_of(sql)))

    def table(self, connection: str, table: tuple[str, str] | None) -> Columns | None:
        """The columns of (schema, table); None: not known."""
        return None if table is None else self.tables.get((connection, *table))


UNKNOWN = Facts()


def digest_of(sql: str) -> str:
    """Stands for a query, which may have come from a variable; white space does not matter."""
    return sha256(" ".join(sql.split()).encode()).hexdigest()


def snapshot_of(config: Path) -> Path:
    """Where the snapshot of a configuration file stands."""
    return config.with_suffix(".snapshot.json")


def write(facts: Facts, path: Path) -> None:
    """Raises OSError."""
    lookups = [
        {"from": source, "sql_sha256": digest, "columns": _written(columns)}
        for (source, digest), columns in sorted(facts.lookups.items())
    ]
    tables = [
        {"connection": connection, "schema": schema, "table": table, "columns": _written(columns)}
        for (connection, schema, table), columns in sorted(facts.tables.items())
    ]
    document = {"snapshot": _FORM, "lookups": lookups, "tables": tables}
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _written(columns: Columns) -> dict[str, Any]:
    return {
        name: {
            "type": column.base,
            **({"declared": column.declared} if column.declared else {}),
            **({"labels": list(column.labels)} if column.labels else {}),
        }
        for name, column in columns.items()
    }


def read(path: Path) -> Facts:
    """The snapshot at `path`; UNKNOWN if there is none. Raises InvalidConfig if it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return UNKNOWN
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, type(error).__name__) from None
    try:
        document = json.loads(text)
        if document["snapshot"] != _FORM:
            raise _unreadable(path, "is of another version of the bridge")
        return Facts(
            {(one["from"], one["sql_sha256"]): _read(one["columns"]) for one in document["lookups"]},
            {
                (one["connection"], one["schema"], one["table"]): _read(one["columns"])
                for one in document["tables"]
            },
            written=True,
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _unreadable(path, "is no snapshot") from None


def _read(columns: Mapping[str, Any]) -> Columns:
    return {
        str(name): ColumnType(
            str(one["type"]), str(one.get("declared", "")), tuple(map(str, one.get("labels", ())))
        )
        for name, one in columns.items()
    }


def differences(before: Facts, now: Facts) -> list[str]:
    """What is not the same, in words: a sentence a table or lookup."""
    return [
        *_altered(before.tables, now.tables, lambda at: f"{at[0]}: {at[1]}.{at[2]}"),
        *_altered(before.lookups, now.lookups, lambda at: f"a lookup from {at[0]}"),
    ]


def _altered(
    before: Mapping[Key, Columns], now: Mapping[Key, Columns], name: Callable[[Key], str]
) -> Iterator[str]:
    for key in sorted({*before, *now}):
        if key not in now or key not in before:
            yield f"{name(key)} is {'only in the snapshot' if key in before else 'not in it'}"
            continue
        old, new = before[key], now[key]
        said = [f"{column} is {'gone' if column in old else 'new'}" for column in sorted({*old} ^ {*new})]
        said += [
            f"{column} was {_told(old[column])} and is {_told(new[column])}"
            for column in new
            if column in old and old[column] != new[column]
        ]
        if said:
            yield f"{name(key)}: {', '.join(said)}"


def _told(column: ColumnType) -> str:
    return column.shown + (f" ({', '.join(column.labels)})" if column.labels else "")


def _unreadable(path: Path, why: str) -> InvalidConfig:
    return InvalidConfig(str(path), [Problem(TOP, (), f"cannot be read: {why}", _FIX)])
