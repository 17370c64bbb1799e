"""A configuration with a nats connection: what is read, tested offline, and refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bridge.bus.settings import BusTls, bus_settings
from bridge.config.from_files import FromFiles
from bridge.config.lint import lint
from bridge.config.load import load
from bridge.config.model import Config
from bridge.config.nats import NatsConnection
from bridge.config.testing import run_cases
from bridge.errors import ConfigError
from bridge.plans import dispatch_plans, stream_plans

TEXT = """
version: 1
connections:
  w: { type: postgres, dsn: dbname=w }
  bus: { type: nats, servers: "CONNECTION }
events:
  order.placed: { region: string, total: number }
pipelines:
  p:
    event: order.placed
    destinations:
      rows: { connection: w, table: public.rows }
      log:
        connection: bus
        subject: orders.{{ event.region }}
        headers: { total: $event.total }
tests:
  - name: an order goes to its region
    pipeline: p
    event: { region: eu, total: 12.50 }
    expect:
      log: { subject: orders.eu, headers: { total: "12.5" }, payload: { region: eu, total: 12.50 } }
  - name: a region of two words is a dead letter
    pipeline: p
    event: { region: far east, total: 1 }
    expect: { dead: subject }
"""


def config(tmp_path: Path, connection: str = 'nats://localhost:4222"', **environ: str) -> Config:
    path = tmp_path / "bridge.yaml"
    path.write_text(TEXT.replace("CONNECTION", connection))
    return load(path, environ)


def test_one_text_or_variable_can_name_several_servers(tmp_path: Path) -> None:
    found = config(tmp_path, '${NATS}"', NATS="nats://a, b.example.com:4333 , tls://[::1]").connections["bus"]
    assert isinstance(found, NatsConnection)
    assert found.servers == ("nats://a:4222", "nats://b.example.com:4333", "tls://[::1]:4222")


def test_settings_hold_the_secrets_and_show_none(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("S3CRET\n")
    text = 'nats://h", user: u, password: "${file:secret}", tls: { ca: ca.pem }, replicas: 3'
    found = config(tmp_path, text).connections["bus"]
    assert isinstance(found, NatsConnection)
    settings = bus_settings("bus", found)
    assert (settings.user, settings.password, settings.credential) == ("u", "S3CRET", "password")
    assert (settings.tls, settings.secured, settings.replicas) == (BusTls("ca.pem"), True, 3)
    assert "S3CRET" not in repr(settings) + repr(found)
    assert isinstance(settings.password, FromFiles)
    secret.write_text("rotated\n")
    assert settings.password.reread() == "rotated"


def test_config_tests_see_the_message(tmp_path: Path) -> None:
    assert [one.differences for one in run_cases(config(tmp_path))] == [(), ()]


def test_the_unit_belongs_to_the_tables_ledger_and_has_no_lane(tmp_path: Path) -> None:
    found = config(tmp_path)
    (plan,) = stream_plans(found)
    assert plan.connection == "w"
    assert plan.subjects == {("p", "log")}
    assert plan.sinks == frozenset()
    assert list(plan.buses) == ["bus"]
    assert dispatch_plans(found) == []


def test_a_missing_library_is_told_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = config(tmp_path)
    monkeypatch.setitem(sys.modules, "nats", None)
    with pytest.raises(ConfigError, match="type nats needs the nats-py library") as error:
        stream_plans(found)
    assert error.value.hint == "pip install 'outbox-bridge[scale]'"


@pytest.mark.parametrize(
    ("connection", "weak"),
    [
        ('nats://localhost"', False),
        ('nats://127.0.0.1"', False),
        ('nats://n1.example.com"', True),
        ('tls://n1.example.com"', False),
        ('nats://n1.example.com", tls: {}', False),
    ],
)
def test_clear_text_to_another_host_is_a_warning(tmp_path: Path, connection: str, weak: bool) -> None:
    config(tmp_path, connection)
    found = lint(tmp_path / "bridge.yaml", {})
    assert ("weak-tls" in {one.name for one in found}) is weak


def test_a_field_that_no_contract_has_is_found_in_subject_and_headers(tmp_path: Path) -> None:
    path = tmp_path / "bridge.yaml"
    text = TEXT.replace("CONNECTION", 'nats://localhost"').replace("event.region }}", "event.regoin }}")
    path.write_text(text.replace("$event.total", "$event.totl"))
    found = [one for one in lint(path, {}) if one.name == "unknown-field"]
    assert {one.path[-1] for one in found} >= {"subject", "total"}
