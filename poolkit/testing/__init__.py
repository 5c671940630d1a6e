"""Test kit: a manual clock, connectors without a server, simulations of the engine, real servers from wheels."""

from .async_simulation import AsyncPoolSimulation
from .budget_simulation import BudgetSimulation
from .clock import ManualClock
from .connectors import AsyncFakeConnector, FakeConnection, FakeConnector
from .pool_simulation import PoolSimulation
from .simulate import CoreSimulation, SimulationFailure

__all__ = (
    "AsyncFakeConnector",
    "AsyncPoolSimulation",
    "BudgetSimulation",
    "CoreSimulation",
    "FakeConnection",
    "FakeConnector",
    "ManualClock",
    "PoolSimulation",
    "SimulationFailure",
)
