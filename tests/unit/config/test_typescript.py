"""`bridge schema event --typescript`: contracts as declarations. (sdk/typescript/test compiles against them.)"""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from bridge.cli.schema import schema
from bridge.config.schema import typescript_declarations
from bridge.planning.spec import ContractSpec, FieldSpec

CONTRACT = ContractSpec(
    "order.paid",
    (
        FieldSpec("id"),
        FieldSpec("amount", "integer"),
        FieldSpec("state", "any", enum=("paid", 2, True), nullable=True),
        FieldSpec("note", required=False, nullable=True),
        FieldSpec("at", "timestamp"),
        FieldSpec("tags", "array", required=False),
        FieldSpec("more", "object"),
        FieldSpec("what ever", "any"),
        FieldSpec('qu"ote', "boolean"),
    ),
    "reject",
)


def test_every_kind_of_field_has_its_type() -> None:
    assert typescript_declarations([CONTRACT]) == (
        "// Made by `bridge schema event --typescript` from the contracts in bridge.yaml.\n"
        "export {};\n"
        'declare module "outbox-bridge" {\n'
        "  interface Events {\n"
        '    "order.paid": {\n'
        "      id: string;\n"
        "      amount: number;\n"
        '      state: "paid" | 2 | true | null;\n'
        "      note?: string | null;\n"
        "      /** RFC 3339, as Date.toISOString() gives it. */\n"
        "      at: string;\n"
        "      tags?: unknown[];\n"
        "      more: { [name: string]: unknown };\n"
        '      "what ever": unknown;\n'
        '      "qu\\"ote": boolean;\n'
        "    };\n"
        "  }\n"
        "}\n"
    )


def test_a_contract_that_lets_other_fields_in_says_so() -> None:
    text = typescript_declarations([ContractSpec("a", (FieldSpec("x"),))], "@ingestlayer/sdk")
    assert "      [name: string]: unknown;\n" in text
    assert 'declare module "@ingestlayer/sdk" {' in text


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "bridge.yaml"
    path.write_text("version: 1\nevents: { a: { x: string }, b: { y: number } }\n")
    return str(path)


def test_the_command_prints_one_type_or_all(config: str) -> None:
    run = CliRunner().invoke
    one = run(schema, ["event", "-c", config, "a", "--typescript"])
    every = run(schema, ["event", "-c", config, "--typescript", "--module", "m"])
    assert ('"a"' in one.output, '"b"' in one.output) == (True, False)
    assert ('"a"' in every.output, '"b"' in every.output) == (True, True)
    assert 'declare module "m"' in every.output
    assert '"title": "a"' in run(schema, ["event", "-c", config, "a"]).output


def test_a_json_schema_is_of_one_type(config: str) -> None:
    result = CliRunner().invoke(schema, ["event", "-c", config])
    assert result.exit_code == 2
    assert "give an event type" in result.output
