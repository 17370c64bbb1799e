"""A table of a postgres connection: a target, written exactly once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from bridge.config.connection import AnyConnection, split_table, table_names, unqualified
from bridge.config.destinations.destination import DestinationSection, Value
from bridge.planning.spec import TableSpec
from bridge.problem import KeyPath, Remark, nearest
from bridge.section import ONE_OR_MORE, Text


class TableDestination(DestinationSection):
    """A target: a table of a postgres connection, written exactly once."""

    mark: ClassVar[str] = "table"

    connection: str
    """The name of a postgres connection."""
    table: Text
    """The table, schema-qualified: events.usage_limits."""
    mode: Literal["insert", "upsert"] = "insert"
    """insert adds rows; upsert overwrites the row with the same key."""
    key: Annotated[tuple[Text, ...], ONE_OR_MORE] = ()
    """With upsert: the columns of a unique index."""
    version: Text | None = None
    """With upsert: $meta.seq, or the column that holds it. An older event then never overwrites a newer one."""
    columns: dict[str, Any] | None = None
    """Column to value. Absent: the default mapping."""

    @classmethod
    def fits(cls, kind: str | None) -> bool:
        return kind in ("postgres", None)

    @classmethod
    def usual(cls, kind: str | None) -> bool:
        return kind == "postgres"

    def spec(self, name: str, connection: AnyConnection) -> TableSpec:
        schema, table = table_names(self.table)
        return TableSpec(
            name=name,
            connection=self.connection,
            schema=schema,
            table=table,
            mode=self.mode,
            key=self.key,
            version=self.version,
            columns=self.columns,
        )

    def values(self) -> Iterator[Value]:
        if self.version is not None:
            yield Value(("version",), self.version)
        for column, value in (self.columns or {}).items():
            yield Value(("columns", column), value, column=True)

    @property
    def written_table(self) -> tuple[str, str]:
        return table_names(self.table)

    @property
    def by_name(self) -> bool:
        return self.columns is None

    def identity(self) -> Iterator[Value]:
        for index, name in enumerate(self.key if self.mode == "upsert" else ()):
            if self.columns is not None and name in self.columns:
                yield Value(("key", index), self.columns[name], column=True)

    def told(self) -> Iterator[str]:
        columns = ", ".join(f"`{name}`" for name in self.columns or ())
        yield f"Into `{self.table}` ({self.mode}): {columns}."

    def lint(self, path: KeyPath, connection: AnyConnection | None) -> Iterator[Remark]:
        if split_table(self.table) is None:
            yield unqualified((*path, "table"), self.table)
        if self.mode == "upsert":
            yield from self._upsert(path)
            return
        for name in ("key", "version"):
            if getattr(self, name):
                fix = "use mode: upsert, or remove it"
                yield Remark(
                    "warning",
                    (*path, name),
                    f"`{name}` has no effect with mode: insert",
                    fix,
                    key=True,
                    name="idle-key",
                )

    def _upsert(self, path: KeyPath) -> Iterator[Remark]:
        if not self.key:
            fix = "name the columns of a unique index: key: [event_id]"
            yield Remark("error", (*path, "mode"), "an upsert needs `key`", fix, name="upsert-without-key")
            return
        columns: Mapping[str, Any] = {"event_id": "$meta.id"} if self.columns is None else self.columns
        if self.columns is not None:
            for index, name in enumerate(self.key):
                if name not in columns:
                    fix = nearest(name, columns) or "add it to columns"
                    message = f"key column {name} is not among `columns`"
                    yield Remark("error", (*path, "key", index), message, fix, name="unmapped-key")
        if not any(columns.get(name) == "$meta.id" for name in self.key) and self.version is None:
            message = "is not the event's identity: a retried older event would overwrite a newer one"
            yield Remark(
                "warning",
                (*path, "key"),
                message,
                "add version: $meta.seq",
                key=True,
                name="unordered-upsert",
            )
