"""`python -m bridge.observe.probe livez|readyz`: query a running bridge, for health checks.

It reads no configuration and imports only the standard library, so that frequent checks cost little. Exit code 0 for
the answer 200, 1 otherwise; it prints the answer's text.

BRIDGE_ADMIN             host:port of the admin server (default 127.0.0.1:8377)
BRIDGE_ADMIN_TOKEN       admin.token, needed for readyz if one is configured
BRIDGE_ADMIN_TOKEN_FILE  or a file with the token
"""

from __future__ import annotations

import http.client
import os
import sys
from pathlib import Path

TIMEOUT_SECONDS = 4.0
_LONGEST_ANSWER = 64 * 1024


def ask(path: str, environment: dict[str, str]) -> tuple[int, str]:
    """Status and text. Raises OSError or http.client.HTTPException if there is no answer."""
    token = environment.get("BRIDGE_ADMIN_TOKEN", "")
    if not token and (file := environment.get("BRIDGE_ADMIN_TOKEN_FILE")):
        token = Path(file).read_text().strip()
    address = environment.get("BRIDGE_ADMIN", "127.0.0.1:8377")
    connection = http.client.HTTPConnection(address, timeout=TIMEOUT_SECONDS)
    try:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read(_LONGEST_ANSWER).decode(errors="replace").strip()
    finally:
        connection.close()


def main(arguments: list[str], environment: dict[str, str]) -> int:
    """The process's exit code."""
    if arguments not in (["livez"], ["readyz"]):
        sys.stderr.write("usage: python -m bridge.observe.probe livez|readyz\n")
        return 2
    try:
        status, text = ask(f"/{arguments[0]}", environment)
    except (OSError, http.client.HTTPException) as error:
        sys.stdout.write(f"no answer: {error}\n")
        return 1
    sys.stdout.write(f"{text}\n")
    return 0 if status == 200 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], dict(os.environ)))
