"""May this role have a replication slot on this server? The server is asked, not the catalog: managed services give the
right by membership of a role of theirs, and rolreplication stays false. The fixes are those that the service allows.
"""

from __future__ import annotations

from dataclasses import dataclass

import psycopg

from bridge.errors import CannotConnect
from bridge.postgres import wire
from bridge.postgres.replication import PLUGIN, PLUGIN_FIX, open_replication, plugin_refused
from bridge.protocol.facts import SlotRefused

_ON_DEMAND = 190000
"""From here on the first slot raises effective_wal_level from replica to logical."""

_ASK = """
    select current_setting('wal_level'), current_setting('effective_wal_level', true),
        (select rolreplication or rolsuper from pg_catalog.pg_roles where rolname = current_user),
        (select setting from pg_catalog.pg_settings where name = 'output_plugin_libraries'),  -- few roles may see it
        quote_ident(current_user)"""

# Each is recognized by a setting or a role that only it has.
_PROVIDER = """
    select array(select rolname::text from pg_catalog.pg_roles where rolname = any(array[
        'rds_replication', 'cloudsqlsuperuser', 'azure_pg_admin', 'neon_superuser', 'supabase_admin', 'avnadmin']))"""


@dataclass(frozen=True, slots=True)
class Provider:
    """name: as its customers call it. {role} in `grant` is the bridge's. wal_level: how decoding is turned on."""

    name: str
    grant: str
    wal_level: str


_ITSELF = Provider(
    "PostgreSQL",
    "alter role {role} replication;",
    "alter system set wal_level = 'logical';\n-- then restart the server",
)
_PROVIDERS = {
    "rds_replication": Provider(
        "Amazon RDS or Aurora",
        "grant rds_replication to {role};",
        "set rds.logical_replication = 1 in the (cluster) parameter group, then reboot the writer",
    ),
    "cloudsqlsuperuser": Provider(
        "Google Cloud SQL",
        "alter role {role} with replication;",
        "set the flag cloudsql.logical_decoding = on, which restarts the instance",
    ),
    "azure_pg_admin": Provider(
        "Azure Database for PostgreSQL",
        "alter role {role} with replication;",
        "set the server parameter wal_level to logical, then restart the server",
    ),
    "neon_superuser": Provider(
        "Neon",
        "alter role {role} with replication;",
        "turn on logical replication in the project's settings, which restarts its computes",
    ),
    "supabase_admin": Provider(
        "Supabase",
        "alter role {role} with replication;   -- as postgres",
        "it is logical by default; use the direct connection (port 5432), not the pooler",
    ),
    "avnadmin": Provider(
        "Aiven",
        "alter role {role} with replication;   -- as avnadmin",
        "it is logical by default; see the service's advanced configuration",
    ),
}


def provider_of(connection: psycopg.Connection) -> Provider:
    """The service that runs this server, by the administrators' role that it has; otherwise PostgreSQL itself."""
    row = connection.execute(_PROVIDER).fetchone()
    found = row[0] if row else []
    return next((_PROVIDERS[name] for name in _PROVIDERS if name in found), _ITSELF)


def refusals(connection: psycopg.Connection, dsn: str, *, trial: bool = False) -> list[SlotRefused]:
    """Why no slot can be had, each with its fix; empty: it can. Raises CannotConnect where the server could not be
    asked. trial: make a temporary slot, where nothing else shows whether the server lets pgoutput decode."""
    level, effective, replicates, libraries, role = connection.execute(_ASK).fetchone() or (
        "",
        "",
        False,
        "",
        "",
    )
    found = []
    least = ("replica", "logical") if connection.info.server_version >= _ON_DEMAND else ("logical",)
    if effective != "logical" and level not in least:
        fix = provider_of(connection).wal_level
        found.append(SlotRefused("wal_level", f"wal_level is {level}, but a slot needs logical", fix))
    if libraries is not None and "pgoutput" not in _names(libraries):
        said = f"output_plugin_libraries is {libraries!r}: the server lets nobody decode with pgoutput"
        found.append(SlotRefused(PLUGIN, said, PLUGIN_FIX))
    if not replicates and (said := _walsender_refused(dsn)):
        found.append(
            SlotRefused(
                "replication",
                f"role {role} may not replicate, but a slot needs it: {said}",
                provider_of(connection).grant.format(role=role),
            )
        )
    if trial and libraries is None and not found and (said := _slot_refused(dsn)):
        found.append(SlotRefused(PLUGIN, said, PLUGIN_FIX))
    return found


def _slot_refused(dsn: str) -> str:
    """What the server says to a temporary slot with pgoutput, if it does not trust that library. Making one waits for
    open transactions; the library is looked at before, so that a second is enough."""
    link = open_replication(dsn, "check")
    try:
        name = f"bridge_check_{link.backend_pid}"
        link.send_query(
            f"CREATE_REPLICATION_SLOT {name} TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT".encode()
        )
        end = wire.deadline(1.0)
        while link.flush() or link.is_busy():
            if (left := end - wire.deadline(0)) <= 0:
                return ""
            wire.wait([link.socket], [], left)
            wire.consume(link)
        result = link.get_result()
        return plugin_refused(result) if result is not None else ""
    finally:
        link.finish()


def _names(libraries: str) -> set[str]:
    return {name.strip().strip('"').rpartition("/")[2] for name in libraries.split(",")}


def _walsender_refused(dsn: str) -> str:
    """What the server says to this role's walsender; empty: it accepts it."""
    try:
        open_replication(dsn, "check").finish()
    except CannotConnect as error:
        said = str(error.args[0])
        if "wal sender" in said.lower() or "walsender" in said.lower() or "replication" in said.lower():
            return said
        raise
    return ""
