"""Every mutant: what is wrong with it, the edits that make it so, and the tests that must fail by an assertion."""

from __future__ import annotations

from dataclasses import dataclass

from tests.mutants.edits import Code, Edit, Module, Modules, Sql, apply

WALKS = "tests/model/test_walks.py"
FOLDING = "tests/unit/pipeline/test_fold.py"


def focused(name: str) -> str:
    """Walks in which what this mutant needs happens often."""
    return f"tests/mutants/test_focused_walks.py::test_walks_hold_where_this_is_likely[{name}]"


def quick(name: str) -> str:
    return f"tests/mutants/test_pure.py::{name}"


def real(name: str) -> str:
    return f"tests/mutants/test_on_servers.py::{name}"


def at_sinks(name: str) -> str:
    return f"tests/mutants/test_on_sinks.py::{name}"


def at_target(name: str) -> str:
    return f"tests/mutants/test_on_target.py::{name}"


def at_nats(name: str) -> str:
    return f"tests/integration/bus/test_published.py::{name}"


@dataclass(frozen=True, slots=True)
class Mutant:
    name: str
    wrong: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]

    def apply(self, modules: Modules) -> dict[str, Module]:
        """The modules with this mutant. Raises NotOnePlace."""
        changed = dict(modules)
        for edit in self.edits:
            changed = apply(edit, changed)
        return changed


MUTANTS = (
    Mutant(
        "acknowledge-before-commit",
        "the slot is told of a batch that was sent, not of one that is durable",
        (
            Code(
                "return not $BATCH.whole",
                """
if $BATCH.whole:
    yield from ask(to.Confirm($BATCH.end_lsn))
return not $BATCH.whole
""",
            ),
        ),
        (WALKS,),
    ),
    Mutant(
        "ledger-in-its-own-transaction",
        "effects commit first, the ledger afterwards",
        (
            Code(
                """
yield from ask(to.Apply($BATCH, self.ledger, $AFTER, list_as=$LIST, thin=$THIN))
if $BATCH.whole:
    self.sent = $AFTER
""",
                """
yield from ask(to.Apply($BATCH, self.ledger, self.ledger))
if $BATCH.whole:
    yield from ask(to.Settle())
    yield from self.save($AFTER, thin=$THIN)
""",
            ),
        ),
        (WALKS,),
    ),
    Mutant(
        "acknowledge-every-keepalive",
        "what was received is confirmed, durable or not",
        (Code("min(self.ledger.safe_lsn, $VERIFIED)", "$VERIFIED"),),
        (WALKS,),
    ),
    Mutant(
        "commit-lsn-for-end-lsn",
        "the position of a transaction is where its commit record begins",
        (Code("_, _, $END, $CLOCK = $UNPACK($DATA, $AT)", "_, $END, _, $CLOCK = $UNPACK($DATA, $AT)"),),
        (quick("test_a_transactions_position_is_just_behind_its_commit_record"),),
    ),
    Mutant(
        "no-epoch",
        "whoever knows the position may write",
        (
            Sql(
                "epoch = $2::bigint and session = $3::uuid and",
                "$2::bigint is not null and $3::uuid is not null and",
            ),
        ),
        (real("test_a_bridge_that_was_taken_over_writes_nothing_more"),),
    ),
    Mutant(
        "no-row-lock-on-unknown-commit",
        "the fence reads the row as it was before the commit whose answer was lost",
        (
            Sql(
                "update bridge.checkpoint set epoch = epoch + 1, session = $2::uuid, updated_at = now()"
                " where stream = $1 and coalesce(system_identifier, $3) = $3"
                " and coalesce(source_database_oid, $4::oid) = $4::oid returning {}",
                "with old as materialized (select * from bridge.checkpoint where stream = $1),"
                " taken as (update bridge.checkpoint set epoch = epoch + 1, session = $2::uuid, updated_at = now()"
                " where stream = $1 and coalesce(system_identifier, $3) = $3"
                " and coalesce(source_database_oid, $4::oid) = $4::oid returning 1),"
                " read as (select (jsonb_populate_record(null::bridge.checkpoint, to_jsonb(old) || jsonb_build_object("
                "'epoch', epoch + 1, 'session', $2::uuid))).* from old, taken)"
                " select {} from read",
            ),
        ),
        (real("test_the_fence_waits_for_a_commit_in_flight_and_reads_what_it_wrote"),),
    ),
    Mutant(
        "synchronous-commit-off",
        "a commit is answered before it is flushed",
        (Code('("synchronous_commit", "on")', '("synchronous_commit", "off")'),),
        (real("test_a_commit_is_durable_whatever_the_role_is_set_to"),),
    ),
    Mutant(
        "id-greater-than-cursor",
        "polling goes on behind the greatest seq that it has read",
        (
            Sql(
                "{beyond_floor} and not pg_visible_in_snapshot({placed}, %(floor)s::pg_snapshot)"
                " and pg_visible_in_snapshot({placed}, %(upto)s",
                "{seq} > coalesce((select max(seq) from outbox.event where xid < %(xmax)s::xid8"
                " and not xid = any(%(xip)s::xid8[])), 0) and pg_visible_in_snapshot({placed}, %(upto)s",
            ),
        ),
        (real("test_a_lower_seq_that_commits_later_is_read"),),
    ),
    Mutant(
        "greater-of-two-positions",
        "a new slot's position counts only where it is greater than the old slot's",
        (
            Code(
                "replace($NOW, applied_lsn=$GOAL.lsn, safe_lsn=$GOAL.lsn)",
                "replace($NOW, applied_lsn=max($NOW.applied_lsn, $GOAL.lsn), safe_lsn=max($NOW.safe_lsn, $GOAL.lsn))",
            ),
            Code(
                "replace($NOW, applied_lsn=$SWITCH, safe_lsn=$SWITCH, witness_id=None, witness_xid=None)",
                "replace($NOW, witness_id=None, witness_xid=None)",
            ),
        ),
        (focused("keeps_the_greater_of_two_positions"),),
    ),
    Mutant(
        "no-future-lsn-check",
        "a source whose WAL ends before what was applied is streamed from",
        (Code("$SOURCE.flush_lsn < $REACHED", "False"),),
        (quick("test_a_source_whose_wal_ends_before_what_was_applied_halts"),),
    ),
    Mutant(
        "no-slot-ahead-of-ledger-check",
        "a slot that somebody has advanced is streamed from",
        (
            Code("$SLOT is not None and $SLOT.confirmed_flush > $GOAL", "False"),
            Code("$SLOT is None or $SLOT.confirmed_flush > $LIFE.ledger.safe_lsn", "$SLOT is None"),
        ),
        (focused("does_not_compare_slot_and_ledger"),),
    ),
    Mutant(
        "dead-letter-outside-the-transaction",
        "the batch commits, then its dead letters are written",
        (
            Code(
                "$BATCH.dead = $BISECTED",
                """
$BATCH.dead = $BISECTED
$RUN([IMMEDIATE, Statement(b"commit"), Statement(b"begin")])
""",
                given="$RUN([ROLLBACK])",
            ),
        ),
        (real("test_killed_before_the_commit_of_a_bisected_batch_no_unit_is_nowhere"),),
    ),
    Mutant(
        "half-applied-batch-retried",
        "what succeeded before the refusal stays, and is applied again",
        (
            Code(
                "$RUN([$SAVE, *$STATEMENTS, *(_JUDGED if $JUDGED else ()), $RELEASE])",
                """
for one in $STATEMENTS:
    $RUN([$SAVE, one, *(_JUDGED if $JUDGED else ()), $RELEASE])
""",
            ),
        ),
        (real("test_a_batch_refused_half_way_is_applied_once"),),
    ),
    Mutant(
        "no-fold-within-a-batch",
        "a key stands twice in one statement",
        (Code("if not $CUT: return $WRITES", "return $WRITES", inside="arrange"),),
        (FOLDING,),
    ),
    Mutant(
        "idle-acknowledgement-without-publication-check",
        "positions are confirmed though the publication was changed",
        (Code("$SEEN.publication != self.ledger.publication", "$SEEN.publication is None"),),
        (focused("idles_without_a_publication_check"),),
    ),
    Mutant(
        "empty-commits-past-buffered-work",
        "a keepalive's position counts though transactions before it wait to be handed out",
        (Code("not (self.inside or self.ready or $WAITING)", "not self.inside"),),
        (quick("test_a_keepalives_position_covers_nothing_that_waits_to_be_handed_out"),),
    ),
    Mutant(
        "floor-raised-before-l-is-received",
        "the floor rises to a snapshot whose transactions are not all received",
        (Code("$RAISED is not None and $VERIFIED < $RAISED.insert_lsn", "False"),),
        (WALKS,),
    ),
    Mutant(
        "applied-emptied-instead-of-thinned",
        "a new floor takes all of `applied`, what it does not show as well",
        (
            Sql(
                "and not exists"
                " (select from unnest(xids) as x where not pg_visible_in_snapshot(x, $2::pg_snapshot))",
                "and $2::pg_snapshot is not null",
            ),
        ),
        (real("test_a_new_floor_takes_out_of_applied_only_what_it_shows"),),
    ),
    Mutant(
        "next-abandoned-half-read",
        "a session that finds a goal half read begins another",
        (
            Code(
                '$GOOD = $REASON == "catchup"',
                """
$GOOD = False
if self.ledger.next is not None:
    yield from self.save(replace(self.ledger, next=None))
""",
            ),
        ),
        (WALKS,),
    ),
    Mutant(
        "next-read-while-it-shows-a-running-xid",
        "a slot's snapshot is read from the table before all that it shows can be seen",
        (Code("$GOAL.from_slot and (yield from ask(to.StillRunning(...)))", "False"),),
        (focused("reads_a_goal_that_shows_a_running_xid"),),
    ),
    Mutant(
        "publication-checked-by-existence-only",
        "one that was dropped and made again is taken for the same",
        (
            Sql("concat_ws(' ', p.oid", "left(concat_ws(' ', p.oid"),
            Sql(
                ") from pg_catalog.pg_publication p where p.pubname = %(publication)s and p.pubinsert",
                "), 0) from pg_catalog.pg_publication p where p.pubname = %(publication)s and p.pubinsert",
            ),
        ),
        (real("test_a_publication_that_was_away_is_another_one"),),
    ),
    Mutant(
        "no-witness",
        "nobody looks whether the last applied event is still in the outbox",
        (Code("$SOURCE.witness_present or $NOT_PRUNED", "True"),),
        (focused("asks_for_no_witness"),),
    ),
    Mutant(
        "fold-per-plan-instead-of-per-table",
        "two plans that write one table are each in order, and not with each other",
        (
            Code(
                "$TABLES.setdefault(($WRITE.shape.schema, $WRITE.shape.table), []).append($NUMBER)",
                "$TABLES.setdefault(($WRITE.shape.schema, $NUMBER), []).append($NUMBER)",
            ),
        ),
        (FOLDING,),
    ),
    Mutant(
        "an-entity-by-whoever-writes-last",
        "an event that is applied again, or late, writes over what a newer one said of an entity",
        (
            Sql(
                "where (excluded.seqs ->> newer.name)::bigint > coalesce(",
                "where (excluded.seqs ->> newer.name)::bigint <> coalesce(",
            ),
            Sql(
                "where newer.seq::bigint > coalesce((kept.seqs ->> newer.name)::bigint, 0))",
                "where newer.seq <> '')",
            ),
        ),
        (
            "tests/integration/ops/test_entities.py::"
            "test_the_database_merges_entities_as_the_planner_does_in_any_order",
        ),
    ),
    Mutant(
        "believes-the-xid-of-a-row",
        "a streamed row counts as applied by what its column says, not by the transaction that brings it",
        (Code("$XID is not None and int($XID) & $LOW == self._open_xid", "$XID is not None"),),
        ("tests/unit/test_pgoutput.py::test_a_row_with_another_xid_than_its_transaction_is_told_apart",),
    ),
    Mutant(
        "a-moved-row-by-its-xid-alone",
        "in a partitioned outbox every row that an update may have moved is passed over, applied or not",
        (Code("not ($MAY and $ROW.xid and $DONE.has($ROW))", "not $MAY"),),
        (focused("passes_over_every_stray_of_a_partitioned_outbox"),),
    ),
    Mutant(
        "strangers-are-read-over",
        "a row that no snapshot can place is passed over by catch-up and polling",
        (Code("raise foreign_xids($ROWS.foreign)", "return replace($ROWS, more=False)"),),
        (focused("reads_a_table_that_has_strangers"),),
    ),
    # One event never stops a stream.
    Mutant(
        "structure-by-its-code",
        "a code that speaks of structure halts, though neighbours pass the same statement",
        (
            Code(
                "$UNIT not in $PASSED and may_be_structure($REFUSED) and not _by_value($REFUSED)",
                "may_be_structure($REFUSED)",
            ),
        ),
        (at_target("test_what_one_event_fails_with_while_others_pass_is_its_own"),),
    ),
    Mutant(
        "an-internal-error-is-retried",
        "what an extension reports for a bad value counts as a fault of the server that passes",
        (Code("$REFUSED.sqlstate == INTERNAL and $FLIGHT.tries > 1", "False"),),
        (at_target("test_what_one_event_fails_with_while_others_pass_is_its_own"),),
    ),
    Mutant(
        "letters-only-as-they-are",
        "a dead letter that the database's encoding does not hold is not escaped",
        (Code("dead_letter_statement($S, $L, escaped=$W)", "dead_letter_statement($S, $L)", inside="bury"),),
        (at_target("test_a_dead_letter_is_stored_whatever_its_event_says"),),
    ),
    # A value arrives as a plain INSERT would store it, or not at all.
    Mutant(
        "cast-with-the-modifier",
        "a text that is too long is cut",
        (Code("$COLUMN.cast or $COLUMN.type_sql", "$COLUMN.declared"),),
        (at_target("test_a_value_is_neither_cut_nor_moved_by_hours"),),
    ),
    Mutant(
        "offset-dropped",
        "a moment in a column without a zone is its local time",
        (Code('_by_way_of("timestamp", "timestamptz")', '_by_way_of("timestamp", "timestamp")'),),
        (at_target("test_a_value_is_neither_cut_nor_moved_by_hours"),),
    ),
    Mutant(
        "written-as-it-was-planned",
        "a table that was altered since is written by the casts of before",
        (Code("[unaltered_sql($SHAPE)] if $SHAPE.identity else []", "[]"),),
        (at_target("test_a_table_altered_since_it_was_planned_for_is_not_written"),),
    ),
    # What an event becomes does not depend on its neighbours.
    Mutant(
        "absent-is-null",
        "a field that an event lacks is written as null where a neighbour has it",
        (Code("$ABSENT if True in $ABSENT else None", "None", inside="Table._absent"),),
        (at_target("test_a_field_that_an_event_lacks_is_left_as_it_is_beside_any_neighbour"),),
    ),
    Mutant(
        "constraints-judged-by-part",
        "after a refusal each half of the batch must meet the deferred constraints by itself",
        (Code("self._apply($PART, judged=False)", "self._apply($PART, judged=True)"),),
        (at_target("test_an_unrelated_bad_event_does_not_part_a_child_from_its_parent"),),
    ),
    Mutant(
        "constraints-judged-by-chunk",
        "each chunk of a large transaction must meet the deferred constraints by itself",
        (
            Code(
                "self._apply_by_unit($CHUNK, judged=self._pace.judge_chunks)",
                "self._apply_by_unit($CHUNK, judged=True)",
            ),
        ),
        (at_target("test_deferred_constraints_are_judged_where_a_large_transaction_ends"),),
    ),
    Mutant(
        "a-batch-parts-a-transaction",
        "what is read from the table is cut anywhere, and a child is judged without its parent",
        (Code("$ENDS.get($EVENT.xid, $NUMBER)", "$NUMBER"),),
        ("tests/integration/test_whole_transactions.py::test_a_batch_ends_where_a_transaction_does",),
    ),
    # Ready means delivering.
    Mutant(
        "late-in-silence",
        "a batch that the target has been at for long is not told",
        (Code("self._troubled($LATE)", "$LATE"),),
        (at_target("test_a_batch_that_takes_long_is_told"),),
    ),
    Mutant(
        "the-same-batch-for-ever",
        "a batch that timed out is sent again at its size",
        (Code("self.batch.too_much($EVENTS)", "self.batch.worked()"),),
        (at_target("test_batches_shrink_until_the_target_finishes_one"),),
    ),
    # A failing recipient costs only what goes to that recipient.
    Mutant(
        "a-recipients-fault-is-the-destinations",
        "one customer's endpoint that is down or busy stops the messages to everybody",
        (Code("$NAME is not None and $OUTCOME.blame in ('recipient', 'pace')", "False"),),
        (at_sinks("test_a_recipient_that_fails_stops_no_other"),),
    ),
    Mutant(
        "a-recipient-takes-all-places",
        "messages to an endpoint that hangs are in flight until there is no place for another",
        (Code("$KNOWN.in_flight >= (1 if $KNOWN.breaker.failures else $MOST)", "False"),),
        (at_sinks("test_a_recipient_that_hangs_has_a_part_of_the_places"),),
    ),
    Mutant(
        "a-bad-address-blames-the-recipient",
        "a private address in an event opens a breaker, and the messages that name it wait instead of being told",
        (Code("replace($OUTCOME, blame='message')", "replace($OUTCOME, blame='destination')"),),
        (at_sinks("test_an_address_that_may_not_be_reached_is_the_messages_own_fault"),),
    ),
    # Sent means that the vendor took it.
    Mutant(
        "two-hundred-is-sent",
        "whatever answers 200 in Slack's place has taken the message",
        (Code("$OUTCOME.verdict != 'sent' or $SAID == 'ok'", "True"),),
        (at_sinks("test_two_hundred_is_not_sent_when_slack_did_not_take_it"),),
    ),
    Mutant(
        "a-retry-is-an-end",
        "a failure that may pass ends its message",
        (Code("$LEFT > _LAST_SECONDS and self._is_again($OUTCOME, $LEFT)", "$LEFT < 0"),),
        (at_sinks("test_every_answer_is_settled_as_the_recipient_gave_it"),),
    ),
    # The ledger never passes an event that is not in the log.
    Mutant(
        "applied-before-it-is-published",
        "a batch's transaction is sent before its messages are acknowledged",
        (Code("$P.planned.publications and self._published.settled($PLANNED, $WAIT)", "False"),),
        (at_nats("test_while_nats_is_away_nothing_is_applied_and_then_everything_is"),),
    ),
    Mutant(
        "no-answer-is-an-answer",
        "a message without an acknowledgement counts as stored",
        (Code("len($WAVE) - len($A.stored) - len($A.failed)", "0"),),
        (at_nats("test_a_server_that_answers_nothing_has_stored_nothing"),),
    ),
    Mutant(
        "a-key-twice-in-flight",
        "messages of a key do not wait for the one before",
        (Code("$DEPTH.get($ORDER, 0)", "0", inside="waves"),),
        ("tests/unit/pipeline/test_publication.py::test_no_key_is_twice_in_flight_and_each_keeps_its_order",),
    ),
    Mutant(
        "a-login-in-clear-text",
        "a server that does not offer TLS gets the login although TLS is asked for",
        (Code("self.settings.secured and ($WRITER is None or $PLAIN)", "False"),),
        ("tests/security/test_nats.py::test_no_login_is_sent_to_a_server_without_tls",),
    ),
)
