"""Prove and replay: started, watched, stopped, and what came of them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from starlette.requests import Request

from bridge.console.desk import Desk
from bridge.console.operations import DRY_RUN, Done, Field, Operation
from bridge.console.operations import Request as Asked
from bridge.console.running_jobs import Job
from bridge.errors import ConfigError
from bridge.operate.replays import ReplayOrder, lines, run_replay

_SINCE = Field("since", "Since this time, or so long ago: 24h.", "time")
_UNTIL = Field("until", "Before this time.", "time")


def _prove(asked: Asked) -> Done:
    from bridge.operate.audit import need_audit, record  # noqa: PLC0415  only when somebody acts
    from bridge.operate.letters import ledgers  # noqa: PLC0415
    from bridge.operate.names import check_pipeline  # noqa: PLC0415
    from bridge.plans import stream_plans  # noqa: PLC0415
    from bridge.prove.run import prove  # noqa: PLC0415

    config, given = asked.desk.config(), asked.given
    plans = stream_plans(config)
    check_pipeline(plans, given["pipeline"])
    with ledgers(config, "prove", writes=True) as every:
        for plan, connection in every:
            need_audit(connection, asked.actor, "prove")
            record(connection, asked.actor, "prove", plan.stream, result="begun")

    def work(job: Job) -> tuple[str, Any, bool]:
        report = prove(
            plans, since=given["since"], until=given["until"], pipeline=given["pipeline"], told=job.tell
        )
        return report.as_text(), report.as_json(), not report.differences

    what = given["pipeline"] or "everything"
    return _started(asked.desk.jobs.start("prove", asked.person.name, what, work))


def _replay(asked: Asked) -> Done:
    given = asked.given
    if given["since"] is None:
        raise ConfigError("since is missing: events since which time?")
    order = ReplayOrder(
        given["destination"],
        given["since"],
        given["until"],
        given["name"] or "",
        given["dry_run"],
        given["deliver"],
        given["force"],
    )
    config = asked.desk.config()

    def work(job: Job) -> tuple[str, Any, bool]:
        unit, done = run_replay(
            config,
            order,
            asked.actor,
            lambda so_far: job.tell(f"{so_far.read} events read, {so_far.written} written"),
        )
        text = [*lines(unit, done, dry_run=order.dry_run), *done.failures]
        return "\n".join(text), asdict(done), not done.failed

    what = f"{order.destination}{', dry run' if order.dry_run else ''}"
    return _started(asked.desk.jobs.start("replay", asked.person.name, what, work))


def _started(job: Job) -> Done:
    return Done(job.as_dict(), f"Job {job.number} runs: {job.kind} of {job.what}")


def _list(asked: Asked) -> Done:
    return Done({"jobs": [one.as_dict() for one in asked.desk.jobs.listed]})


def _show(asked: Asked) -> Done:
    return Done(asked.desk.jobs.find(asked.given["number"]).as_dict())


def _stop(asked: Asked) -> Done:
    job = asked.desk.jobs.find(asked.given["number"])
    job.stopping = True
    return Done(job.as_dict(), f"Job {job.number} stops at its next step")


async def jobs(desk: Desk, request: Request) -> tuple[str, dict[str, Any]]:
    from bridge.plans import stream_plans  # noqa: PLC0415  only when somebody looks

    specs = {spec.name: spec for plan in stream_plans(desk.config()) for spec in plan.pipelines}
    part = request.url.path.startswith("/part/")
    return ("part_jobs.html" if part else "jobs.html"), {
        "jobs": [one.as_dict() for one in desk.jobs.listed],
        "running": any(one.state == "running" for one in desk.jobs.listed),
        "pipelines": list(specs),
        "destinations": [f"{spec.name}/{name}" for spec in specs.values() for name in spec.destinations],
    }


_NUMBER = Field("number", "Its number.", "number", needed=True)
PAGES = {"/jobs": jobs, "/part/jobs": jobs}
OPERATIONS = (
    Operation("GET", "/jobs", "The last jobs of this process.", _list),
    Operation("GET", "/jobs/{number}", "One job, with its progress or result.", _show, (_NUMBER,)),
    Operation(
        "POST",
        "/jobs/prove",
        "Compare source and target by counts and hashes; it only reads.",
        _prove,
        (_SINCE, _UNTIL, Field("pipeline", "Only what this pipeline writes.")),
        acts=True,
    ),
    Operation(
        "POST",
        "/jobs/replay",
        "Write one destination again from the outbox.",
        _replay,
        (
            Field("destination", "PIPELINE/NAME, or NAME if only one has it.", needed=True),
            _SINCE,
            _UNTIL,
            Field("name", "The replay's name: a sink gets an event once a name."),
            DRY_RUN,
            Field("deliver", "For a sink: send every event once more.", "flag"),
            Field("force", "Even if older events may overwrite newer ones.", "flag"),
        ),
        acts=True,
    ),
    Operation("POST", "/jobs/{number}/stop", "Stop it at its next step.", _stop, (_NUMBER,), acts=True),
)
