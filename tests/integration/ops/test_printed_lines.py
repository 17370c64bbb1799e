"""Lines for a shell and for psql, of the runbook and of errors, run as they are printed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from contextlib import closing

import pytest

from bridge.errors import CannotConnect
from bridge.observe.probe import main as probe
from bridge.postgres.connect import connect_pq
from bridge.postgres.profiles import STREAM
from tests.integration.ops.conftest import emit, usage
from tests.integration.ops.test_doctor import findings
from tests.integration.sinks.conftest import SECRET
from tests.support.bridge_process import REPOSITORY, BridgeProcess
from tests.support.debian import at_hand
from tests.support.fixes import line_in
from tests.support.printed import runbook_line
from tests.support.receiver import Receiver
from tests.support.servers import create_database, drop_database
from tests.support.world import Document, World, until

_UNIT = REPOSITORY / "deploy" / "systemd" / "outbox-bridge.service"
_FOLDER = "/etc/outbox-bridge"


def _script(world: World, name: str, line: str) -> None:
    """A program of this machine's, in the PATH of `world.typed`."""
    script = world.directory / "bin" / name
    script.parent.mkdir(exist_ok=True)
    script.write_text(f"#!/bin/sh\n{line}\n")
    script.chmod(0o755)


def _reload_of_the_unit(bridge: BridgeProcess) -> str:
    """What systemd runs for `systemctl reload`; a test has no systemd."""
    [line] = re.findall(r"^ExecReload=(.*)$", _UNIT.read_text(), re.MULTILINE)
    return f"MAINPID={bridge.pid}; {line}"


def test_lines_of_the_runbook_are_run_as_printed(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = world.source, world.target
    with closing(Receiver()) as receiver:

        def with_a_sink(document: Document) -> None:
            document["connections"]["hook"] = {
                "type": "webhook",
                "url": receiver.url,
                "allow": ["127.0.0.0/8"],
                "secret": SECRET,
            }
            document["pipelines"]["usage-limit-hits"]["destinations"]["told"] = {"connection": "hook"}

        world.configure(with_a_sink)
        bridge = world.bridge().start().wait_ready()
        emit(source, usage(), usage(used="many"))
        until(lambda: world.applied() == 1 and len(world.dead_letters()) == 2, "a row and dead letters")
        source.typed(runbook_line("select pid, state"))
        source.typed(runbook_line("select pg_wal_lsn_diff"))
        # -- the bridge and its sinks
        assert '"ready": true' in world.typed(runbook_line("bridge status --json"))
        assert "failed" in world.typed(
            runbook_line("bridge dead retry --dry-run"), fill={"...": "--all"}, code=1
        )
        assert "no " in world.typed(runbook_line("bridge sink list"), fill={"DESTINATION": "told"})
        sample = ("--event", shlex.quote(json.dumps(usage())))
        assert "200" in world.typed(runbook_line("bridge sink test"), *sample, fill={"DESTINATION": "told"})
        assert "0 discarded" in world.typed(runbook_line("bridge sink discard OLD"), fill={"OLD": "told"})
        paused = world.command("sink", "pause", "told")
        assert "resumed" in world.typed(
            line_in(paused, "bridge sink resume").removesuffix(" sends what waits")
        )
        world.command("sink", "pause", "told")
        assert "resumed" in world.typed(runbook_line("bridge sink resume"), fill={"DESTINATION": "told"})
        world.typed(runbook_line("python -m bridge.observe.probe livez"))
        assert probe([], {}) == 2
        world.typed(capsys.readouterr().err.partition("usage: ")[2].strip(), fill={"livez|readyz": "readyz"})
        at_hand(world, "ss", "iproute2")
        world.typed(runbook_line("ss -ltnp"))
        # -- the unit
        _script(world, "sudo", 'exec "$@"')
        (world.directory / "secrets.env").write_text(
            f"SOURCE_DSN={source.bridge_dsn}\nWAREHOUSE_DSN={target.bridge_dsn}\n"
        )
        place = {_FOLDER: str(world.directory)}
        status = f"sudo outbox-bridge status -c {_FOLDER}/bridge.yaml"
        assert "ready" in world.typed(runbook_line(status), fill=place)
        assert "ready" in world.typed(runbook_line(f"{status} --env-file"), fill=place)
        _script(world, "systemctl", _reload_of_the_unit(bridge))
        world.typed(runbook_line("systemctl reload outbox-bridge"))
        bridge.wait_log('"reloaded"')
        # -- while it is down
        assert bridge.terminate() == 0
        assert "will be applied       0" in world.typed(
            runbook_line("bridge recover --adopt-outbox --dry-run")
        )
        source.typed(runbook_line("select pg_drop_replication_slot"))
        assert (
            source.value("select count(*) from pg_replication_slots where database = current_database()") == 0
        )
        emit(source, usage())
        world.bridge().start()
        until(lambda: world.applied() == 2, "caught up from the table")
        # -- the servers
        target.typed(runbook_line("alter role outbox_bridge bypassrls"))
        target.execute("alter role outbox_bridge nobypassrls")
        world.typed(runbook_line("bridge schema target --after 2"), fill={"...": shlex.quote(target.dsn)})
        dumped = world.typed(runbook_line("pg_dump --schema-only"), "-d", shlex.quote(source.dsn))
        assert "CREATE PUBLICATION" in dumped
        dumped = world.typed(runbook_line("pg_dump --schema-only --no-publ"), "-d", shlex.quote(source.dsn))
        assert "CREATE PUBLICATION" not in dumped
        assert "outbox_bridge" in world.typed(
            runbook_line("pg_dumpall --roles-only"), "-d", shlex.quote(source.dsn)
        )


def test_the_alerts_lines_are_run_as_printed(world: World) -> None:
    for path in (REPOSITORY / "deploy" / "prometheus").glob("rules*.yml"):
        shutil.copy(path, world.directory)
    at_hand(world, "promtool", "prometheus")
    world.typed(runbook_line("promtool test rules"))
    world.typed(runbook_line("sed -i"))
    text = (world.directory / "rules.yml").read_text()
    assert set(re.findall(r"runbook_url: (\S+?)#", text)) == {"https://wiki.example.com/outbox-bridge"}


def test_lines_that_errors_print_are_run_as_printed(world: World) -> None:
    source, target = world.source, world.target

    def refused(dsn: str, *command: str) -> str:
        return world.run(*(command or ("doctor",)), SOURCE_DSN=dsn).stderr

    # -- a name that nothing has: the lookup fails as well, and says so
    nowhere = re.sub(r"host=\S+", "host=nowhere.invalid", source.bridge_dsn)
    world.typed(
        line_in(refused(nowhere, "dead", "list") + refused(nowhere, "install"), "getent hosts"), code=2
    )
    world.environment["SOURCE_DSN"] = nowhere
    [fix] = re.findall(r"getent ahosts \S+", world.run("doctor", "--network").stdout)
    world.typed(fix, code=2)
    del world.environment["SOURCE_DSN"]
    # -- another database, and a role that may not stream
    other = re.sub(r"dbname=\S+", "dbname=nothing", source.bridge_dsn)
    assert source.name in world.typed(line_in(refused(other, "install"), "psql -l"))
    source.execute("alter role outbox_bridge noreplication")
    try:
        with pytest.raises(CannotConnect) as without:
            connect_pq(source.bridge_dsn, STREAM, "test", replication="database")
        source.typed(str(without.value.hint))
        source.execute("alter role outbox_bridge noreplication")
        bridge = world.bridge().start()
        halted = bridge.wait_halted("replication")
        source.typed(line_in(halted, "alter role"))
    finally:
        source.execute("alter role outbox_bridge replication")
    bridge.wait_ready()
    assert bridge.terminate() == 0
    # -- the ledger is not there, and the outbox may not be made
    target.execute("drop schema bridge cascade")
    [finding] = [one for one in findings(world) if one.check == "ledger_schema_missing"]
    world.typed(finding.fix)
    assert target.value("select to_regclass('bridge.checkpoint') is not null")
    empty = create_database(source.server, f"{source.name}_empty")
    try:
        empty.execute("drop role if exists newcomer; create role newcomer login")
        said = refused(source.server.dsn(empty.name, user="newcomer"), "install")
        world.typed(re.findall(r"`(bridge schema source \| psql .*?)`", said)[0])
        assert empty.value("select to_regclass('outbox.event') is not null")
    finally:
        drop_database(empty)
        source.execute("drop role if exists newcomer")
