"""`python -m bridge`, and the commands `bridge` and `outbox-bridge`."""

import sys

from bridge import hangup


def main() -> None:
    if sys.argv[1:2] == ["run"]:
        hangup.remember()
    from bridge.cli import main as command  # noqa: PLC0415  it takes a tenth of a second

    command()


if __name__ == "__main__":
    main()
