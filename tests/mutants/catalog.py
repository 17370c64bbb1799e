"""Every mutant: what is wrong with it, the text that makes it so, and the tests that must fail by an assertion."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PROTOCOL = "bridge/protocol/session.py"
PREFLIGHT = "bridge/protocol/preflight.py"
LEDGER = "bridge/postgres/ledger.py"
TRANSACTION = "bridge/stream/transaction.py"
SAVEPOINT = "bridge/stream/refusal.py"
FOLD = "bridge/planning/plan.py"

WALKS = "tests/model/test_walks.py"
FOLDING = "tests/unit/pipeline/test_fold.py"


def focused(name: str) -> str:
    """Walks in which what this mutant needs happens often."""
    return f"tests/mutants/test_focused_walks.py::test_walks_hold_where_this_is_likely[{name}]"


def quick(name: str) -> str:
    return f"tests/mutants/test_pure.py::{name}"


def real(name: str) -> str:
    return f"tests/mutants/test_on_servers.py::{name}"


@dataclass(frozen=True, slots=True)
class Edit:
    """Replace a text that stands in the file exactly once."""

    file: str
    old: str
    new: str

    def apply(self, root: Path) -> None:
        path = root / self.file
        text = path.read_text()
        found = text.count(self.old)
        if found != 1:
            raise LookupError(f"{self.file} has {found} times, not once:\n{self.old}")
        path.write_text(text.replace(self.old, self.new))


@dataclass(frozen=True, slots=True)
class Mutant:
    name: str
    wrong: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]


MUTANTS = (
    Mutant(
        "acknowledge-before-commit",
        "the slot is told of a batch that was sent, not of one that is durable",
        (
            Edit(
                PROTOCOL,
                "        return not batch.whole\n\n    def look_at_source",
                "        if batch.whole:\n"
                "            yield from ask(to.Confirm(batch.end_lsn))\n"
                "        return not batch.whole\n\n    def look_at_source",
            ),
        ),
        (WALKS,),
    ),
    Mutant(
        "ledger-in-its-own-transaction",
        "effects commit first, the ledger afterwards",
        (
            Edit(
                PROTOCOL,
                "        yield from ask(to.Apply(batch, self.ledger, after, list_as=list_as, thin=thin))\n"
                "        if batch.whole:\n"
                "            self.sent = after\n",
                "        yield from ask(to.Apply(batch, self.ledger, self.ledger))\n"
                "        if batch.whole:\n"
                "            yield from ask(to.Settle())\n"
                "            yield from self.save(after, thin=thin)\n",
            ),
        ),
        (WALKS,),
    ),
    Mutant(
        "acknowledge-every-keepalive",
        "what was received is confirmed, durable or not",
        (Edit(PROTOCOL, "return min(self.ledger.safe_lsn, verified)", "return verified"),),
        (WALKS,),
    ),
    Mutant(
        "commit-lsn-for-end-lsn",
        "the position of a transaction is where its commit record begins",
        (
            Edit(
                "bridge/stream/decode.py",
                "_, _, end, clock = _COMMIT(data, _HEADER + 1)",
                "_, end, _, clock = _COMMIT(data, _HEADER + 1)",
            ),
        ),
        (quick("test_a_transactions_position_is_just_behind_its_commit_record"),),
    ),
    Mutant(
        "no-epoch",
        "whoever knows the position may write",
        (
            Edit(
                LEDGER,
                "stream = $1 and epoch = $2::bigint and session = $3::uuid and",
                "stream = $1 and $2::bigint is not null and $3::uuid is not null and",
            ),
        ),
        (real("test_a_bridge_that_was_taken_over_writes_nothing_more"),),
    ),
    Mutant(
        "no-row-lock-on-unknown-commit",
        "the fence reads the row as it was before the commit whose answer was lost",
        (
            Edit(
                LEDGER,
                '    f"update bridge.checkpoint set epoch = epoch + 1, session = $2::uuid, updated_at = now()"\n'
                '    f" where stream = $1 returning {_COLUMNS}"\n',
                '    f"with old as materialized (select * from bridge.checkpoint where stream = $1),"\n'
                '    f" taken as (update bridge.checkpoint set epoch = epoch + 1, session = $2::uuid,"\n'
                '    f" updated_at = now() where stream = $1 returning 1)"\n'
                "    f\" select {_COLUMNS.replace(' epoch,', ' epoch + 1,').replace('session::text', '$2::text')}\"\n"
                '    f" from old, taken"\n',
            ),
        ),
        (real("test_the_fence_waits_for_a_commit_in_flight_and_reads_what_it_wrote"),),
    ),
    Mutant(
        "synchronous-commit-off",
        "a commit is answered before it is flushed",
        (Edit("bridge/postgres/target.py", '"synchronous_commit": "on"', '"synchronous_commit": "off"'),),
        (real("test_a_commit_is_durable_whatever_the_role_is_set_to"),),
    ),
    Mutant(
        "id-greater-than-cursor",
        "polling goes on behind the greatest seq that it has read",
        (
            Edit(
                "bridge/postgres/outbox.py",
                "({xid} >= %(xmax)s::xid8 or {xid} = any(%(xip)s::xid8[]))",
                "{seq} > coalesce((select max(seq) from outbox.event where xid < %(xmax)s::xid8"
                " and not xid = any(%(xip)s::xid8[])), 0)",
            ),
        ),
        (real("test_a_lower_seq_that_commits_later_is_read"),),
    ),
    Mutant(
        "greater-of-two-positions",
        "a new slot's position counts only where it is greater than the old slot's",
        (
            Edit(
                PROTOCOL,
                "after = replace(after, applied_lsn=goal.lsn, safe_lsn=goal.lsn)",
                "after = replace(after, applied_lsn=max(now.applied_lsn, goal.lsn),"
                " safe_lsn=max(now.safe_lsn, goal.lsn))",
            ),
            Edit(
                PREFLIGHT,
                "ledger = replace(ledger, applied_lsn=switch, safe_lsn=switch, witness_id=None, witness_xid=None)",
                "ledger = replace(ledger, witness_id=None, witness_xid=None)",
            ),
        ),
        (focused("keeps_the_greater_of_two_positions"),),
    ),
    Mutant(
        "no-future-lsn-check",
        "a source whose WAL ends before what was applied is streamed from",
        (Edit(PREFLIGHT, "elif source.flush_lsn < reached:", "elif source.flush_lsn < 0:"),),
        (quick("test_a_source_whose_wal_ends_before_what_was_applied_halts"),),
    ),
    Mutant(
        "no-slot-ahead-of-ledger-check",
        "a slot that somebody has advanced is streamed from",
        (
            Edit(
                PREFLIGHT,
                "slot is not None and slot.confirmed_flush > (goal if from_table else ledger.safe_lsn),",
                "goal < 0,",
            ),
            Edit(
                PROTOCOL,
                "if slot is None or slot.confirmed_flush > self.ledger.safe_lsn:",
                "if slot is None:",
            ),
        ),
        (focused("does_not_compare_slot_and_ledger"),),
    ),
    Mutant(
        "dead-letter-outside-the-transaction",
        "the batch commits, then its dead letters are written",
        (
            Edit(
                SAVEPOINT,
                "    prepared.dead = _dead_letters(run, planned.writes)\n",
                "    prepared.dead = _dead_letters(run, planned.writes)\n"
                "    run([IMMEDIATE, Statement(b'commit'), Statement(b'begin')])\n",
            ),
        ),
        (real("test_killed_before_the_commit_of_a_bisected_batch_no_unit_is_nowhere"),),
    ),
    Mutant(
        "half-applied-batch-retried",
        "what succeeded before the refusal stays, and is applied again",
        (
            Edit(
                SAVEPOINT,
                "        run([_SAVE_PART, *statements, IMMEDIATE, DEFERRED, _RELEASE_PART])\n",
                "        for one in statements:\n"
                "            run([_SAVE_PART, one, IMMEDIATE, DEFERRED, _RELEASE_PART])\n",
            ),
        ),
        (real("test_a_batch_refused_half_way_is_applied_once"),),
    ),
    Mutant(
        "no-fold-within-a-batch",
        "a key stands twice in one statement",
        (Edit(FOLD, "    if not cut:\n", "    if cut is not None:\n"),),
        (FOLDING,),
    ),
    Mutant(
        "idle-acknowledgement-without-publication-check",
        "positions are confirmed though the publication was changed",
        (Edit(PROTOCOL, "if seen.publication != self.ledger.publication:", "if seen.publication is None:"),),
        (focused("idles_without_a_publication_check"),),
    ),
    Mutant(
        "empty-commits-past-buffered-work",
        "a keepalive's position counts though transactions before it wait to be handed out",
        (
            Edit(
                "bridge/stream/decode.py",
                "return not (self.inside or self.ready or self._batch.xids)",
                "return not self.inside",
            ),
        ),
        (quick("test_a_keepalives_position_covers_nothing_that_waits_to_be_handed_out"),),
    ),
    Mutant(
        "floor-raised-before-l-is-received",
        "the floor rises to a snapshot whose transactions are not all received",
        (
            Edit(
                PROTOCOL,
                "if raised is not None and verified < raised.insert_lsn:",
                "if raised is not None and verified < 0:",
            ),
        ),
        (WALKS,),
    ),
    Mutant(
        "applied-emptied-instead-of-thinned",
        "a new floor takes all of `applied`, what it does not show as well",
        (
            Edit(
                LEDGER,
                '    b"delete from bridge.applied where stream = $1 and not exists"\n'
                '    b" (select from unnest(xids) as x where not pg_visible_in_snapshot(x, $2::pg_snapshot))"\n',
                '    b"delete from bridge.applied where stream = $1 and $2::pg_snapshot is not null"\n',
            ),
        ),
        (real("test_a_new_floor_takes_out_of_applied_only_what_it_shows"),),
    ),
    Mutant(
        "next-abandoned-half-read",
        "a session that finds a goal half read begins another",
        (
            Edit(
                PROTOCOL,
                '        slot_good = reason == "catchup"',
                "        slot_good = False\n"
                "        if self.ledger.next is not None:\n"
                "            yield from self.save(replace(self.ledger, next=None))",
            ),
        ),
        (WALKS,),
    ),
    Mutant(
        "next-read-while-it-shows-a-running-xid",
        "a slot's snapshot is read from the table before all that it shows can be seen",
        (
            Edit(
                PROTOCOL,
                "while goal.from_slot and (yield from ask(to.StillRunning(goal.snapshot))):",
                "while goal.seq < 0:",
            ),
        ),
        (focused("reads_a_goal_that_shows_a_running_xid"),),
    ),
    Mutant(
        "publication-checked-by-existence-only",
        "one that was dropped and made again is taken for the same",
        (
            Edit(
                "bridge/postgres/source.py",
                "concat_ws(' ', p.oid || ':' || p.xmin,",
                "left(concat_ws(' ', p.oid || ':' || p.xmin,",
            ),
            Edit(
                "bridge/postgres/source.py",
                "            to_regclass(%(table)s)::oid::text)\n",
                "            to_regclass(%(table)s)::oid::text), 0)\n",
            ),
        ),
        (real("test_a_publication_that_was_away_is_another_one"),),
    ),
    Mutant(
        "no-witness",
        "nobody looks whether the last applied event is still in the outbox",
        (
            Edit(
                PREFLIGHT,
                "if not source.witness_present and not _pruned_since(ledger.witness_xid, source.pruned):",
                "if source.flush_lsn < 0:",
            ),
        ),
        (focused("asks_for_no_witness"),),
    ),
    Mutant(
        "fold-per-plan-instead-of-per-table",
        "two plans that write one table are each in order, and not with each other",
        (
            Edit(
                FOLD,
                "    tables: dict[tuple[str, str], list[int]] = {}\n",
                "    tables: dict[tuple[str, int], list[int]] = {}\n",
            ),
            Edit(
                FOLD,
                "tables.setdefault((write.shape.schema, write.shape.table), []).append(number)",
                "tables.setdefault((write.shape.schema, number), []).append(number)",
            ),
        ),
        (FOLDING,),
    ),
    Mutant(
        "an-entity-by-whoever-writes-last",
        "an event that is applied again, or late, writes over what a newer one said of an entity",
        (
            Edit(
                "bridge/postgres/entities.py",
                "where (excluded.seqs ->> newer.name)::bigint > coalesce(",
                "where (excluded.seqs ->> newer.name)::bigint <> coalesce(",
            ),
            Edit(
                "bridge/postgres/entities.py",
                "where newer.seq::bigint > coalesce((kept.seqs ->> newer.name)::bigint, 0))",
                "where newer.seq <> '')",
            ),
        ),
        (
            "tests/integration/ops/test_entities.py::"
            "test_the_database_merges_as_the_planner_does_whatever_the_order_and_however_often",
        ),
    ),
)
