"""Random schedules of the engine: ``python -m tests.simulation`` runs fresh seeds, a failure shows a minimal replay.

simulate (the core), budget_simulation (cores under one budget), pool_simulation and interleave (whole pools under
threads), async_simulation and async_loop (whole pools under tasks), simulated_server and classes (what these have in
common), replay (how a failing schedule is cut down)
"""

from .async_simulation import AsyncPoolSimulation
from .budget_simulation import BudgetSimulation
from .pool_simulation import PoolSimulation
from .replay import SimulationFailure
from .simulate import CoreSimulation

__all__ = (
    "AsyncPoolSimulation",
    "BudgetSimulation",
    "CoreSimulation",
    "PoolSimulation",
    "SimulationFailure",
)
