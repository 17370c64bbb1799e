"""`bridge demo`: throw-away servers, a bridge that is killed, and a check of every event."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from bridge.errors import BridgeError

if TYPE_CHECKING:
    from bridge.demo.story import Tamper
    from bridge.demo.world import World


_SOURCES = ("eu", "us", "asia", "africa", "oceania", "latam", "nordics", "gulf")


@click.command(panel="Set up")
@click.option("--events", default=20_000, show_default=True, type=click.IntRange(min=100), help="How many.")
@click.option(
    "--sources",
    default=1,
    show_default=True,
    type=click.IntRange(1, len(_SOURCES)),
    metavar="N",
    help="Source databases, each with producers, into one target.",
)
@click.option(
    "--scale",
    is_flag=True,
    help="Over a log: three NATS nodes, a relay, three workers; one of each kind is killed.",
)
@click.option("--keep", is_flag=True, help="Keep everything running until Ctrl-C, to look around.")
@click.option(
    "--report", type=click.Path(path_type=Path, dir_okay=False), help="Write an HTML report to FILE."
)
@click.option(
    "--tamper",
    type=click.Choice(["lose", "double", "alter"]),
    hidden=True,
    help="Change one row before the check: the verdict must be a failure.",
)
def demo(  # noqa: PLR0917  the command line's options
    events: int, sources: int, scale: bool, keep: bool, report: Path | None, tamper: Tamper | None
) -> None:
    """Show exactly-once delivery on throw-away Postgres servers, with a bridge killed mid-stream.

    Needs no set-up and leaves nothing behind. Exit code 1 if an event was lost, duplicated or altered, or if a
    message to the Slack-like receiver (on localhost) did not arrive.
    """
    # psycopg and rich load here, not at every `bridge --help`
    from rich.console import Console  # noqa: PLC0415

    from bridge.demo import report as shown  # noqa: PLC0415
    from bridge.demo.binaries import NoPostgres  # noqa: PLC0415
    from bridge.demo.fleet import Fleet  # noqa: PLC0415
    from bridge.demo.log_server import NoNats  # noqa: PLC0415
    from bridge.demo.process import Bridge, BridgeFailed  # noqa: PLC0415
    from bridge.demo.servers import ClusterError  # noqa: PLC0415
    from bridge.demo.story import Story  # noqa: PLC0415
    from bridge.demo.world import Slack, World  # noqa: PLC0415

    console = Console(highlight=False)
    try:
        names = _SOURCES[:sources] if sources > 1 else ()
        of = f", with the sources {', '.join(names)}" if names else ""
        nodes = " and a log of three NATS nodes" if scale else ""
        console.print(f"starting two throw-away PostgreSQL servers{of}{nodes}")
        with World(names) as world, Slack() as slack:
            environment = world.bridge_environment | slack.environment
            directory = world.workspace.root
            bridge: Bridge | Fleet = (
                Fleet(environment, directory, world.configuration())
                if scale
                else Bridge(environment, directory / "bridge.log", world.configuration())
            )
            try:
                story = Story(world, slack, bridge, events)
                with shown.live(console, story.progress):
                    outcome = story.run(tamper, told=lambda sentence: console.print(f"  {sentence}"))
                shown.show(console, outcome)
                if report is not None:
                    report.write_text(shown.html(outcome), encoding="utf-8")
                    console.print(f"report: {report}", soft_wrap=True)
                if keep:
                    bridge.start()
                    _look_around(world, bridge.admin)
            finally:
                bridge.close()
    except (NoPostgres, NoNats, ClusterError, BridgeFailed, TimeoutError) as error:
        raise BridgeError(str(error)) from error
    sys.exit(0 if outcome.holds else 1)


def _look_around(world: World, admin: str) -> None:
    click.echo("\nstill running, until Ctrl-C:")
    for dsn in (*world.source_dsns.values(), world.target_dsn):
        click.echo(f'  psql "{dsn}"')
    click.echo(f"  curl http://{admin}/metrics")
    with suppress(KeyboardInterrupt, EOFError):
        while True:
            if sys.stdin.readline() == "":  # not a terminal: wait for the signal
                import signal  # noqa: PLC0415

                signal.pause()
