"""A command of the bridge in a process of its own. One that is told to stand still at a failpoint is killed there, as a
person would."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence

from tests.support.bridge_process import FAILPOINTS


def run_command(
    command: Sequence[str], environment: Mapping[str, str], stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Its exit code and what it printed. One that hangs at a failpoint is given nothing to read."""
    if "=hang" in environment.get(FAILPOINTS, ""):
        return _killed_while_it_hangs(command, environment)
    return subprocess.run(
        command, env=environment, input=stdin, capture_output=True, text=True, timeout=120, check=False
    )


def _killed_while_it_hangs(
    command: Sequence[str], environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run until it says that it hangs, then SIGKILL. What it printed is short: nobody reads it meanwhile."""
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if line.endswith(": hang\n") and "failpoint" in line:
                process.kill()
        return subprocess.CompletedProcess(command, process.wait(), process.stdout.read(), "".join(said))
