"""How the catalog names the outbox in a publication, and whether a subscription writes into it: SQL expressions that
the protocol and doctor ask alike."""

from __future__ import annotations

from typing import LiteralString

from bridge.protocol.facts import IDENTITY_SINCE_0_2

# (oid, xmin) of every row of the catalog by which the publication comes to name the outbox, and the outbox's oid:
# whatever was dropped, recreated or altered since gives another text. That is the publication, its tables, its schemas
# (15 and later), the table's row type (written again when the table is renamed or moved to another schema, not when a
# column or a grant changes) and, of a partition, its place under a published table. Null unless it publishes the
# outbox's inserts now: all rows (a filter leaves events out), all columns (xid and seq count), under the table's own
# name (its partitions' names mean nothing to the decoder). docs/guarantees.md, "Publication identity".
_IDENTITY: LiteralString = """
    (select concat_ws(' ', p.oid || ':' || p.xmin,
            (select string_agg(r.oid || ':' || r.xmin || ':' || r.prrelid, ',' order by r.oid)
             from pg_catalog.pg_publication_rel r where r.prpubid = p.oid),
            to_regclass(%(table)s)::oid::text, '"""

_IDENTITY_MORE: LiteralString = """',
            (select t.oid || ':' || t.xmin from pg_catalog.pg_class c join pg_catalog.pg_type t on t.oid = c.reltype
             where c.oid = to_regclass(%(table)s)),
            (select string_agg(i.inhparent || ':' || i.xmin, ',' order by i.inhparent)
             from pg_catalog.pg_inherits i where i.inhrelid = any(array(
                select relid from pg_catalog.pg_partition_ancestors(to_regclass(%(table)s)) as a(relid))))"""

_IDENTITY_SCHEMAS: LiteralString = """,
            (select string_agg(s.oid || ':' || s.xmin || ':' || s.pnnspid, ',' order by s.oid)
             from pg_catalog.pg_publication_namespace s where s.pnpubid = p.oid)"""

_IDENTITY_WHERE: LiteralString = """)
     from pg_catalog.pg_publication p where p.pubname = %(publication)s and p.pubinsert and exists (
            select from pg_catalog.pg_publication_tables t
                join pg_catalog.pg_namespace n on n.nspname = t.schemaname
                join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = t.tablename
            where t.pubname = p.pubname and c.oid = to_regclass(%(table)s))
        and not exists (
            select from pg_catalog.pg_publication_rel r
            where r.prpubid = p.oid and r.prrelid = to_regclass(%(table)s)
                and (to_jsonb(r) ->> 'prqual' is not null or to_jsonb(r) ->> 'prattrs' is not null)))"""

# A subscription of native replication writes into the outbox (or into a partition of it), and no trigger gives its
# rows an xid of this cluster: sql/source/005_origin.sql.
REPLICATED: LiteralString = """
    exists (select from (select to_regclass(%(table)s)::oid as relid
                union select relid from pg_catalog.pg_partition_tree(to_regclass(%(table)s))) t
            join pg_catalog.pg_subscription_rel r on r.srrelid = t.relid
        where not exists (select from pg_catalog.pg_trigger g
                join pg_catalog.pg_proc p on p.oid = g.tgfoid
                join pg_catalog.pg_namespace n on n.oid = p.pronamespace
            where g.tgrelid = t.relid and g.tgenabled in ('R', 'A')
                and n.nspname = 'outbox' and p.proname = 'local_xid'))"""


def publication_identity(server_version: int) -> LiteralString:
    """An expression; its parameters are `table` and `publication`."""
    schemas: LiteralString = _IDENTITY_SCHEMAS if server_version >= 150000 else ""
    return _IDENTITY + IDENTITY_SINCE_0_2 + _IDENTITY_MORE + schemas + _IDENTITY_WHERE
