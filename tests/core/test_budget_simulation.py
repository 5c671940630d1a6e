"""Several pools under one budget in random schedules: they never exceed it, and no caller waits in vain."""

from __future__ import annotations

import os
import random

import pytest

from poolkit._core.ledger import BudgetLedger
from tests.simulation import BudgetSimulation, SimulationFailure

# seeds that show an earlier fault of the code if it is planted again
FAILED_ONCE = {
    0: "an endpoint's claim was forgotten when another endpoint of the same pool got a permit",
    46: "the last request gave up beside an idle connection, which nobody offered to other pools",
    726: "a request took one of two idle connections, and nobody offered the other one",
    484: "all requests of a suspended pool were told off, and nobody offered what was idle beside them",
    17: "a pool grew beyond its min_size, and nobody offered the idle connection that it could spare now",
}


@pytest.mark.parametrize("seed", FAILED_ONCE)
def test_schedules_of_budgets_that_failed_once_pass(seed: int) -> None:
    """The fault that is named beside the seed does not occur."""
    BudgetSimulation(seed).run(400)


@pytest.mark.parametrize("block", range(4))
def test_fresh_schedules_of_budgets_keep_every_promise(block: int) -> None:
    """Permits equal what is held, at most the limit. No caller waits while a permit is free or could become free."""
    first = int(os.environ.get("POOLKIT_SEED", random.SystemRandom().randrange(10**9))) + 1000 * block
    for seed in range(first, first + 10):
        BudgetSimulation(seed).run(250)


def test_the_simulation_notices_a_budget_that_notifies_no_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulation can fail: without messages a caller waits in vain."""
    monkeypatch.setattr(BudgetLedger, "notify", lambda self, account: None)
    with pytest.raises(SimulationFailure, match=r"seed \d+: "):
        for seed in range(20):
            BudgetSimulation(seed).run(300)
