"""Test kit: a manual clock, connectors without a server, fixtures for pytest, real servers from wheels."""

from .clock import ManualClock
from .connectors import AsyncFakeConnector, FakeConnection, FakeConnector

__all__ = (
    "AsyncFakeConnector",
    "FakeConnection",
    "FakeConnector",
    "ManualClock",
)
