"""The SQL that defines: read from sql/, printed, and applied to the source. Never applied to a target; the daemon
creates nothing.

The files are numbered migrations (`001_name.sql`); running one again changes nothing. Then come the publication and
the two roles, which every install updates. What the installing role may not do is returned as SQL for an
administrator; the rest is installed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from psycopg import Connection, Cursor, errors, sql
from psycopg.rows import TupleRow, tuple_row

from bridge.errors import BridgeError, ConfigError
from bridge.postgres.capture import provider_of
from bridge.postgres.versions import newer

OUTBOX = "outbox.event"
_NOT_GRANTED = "01007"
"""A GRANT by a role that has a privilege and may not pass it on: Postgres warns, and grants nothing."""
_LOCK = 0x6F7574626F78  # "outbox": the advisory lock that installs take turns by
_MIGRATION = re.compile(r"(\d{3})_(\w+)\.sql")
_COMPATIBLE = re.compile(r"^-- compatible from: (\d+)$", re.MULTILINE)
_MIGRATION_TABLES = {"source": "outbox.migration", "target": "bridge.migration"}
_PUBLICATION_NAME = re.compile(r"[a-z0-9_]{1,63}")  # what Postgres allows in a slot's name, which it shares


class SchemaError(BridgeError):
    """The outbox's schema cannot be installed, or is not one that this bridge knows."""

    reason = "schema"


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered file. `checksum` is the SHA-256 of its text, hexadecimal.

    A line `-- compatible from: N` in it says that programs that know the migrations up to N may go on beside it: it
    adds what they need not know. Without that line they stop (versions.py).
    """

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return sha256(self.sql.encode()).hexdigest()

    def record(self, table: str) -> str:
        """The statements that record that it was run."""
        oldest = _COMPATIBLE.search(self.sql)
        columns, values = "version, name, checksum", f"{self.version}, '{self.name}', '{self.checksum}'"
        column = ""
        if oldest is not None:
            column = f"alter table {table} add column if not exists compatible_from integer;\n"
            columns, values = f"{columns}, compatible_from", f"{values}, {oldest[1]}"
        return f"{column}insert into {table} ({columns})\nvalues ({values}) on conflict do nothing;\n"


@dataclass(frozen=True, slots=True)
class Remaining:
    """A step that the installing role could not or should not do, and its SQL."""

    reason: str
    sql: str


@dataclass(slots=True)
class Installation:
    """The result of an install, in sentences, and the steps left for an administrator."""

    version: int = 0
    done: list[str] = field(default_factory=list)
    remaining: list[Remaining] = field(default_factory=list)


def sql_directory() -> Traversable | Path:
    """The directory of the SQL files: bridge/sql in a wheel, sql/ beside the package in a checkout or editable
    install."""
    packaged = files("bridge") / "sql"
    if packaged.is_dir():
        return packaged
    checkout = Path(__file__).resolve().parents[2] / "sql"
    if checkout.is_dir():
        return checkout
    raise SchemaError(
        f"the SQL files are neither in {packaged} nor in {checkout}",
        hint="install outbox-bridge again: its wheel contains them",
    )


def migrations(side: str) -> list[Migration]:
    """The numbered files of `source` or `target`, in order."""
    named = ((_MIGRATION.fullmatch(file.name), file) for file in (sql_directory() / side).iterdir())
    found = [Migration(int(match[1]), match[2], _read(file)) for match, file in named if match]
    return sorted(found, key=lambda migration: migration.version)


def source_sql(publication: str = "outbox_bridge", after: int = 0, *, notify: bool = False) -> str:
    """Everything that the source needs, as one script for psql; it can be run again. `after` leaves out the
    migrations up to that version; `notify` adds the trigger that wakes a polling bridge."""
    parts = [_script("source", after)]
    parts += [publication_sql(publication), role_sql("producer"), role_sql("bridge")]
    if notify:
        parts.append(notify_sql())
    return _transaction(parts)


def target_sql(after: int = 0) -> str:
    """The ledger, for the customer to run in the target database: one script for psql. `after` leaves out the
    migrations up to that version, to upgrade a target."""
    return _transaction([_script("target", after)])


def publication_sql(publication: str = "outbox_bridge", table: str = OUTBOX) -> str:
    """SQL that creates the publication if it is missing. `table` is `schema.name`."""
    if not _PUBLICATION_NAME.fullmatch(publication):
        raise ConfigError(
            f"{publication!r} is not a valid name for a publication and its slots",
            hint="source.slot must have 1 to 63 lower-case letters, digits and underscores",
        )
    text = _read(sql_directory() / "source" / "publication.sql")
    return (
        text.replace("'outbox_bridge'", f"'{publication}'")
        .replace("create publication outbox_bridge ", f'create publication "{publication}" ')
        .replace("alter publication outbox_bridge ", f'alter publication "{publication}" ')
        .replace(f"for table {OUTBOX} ", f"for table {_quoted(table)} ")
    )


def notify_sql(table: str = OUTBOX) -> str:
    """SQL that creates the trigger that notifies a polling bridge. `table` is `schema.name`."""
    text = _read(sql_directory() / "source" / "notify.sql")
    return text.replace(f" on {OUTBOX}", f" on {_quoted(table)}")


def role_sql(role: str) -> str:
    """SQL that creates the role `producer` or `bridge` if it is missing, and grants it what it needs."""
    return _read(sql_directory() / "source" / f"role_{role}.sql")


def source_version(connection: Connection[Any]) -> int:
    """The newest migration applied to this source; 0 if there is none."""
    with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
        return max(_applied(cursor), default=0)


def install_source(
    connection: Connection[Any],
    publication: str = "outbox_bridge",
    table: str = OUTBOX,
    *,
    notify: bool = False,
) -> Installation:
    """Bring the source to the newest version, in one transaction; concurrent installs wait for each other. An outbox
    that a newer release migrated compatibly is left at its version.

    `table`: the publication's table; a customer's own outbox still needs the registry in schema outbox. `notify`
    also creates the trigger that wakes a polling bridge.

    Raises `SchemaError`, and changes nothing, if an applied migration differs from the one in this package, if the
    source is newer than this bridge, or if the role may not create the schema.
    """
    server_version = connection.info.server_version
    if server_version < 140000:
        raise SchemaError(
            f"the source runs PostgreSQL {server_version // 10000}; 14 is the oldest supported",
            hint="upgrade the server, see https://www.postgresql.org/support/versioning/",
        )
    installation = Installation()
    try:
        with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
            cursor.execute("select pg_advisory_xact_lock(%s)", [_LOCK])
            _migrate(cursor, installation)
            _publish(cursor, publication, table, installation)
            _grant(cursor, table, installation)
            if notify:
                cursor.execute(notify_sql(table).encode())
                installation.done.append(f"inserts into {table} now notify a polling bridge")
    except errors.InsufficientPrivilege as error:
        user, database = connection.info.user, connection.info.dbname
        raise SchemaError(
            f"role {user} may not create the outbox in database {database}: {error.diag.message_primary}",
            hint="install as the database's owner (source.dsn with that user, only for the "
            f"install), or run `bridge schema source | psql -d {database}` as the owner",
        ) from error
    except errors.ReadOnlySqlTransaction as error:
        raise SchemaError(
            f"{connection.info.host} is read-only, so the outbox cannot be created there",
            hint="connect to the primary: add target_session_attrs=read-write to source.dsn",
        ) from error
    return installation


def _migrate(cursor: Cursor[TupleRow], installation: Installation) -> None:
    applied = _applied(cursor)
    known = {migration.version: migration for migration in migrations("source")}
    for version, (name, checksum, applied_at) in sorted(applied.items()):
        which = f"migration {version} ({name}), applied on {applied_at:%Y-%m-%d},"
        if version not in known and newer(cursor.connection, "source") is None:
            continue
        if version not in known:
            raise SchemaError(
                f"{which} is from a newer bridge",
                hint="upgrade this one: pip install --upgrade outbox-bridge",
            )
        if checksum != known[version].checksum:
            raise SchemaError(
                f"{which} differs from the one in this bridge",
                hint="compare schema outbox with the output of `bridge schema source`; when they agree: "
                f"update outbox.migration set checksum = '{known[version].checksum}' "
                f"where version = {version};",
            )
    for version, migration in sorted(known.items()):
        if version not in applied:
            cursor.execute(migration.sql.encode())
            cursor.execute(migration.record("outbox.migration").encode())
            installation.done.append(f"applied migration {version} ({migration.name})")
        installation.version = max(version, *applied, 0)


def _publish(cursor: Cursor[TupleRow], publication: str, table: str, installation: Installation) -> None:
    existed = published(cursor, publication, table) is not None
    statement = publication_sql(publication, table)
    if refused := _try(cursor, statement):
        installation.remaining.append(Remaining(f"publication {publication}: {refused}", statement))
    elif not existed:
        installation.done.append(f"created publication {publication} for {table}")
    elif found := published(cursor, publication, table):
        _check_publication(publication, table, found, installation)
    if cursor.execute("show wal_level").fetchone() != ("logical",):
        installation.remaining.append(
            Remaining(
                "wal_level is not logical: `capture: slot` needs it, `capture: poll` does not",
                provider_of(cursor.connection).wal_level + "\n",
            )
        )


def _check_publication(
    publication: str, table: str, found: tuple[str, str, bool], installation: Installation
) -> None:
    publishes, tables, fits = found
    if not fits:
        installation.remaining.append(
            Remaining(
                f"publication {publication} exists and publishes {tables}; it should publish "
                f"every row of {table}",
                f'drop publication "{publication}";  -- if nothing else needs it\n'
                + publication_sql(publication, table),
            )
        )
    elif publishes != "insert":
        installation.remaining.append(
            Remaining(
                f"publication {publication} existed and publishes {publishes or 'nothing'}, "
                "where insert alone is wanted",
                f"alter publication \"{publication}\" set (publish = 'insert');"
                "  -- every stream then catches up once\n",
            )
        )


def published(cursor: Cursor[TupleRow], publication: str, table: str) -> tuple[str, str, bool] | None:
    """(what it publishes, its tables, whether that is only `table`, unfiltered), or None."""
    row_filter, schemas = "false", "null::text"
    if cursor.connection.info.server_version >= 150000:
        row_filter = "r.prqual is not null"
        schemas = (
            "(select string_agg('all of schema ' || s.pnnspid::regnamespace, ', ' order by s.oid)"
            " from pg_catalog.pg_publication_namespace s where s.pnpubid = p.oid)"
        )
    return cursor.execute(
        f"""
        select concat_ws(', ',
                         case when p.pubinsert then 'insert' end, case when p.pubupdate then 'update' end,
                         case when p.pubdelete then 'delete' end,
                         case when p.pubtruncate then 'truncate' end),
               case when p.puballtables then 'all tables' else coalesce(nullif(concat_ws(', ', {schemas}, string_agg(
                   r.prrelid::regclass::text || case when {row_filter} then ' with a filter' else '' end,
                   ', ' order by r.oid)), ''), 'no table') end,
               not p.puballtables and {schemas} is null and count(r.oid) = 1
                   and coalesce(bool_and(r.prrelid = to_regclass(%s) and not {row_filter}), false)
        from pg_catalog.pg_publication p left join pg_catalog.pg_publication_rel r on r.prpubid = p.oid
        where p.pubname = %s
        group by p.oid, p.puballtables, p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate
        """,
        [_quoted(table), publication],
    ).fetchone()


def _grant(cursor: Cursor[TupleRow], table: str, installation: Installation) -> None:
    for role in ("producer", "bridge"):
        name = f"outbox_{role}"
        existed = _replicates(cursor, name) is not None
        if refused := _try(cursor, role_sql(role)):
            installation.remaining.append(Remaining(f"role {name}: {refused}", role_sql(role)))
        else:
            installation.done.append(f"granted {name} what it needs" if existed else f"created role {name}")
    if _replicates(cursor, "outbox_bridge") is False:
        installation.remaining.append(
            Remaining(
                "role outbox_bridge has no REPLICATION: `capture: slot` needs it, `capture: poll` does not",
                provider_of(cursor.connection).grant.format(role="outbox_bridge") + "\n",
            )
        )
    if table != OUTBOX:
        schema = sql.Identifier(table.split(".", 1)[0]).as_string()
        own = (
            f"grant usage on schema {schema} to outbox_bridge;\n"
            f"grant select on {_quoted(table)} to outbox_bridge;\n"
        )
        if refused := _try(cursor, own):
            installation.remaining.append(Remaining(f"privileges on {table}: {refused}", own))


def _try(cursor: Cursor[TupleRow], statements: str) -> str:
    """Run the statements in a savepoint. Returns why the role may not, or an empty text."""
    warned: list[str] = []

    def hear(said: errors.Diagnostic) -> None:
        if said.sqlstate == _NOT_GRANTED:
            warned.append(said.message_primary or "not granted")

    cursor.connection.add_notice_handler(hear)
    try:
        with cursor.connection.transaction():
            cursor.execute(statements.encode())
    except (errors.InsufficientPrivilege, errors.UndefinedObject) as error:
        return error.diag.message_primary or "not permitted"
    finally:
        cursor.connection.remove_notice_handler(hear)
    return "; ".join(dict.fromkeys(warned))


def _replicates(cursor: Cursor[TupleRow], role: str) -> bool | None:
    row = cursor.execute(
        "select rolreplication or exists (select from pg_catalog.pg_roles r where r.rolname = 'rds_replication'"
        " and pg_has_role(%(role)s, r.oid, 'member')) from pg_catalog.pg_roles where rolname = %(role)s",
        {"role": role},
    ).fetchone()
    return None if row is None else bool(row[0])


def _applied(cursor: Cursor[TupleRow]) -> dict[int, tuple[str, str, Any]]:
    present = cursor.execute("select to_regclass('outbox.migration')").fetchone()
    if present is None or present[0] is None:
        return {}
    rows = cursor.execute("select version, name, checksum, applied_at from outbox.migration").fetchall()
    return {row[0]: (row[1], row[2], row[3]) for row in rows}


def _quoted(table: str) -> str:
    schema, _, name = table.partition(".")
    if not schema or not name or "$" in table:
        raise ConfigError(
            f"source.table {table!r} is not of the form schema.name", hint="such as public.outbox_events"
        )
    return sql.Identifier(schema, name).as_string()


def _script(side: str, after: int) -> str:
    table = _MIGRATION_TABLES[side]
    return "\n".join(m.sql + m.record(table) for m in migrations(side) if m.version > after)


def _transaction(parts: list[str]) -> str:
    return "begin;\nset local client_min_messages = warning;\n\n" + "\n".join(parts) + "\ncommit;\n"


def _read(file: Traversable | Path) -> str:
    return file.read_text(encoding="utf-8").replace("\r\n", "\n")
