"""Fixes that are printed, and the test that runs each as it is printed.

A test runs them by `Database.typed` and `World.typed`, which note what they ran. A test that is named in RUN and passes
without having run its fixes fails: see `missing`, which conftest.py asks after each test. What is printed and stands in
neither list fails in unit/test_printed_fixes.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tests.support.printed import SQL_VERBS

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
_INSTALL = (
    "integration/ops/test_printed_run.py::test_what_install_leaves_for_an_administrator_is_run_as_printed"
)
_ROLE = "integration/ops/test_printed_run.py::test_what_a_role_lacks_for_a_command_is_granted_as_printed"
_ROWS = (
    "integration/ops/test_printed_run.py::test_what_doctor_prints_of_the_ledger_and_of_rows_is_run_as_printed"
)
_OWN = "integration/ops/test_printed_run.py::test_an_outbox_of_ones_own_gets_its_columns_as_printed"
_RECIPES = (
    "integration/ops/test_printed_run.py::test_recipes_are_begun_and_added_by_the_lines_that_are_printed"
)
_WAL = f"{_DOCTOR}test_a_server_without_logical_wal_is_told_what_to_set"
_OWN_ROWS = "integration/test_own_rows.py::test_doctor_says_what_may_go_wrong_with_rows_of_an_own_outbox"
_RENAMED = (
    "integration/sinks/test_renamed.py::test_messages_of_a_renamed_pipeline_are_told_and_moved_with_their_ids"
)
_PRINTED = "integration/ops/test_printed_run.py::test_commands_that_are_printed_are_run_as_printed"
_LINES = "integration/ops/test_printed_lines.py::test_lines_that_errors_print_are_run_as_printed"
_RUNBOOK = "integration/ops/test_printed_lines.py::test_lines_of_the_runbook_are_run_as_printed"
_ALERTS = "integration/ops/test_printed_lines.py::test_the_alerts_lines_are_run_as_printed"
_LEFT_BEHIND = "integration/ops/test_left_behind.py::test_dead_letters_and_messages_of_what_is_gone_are_told"
_FIRST_ROW = "e2e/test_first_five_minutes.py::test_ten_commands_lead_from_the_wheel_to_the_first_enriched_row"
_OWN_EVENT = "e2e/test_first_five_minutes.py::test_an_event_of_ones_own_needs_only_what_init_prints"

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
    "bridge decommission x --source-gone": (
        "faults/test_two_sources.py::test_a_stream_whose_source_is_gone_is_ended_by_name"
    ),
    "bridge decommission x --target-gone": (
        "faults/test_stream_life.py::test_a_stream_that_ends_takes_what_a_person_says_and_nothing_else"
    ),
    "create unique index concurrently on x (x)": _AT_TARGET,
    "grant select on bridge.migration to x": _AT_TARGET,
    "grant usage on schema bridge to x": _AT_TARGET,
    "grant select, insert, update, delete on all tables in schema bridge to x": _AT_TARGET,
    "alter system set idle_replication_slot_timeout = 0": _SETTINGS,
    "alter system set max_slot_wal_keep_size = 'xGB'": _SETTINGS,
    "alter system set synchronous_commit = 'on'": _SETTINGS,
    "select pg_reload_conf()": _SETTINGS,
    "grant execute on function x to x": f"{_DOCTOR}test_an_ingress_needs_rights_of_its_own_and_its_port",
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
    "bridge recover --adopt-outbox": f"{_MOVED}test_an_outbox_that_moves_by_dump_and_restore_goes_on_exactly",
    "bridge rename-stream x x": "faults/test_identity.py::test_a_renamed_stream_applies_nothing_again",
    "bridge sink move x x": (
        "integration/sinks/test_renamed.py::test_messages_of_a_renamed_pipeline_are_told_and_moved_with_their_ids"
    ),
    "bridge sink resume x": _RUNBOOK,
    'alter role "x" login': _PRINTED_SQL,
    'alter role "x" replication': (
        "integration/ops/test_printed_run.py::test_a_role_without_replication_gets_it_as_printed"
    ),
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
    "alter publication \"x\" set (publish = 'insert')": _INSTALL,
    'drop publication "x"': _INSTALL,
    "alter role x with replication": _INSTALL,
    "grant rds_replication to x": _INSTALL,
    "grant select on x to outbox_bridge": _INSTALL,
    "grant usage on schema x to outbox_bridge": _INSTALL,
    "alter sequence x set logged": _ROWS,
    "alter table x add column if not exists compatible_from integer": _ROWS,
    "alter table x alter column x type timestamptz using x at time zone 'UTC'": _ROWS,
    "bridge schema target --after 1": _ROWS,
    "update x set x = x where x": _ROWS,
    "alter system set output_plugin_libraries = 'pgoutput', 'test_decoding'": (
        "faults/test_managed.py::test_a_server_that_does_not_trust_pgoutput_says_so"
    ),
    "alter system set wal_level = 'logical'": _WAL,
    "alter system set x = x": _WAL,
    "alter table x add column seq bigint generated always as identity": _OWN,
    "create index on x (xid, seq)": _OWN,
    "alter table x alter column x x": _OWN_ROWS,
    "bridge dead retry --cause x": _RENAMED,
    "bridge sink move x NEW": _RENAMED,
    "bridge doctor --network": f"{_DOCTOR}test_a_server_that_never_answers_is_told_as_such",
    "bridge init --recipe signups": _RECIPES,
    "bridge init --recipe x": _RECIPES,
    "bridge lint -c x": _RECIPES,
    "bridge test -c x": _RECIPES,
    "bridge recipe list --markdown": _RECIPES,
    "bridge schema event --typescript": _RECIPES,
    "bridge schema recipe x": _RECIPES,
    "bridge schema recipe x --source": _RECIPES,
    "bridge recover --accept-source --since now": (
        "integration/test_own_outbox.py::"
        "test_an_outbox_of_debezium_shape_is_delivered_once_over_a_kill[without xid]"
    ),
    "bridge replay --destination x --since 24h": (
        "integration/ops/test_unmatched.py::test_a_misspelt_type_is_named_everywhere_and_the_fix_delivers_it"
    ),
    "bridge run --allow-storm": (
        "integration/test_bad_input.py::test_most_events_failing_of_one_cause_halt_the_stream_in_time"
    ),
    "bridge schema source --publication x": _AT_SOURCE,
    "grant x to x": _ROLE,
    "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = 'x'": (
        "faults/test_identity.py::test_who_reads_the_slot_and_is_no_bridge_is_named"
    ),
    'bridge schema target | psql "x"': _LINES,
    "bridge schema source | psql -d x": _LINES,
    "getent ahosts x": _LINES,
    "getent hosts x": _LINES,
    "psql -l": _LINES,
    "alter role outbox_bridge bypassrls": _RUNBOOK,
    "bridge dead retry --dry-run": _RUNBOOK,
    "bridge recover --adopt-outbox --dry-run": _RUNBOOK,
    "bridge schema target --after 2": _RUNBOOK,
    "bridge schema target --after 2 | psql x": _RUNBOOK,
    "bridge sink list x": _RUNBOOK,
    "bridge sink list --state pending": (
        "integration/sinks/test_sink_queue.py::"
        "test_what_waits_is_listed_hurried_discarded_restored_and_paused_in_part"
    ),
    "bridge sink test x": _RUNBOOK,
    "bridge status --json": _RUNBOOK,
    "bridge status -c /etc/outbox-bridge/bridge.yaml": _RUNBOOK,
    "bridge status -c /etc/outbox-bridge/bridge.yaml --env-file /etc/outbox-bridge/secrets.env": _RUNBOOK,
    "pg_dump --schema-only": _RUNBOOK,
    "pg_dump --schema-only --no-publications": _RUNBOOK,
    "pg_dumpall --roles-only": _RUNBOOK,
    "python -m bridge.observe.probe livez": _RUNBOOK,
    "python -m bridge.observe.probe livez|readyz": _RUNBOOK,
    "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name like 'outbox_bridge%' and "
    "not active": _RUNBOOK,
    "select pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')": _RUNBOOK,
    "select pid, state, wait_event_type, xact_start, left(query, 60) from pg_stat_activity where datname = "
    "current_database() order by xact_start": _RUNBOOK,
    "ss -ltnp 'sport = :8377'": _RUNBOOK,
    "sudo outbox-bridge status -c /etc/outbox-bridge/bridge.yaml": _RUNBOOK,
    "sudo outbox-bridge status -c /etc/outbox-bridge/bridge.yaml --env-file /etc/outbox-bridge/secrets.env": _RUNBOOK,
    "systemctl reload outbox-bridge": _RUNBOOK,
    "promtool test rules rules_test.yml": _ALERTS,
    "sed -i 's#https://github.com/.*/operations.md#https://wiki.example.com/outbox-bridge#' rules.yml": _ALERTS,
    "ss -ltnp 'sport = :x'": "integration/ops/test_ports.py::test_ports_that_are_taken_are_waited_for_and_told_once",
    "kill -HUP x": (
        "integration/ops/test_operators_shell.py::"
        "test_every_command_works_without_variables_or_with_a_broken_file"
    ),
    "openssl s_client -connect x -servername x </dev/null": (
        "integration/ops/test_doctor_network.py::"
        "test_a_mail_servers_own_authority_is_trusted_and_another_is_not"
    ),
    "openssl s_client -starttls postgres -connect x:x </dev/null | openssl x509 -noout -dates -issuer -subject": (
        "security/test_tls.py::test_a_server_that_is_not_proven_is_refused_with_what_to_do"
    ),
    "grant select, insert, update on outbox.entity to outbox_bridge": (
        "integration/ops/test_entities.py::"
        "test_rights_on_the_entities_that_are_missing_are_granted_as_printed"
    ),
    "bridge dead discard --pipeline x --destination x": _LEFT_BEHIND,
    "bridge sink discard x --all": _LEFT_BEHIND,
    "bridge decommission x --yes": (
        "integration/ops/test_left_behind.py::test_a_connection_that_was_taken_out_is_told_until_it_is_ended"
    ),
    "grant rds_replication to outbox_bridge": _INSTALL,
    "alter role outbox_bridge with replication": _INSTALL,
    "bridge schema target | psql x": "integration/ops/test_versions.py::"
    "test_a_ledger_of_version_1_is_migrated_under_load_and_back",
    "bridge schema target --after x | psql x": _ROWS,
    'bridge schema source --publication x | psql "x"': _AT_SOURCE,
    'bridge schema recipe x | psql "$WAREHOUSE_DSN"': _RECIPES,
    'bridge schema recipe x --source | psql "$SOURCE_DSN"': _RECIPES,
    'bridge schema recipe failed-payments | psql "$WAREHOUSE_DSN"': _RECIPES,
    'bridge schema recipe failed-payments --source | psql "$SOURCE_DSN"': _RECIPES,
    'bridge schema target | psql "$WAREHOUSE_DSN"': _OWN_EVENT,
    'psql "$WAREHOUSE_DSN" -f target.sql': _OWN_EVENT,
    'psql "$WAREHOUSE_DSN" -f x': _OWN_EVENT,
    'psql "$x" -f source.sql': _FIRST_ROW,
    "openssl x509 -noout -dates -issuer -subject -ext subjectAltName -in x": (
        "security/test_nats.py::test_a_certificate_for_another_host_is_refused"
    ),
    "openssl x509 -noout -dates -issuer -subject -in x": (
        "security/test_rotation_moments.py"
        "::test_a_client_certificate_that_is_refused_is_told_with_its_own_fix"
    ),
    "update x set x = default where x >= 'x'::xid8 and x <= x": (
        "faults/test_seq_restart.py::test_where_the_bridge_may_not_write_seq_the_statements_are_printed"
    ),
}


_NO_CONTAINERS = "no container runtime where the tests run: deploy/try-image.sh runs the image"
ELSEWHERE = {
    "docker build -f deploy/Dockerfile -t outbox-bridge": _NO_CONTAINERS,
    "docker compose exec bridge bridge status": _NO_CONTAINERS,
    "docker compose ps": _NO_CONTAINERS,
    "kubectl exec deploy/outbox-bridge": _NO_CONTAINERS,
    "pip install 'outbox-bridge[apprise]'": "of an index: integration/test_distribution.py installs the wheel",
    "pip install 'outbox-bridge[scale]'": "of an index: integration/test_distribution.py installs the wheel",
    "pip install --upgrade outbox-bridge": "of an index: integration/test_distribution.py installs the wheel",
    "python -m bench.idle_streams 20 2": "a measurement of minutes",
    "ssh -L 8377:127.0.0.1:8377 host": "needs another machine",
    "systemctl status outbox-bridge": "needs systemd: e2e/test_deploy_unit.py has it read the unit",
    "systemctl status": "needs systemd",
}
"""Not run by a test, and why."""

_ran: list[str] = []


def note(text: str) -> None:
    """A printed text is run by the present test, as it was printed: before its placeholders are filled in."""
    _ran.extend(_lines_of(text))


def _lines_of(text: str) -> Iterator[str]:
    """The lines that a text has for a shell or psql, without what is said behind them: the whole, its statements, and
    the commands before and behind a pipe."""
    bare = re.sub(r"   \(.*|\s+-- .*|\s{2,}#.*", "", text, flags=re.MULTILINE)
    whole = " ".join(bare.split()).rstrip("; ")
    for part in (whole, *re.split(r"; ?| \| | && ", whole)):
        yield part.removesuffix(" ...")
        yield part.removeprefix("sudo ").removeprefix("outbox-")


def not_here(*templates: str) -> None:
    """This server has no such thing, so that nothing is printed of it."""
    _ran.extend(templates)


def begin() -> None:
    """A test begins: nothing was run by it."""
    _ran.clear()


def missing(nodeid: str) -> Sequence[str]:
    """The fixes that this test should have run and has not. A name in RUN is of every variant of a test, or of one."""
    path = nodeid.removeprefix("tests/")
    names = (path, path.partition("[")[0])
    return [
        one
        for one, test in RUN.items()
        if test in names and not any(_pattern(one).fullmatch(text) for text in _ran)
    ]


def line_in(text: str, begins: str) -> str:
    """The command line that begins so, out of a sentence that was printed; to where the sentence goes on."""
    found = re.search(re.escape(begins) + r"""[^;,:()\n"`\\]*?(?=\s*(?:[;,:()\n"`\\]|   |$))""", text)
    assert found, f"no {begins!r} in {text!r}"
    return found[0]


def _pattern(template: str) -> re.Pattern[str]:
    """What is printed from a template of printed.typed(), where `x` stands for what is filled in: one word of a
    command, whatever SQL has there."""
    first, *more = re.split(r"(?<![a-z])x+(?![a-z0-9])|24h", template)
    pattern, sql = re.escape(first), re.match(SQL_VERBS, template)
    for before, part in zip((first, *more), more, strict=False):
        quoted = r"[^'\"]*" if before.endswith(("'", '"')) else r"(?:\S+|\"[^\"]*\"|'[^']*')"
        pattern += (".+?" if sql else quoted) + re.escape(part)
    return re.compile(pattern)
