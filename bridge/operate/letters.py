"""The dead letters that a person means, in every ledger of a configuration; and what is done to them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from bridge.errors import BridgeError, ConfigError
from bridge.operate.audit import Actor, need_audit, record

if TYPE_CHECKING:
    import psycopg

    from bridge.config.model import Config
    from bridge.postgres.dead_letters import Choice, Group
    from bridge.repair.dead import RetryOutcome
    from bridge.stream.spec import StreamSpec

Ledgers = Sequence[tuple["StreamSpec", "psycopg.Connection[Any]"]]

_DONE = {"discard": "discarded", "restore": "restored"}


@contextmanager
def ledgers(config: Config, command: str, *, writes: bool = False) -> Iterator[Ledgers]:
    """Each stream with a connection to its target; errors of statements as BridgeErrors."""
    from bridge.operate.connect import connect_ledger, target_errors  # noqa: PLC0415  (loads psycopg)
    from bridge.plans import stream_plans  # noqa: PLC0415

    with ExitStack() as stack:
        stack.enter_context(target_errors(command))
        yield [
            (plan, stack.enter_context(connect_ledger(plan, command, writes=writes)))
            for plan in stream_plans(config)
        ]


def check_words(found: Ledgers, choice: Choice) -> None:
    """Nothing matches: raise an error if a word of the selection is a name that means nothing, or nearly is one that
    would match."""
    from bridge.operate.names import check_cause, check_name, check_pipeline  # noqa: PLC0415
    from bridge.postgres.dead_letters import known  # noqa: PLC0415  (loads psycopg)

    kept = [row for plan, connection in found for row in known(connection, plan.stream)]
    plans = [plan for plan, _ in found]
    check_pipeline(plans, choice.pipeline, {row.pipeline for row in kept})
    if choice.destination is not None:
        units = {(one.name, name) for plan in plans for one in plan.pipelines for name in one.destinations}
        units |= {(row.pipeline, row.destination) for row in kept}
        names = {name for pipeline, name in units if choice.pipeline in (None, pipeline)}
        where = "" if choice.pipeline is None else f" in pipeline {choice.pipeline}"
        check_name("destination", choice.destination, names, where)
    if choice.cause is not None:
        here = {row.code for row in kept if row.state == choice.state}
        state = "open" if choice.state == "open" else "discarded"
        check_cause(f"no {state} dead letter has the code", choice.cause, here, {row.code for row in kept})
    for each in choice.ids:
        if not any(one.startswith(each) for row in kept for one in row.ids):
            raise BridgeError(f"there is no dead letter {each}", hint="bridge dead list")


def grouped(config: Config, choice: Choice) -> list[tuple[StreamSpec, Group]]:
    """Dead letters by cause, the most frequent of each stream first."""
    from bridge.postgres.dead_letters import groups  # noqa: PLC0415  (loads psycopg)

    with ledgers(config, "dead list") as every:
        found = [(plan, one) for plan, connection in every for one in groups(connection, plan.stream, choice)]
        if not found:
            check_words(every, choice)
    return found


def shown(config: Config, letter_id: str) -> dict[str, Any]:
    """One dead letter with its event, including values. letter_id: complete, or its first characters."""
    from bridge.postgres.dead_letters import show  # noqa: PLC0415  (loads psycopg)
    from bridge.postgres.stored import opened  # noqa: PLC0415

    with ledgers(config, "dead show") as every:
        found = next(
            (
                {"source": plan.source, **row}
                for plan, connection in every
                if (row := show(connection, [plan.stream], letter_id.lower())) is not None
            ),
            None,
        )
    if found is None:
        raise BridgeError(f"there is no dead letter {letter_id}", hint="bridge dead list")
    raw = found.pop("raw")
    if raw is not None:
        found["payload"] = bytes(raw).decode(errors="backslashreplace")
    if found["message"] is not None and (inner := opened(json.loads(found["message"]))) is not None:
        found["message"] = inner.decode()
    return found


@dataclass(slots=True)
class Retried:
    """sources: of each dead letter that was chosen."""

    outcomes: list[RetryOutcome] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)


def retry(
    config: Config,
    choice: Choice,
    actor: Actor,
    *,
    dry_run: bool = False,
    force: bool = False,
    as_sent: bool = False,
    wait: float = 0.0,
) -> Retried:
    """Apply them again, each exactly once. wait: seconds for the second result of messages. Raises ConfigError where
    none is chosen and a name means nothing."""
    from bridge.postgres.dead_letters import choose  # noqa: PLC0415
    from bridge.repair.dead import DeadLetterRetry  # noqa: PLC0415  (loads psycopg)
    from bridge.repair.messages import settled  # noqa: PLC0415

    done = Retried()
    with ledgers(config, "dead retry", writes=True) as every:
        for plan, connection in every:
            chosen = choose(connection, plan.stream, choice)
            done.sources |= dict.fromkeys(chosen, plan.source)
            if not chosen:
                continue
            if not dry_run:
                need_audit(connection, actor, "dead retry")
            with DeadLetterRetry(plan, force=force, dry_run=dry_run, as_sent=as_sent) as retrying:
                these = list(retrying.retry(chosen))
            if dry_run:
                done.outcomes += these
                continue
            these = settled(connection, plan.stream, these, wait)
            done.outcomes += these
            subject = {"force": True} if force else {}
            record(
                connection, actor, "dead retry", plan.stream, ids=chosen, subject=subject, result=_said(these)
            )
        if not done.outcomes:
            check_words(every, choice)
    return done


def _said(outcomes: Sequence[RetryOutcome]) -> str:
    from collections import Counter  # noqa: PLC0415

    counts = Counter(one.result for one in outcomes)
    return ", ".join(f"{count} {result}" for result, count in counts.most_common())


def settle(
    config: Config,
    word: Literal["discard", "restore"],
    choice: Choice,
    actor: Actor,
    *,
    dry_run: bool = False,
) -> tuple[list[str], int]:
    """Discard or restore the chosen; their ids, and how many were changed."""
    from bridge.postgres import dead_letters  # noqa: PLC0415  (loads psycopg)

    command, done = f"dead {word}", _DONE[word]
    act = dead_letters.discard if word == "discard" else dead_letters.restore
    note = f"{done} by {actor.who}{f': {actor.reason}' if actor.reason else ''}"
    chosen: list[str] = []
    changed = 0
    with ledgers(config, command, writes=True) as every:
        for plan, connection in every:
            these = dead_letters.choose(connection, plan.stream, choice)
            chosen += these
            if these and not dry_run:
                need_audit(connection, actor, command)
                with connection.transaction():
                    here = act(connection, these, note)
                    record(connection, actor, command, plan.stream, ids=these, result=f"{here} {done}")
                changed += here
        if not chosen:
            check_words(every, choice)
    return chosen, changed


# --- a payload that a person corrects -------------------------------------------------------------------


def corrected(text: str) -> bytes:
    """A payload as a person typed it. Raises ConfigError with the position, never the text."""
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"the payload is not JSON: {error.msg} at line {error.lineno} column {error.colno}"
        ) from None
    except (RecursionError, ValueError):
        raise ConfigError("the payload is nested too deeply, or a number is too long") from None
    if not isinstance(document, dict):
        raise ConfigError('the payload must be an object such as {"name": "value"}')
    return text.encode()


def preview(config: Config, letter_id: str, payload: str | None) -> dict[str, Any]:
    """What a retry would do, rolled back: `result`, `code`, `why`, and what it `becomes`: the columns or the message of
    each destination. payload: in the place of the event's."""
    from bridge.planning.plan import arrange  # noqa: PLC0415
    from bridge.repair.dead import DeadLetterRetry  # noqa: PLC0415  (loads psycopg)

    sent = None if payload is None else corrected(payload)
    with ledgers(config, "dead retry", writes=True) as every:
        plan, _, row = _found(every, letter_id)
        with DeadLetterRetry(plan, dry_run=True, payload=sent) as retrying:
            [outcome] = retrying.retry([row["id"]])
            planned = retrying.planned
    becomes: dict[str, Any] = {}
    for write in arrange(planned.writes):
        texts = [column[0] for column in write.columns]
        values = [None if text is None else text.decode() for text in texts]
        becomes["/".join(write.unit)] = dict(zip(write.names, values, strict=True))
    for delivery in planned.deliveries:
        becomes[f"{delivery.pipeline}/{delivery.destination}"] = json.loads(delivery.body)
    for publication in planned.publications:
        becomes[f"{publication.pipeline}/{publication.destination}"] = publication.shown()
    return {"result": outcome.result, "code": outcome.code, "why": outcome.why, "becomes": becomes}


def edit(config: Config, letter_id: str, payload: str | None, actor: Actor) -> str:
    """Keep a corrected payload, which retries use from now on; None: use what was sent again. Returns the letter's id.
    Raises BridgeError if it is not open."""
    from bridge.postgres import dead_letters  # noqa: PLC0415  (loads psycopg)

    if payload is not None:
        corrected(payload)
    action = "dead edit" if payload is not None else "dead undo edit"
    with ledgers(config, action, writes=True) as every:
        plan, connection, row = _found(every, letter_id)
        need_audit(connection, actor, action)
        by = f"{'edited' if payload is not None else 'edit undone'} by {actor.who}"
        note = by + (f": {actor.reason}" if actor.reason else "")
        with connection.transaction():
            if not dead_letters.edit(connection, row["id"], payload, note):
                raise BridgeError(
                    f"dead letter {row['id']} is {row['state']}", hint="only one that is open is edited"
                )
            record(connection, actor, action, plan.stream, ids=[row["id"]], result="kept")
    return str(row["id"])


def _found(every: Ledgers, letter_id: str) -> tuple[StreamSpec, psycopg.Connection[Any], dict[str, Any]]:
    from bridge.postgres.dead_letters import show  # noqa: PLC0415  (loads psycopg)

    for plan, connection in every:
        if (row := show(connection, [plan.stream], letter_id.lower())) is not None:
            return plan, connection, row
    raise BridgeError(f"there is no dead letter {letter_id}", hint="bridge dead list")
