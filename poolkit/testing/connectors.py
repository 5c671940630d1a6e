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

    connect_in_caller: bool
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
        **delays: float,
    ) -> None:
        self._numbers = itertools.count(1)
        self._mutex = threading.Lock()
        self.connect_in_caller = in_caller
        if not checks:  # the engine calls only what a connector has
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
        """From now on ``stage`` raises what ``make()`` gives (None: it works)."""
        if make is None:
            self.errors.pop(stage, None)
        else:
            self.errors[stage] = make

    def hold(self, stage: str) -> threading.Event:
        """From now on ``stage`` waits until the event given here is set."""
        gate = self.gates[stage] = threading.Event()
        return gate

    def free_all(self) -> None:
        """Open every gate and let every stage work."""
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
        """The server goes away: every connection that stands is dead, new ones work."""
        for connection in self.connections:
            connection.alive = False


class FakeConnector(_Faults, Connector[FakeConnection]):
    """For :class:`~poolkit.Pool`. ``FakeConnector(connect=0.1)``: seconds that a stage takes.

    Stages are connect, close, abort, check, reset and peek. ``hold(stage)`` gives an event that the stage waits
    for, ``fail(stage, make)`` sets the error that it raises. ``calls``, ``connections``, ``live``, ``max_live``,
    ``dialling``, ``max_dialling``: what happened, as the "server" saw it.
    ``checks``, ``peeks``, ``resets``: what this driver can do; ``streams``: leases that one connection serves;
    ``in_caller``: connects happen in the thread or task of the caller.
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
        self._raise("abort")

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
        self._raise("abort")

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
