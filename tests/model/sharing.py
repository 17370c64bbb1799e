"""Two or more bridges that share streams: the rules of protocol/sharing.py over simulations of the protocol.

Each stream is a simulation of its own (simulation.py), with its source and its ledger; the machines and the locks of
the one target are what they have in common. A machine looks, decides and acts as bridge/sharing.py does, and between
any two of these others act: it may be killed, frozen and resumed, and the target may forget every lock.

The checks of each simulation hold after every act. Besides: an orderly hand-over fences nobody, and at rest every
stream runs exactly where its claim is, the split is fair, and nothing moves any more.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random

from bridge.errors import Fenced
from bridge.protocol import sharing as rules
from bridge.protocol.requests import Receive, Wait
from bridge.protocol.sharing import Share, Step, View
from tests.model import checks, faults
from tests.model.simulation import Bridge, Simulation

MUST_HAPPEN = (
    *("killed", "frozen", "resumed", "a silent bridge was ended", "the target forgot every lock"),
    *("claimed", "released", "a claim came late", "a stream was handed over", "fenced after an eviction"),
    *("fenced by a late one", "began beside a late one"),
    *("stood by", "joined", "stopped in order"),
)
_ACTS: dict[faults.Act, float] = {
    **{act: weight for act, weight in faults.WORK.items() if act is not faults.slot_behind_a_poll},
    faults.crash_source: 0.3, faults.connection_lost: 0.3, faults.drop_slot: 0.3, faults.prune: 0.3,
}  # fmt: skip


@dataclass
class Locks:
    """The target's. A session's locks end with it."""

    sessions: set[int] = field(default_factory=set)
    willing: dict[str, set[int]] = field(default_factory=dict)
    claims: dict[str, int] = field(default_factory=dict)

    def end(self, session: int) -> None:
        self.sessions.discard(session)
        self.claims = {stream: one for stream, one in self.claims.items() if one != session}
        for willing in self.willing.values():
            willing.discard(session)


@dataclass(eq=False)
class Machine:
    """One process. Its name is its session's, so a restarted one and one that lost its session are new members."""

    session: int
    runs: dict[str, Bridge] = field(default_factory=dict)
    ending: set[str] = field(default_factory=set)
    giving_up: set[str] = field(default_factory=set)
    declined: set[str] = field(default_factory=set)
    claimed: set[str] = field(default_factory=set)  # as its last look saw them
    decided: Share | None = None
    frozen: bool = False
    leaves: bool = False

    @property
    def name(self) -> str:
        return f"m{self.session:04}"


class Shared:
    """The machines, the locks, and a simulation for each stream."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.streams = {f"s{number}": Simulation(rng) for number in range(rng.randint(2, 4))}
        self.locks = Locks()
        self.machines: list[Machine] = []
        self.counts: Counter[str] = Counter()
        self.late: set[Bridge] = set()  # of sessions whose locks are gone: they may be fenced, and fence
        self._names = iter(rng.sample(range(10_000), 2_000))

    # -- machines ---------------------------------------------------------------------------------------

    def join(self) -> None:
        self.counts["joined"] += 1
        self.machines.append(Machine(self._connect()))

    def _connect(self) -> int:
        session = next(self._names)
        self.locks.sessions.add(session)
        return session

    def kill(self, machine: Machine) -> None:
        self.counts["killed"] += 1
        for stream in [*machine.runs]:
            self._crash(machine, stream)
        self.locks.end(machine.session)
        self.machines.remove(machine)

    def _crash(self, machine: Machine, stream: str) -> None:
        bridge = machine.runs.pop(stream)
        machine.ending.discard(stream)
        if bridge.ended is None:
            self.streams[stream].crash(bridge)

    def evict(self, session: int) -> None:
        """Its locks are gone, and its batches as far as the server can end them; it does not know."""
        self.locks.end(session)
        for machine in self.machines:
            if machine.session == session:
                for stream, bridge in machine.runs.items():
                    self.late.add(bridge)
                    if (
                        bridge.sent is not None
                        and bridge.sent.state in ("sent", "locked")
                        and self.chance(0.5)
                    ):
                        self.streams[stream].target.roll_back(bridge.sent)

    def forget_locks(self) -> None:
        self.counts["the target forgot every lock"] += 1
        for session in [*self.locks.sessions]:
            self.evict(session)

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    # -- what a machine does (bridge/sharing.py) ---------------------------------------------------------

    def look(self, machine: Machine) -> None:
        if machine.session not in self.locks.sessions:
            machine.session, machine.decided = self._connect(), None
            machine.claimed.clear()
            machine.giving_up.clear()
            for stream in machine.runs:
                self.stop(machine, stream)
            return
        for silent in [one for one in self.machines if one.frozen and one.session in self.locks.sessions]:
            if self.chance(0.5):
                self.counts["a silent bridge was ended"] += 1
                self.evict(silent.session)
        names = {session: f"m{session:04}" for session in self.locks.sessions}
        view = View(
            [*self.streams],
            {stream: {names[one] for one in self.locks.willing.get(stream, ())} for stream in self.streams},
            {stream: names[session] for stream, session in self.locks.claims.items()},
        )
        machine.claimed = {s for s, session in self.locks.claims.items() if session == machine.session}
        if self.chance(0.03):
            machine.declined.clear()  # for five seconds at most
        machine.declined = rules.still_declined(view, machine.name, machine.declined)
        machine.decided = (
            Share() if machine.leaves else rules.share(view, machine.name, declined=machine.declined)
        )

    def act(self, machine: Machine) -> None:
        share, machine.decided = machine.decided, None
        if share is None or machine.session not in self.locks.sessions:
            return
        for stream in self.streams:
            willing = self.locks.willing.setdefault(stream, set())
            wants = stream in share.willing and stream not in machine.giving_up
            (willing.add if wants else willing.discard)(machine.session)
        for stream in share.claim:
            if self.locks.claims.setdefault(stream, machine.session) == machine.session:
                machine.claimed.add(stream)
                self.counts["claimed"] += 1
            else:
                self.counts["a claim came late"] += 1
        for stream in machine.claimed if machine.leaves else share.give_up:
            if stream in machine.claimed and stream not in machine.giving_up:
                machine.giving_up.add(stream)
                machine.declined.add(stream)
                self.stop(machine, stream)
        for stream in self.streams:
            self.keep(machine, stream)

    def keep(self, machine: Machine, stream: str) -> None:
        claimed = stream in machine.claimed
        if not claimed:
            machine.giving_up.discard(stream)
        runs, giving_up = stream in machine.runs, stream in machine.giving_up
        match rules.next_step(claimed=claimed, giving_up=giving_up, runs=runs, starts=False):
            case Step.STOP:
                self.stop(machine, stream)
            case Step.RELEASE:
                self.counts["released"] += 1
                if self.locks.claims.get(stream) == machine.session:
                    del self.locks.claims[stream]
                machine.giving_up.discard(stream)
                machine.claimed.discard(stream)
            case Step.START:
                machine.runs[stream] = self.streams[stream].start_bridge()
                others = [one for one in self.machines if one is not machine and stream in one.runs]
                self.counts["began beside a late one"] += bool(others)

    def stop(self, machine: Machine, stream: str) -> None:
        """It ends by itself, later."""
        if stream in machine.runs:
            machine.ending.add(stream)

    def step(self, machine: Machine) -> None:
        """One request of one of its streams."""
        if not machine.runs:
            return
        stream = self.rng.choice(sorted(machine.runs))
        simulation, bridge = self.streams[stream], machine.runs[stream]
        if bridge.ended is None:
            simulation.stopping = 1.0 if stream in machine.ending else 0.0
            simulation.step(bridge)
            simulation.stopping = 0.0
        if bridge.ended is not None:
            self.ended(machine, stream, bridge)

    def ended(self, machine: Machine, stream: str, bridge: Bridge) -> None:
        del machine.runs[stream]
        self.counts["stopped in order"] += bridge.ended == "stopped"
        self.counts["a stream was handed over"] += stream in machine.giving_up
        machine.ending.discard(stream)
        self.counts["stood by"] += getattr(bridge.ended, "reason", "") == "stand_by"
        if isinstance(bridge.ended, Fenced):
            ledger = self.streams[stream].target.ledger
            by = [
                one for one in self.late if ledger is not None and ledger.session == f"session-{one.number}"
            ]
            checks.require(
                bridge in self.late or bool(by), "fenced by one that has the claim as well:", stream
            )
            self.counts["fenced by a late one"] += bool(by)
            self.counts["fenced after an eviction"] += 1
            machine.declined.add(stream)
            if stream in machine.claimed:
                machine.giving_up.add(stream)

    # -- a walk -----------------------------------------------------------------------------------------

    def trouble(self) -> None:
        awake = [machine for machine in self.machines if not machine.frozen]
        what = self.rng.random()
        if what < 0.25 and len(self.machines) < 4:
            self.join()
        elif what < 0.4 and awake:
            self.kill(self.rng.choice(awake))
        elif what < 0.6 and awake:
            self.counts["frozen"] += 1
            self.rng.choice(awake).frozen = True
        elif what < 0.7 and len(awake) > 1:
            self.rng.choice(awake).leaves = True
        elif what < 0.75:
            self.forget_locks()
        else:
            for machine in self.machines:
                self.counts["resumed"] += machine.frozen
                machine.frozen = False

    def turn(self) -> None:
        """Every machine that is awake does a few things; so do the applications."""
        for machine in self.rng.sample(self.machines, len(self.machines)):
            if machine.frozen:
                continue
            for _ in range(self.rng.randint(1, 6)):
                self.step(machine)
            (self.act if machine.decided is not None else self.look)(machine)
            if machine.leaves and not machine.claimed and not machine.runs:
                self.locks.end(machine.session)
                self.machines.remove(machine)

    def drive(self, turns: int) -> None:
        acts, weights = [*_ACTS], [*_ACTS.values()]
        for _ in range(turns):
            self.turn()
            for simulation in self.streams.values():
                self.rng.choices(acts, weights)[0](simulation)
            if self.chance(0.08):
                self.trouble()

    def rest(self) -> None:
        """Faults are over. Then the promise, and who runs what."""
        for machine in self.machines:
            machine.frozen = False
        if all(machine.leaves for machine in self.machines):
            self.join()
        for simulation in self.streams.values():
            self._calm(simulation)
        self.until_idle()
        where = self.where()
        loads = sorted(
            Counter(dict.fromkeys((m.name for m in self.machines), 0) | Counter(where.values())).values()
        )
        checks.require(loads[-1] - loads[0] <= 1, "the split is not fair:", where)
        epochs = self.epochs()
        for _ in range(30):
            self.turn()
        checks.require(
            (self.where(), self.epochs()) == (where, epochs), "streams move although nothing happens"
        )
        for simulation in self.streams.values():
            checks.promise(simulation)

    @staticmethod
    def _calm(simulation: Simulation) -> None:
        simulation.calm = True
        for transaction in list(simulation.source.running.values()):
            if not transaction.recorded:
                simulation.record(transaction)
            simulation.source.leave(transaction)
        simulation.source.flush()
        faults.recreate_publication(simulation)

    def until_idle(self) -> None:
        for _ in range(1_500):
            self.turn()
            for simulation in self.streams.values():
                faults.reader_noticed(simulation)
                if simulation.orphans:
                    simulation.target.roll_back(simulation.orphans.pop())
            if all(self._is_idle(stream) for stream in self.streams):
                return
        raise checks.Violation(f"never came to rest: {self.locks} {self.machines}")

    def _is_idle(self, stream: str) -> bool:
        simulation = self.streams[stream]
        if len(simulation.bridges) != 1 or stream not in self.locks.claims or simulation.halted:
            return False
        [bridge] = simulation.bridges
        return bridge.idle > 12 and isinstance(bridge.request, Receive | Wait) and bridge.sent is None

    def where(self) -> dict[str, str]:
        """Each stream's machine; it is the one with its claim, and the only one."""
        found = {}
        for stream, simulation in self.streams.items():
            runners = [machine for machine in self.machines if stream in machine.runs]
            claimer = self.locks.claims.get(stream)
            right = [one.session for one in runners] == [claimer] and len(simulation.bridges) == 1
            checks.require(right, "runs elsewhere than its claim is:", stream, claimer, runners)
            found[stream] = runners[0].name
        return found

    def epochs(self) -> list[int]:
        return [one.target.ledger.epoch if one.target.ledger else 0 for one in self.streams.values()]


def walk(seed: str, counts: Counter[str] | None = None, turns: int = 120) -> None:
    """One walk. Raises checks.Violation."""
    shared = Shared(Random(seed))
    shared.join()
    shared.join()
    try:
        shared.drive(turns)
        shared.rest()
    finally:
        if counts is not None:
            counts.update(shared.counts)
            for simulation in shared.streams.values():
                counts["requests"] += simulation.clock
                counts["events"] += simulation.serial
