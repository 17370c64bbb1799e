"""The unit file as systemd reads it; systemd itself is not run."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.bridge_process import REPOSITORY
from tests.support.debian import tool

_UNIT = REPOSITORY / "deploy" / "systemd" / "outbox-bridge.service"


def _verified(unit: Path, text: str) -> str:
    """What systemd says of it: nothing, if it takes every line."""
    unit.write_text(text)
    path, environment = tool("systemd-analyze", "systemd", "libsystemd-shared")
    ran = subprocess.run(
        [path, "verify", str(unit)], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    said = [line for line in ran.stderr.splitlines() if unit.name in line]
    return "\n".join(said) or f"exit {ran.returncode}" * bool(ran.returncode)


def test_systemd_takes_every_line_of_the_unit(tmp_path: Path) -> None:
    text = _UNIT.read_text()
    program = "/opt/outbox-bridge/bin/bridge"
    assert program in text
    here = text.replace(program, "/bin/true")  # it is looked for
    unit = tmp_path / _UNIT.name
    assert _verified(unit, here) == ""
    assert "Unknown key" in _verified(unit, here.replace("ProtectProc=", "ProtectProk="))
