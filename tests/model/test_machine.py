"""The same simulation driven by hypothesis, which shrinks what it finds to a few named acts."""

from __future__ import annotations

from random import Random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.model import faults, walk
from tests.model.simulation import Simulation


class Protocol(RuleBasedStateMachine):
    """Bridges, producers and faults in any order; at the end everything comes to rest."""

    simulation: Simulation

    @initialize(
        seed=st.integers(0, 2**16),
        capture=st.sampled_from(["slot", "poll"]),
        failing=st.sampled_from([0.0, 0.03]),
    )
    def begin(self, seed: int, capture: str, failing: float) -> None:
        self.simulation = Simulation(Random(seed), capture=capture, failing=failing)

    def at_work(self) -> bool:
        return self.simulation.halted is None

    @rule(steps=st.integers(1, 40), which=st.integers(0, 2))
    def bridge_works(self, steps: int, which: int) -> None:
        for _ in range(steps):
            if not self.at_work():
                return
            if not self.simulation.bridges:
                self.simulation.start_bridge()
            self.simulation.step(self.simulation.bridges[which % len(self.simulation.bridges)])

    @rule(act=st.sampled_from(list(faults.WORK)))
    def work_is_done(self, act: faults.Act) -> None:
        if self.at_work():
            act(self.simulation)

    @rule(act=st.sampled_from(list(faults.FAULTS)))
    def a_fault_happens(self, act: faults.Act) -> None:
        if self.at_work():
            act(self.simulation)

    @rule(act=st.sampled_from(list(faults.HISTORY)))
    def the_source_changes_its_past(self, act: faults.Act) -> None:
        if self.at_work():
            act(self.simulation)

    def teardown(self) -> None:
        if hasattr(self, "simulation") and self.at_work():
            walk.rest(self.simulation)


TestProtocol = Protocol.TestCase
TestProtocol.settings = settings(
    max_examples=80,
    stateful_step_count=40,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
