"""Connectors without a server: they count calls, and can be made to block, fail or slow down."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

from ..connector import AsyncConnector, Connector, Verdict, default_classify

__all__ = ("AsyncFakeConnector", "FakeConnection", "FakeConnector")


class FakeConnection:
    """A connection without a server.

    ``alive``: whether the simulated server still knows it; ``closed``: whether the pool closed it.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.alive = True
        self.closed = False
        self.dirty = False
        self.resets = 0

    def __repr__(self) -> str:
        return f"<FakeConnection {self.number}{' closed' if self.closed else ''}>"


class _Faults:
    """The counters and faults of both connectors. Thread-safe."""

    connect_in_caller: bool
    reports_errors: bool
    check: Any
    reset: Any
    needs_reset: Any
    peek: Any
    capacity: Any

    def __init__(
        self,
        *,
        checks: bool = True,
        peeks: bool = False,
        resets: bool = True,
        streams: int | None = None,
        in_caller: bool = False,
        reports_errors: bool = False,
        **delays: float,
    ) -> None:
        self._numbers = itertools.count(1)
        self._mutex = threading.Lock()
        self.connect_in_caller = in_caller
        self.reports_errors = reports_errors
        if not checks:  # the engine calls only methods that a connector has
            self.check = None
        if not resets:
            self.needs_reset = self.reset = None
        if peeks:
            self.peek = self._peek
        if streams is not None:
            self.capacity = lambda connection: streams
        self.delays = delays
        self.gates: dict[str, threading.Event] = {}
        self.errors: dict[str, Callable[[], BaseException | None]] = {}
        stages = ("connect", "close", "abort", "check", "reset", "peek")
        self.calls: dict[str, int] = dict.fromkeys(stages, 0)
        self.connections: list[FakeConnection] = []
        self.live = 0
        self.max_live = 0
        self.dialling = 0
        self.max_dialling = 0

    def fail(self, stage: str, make: Callable[[], BaseException | None] | None) -> None:
        """Make ``stage`` raise the error that ``make()`` returns, from now on. ``make=None``: the stage works again."""
        if make is None:
            self.errors.pop(stage, None)
        else:
            self.errors[stage] = make

    def hold(self, stage: str) -> threading.Event:
        """Make ``stage`` block, from now on, until the returned event is set."""
        gate = self.gates[stage] = threading.Event()
        return gate

    def free_all(self) -> None:
        """Set all events of :meth:`hold` and undo every :meth:`fail`."""
        for gate in list(self.gates.values()):
            gate.set()
        self.gates.clear()
        self.errors.clear()

    def _enter(self, stage: str) -> None:
        with self._mutex:
            self.calls[stage] += 1
            if stage == "connect":
                self.dialling += 1
                self.max_dialling = max(self.max_dialling, self.dialling)

    def _leave(self, stage: str) -> None:
        if stage == "connect":
            with self._mutex:
                self.dialling -= 1

    def _raise(self, stage: str) -> None:
        error = self.errors.get(stage, lambda: None)()
        if error is not None:
            raise error

    def _opened(self) -> FakeConnection:
        with self._mutex:
            connection = FakeConnection(next(self._numbers))
            self.connections.append(connection)
            self.live += 1
            self.max_live = max(self.max_live, self.live)
            return connection

    def _closed(self, connection: FakeConnection) -> None:
        with self._mutex:
            if not connection.closed:
                connection.closed = True
                self.live -= 1

    def _peek(self, connection: FakeConnection) -> bool:
        self._enter("peek")
        return connection.alive

    def kill_all(self) -> None:
        """Simulate a restart of the server: the current connections are dead, new ones work."""
        for connection in self.connections:
            connection.alive = False


class FakeConnector(_Faults, Connector[FakeConnection]):
    """A connector for :class:`~poolkit.Pool` that needs no server. Thread-safe.

    The stages are connect, close, abort, check, reset and peek. ``FakeConnector(connect=0.1)`` sets the seconds that a
    stage takes, ``hold(stage)`` makes it block, ``fail(stage, make)`` makes it raise. ``calls`` (by stage),
    ``connections``, ``live``, ``max_live``, ``dialling`` and ``max_dialling`` (connects that run now, and the most at
    once) record what happened, as a server would see it.

    Args:
        checks, peeks, resets: whether the simulated driver has these operations.
        streams: how many leases one connection serves at once; None: one.
        in_caller: connect in the thread or task of the caller.
        reports_errors: tell callers of a failed connect at once.
    """

    def _stage(self, stage: str) -> None:
        self._enter(stage)
        try:
            gate = self.gates.get(stage)
            if gate is not None:
                gate.wait(30)
            if self.delays.get(stage):
                time.sleep(self.delays[stage])
            self._raise(stage)
        finally:
            self._leave(stage)

    def connect(self, timeout: float | None) -> FakeConnection:
        """Open a simulated connection."""
        self._stage("connect")
        return self._opened()

    def close(self, connection: FakeConnection) -> None:
        """Close the connection, even if this stage is to fail."""
        try:
            self._stage("close")
        finally:
            self._closed(connection)

    def abort(self, connection: FakeConnection) -> None:
        """Close the connection at once."""
        self._enter("abort")
        self._closed(connection)
        self._raise("abort")

    def check(self, connection: FakeConnection, timeout: float | None) -> bool:
        """Return whether the simulated server still knows the connection."""
        self._stage("check")
        return connection.alive

    def needs_reset(self, connection: FakeConnection) -> bool:
        """Return whether the connection is dirty and needs a reset."""
        return connection.dirty

    def reset(self, connection: FakeConnection) -> None:
        """Mark the connection as clean."""
        self._stage("reset")
        connection.dirty = False
        connection.resets += 1

    def classify(self, error: BaseException) -> Verdict:
        """Return the attribute ``verdict`` of the error if it has one, else the default."""
        verdict: Any = getattr(error, "verdict", None)
        return verdict if isinstance(verdict, Verdict) else default_classify(error)


class AsyncFakeConnector(_Faults, AsyncConnector[FakeConnection]):
    """A connector for :class:`~poolkit.AsyncPool` on asyncio and trio. See :class:`FakeConnector`."""

    async def _stage(self, stage: str) -> None:
        self._enter(stage)
        try:
            gate = self.gates.get(stage)
            while gate is not None and not gate.is_set():
                await _sleep(0.001)
            await _sleep(self.delays.get(stage, 0.0))
            self._raise(stage)
        finally:
            self._leave(stage)

    async def connect(self, timeout: float | None) -> FakeConnection:
        """Open a simulated connection."""
        await self._stage("connect")
        return self._opened()

    async def close(self, connection: FakeConnection) -> None:
        """Close the connection, even if this stage is to fail."""
        try:
            await self._stage("close")
        finally:
            self._closed(connection)

    def abort(self, connection: FakeConnection) -> None:
        """Close the connection at once."""
        self._enter("abort")
        self._closed(connection)
        self._raise("abort")

    async def check(self, connection: FakeConnection, timeout: float | None) -> bool:
        """Return whether the simulated server still knows the connection."""
        await self._stage("check")
        return connection.alive

    def needs_reset(self, connection: FakeConnection) -> bool:
        """Return whether the connection is dirty and needs a reset."""
        return connection.dirty

    async def reset(self, connection: FakeConnection) -> None:
        """Mark the connection as clean."""
        await self._stage("reset")
        connection.dirty = False
        connection.resets += 1

    def classify(self, error: BaseException) -> Verdict:
        """Return the attribute ``verdict`` of the error if it has one, else the default."""
        verdict: Any = getattr(error, "verdict", None)
        return verdict if isinstance(verdict, Verdict) else default_classify(error)


async def _sleep(seconds: float) -> None:
    import asyncio

    if asyncio._get_running_loop() is not None:
        await asyncio.sleep(seconds)
    else:
        import trio

        await trio.sleep(seconds)
