"""What bridge.emit refuses before it sends anything, and what importing bridge costs."""

import subprocess
import sys

import pytest

import bridge


class NotPsycopg:
    """Stands for another driver's connection."""


@pytest.mark.parametrize(
    ("type_", "options", "message"),
    [
        ("", {}, "type is empty"),
        ("t" * 201, {}, "type has 201 characters; 200 are the most"),
        ("t", {"idempotency_key": ""}, "idempotency_key is empty"),
        ("t", {"idempotency_key": "k" * 256}, "idempotency_key has 256 characters; 255 are the most"),
        ("t", {"key": "k" * 501}, "key has 501 characters; 500 are the most"),
        ("t", {"key": "a\x00"}, "key holds a NUL character"),
        ("t", {"headers": {"trace": "\x00"}}, r"headers\.trace holds a NUL character"),
    ],
)
def test_names_that_the_table_refuses_are_refused_before_they_are_sent(
    type_: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        bridge.emit(NotPsycopg(), type_, {}, **options)  # type: ignore[call-overload]


@pytest.mark.parametrize("payload", ['{"a": 1}', [1], None, 7])
def test_a_payload_that_is_no_mapping_is_refused(payload: object) -> None:
    with pytest.raises(TypeError, match=r"^payload is a \w+, not a mapping of its fields$"):
        bridge.emit(NotPsycopg(), "t", payload)  # type: ignore[call-overload]


def test_another_drivers_connection_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"not a tests\.unit\.test_producer\.NotPsycopg: "):
        bridge.emit(NotPsycopg(), "t", {})  # type: ignore[call-overload]


def test_importing_bridge_loads_no_dependency_and_emit_loads_only_psycopg() -> None:
    program = (
        "import sys, bridge\n"
        "heavy = {'click', 'rich_click', 'pydantic', 'orjson', 'yaml', 'starlette', 'structlog'}\n"
        "assert 'psycopg' not in sys.modules\n"
        "bridge.emit\n"
        "assert 'psycopg' in sys.modules\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'emitt'"):
        _ = bridge.emitt  # type: ignore[attr-defined]
