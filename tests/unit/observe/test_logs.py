"""No row value and no secret reaches a log line, whoever logs it. The canary stands for customer data."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import errors
from psycopg.pq import DiagnosticField

from bridge.errors import ConfigError, Halt
from bridge.log import Log
from bridge.observe.logs import configure, safe_error, safe_message
from bridge.postgres.safe_error import mask_secrets

CANARY = "canary-4f1b9c"


def server_error(sqlstate: str, primary: str, **fields: str) -> psycopg.Error:
    """An error as psycopg raises it: the text has message and DETAIL, the fields stand in `diag`."""
    names = {"message_primary": primary, "sqlstate": sqlstate, **fields}
    info: dict[int, bytes | None] = dict.fromkeys(DiagnosticField)
    info |= {DiagnosticField[name.upper()]: value.encode() for name, value in names.items()}
    kind = errors.lookup(sqlstate)
    return kind(f"{primary}\nDETAIL:  {fields.get('message_detail', '')}", info=info)


LEAKY = {
    "not null": server_error(
        "23502",
        'null value in column "mrr" of relation "usage" violates not-null constraint',
        message_detail=f"Failing row contains (1, {CANARY}).",
        schema_name="events",
        table_name="usage",
        column_name="mrr",
    ),
    "unique": server_error(
        "23505",
        'duplicate key value violates unique constraint "usage_pkey"',
        message_detail=f"Key (email)=({CANARY}) already exists.",
        schema_name="events",
        table_name="usage",
        constraint_name="usage_pkey",
    ),
    "integer": server_error(
        "22P02",
        f'invalid input syntax for type integer: "{CANARY}"',
        context=f"unnamed portal parameter $1 = '{CANARY}'",
    ),
    "enum": server_error("22P02", f'invalid input value for enum events.level: "{CANARY}"'),
    "date": server_error("22007", f'invalid input syntax for type timestamp with time zone: "{CANARY}"'),
    "raise": server_error(
        "P0001",
        f"customer {CANARY} is blocked",
        source_function="exec_stmt_raise",
        context="PL/pgSQL function audit.check_customer() line 4 at RAISE",
    ),
    "raise with a borrowed code": server_error(
        "42501",
        f"customer {CANARY} is blocked",
        source_function="exec_stmt_raise",
        context="PL/pgSQL function audit.check_customer() line 4 at RAISE",
    ),
    "python trigger": server_error(
        "42704", f"no such thing: {CANARY}", context='PL/Python function "check_customer"'
    ),
    "statement in a function": server_error(
        "42703",
        f'column "{CANARY}" does not exist',
        context=f"SQL statement \"insert into log values ('{CANARY}')\"\n"
        "PL/pgSQL function audit.check_customer() line 9 at EXECUTE",
    ),
    "value as a name": server_error("42P01", f'relation "{CANARY}" does not exist'),
    "client": psycopg.DataError(f"cannot send {CANARY}"),
    "ours": ValueError(f"could not convert string to float: '{CANARY}'"),
    "key": KeyError(CANARY),
    "group": ExceptionGroup(CANARY, [ValueError(CANARY)]),
}


def from_a_leaky_cause() -> BaseException:
    halt = Halt("column mrr of events.usage takes no null", reason="table_changed")
    halt.__cause__ = LEAKY["not null"]
    return halt


@pytest.fixture
def log() -> Iterator[Callable[..., io.StringIO]]:
    """Gives a configured stream; puts logging back afterwards."""
    root = logging.getLogger()
    before = root.handlers[:], root.level, sys.excepthook, threading.excepthook

    def start(level: str = "debug", as_json: bool | None = True) -> io.StringIO:
        stream = io.StringIO()
        configure(level, as_json, stream)
        return stream

    yield start
    logging.captureWarnings(False)
    root.handlers[:], root.level, sys.excepthook, threading.excepthook = before


def entries(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize("error", [*LEAKY.values(), from_a_leaky_cause()], ids=[*LEAKY, "cause"])
@pytest.mark.parametrize("as_json", [True, False], ids=["json", "terminal"])
def test_no_way_of_logging_an_error_lets_the_canary_out(
    log: Callable[..., io.StringIO], error: BaseException, as_json: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    stream = log(as_json=as_json)
    structured, plain = Log("bridge.apply"), logging.getLogger("psycopg.pool")
    structured.error("batch failed", error=error)
    structured.critical("batch failed", raised=error, stream="one")
    plain.warning("error connecting in %r: %s", "pool-1", error)
    plain.warning("named: %(error)s", {"error": error})
    plain.error("failed", exc_info=error)
    try:
        raise error  # noqa: TRY301  # so that it has a traceback
    except BaseException:
        plain.exception("batch failed")
        plain.exception("failed")
    text = stream.getvalue()
    assert CANARY not in text + "".join(capfd.readouterr())
    assert text.count("failed") == 5


def test_an_exception_that_a_task_lost_does_not_leak_through_asyncio(log: Callable[..., io.StringIO]) -> None:
    stream = log()

    async def story() -> None:
        async def fail() -> None:
            raise LEAKY["unique"]

        task = asyncio.create_task(fail())
        await asyncio.wait({task})
        del task

    asyncio.run(story())
    (entry,) = [one for one in entries(stream) if one["logger"] == "asyncio"]
    assert entry["event"] == "Task exception was never retrieved"
    assert entry["raised"]["constraint"] == "usage_pkey"
    assert CANARY not in stream.getvalue()


def test_an_exception_that_ends_a_thread_does_not_leak(
    log: Callable[..., io.StringIO], capfd: pytest.CaptureFixture[str]
) -> None:
    stream = log()

    def fail() -> None:
        raise LEAKY["integer"]

    thread = threading.Thread(target=fail, name="stream")
    thread.start()
    thread.join()
    sys.excepthook(ValueError, LEAKY["ours"], None)
    first, second = entries(stream)
    assert (first["level"], first["thread"], first["raised"]["message"]) == (
        "critical",
        "stream",
        "not a valid integer",
    )
    assert second["raised"]["error"] == "ValueError"
    assert CANARY not in stream.getvalue() + "".join(capfd.readouterr())


def test_an_object_that_json_does_not_know_is_named_not_printed(log: Callable[..., io.StringIO]) -> None:
    class Row:
        def __str__(self) -> str:
            return CANARY

        __repr__ = __str__

    stream = log()
    Log("bridge").info("odd", row=Row())
    assert entries(stream)[0]["row"] == "<Row>"


def test_an_entry_is_one_line_of_json_with_time_level_logger_and_text(
    log: Callable[..., io.StringIO],
) -> None:
    stream = log("info")
    logger = Log("bridge.apply")
    logger.info("batch applied", stream="outbox_bridge_warehouse", events=7)
    logger.debug("not at this level")
    (entry,) = entries(stream)
    assert entry.pop("time").endswith("Z")
    assert entry == {
        "level": "info",
        "logger": "bridge.apply",
        "event": "batch applied",
        "stream": "outbox_bridge_warehouse",
        "events": 7,
    }


def test_a_field_of_any_name_leaves_the_text_alone(log: Callable[..., io.StringIO]) -> None:
    stream = log()
    Log("bridge").error("halted", message="the slot is gone", reason="slot_lost")
    (entry,) = entries(stream)
    assert (entry["event"], entry["message"]) == ("halted", "the slot is gone")


def test_json_is_chosen_when_the_stream_is_no_terminal(log: Callable[..., io.StringIO]) -> None:
    stream = log(as_json=None)
    Log("bridge").info("hello")
    assert entries(stream)[0]["event"] == "hello"


def test_on_a_terminal_an_entry_is_a_line_for_people(log: Callable[..., io.StringIO]) -> None:
    stream = log(as_json=False)
    Log("bridge.apply", stream="one").warning("100% done", events=7, error=LEAKY["unique"], names=["a", "b"])
    time, line = stream.getvalue().split(" ", 1)
    assert time.endswith("Z")
    assert " ".join(line.split()) == (
        "[warning ] 100% done [bridge.apply] "
        "error=UniqueViolation: unique violation (constraint usage_pkey, table events.usage, SQLSTATE 23505) "
        'events=7 names=["a","b"] stream=one'
    )


def test_an_unknown_level_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="loud"):
        configure("loud")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("not null", "not null violation (column mrr, table events.usage, SQLSTATE 23502)"),
        ("unique", "unique violation (constraint usage_pkey, table events.usage, SQLSTATE 23505)"),
        ("integer", "not a valid integer"),
        ("date", "not a valid timestamp with time zone"),
        ("enum", "not a value of the enum events.level"),
        ("raise", "raise exception (SQLSTATE P0001), in PL/pgSQL function audit.check_customer() line 4"),
    ],
)
def test_what_is_said_instead_still_helps(error: str, message: str) -> None:
    assert safe_message(LEAKY[error]) == message


def test_messages_that_hold_names_only_are_kept() -> None:
    missing = server_error("42P01", 'relation "events.usage" does not exist', statement_position="15")
    denied = server_error("42501", "permission denied for table usage")
    length = server_error("22001", "value too long for type character varying(3)")
    assert [safe_message(one) for one in (missing, denied, length)] == [
        'relation "events.usage" does not exist',
        "permission denied for table usage",
        "value too long for type character varying(3)",
    ]


def test_fields_name_what_an_operator_looks_for() -> None:
    assert safe_error(LEAKY["not null"]) == {
        "error": "NotNullViolation",
        "message": "not null violation (column mrr, table events.usage, SQLSTATE 23502)",
        "sqlstate": "23502",
        "schema": "events",
        "table": "usage",
        "column": "mrr",
    }
    found = safe_error(from_a_leaky_cause())
    assert (found["reason"], found["cause"]["sqlstate"]) == ("table_changed", "23502")


def test_a_connection_that_failed_says_so_without_its_password() -> None:
    error = psycopg.OperationalError(
        'connection to server at "db" (10.0.0.1), port 5432 failed: Connection refused\n\tIs it up?'
    )
    assert safe_message(error).endswith("Connection refused")


@pytest.mark.parametrize(
    "text",
    [
        f"host=db user=x password={CANARY} dbname=y",
        f"host=db password='{CANARY} \\' {CANARY}' dbname=y",
        f"postgresql://user:{CANARY}@db:5432/app",
        f"https://x:{CANARY}@hooks.example/a",
        f"postgresql://db/app?user=x&password={CANARY}&sslmode=require",
        f"api_key: {CANARY}",
    ],
)
def test_secrets_in_a_text_are_masked(text: str, log: Callable[..., io.StringIO]) -> None:
    assert CANARY not in mask_secrets(text)
    stream = log()
    Log("bridge").info("connecting", dsn=text)
    logging.getLogger("library").warning("connecting to %s", text)
    assert CANARY not in stream.getvalue()
    assert len(entries(stream)) == 2
