"""A command of the bridge that is told to stand still at a failpoint: killed there, as a person would."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence


def killed_while_it_hangs(command: Sequence[str], env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run until it says that it hangs, then SIGKILL. What it printed is short: nobody reads it meanwhile."""
    with subprocess.Popen(
        command, env=dict(env), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if line.endswith(": hang\n") and "failpoint" in line:
                process.kill()
        return subprocess.CompletedProcess(command, process.wait(), process.stdout.read(), "".join(said))
