"""Random schedules of the core in virtual time: after each step the invariants hold, and no caller waits in vain."""

from __future__ import annotations

import os
import random

import pytest

from poolkit._core.service import Service
from tests.simulation import CoreSimulation, SimulationFailure
from tests.simulation.simulate import STEPS

# every seed that has failed, with the fault that it showed
FAILED_ONCE = {
    1: "a multiplexed connection was listed as idle twice",
    18: "a wake-up was lost when the woken caller gave up",
    39: "a wake-up was lost when the woken caller was served otherwise",
    245: "a newcomer queued although there was an idle connection and nobody before it",
    687: "a full multiplexed connection was handed out once more",
    803: "a freed permit of an endpoint that was limited by max_connecting woke nobody",
    1306: "a closed multiplexed connection that still stood in the list was closed again",
    1439: "an eviction whose permit went to another endpoint was never repeated",
    2820: "a tick for another reason forgot the waiting retry",
    5853: "a tick for another reason forgot the waiting retry",
    151445562: "the simulation's own mistake: a class of before the last settings was compared with one of now",
    127170221: "a request for which no idle connection was old enough was forgotten when an older one came first",
    855169825: "the same",
    861071298: "the invariant's own mistake: leases from before there were classes use permits that nobody reserved",
}


OLDER_STEPS = ("acquire", "wake_up", "release", "finish_open", "finish_check", "finish_close", "give_up", "pass_time",
               "command")  # fmt: skip


class AsItWas(CoreSimulation):
    """The schedules in which those seeds failed: one random stream for all steps, no forks, no dropped leases, no
    classes of callers.
    """

    class_share = 0.0

    def _choose(self) -> str:
        return self.random.choices(OLDER_STEPS, [STEPS[name] for name in OLDER_STEPS])[0]

    def _reseed(self, number: int) -> None:
        pass

    def _autoscale(self) -> None:
        pass

    def _overload(self) -> None:
        pass


@pytest.mark.parametrize("simulation", [AsItWas, CoreSimulation])
@pytest.mark.parametrize("seed", FAILED_ONCE)
def test_schedules_that_failed_once_pass(seed: int, simulation: type[CoreSimulation]) -> None:
    simulation(seed).run(400)


def test_a_short_schedule_that_failed_once_passes() -> None:
    """The core was about to open a connection for an endpoint whose only request ``max_wait`` had refused."""
    CoreSimulation(241296386).run(250)


@pytest.mark.parametrize("block", range(8))
def test_fresh_random_schedules_keep_every_promise(block: int) -> None:
    first = (
        random.SystemRandom().randrange(10**9) if "POOLKIT_SEED" not in os.environ else int(os.environ["POOLKIT_SEED"])
    )
    for seed in range(first, first + 60):
        CoreSimulation(seed).run(250)


def test_in_some_schedules_the_newest_come_first_for_a_while() -> None:
    """Otherwise the schedules would not cover overload."""
    found = [CoreSimulation(seed) for seed in range(60)]
    for one in found:
        one.run(250)
    assert sum(one.overloads > 0 for one in found) >= 5


def test_a_failure_shows_the_seed_and_a_minimal_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulation can fail: it detects a core that does not serve callers with a returned connection."""
    monkeypatch.setattr(Service, "place", lambda self, slot, now: None)
    with pytest.raises(SimulationFailure, match=r"seed \d+: ") as caught:
        for seed in range(20):
            CoreSimulation(seed).run(300)
    script = caught.value.script
    assert len(script) < 12
    assert f"replay({script})" in str(caught.value)
    with pytest.raises(AssertionError) as again:
        CoreSimulation(seed).replay(script)
    assert str(again.value).splitlines()[0] in str(caught.value)
    for left_out in script:  # the replay is minimal
        CoreSimulation(seed).replay({key: step for key, step in script.items() if key != left_out})
    monkeypatch.undo()
    CoreSimulation(seed).replay(script)
