"""What bridge.emit refuses before it sends anything, and what importing bridge costs."""

import subprocess
import sys
from datetime import UTC

import pytest

import bridge
from bridge import producer


class NotPsycopg:
    """Stands for another driver's connection."""


@pytest.mark.parametrize(
    ("type_", "options", "message"),
    [
        ("", {}, "type is empty"),
        ("t" * 201, {}, "type has 201 characters; at most 200 are allowed"),
        ("t", {"idempotency_key": ""}, "idempotency_key is empty"),
        ("t", {"idempotency_key": "k" * 256}, "idempotency_key has 256 characters; at most 255 are allowed"),
        ("t", {"key": "k" * 501}, "key has 501 characters; at most 500 are allowed"),
        ("t", {"key": "a\x00"}, "key contains a NUL character"),
        ("t", {"headers": {"trace": "\x00"}}, r"headers\.trace contains a NUL character"),
    ],
)
def test_names_that_the_table_refuses_are_refused_before_they_are_sent(
    type_: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        bridge.emit(NotPsycopg(), type_, {}, **options)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"period": "fortnight"}, r"^period is 'fortnight'; it can be hour, day, week, month, year$"),
        ({"period": "Month"}, "period is 'Month'"),
        ({"period": "month", "idempotency_key": None}, "^period='month' needs an idempotency_key"),
        ({"time_zone": "Europe/Berlin"}, "give period, too"),
        ({"period": "month", "time_zone": "UTC+2"}, r"time_zone is 'UTC\+2', which is not a time zone"),
        ({"period": "month", "time_zone": "Europe/Berlinn"}, "time_zone is 'Europe/Berlinn'"),
        ({"period": "month", "idempotency_key": "k" * 248}, "with period='month' at most 247 are allowed"),
    ],
)
def test_a_wrong_period_or_zone_is_refused_before_it_is_sent(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        bridge.emit(NotPsycopg(), "t", {}, **{"idempotency_key": "k", **options})  # type: ignore[call-overload]


def test_a_time_zone_that_is_no_name_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="time_zone is a timezone, not a name"):
        bridge.emit(NotPsycopg(), "t", {}, idempotency_key="k", period="day", time_zone=UTC)  # type: ignore[call-overload]


def test_without_time_zone_data_a_well_formed_zone_is_left_to_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(producer, "available_timezones", set)
    with pytest.raises(TypeError, match="emit takes a psycopg 3 connection"):
        bridge.emit(NotPsycopg(), "t", {}, idempotency_key="k", period="day", time_zone="Europe/Berlinn")  # type: ignore[call-overload]


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
        "heavy = {'click', 'rich_click', 'pydantic', 'orjson', 'yaml', 'starlette'}\n"
        "assert 'psycopg' not in sys.modules\n"
        "bridge.emit\n"
        "assert 'psycopg' in sys.modules\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'emitt'"):
        _ = bridge.emitt  # type: ignore[attr-defined]
