"""A test kit: a manual clock, connectors without a server, pytest fixtures, and real servers from wheels."""

from .clock import ManualClock
from .connectors import AsyncFakeConnector, FakeConnection, FakeConnector

__all__ = (
    "AsyncFakeConnector",
    "FakeConnection",
    "FakeConnector",
    "ManualClock",
)
