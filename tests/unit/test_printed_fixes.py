"""Which test runs what the program prints to be typed: SQL, and commands with arguments.

What is printed and stands in neither list fails here: run it in a test, as it is printed, and name the test.
"""

from __future__ import annotations

import ast
from pathlib import Path

from tests.support.printed import typed

TESTS = Path(__file__).parents[1]

_DOCTOR = "integration/ops/test_doctor.py::"
_AT_SOURCE = f"{_DOCTOR}test_what_is_wrong_at_the_source_is_mended_by_what_is_printed"
_AT_TARGET = f"{_DOCTOR}test_what_is_wrong_at_the_target_is_mended_by_what_is_printed"
_SETTINGS = f"{_DOCTOR}test_settings_of_the_source_that_cost_safety_are_warned_of"
_RULES = "integration/test_target_rules.py::"
_RIGHTS = f"{_RULES}test_what_the_server_would_refuse_is_named_with_the_grant_that_mends_it"
_RECOVER = "faults/test_recover.py::"
_MOVED = "faults/test_moved_outbox.py::"
_TABLE = "integration/ops/test_own_event.py::test_the_printed_table_has_the_types_of_what_is_looked_up"
_PRINTED_SQL = "integration/ops/test_printed_run.py::test_what_is_printed_for_a_target_is_run_as_printed"
_PRINTED = "integration/ops/test_printed_run.py::test_commands_that_are_printed_are_run_as_printed"

RUN = {
    "alter publication x set (publish = 'insert')": _AT_SOURCE,
    "alter role x nobypassrls": _AT_SOURCE,
    "alter role x replication": _AT_SOURCE,
    "alter table x owner to x": _AT_SOURCE,
    "drop publication x": _AT_SOURCE,
    "grant select on x to x": _AT_SOURCE,
    "grant select, insert, update, delete on x to x": _AT_SOURCE,
    "grant usage on schema x to x": _AT_SOURCE,
    "grant xx on x to x": _AT_SOURCE,
    'grant usage on schema "x" to x': _AT_SOURCE,
    "select setval(pg_get_serial_sequence('x', 'x'), (select max(x) from x))": _AT_SOURCE,
    "bridge decommission x": _AT_SOURCE,
    "create unique index concurrently on x (x)": _AT_TARGET,
    "grant select on bridge.migration to x": _AT_TARGET,
    "grant usage on schema bridge to x": _AT_TARGET,
    "grant select, insert, update, delete on all tables in schema bridge to x": _AT_TARGET,
    "alter system set idle_replication_slot_timeout = 0": _SETTINGS,
    "alter system set max_slot_wal_keep_size = 'xGB'": _SETTINGS,
    "alter system set synchronous_commit = 'on'": _SETTINGS,
    "select pg_reload_conf()": _SETTINGS,
    "grant execute on function x to x": f"{_DOCTOR}test_an_ingress_needs_rights_of_its_own_and_its_port",
    "grant select, insert, update on outbox.entity to outbox_bridge": (
        f"{_DOCTOR}test_entities_that_events_keep_need_rights_of_their_own"
    ),
    "grant x on x to x": _RIGHTS,
    "grant usage on sequence x to x": _RIGHTS,
    "alter table x set logged": f"{_RULES}test_a_table_that_a_crash_empties_is_refused_with_its_partitions",
    "alter table x alter column x set not null": f"{_RULES}test_a_key_that_may_be_null_is_warned_of",
    "alter table x alter column x type x using x": f"{_RULES}test_a_version_is_kept_where_a_later_one_is_greater",
    "alter publication x set (publish_generated_columns = 'stored')": (
        "integration/test_own_rows.py::test_a_generated_column_is_the_same_by_stream_and_by_table_or_halts"
    ),
    "create or replace trigger outbox_local_xid before insert or update on x for each row execute function "
    "outbox.local_xid(x)": f"{_MOVED}test_an_own_outbox_that_is_replicated_needs_the_trigger",
    "alter table x enable replica trigger outbox_local_xid": (
        f"{_MOVED}test_an_own_outbox_that_is_replicated_needs_the_trigger"
    ),
    "create schema if not exists x": _TABLE,
    "create table if not exists x (x)": _TABLE,
    "select pg_drop_replication_slot('x')": (
        "integration/ops/test_left_behind.py::test_an_old_number_of_our_own_slot_is_told_and_its_statement_ends_it"
    ),
    "update outbox.migration set checksum = 'x' where version = x": (
        "integration/source/test_install.py::test_a_changed_checksum_stops_the_install_and_says_what_to_do"
    ),
    "bridge doctor --snapshot": (
        "integration/ops/test_one_validator.py::"
        "test_what_the_servers_say_is_joined_by_doctor_and_offline_by_a_snapshot"
    ),
    "bridge recover --accept-target": f"{_RECOVER}test_a_target_that_was_moved_is_accepted_and_caught_up",
    "bridge recover --accept-gap": (
        f"{_RECOVER}test_a_gap_that_is_accepted_loses_what_was_pruned_and_nothing_else"
    ),
    "bridge recover --accept-source": (
        f"{_RECOVER}test_an_older_copy_of_the_source_is_accepted_and_what_follows_comes_once"
    ),
    "bridge recover --restart-stream": (
        f"{_RECOVER}test_a_stream_whose_ledger_is_lost_starts_anew_with_a_slot_of_its_own"
    ),
    "bridge recover --adopt-outbox --old-source x": (
        f"{_MOVED}test_blue_green_by_native_replication_goes_on_exactly"
    ),
    "bridge recover --adopt-outbox": f"{_MOVED}test_blue_green_by_native_replication_goes_on_exactly",
    "bridge rename-stream x x": "faults/test_identity.py::test_a_renamed_stream_applies_nothing_again",
    "bridge sink move x x": (
        "integration/sinks/test_renamed.py::test_messages_of_a_renamed_pipeline_are_told_and_moved_with_their_ids"
    ),
    "bridge sink resume x": (
        "integration/sinks/test_sink_queue.py::"
        "test_what_waits_is_listed_hurried_discarded_restored_and_paused_in_part"
    ),
    "bridge schema recipe x": "unit/config/test_recipe.py::test_schema_recipe_prints_the_tables_of_either_side",
    "bridge schema recipe x --source": (
        "unit/config/test_recipe.py::test_schema_recipe_prints_the_tables_of_either_side"
    ),
    'alter role "x" login': _PRINTED_SQL,
    'grant connect on database "x" to "x"': _PRINTED_SQL,
    "alter table x add column x x": _PRINTED_SQL,
    "alter table x alter column x drop not null": _PRINTED_SQL,
    "alter table x disable row level security": _PRINTED_SQL,
    "alter role x bypassrls": _PRINTED_SQL,
    "bridge dead show ID": _PRINTED,
    "bridge dead show x": _PRINTED,
    "bridge dead retry --cause x --dry-run": _PRINTED,
    "bridge explain x": _PRINTED,
    "bridge recover --help": _PRINTED,
    "select pg_terminate_backend(x)": _PRINTED,
    "bridge schema event TYPE": _PRINTED,
}

ONLY_READ = {
    "alter publication \"x\" set (publish = 'insert')",
    "alter role x with replication",
    "alter sequence x set logged",
    "alter system set output_plugin_libraries = 'pgoutput, test_decoding'",
    "alter system set wal_level = 'logical'",
    "alter system set x = x",
    "alter table x add column if not exists compatible_from integer",
    "alter table x add column seq bigint generated always as identity",
    "alter table x alter column x type timestamptz using x at time zone 'UTC'",
    "alter table x alter column x x",
    "bridge dead retry --cause x",
    "bridge doctor --network",
    "bridge init --recipe signups",
    "bridge init --recipe usage-limits",
    "bridge init --recipe x",
    "bridge lint -c x",
    "bridge recipe list --markdown",
    "bridge recover --accept-source --since now",
    "bridge replay --destination x --since 24h",
    "bridge run --allow-storm",
    "bridge schema event --typescript",
    "bridge schema source --publication x",
    "bridge schema target --after 1",
    "bridge sink move x NEW",
    "bridge test -c x",
    "create index on x (xid, seq)",
    'drop publication "x"',
    'grant outbox_bridge to "x"',
    "grant rds_replication to x",
    "grant select on x to outbox_bridge",
    "grant usage on schema x to outbox_bridge",
    'grant x to "x"',
    "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = 'x'",
    "update x set x = default where x >= 'x'::xid8 and x <= x",
    "update x set x = x where x",
}
"""Read by click or by Postgres's parser, and run by no test as printed. Nothing may be added."""


def test_everything_that_is_printed_is_run_by_a_test_or_is_known_not_to_be() -> None:
    printed = typed()
    told = RUN.keys() | ONLY_READ
    assert {one: where for one, where in printed.items() if one not in told} == {}
    assert told - printed.keys() == set(), "it is printed no more"
    assert RUN.keys() & ONLY_READ == set()


def test_the_tests_that_are_named_exist() -> None:
    for name in set(RUN.values()):
        path, _, function = name.partition("::")
        tree = ast.parse((TESTS / path).read_text())
        assert function in {one.name for one in tree.body if isinstance(one, ast.FunctionDef)}, name
