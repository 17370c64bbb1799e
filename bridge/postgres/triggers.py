"""Tables that a trigger's function touches, and whether the role may: a trigger runs with the rights of who inserts.

The server tells this only while the function runs, so its text is read. What the straight beginning of a PL/pgSQL body
names, or an SQL function, is touched with every row: an error. What stands behind a condition may never run: a warning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import psycopg

from bridge.postgres.target_rules import PARTS, SEQUENCES, Finding

Verb = Literal["insert", "update", "delete", "select"]
_VERBS: dict[Verb, str] = {
    "insert": "inserts into",
    "update": "updates",
    "delete": "deletes from",
    "select": "reads",
}

_TRIGGERS = f"""{PARTS}
    select g.tgname, g.tgrelid::regclass::text, p.oid, p.oid::regprocedure::text,
        g.tgrelid = any(%(tables)s::oid[]) and g.tgtype & 4 <> 0 and g.tgqual is null
        and (g.tgtype & 1 = 0 or not exists (
            select from pg_catalog.pg_trigger o where o.tgrelid = g.tgrelid and o.oid <> g.oid
                and not o.tgisinternal and o.tgenabled in ('O', 'A') and o.tgtype & 7 = 7))
    from pg_catalog.pg_trigger g join pg_catalog.pg_proc p on p.oid = g.tgfoid
    where g.tgrelid in (select oid from part) and not g.tgisinternal and g.tgparentid = 0
        and g.tgenabled in ('O', 'A') and g.tgtype & %(events)s <> 0
    order by 2, 1"""


def trigger_findings(
    connection: psycopg.Connection, table: int, role: str, where: str, *, updates: bool
) -> Iterator[Finding]:
    """updates: rows are updated as well."""
    values = {"tables": [table], "events": 4 | (16 if updates else 0)}
    for name, on, function, signature, always in connection.execute(_TRIGGERS.encode(), values).fetchall():
        what = f"{where}: trigger {name} of {on} runs {signature} with the rights of this role"
        yield from body_findings(connection, function, role, what, always=always)


_BODY = """
    select p.prosrc, l.lanname,
        (select substr(c, 13) from unnest(p.proconfig) c where c like 'search\\_path=%%'),
        (select reset_val from pg_catalog.pg_settings where name = 'search_path'), current_user::text
    from pg_catalog.pg_proc p join pg_catalog.pg_language l on l.oid = p.prolang
    where p.oid = %s and not p.prosecdef and l.lanname in ('plpgsql', 'sql')"""

_LACKING = """
    select c.oid, format('%%I.%%I', n.nspname, c.relname), quote_ident(n.nspname),
        has_schema_privilege(n.oid, 'usage'),
        array(select verb from unnest(%(needs)s::text[]) with ordinality as asked(verb, place)
            where not case verb when 'delete' then has_table_privilege(c.oid, 'delete')
                else has_any_column_privilege(c.oid, verb) end order by asked.place)
    from unnest(%(schemas)s::text[]) with ordinality as path(name, place)
    join pg_catalog.pg_namespace n on n.nspname = path.name
    join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = %(table)s::text
        and c.relkind in ('r', 'p', 'v', 'f', 'm')
    order by path.place limit 1"""


def body_findings(
    connection: psycopg.Connection, function: int, role: str, what: str, *, always: bool = False
) -> Iterator[Finding]:
    """What the role may not do that the function does. always: it is called with every row. A function that runs with
    its owner's rights needs nothing."""
    row = connection.execute(_BODY.encode(), [function]).fetchone()
    if row is None:
        return
    source, language, own_path, path, user = row
    schemas = _path(path if own_path is None else own_path, user)
    for use in uses(source, plpgsql=language == "plpgsql"):
        known = bool(use.schema) or own_path is not None
        values = {
            "needs": list(use.needs),
            "schemas": [use.schema] if use.schema else schemas,
            "table": use.table,
        }
        found = connection.execute(_LACKING.encode(), values).fetchone()
        if found is None:
            continue
        oid, table, schema, may_look, lacking = found
        fixes = [] if may_look else [f"grant usage on schema {schema} to {role};"]
        fixes += [f"grant {', '.join(lacking)} on {table} to {role};"] if lacking else []
        verb = use.needs[0]
        certain = always and use.always and known
        does = f"{what}, which {_VERBS[verb]} {table}: role {role}"
        if fixes:
            lacks = f"lacks {', '.join(lacking)} on it" if lacking else "may not look into its schema"
            yield _finding(f"{does} {lacks}", "\n".join(fixes), certain and (verb in lacking or not may_look))
        if verb == "insert":
            values = {"table": oid, "given": list(use.columns or ())}
            for name, _, _, may in connection.execute(SEQUENCES.encode(), values).fetchall():
                if not may:
                    fix = f"grant usage on sequence {name} to {role};"
                    yield _finding(
                        f"{does} may not use its sequence {name}", fix, certain and use.columns is not None
                    )


def _finding(message: str, fix: str, certain: bool) -> Finding:
    if certain:
        return Finding("privilege_missing", message, fix)
    return Finding(
        "privilege_missing", f"{message} (it stops the stream if that statement is reached)", fix, "warn"
    )


def _path(text: str, user: str) -> list[str]:
    """The schemas of a search_path, but for pg_temp: a name that is not there is looked for in the next."""
    names = [_plain(each.strip()) for each in text.split(",")]
    return ["pg_catalog", *(user if name == "$user" else name for name in names if name)]


@dataclass(frozen=True, slots=True)
class Use:
    """A table that a function's text names. needs: what is done to it, then the rights that the statement seems to need
    besides. always: each call runs the statement. columns: those that an insert lists."""

    needs: tuple[Verb, ...]
    schema: str
    table: str
    always: bool
    columns: tuple[str, ...] | None = None


_NAME = r'(?:"(?:[^"]|"")+"|[^\W\d][\w$]*)'
_TABLE = rf"(?:only\s+)?({_NAME})(?:\s*\.\s*({_NAME}))?(?![\w$\"]|\s*[.(])"
_NOISE = re.compile(
    r'("(?:[^"]|"")*")|'
    r"(--[^\n]*|/\*.*?\*/)|\be'(?:[^'\\]|''|\\.)*'|'(?:[^']|'')*'|\$(\w*)\$.*?\$\3\$",
    re.IGNORECASE | re.DOTALL,
)
_USES: tuple[tuple[Verb, re.Pattern[str]], ...] = (
    ("insert", re.compile(rf"\binsert\s+into\s+({_NAME})(?:\s*\.\s*({_NAME}))?", re.IGNORECASE)),
    ("update", re.compile(rf"(?<!\bdo )\bupdate\s+{_TABLE}(?=\s)", re.IGNORECASE)),
    ("delete", re.compile(rf"\bdelete\s+from\s+{_TABLE}", re.IGNORECASE)),
    ("select", re.compile(rf"(?<!\bdelete )\b(?:from|join)\s+{_TABLE}", re.IGNORECASE)),
)
_STRAIGHT = re.compile(
    r"(?:insert|update|delete|select|perform)\b|[\w.\"]+(?:\[[^\]]*\])?\s*:?=", re.IGNORECASE
)
_LISTED = re.compile(r"\s*\(([^()]*)\)\s*(?:values|select|overriding|default)\b", re.IGNORECASE)
_NO_TABLE = re.compile(  # `is distinct from`, `extract(year from ...)`
    r"(?:\bdistinct|\b(?:extract|substring|trim|overlay|position)\s*\([^()]*)\s*$", re.IGNORECASE
)
_BEGIN = re.compile(r"(?:^|(?<=[\s;]))begin\b", re.IGNORECASE)


def uses(source: str, *, plpgsql: bool = True) -> list[Use]:
    """The tables that the text of a function names, each with what is done to it. Names that are no table's, such as
    those of variables, are among them."""
    text = re.sub(r"\s+", " ", _NOISE.sub(lambda noise: noise[1] or (" " if noise[2] else " '' "), source))
    begun = _BEGIN.search(text) if plpgsql else None
    caught = re.search(r"\bexception\s+when\b", text, re.IGNORECASE) is not None
    straight = "*/" not in text and (
        not plpgsql or (begun is not None and not caught and "<<" not in text[: begun.start()])
    )
    found: dict[tuple[tuple[Verb, ...], str, str, tuple[str, ...] | None], bool] = {}
    for part in (text[begun.end() :] if begun else text).split(";"):
        statement = part.strip()
        straight = straight and (not plpgsql or _STRAIGHT.match(statement) is not None)
        for verb, pattern in _USES:
            for match in pattern.finditer(statement):
                rest = statement[match.end() :]
                listed = _LISTED.match(rest) if verb == "insert" else None
                columns = tuple(_plain(name.strip()) for name in listed[1].split(",")) if listed else None
                use = (verb, *_besides(verb, rest)), *_named(match[1], match[2]), columns
                sure = straight and not (verb == "select" and _NO_TABLE.search(statement[: match.start()]))
                found[use] = found.get(use, False) or sure
    return [
        Use(needs, schema, table, always, columns)
        for (needs, schema, table, columns), always in found.items()
    ]


def _besides(verb: Verb, rest: str) -> Iterator[Verb]:
    """A row that is looked for, compared or returned is read."""
    if verb == "insert" and re.search(r"\bdo\s+update\b", rest, re.IGNORECASE):
        yield "update"
    words = {"insert": r"\b(?:on\s+conflict|returning)\b", "select": r"(?!)"}
    if re.search(words.get(verb, r"\b(?:where|returning)\b"), rest, re.IGNORECASE):
        yield "select"


def _named(first: str, second: str | None) -> tuple[str, str]:
    """(schema or "", table)."""
    return ("", _plain(first)) if second is None else (_plain(first), _plain(second))


def _plain(name: str) -> str:
    """An identifier as the catalog has it."""
    return name[1:-1].replace('""', '"') if name.startswith('"') else name.lower()
