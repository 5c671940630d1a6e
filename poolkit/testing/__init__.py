"""Test kit: a manual clock, connectors without a server, a simulation of the core, real servers from wheels."""

from .clock import ManualClock
from .connectors import AsyncFakeConnector, FakeConnection, FakeConnector
from .simulate import CoreSimulation, SimulationFailure

__all__ = (
    "AsyncFakeConnector",
    "CoreSimulation",
    "FakeConnection",
    "FakeConnector",
    "ManualClock",
    "SimulationFailure",
)
