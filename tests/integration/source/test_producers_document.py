"""docs/producers.md runs: its SQL as an application's role, its Python that needs psycopg alone."""

from __future__ import annotations

import asyncio
import inspect
import re
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import psycopg

import bridge
from tests.support.servers import Database

DOCUMENT = (Path(__file__).parents[3] / "docs" / "producers.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)


def test_every_sql_example_runs_for_a_producer(source: Database) -> None:
    with psycopg.connect(source.producer_dsn) as app:
        for example in blocks("sql"):
            app.execute(example.encode())
    assert len(blocks("sql")) == 5
    assert source.value("select count(*) from outbox.event") == 4  # one key was used before


def test_every_python_example_for_psycopg_runs(source: Database) -> None:
    source.execute("create table orders (total numeric); grant insert on orders to app")
    examples = [block for block in blocks("python") if "psycopg" in block and "django" not in block]
    assert len(examples) == 4
    for example in examples:
        names = {
            "dsn": source.producer_dsn,
            "Decimal": Decimal,
            "UUID": UUID,
            "psycopg": psycopg,
            "bridge": bridge,
        }
        exec(compile(example, "docs/producers.md", "exec"), names)
        for value in list(names.values()):
            if inspect.iscoroutinefunction(value):
                assert isinstance(asyncio.run(value()), UUID)
    assert source.value("select count(*) from outbox.event") == 3
    assert source.value("select sum(count) from outbox.suppressed") == 1
    assert source.value("select count(*) from orders") == 1
