"""What can happen in the simulation with a log, beside what faults.py has."""

from __future__ import annotations

from tests.model import faults
from tests.model.lanes import Lane, Member
from tests.model.simulation import Simulation


def _log(name: str, words: str) -> faults.Act:
    def act(simulation: Simulation) -> None:
        assert isinstance(simulation, Member)
        if getattr(simulation.site.log, name)(simulation.rng):
            simulation.counts[words] += 1

    act.__name__ = name
    return act


drop_frame = _log("drop", "frame dropped")
repeat_frames = _log("repeat", "frames repeated")
reorder_frames = _log("reorder", "frames out of order")
rewind_log = _log("rewind", "the log went back")
expire_frames = _log("expire", "the log's first frames expired")


def forget_log(simulation: Simulation) -> None:
    assert isinstance(simulation, Member)
    if simulation.site.log.forget():
        simulation.counts["the log forgot everything"] += 1


def switch_capture(simulation: Simulation) -> None:
    """One stream reads the table for a while."""
    if isinstance(simulation, Lane):
        faults.switch_capture(simulation)


def lagging_promotion(simulation: Simulation) -> None:
    """A standby that lacks only what was applied a moment ago takes over."""
    assert isinstance(simulation, Member)
    standby = simulation.source.clone()
    faults.emit(simulation)
    for _ in range(40):
        member = simulation.rng.choice(simulation.site.members)
        if member.bridges:
            member.step(member.bridges[0])
            faults.target_progress(member)
    faults.take_over(simulation, standby)


def crash_everything(simulation: Simulation) -> None:
    """Every process, as when all of it runs on one machine."""
    assert isinstance(simulation, Member)
    for member in simulation.site.members:
        for bridge in list(member.bridges):
            member.crash(bridge)


WORK: dict[faults.Act, float] = dict(faults.WORK)
_EXCLUDED = (
    faults.stranger,
    faults.another_source,
    faults.switch_capture,
)
FAULTS: dict[faults.Act, float] = {
    **{act: weight for act, weight in faults.FAULTS.items() if act not in _EXCLUDED},
    **{drop_frame: 2, repeat_frames: 2, reorder_frames: 2, rewind_log: 1, expire_frames: 1, forget_log: 0.7},
    **{switch_capture: 0.4, crash_everything: 0.3},
}
HISTORY: dict[faults.Act, float] = {
    **{act: weight for act, weight in faults.HISTORY.items() if act is not faults.lagging_promotion},
    lagging_promotion: 0.5,
}
