"""Connectors without a server: they count, and hold, fail or slow down whatever a test tells them to."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

from ..connector import AsyncConnector, Connector, Verdict, default_classify

__all__ = ("AsyncFakeConnector", "FakeConnection", "FakeConnector")


class FakeConnection:
    """A connection to nowhere. ``alive`` is what the "server" thinks of it, ``closed`` what was done to it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.alive = True
        self.closed = False
        self.dirty = False
        self.resets = 0

    def __repr__(self) -> str:
        return f"<FakeConnection {self.number}{' closed' if self.closed else ''}>"


class _Faults:
    """What both connectors count and are told. Thread-safe."""

    def __init__(self, **delays: float) -> None:
        self._numbers = itertools.count(1)
        self._mutex = threading.Lock()
        self.delays = delays
        self.gates: dict[str, threading.Event] = {}
        self.errors: dict[str, Callable[[], BaseException | None]] = {}
        self.calls: dict[str, int] = dict.fromkeys(("connect", "close", "abort", "check", "reset"), 0)
        self.connections: list[FakeConnection] = []
        self.live = 0
        self.max_live = 0
        self.dialling = 0
        self.max_dialling = 0

    def fail(self, stage: str, make: Callable[[], BaseException | None] | None) -> None:
        """From now on ``stage`` raises what ``make()`` gives (None: it works)."""
        if make is None:
            self.errors.pop(stage, None)
        else:
            self.errors[stage] = make

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

    def kill_all(self) -> None:
        """The server goes away: every connection that stands is dead, new ones work."""
        for connection in self.connections:
            connection.alive = False


class FakeConnector(_Faults, Connector[FakeConnection]):
    """For :class:`~poolkit.Pool`. ``delays``: seconds for each of connect, close, check, reset.

    ``gates[stage]``: an event that the stage waits for. ``fail(stage, make)``: an error that it raises.
    ``calls``, ``live``, ``max_live``, ``max_dialling``: what happened.
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
        """Open a connection to nowhere."""
        self._stage("connect")
        return self._opened()

    def close(self, connection: FakeConnection) -> None:
        """Close it, even if the goodbye fails."""
        try:
            self._stage("close")
        finally:
            self._closed(connection)

    def abort(self, connection: FakeConnection) -> None:
        """Close it at once."""
        self._enter("abort")
        self._closed(connection)

    def check(self, connection: FakeConnection, timeout: float | None) -> bool:
        """Whether the "server" still knows it."""
        self._stage("check")
        return connection.alive

    def needs_reset(self, connection: FakeConnection) -> bool:
        """Whether somebody left it dirty."""
        return connection.dirty

    def reset(self, connection: FakeConnection) -> None:
        """Clean it."""
        self._stage("reset")
        connection.dirty = False
        connection.resets += 1

    def classify(self, error: BaseException) -> Verdict:
        """As the default; an error with an attribute ``verdict`` says it itself."""
        verdict: Any = getattr(error, "verdict", None)
        return verdict if isinstance(verdict, Verdict) else default_classify(error)


class AsyncFakeConnector(_Faults, AsyncConnector[FakeConnection]):
    """For :class:`~poolkit.AsyncPool`, on asyncio and trio; see :class:`FakeConnector`."""

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
        """Open a connection to nowhere."""
        await self._stage("connect")
        return self._opened()

    async def close(self, connection: FakeConnection) -> None:
        """Close it, even if the goodbye fails."""
        try:
            await self._stage("close")
        finally:
            self._closed(connection)

    def abort(self, connection: FakeConnection) -> None:
        """Close it at once."""
        self._enter("abort")
        self._closed(connection)

    async def check(self, connection: FakeConnection, timeout: float | None) -> bool:
        """Whether the "server" still knows it."""
        await self._stage("check")
        return connection.alive

    def needs_reset(self, connection: FakeConnection) -> bool:
        """Whether somebody left it dirty."""
        return connection.dirty

    async def reset(self, connection: FakeConnection) -> None:
        """Clean it."""
        await self._stage("reset")
        connection.dirty = False
        connection.resets += 1

    def classify(self, error: BaseException) -> Verdict:
        """As the default; an error with an attribute ``verdict`` says it itself."""
        verdict: Any = getattr(error, "verdict", None)
        return verdict if isinstance(verdict, Verdict) else default_classify(error)


async def _sleep(seconds: float) -> None:
    import asyncio

    if asyncio._get_running_loop() is not None:
        await asyncio.sleep(seconds)
    else:
        import trio

        await trio.sleep(seconds)
