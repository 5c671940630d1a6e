"""What an AsyncPool does on connections, each in a task of its own: connect, check, reset, close, look."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

from ._core.contract import BrokenContract, broken, returned, verdict_of
from ._core.effects import Do
from ._core.entry import Entry
from ._core.lease_record import Held
from ._core.upkeep import pinged
from ._core.waiter import Waiter
from ._log import logger
from ._shell import Shell
from .connector import Verdict
from .errors import describe, shown_again
from .runtimes.base import AsyncParker, AsyncRuntime

__all__ = ("AsyncJobs",)

C = TypeVar("C")


class AsyncJobs(Shell[C]):
    """The background half of :class:`~poolkit.AsyncPool`: no caller's cancellation gets here.

    A task that is cut off ends its part with the core with which it began it. If that is not the pool's any more (in
    a forked child, or after the end of its loop, where the collector ends what never went on), it does nothing: its
    connection is the parent's, or was closed with the loop.
    """

    _runtime: AsyncRuntime | None

    def _call_later(self, delay: float) -> bool | None:
        if self._runtime is None:
            return None  # on the first use
        self._runtime.schedule(self, delay)
        return True

    def _hear(self) -> None:
        runtime = self._runtime
        if runtime is None or runtime.here() or not runtime.alive():
            super()._hear()
        else:  # connections belong to their loop: no other thread lays hands on them
            self._gate.inbox.append((self._look_again, ()))
            runtime.nudge(self)

    def _cut(self) -> int:
        runtime = self._runtime
        if runtime is None or runtime.here() or not runtime.alive():
            return super()._cut()
        leased = len(self._leased)
        self._gate.inbox.append((self._cut_now, ()))
        runtime.nudge(self)
        return leased

    def _nudge(self) -> None:
        if self._runtime is not None:
            self._runtime.nudge(self)

    def _begin_job(self, do: Do, entry: Entry) -> None:
        runtime = self._runtime
        if runtime is None:
            return  # a forked child that is about to begin anew: all connections are the parent's
        if do is Do.CONNECT:
            runtime.spawn(self._connect_job, entry)
        elif do is Do.PING:
            runtime.spawn(self._ping_job, entry)
        elif self._close_method is not None and runtime.alive():
            runtime.spawn(self._close_job, entry)
        else:
            self._abort_now(entry)

    async def _connect_job(self, entry: Entry) -> BaseException | None:
        """Connect for whoever comes first; the error, if it failed."""
        runtime, core = cast("AsyncRuntime", self._runtime), self._core
        limit = self._config.connect_timeout
        try:
            self._refuse_closed()  # since this was decided
            opened = await runtime.bounded(limit, self._connect, entry, limit)
        except BaseException as error:
            if core is self._core:
                self._connect_failed(core, entry, error)
            if not isinstance(error, Exception):
                raise
            return error
        found = self._gate.step(self._arrived, entry, opened)
        return found if isinstance(found, BrokenContract) else None

    async def _close_job(self, entry: Entry) -> None:
        runtime, core = cast("AsyncRuntime", self._runtime), self._core
        closed = False
        try:
            await runtime.bounded(
                self._config.check_timeout, self._called, "close", self._close_method, entry.connection
            )
            closed = True
        except Exception as failure:  # noqa: BLE001 - told, and the connection goes
            logger.debug("%s: close of connection %d failed: %s", self.name, entry.id, describe(failure))
        finally:
            if core is self._core:
                if closed:
                    self._gone(entry)
                else:
                    self._abort_now(entry)

    async def _ping_job(self, entry: Entry) -> None:
        now, core = self._clock(), self._core
        keepalive = self._config.keepalive
        ask = self._check_method is not None and (
            entry.good_until == 0.0 or (keepalive is not None and now - entry.seen_at >= keepalive)
        )
        error: BaseException | None = ConnectionAbortedError("check interrupted")
        try:
            error = self._peek(entry)
            if error is None and ask:
                error = await self._ask_server(entry)
        finally:
            if core is self._core:
                self._gate.step(pinged, core, entry, error, ask, self._clock())

    async def _connect(self, entry: Entry, limit: float | None) -> tuple[C, int, bool]:
        connection: C
        if self._connect_to is not None:
            connection = await self._called("connect_to", self._connect_to, entry.lane.key, limit)
        else:
            connection = await self._called("connect", self._connector.connect, limit)
        try:
            return self._judged(connection)
        except BaseException:
            self._dispose(connection)
            raise

    async def _called(self, name: str, method: Callable[..., Any], *args: Any) -> Any:
        """``await method(*args)``. BrokenContract if it is a plain function: what it has done is done then, and what
        it has opened is closed again.
        """
        result = method(*args)
        if inspect.isawaitable(result):
            return await result
        if name in ("connect", "connect_to"):
            self._dispose(result)
        error = broken(
            self._connector, name, returned(result), "that of an AsyncConnector must be a coroutine (async def)"
        )
        self._complain(error)
        raise error

    def _dispose(self, connection: Any) -> None:
        """Close a new connection that the pool cannot use."""
        if connection is not None and not self._aborted(connection) and self._close_method is not None:
            cast("AsyncRuntime", self._runtime).spawn(self._close_unused, connection)

    async def _close_unused(self, connection: Any) -> None:
        runtime = cast("AsyncRuntime", self._runtime)
        try:
            await runtime.bounded(self._config.check_timeout, self._called, "close", self._close_method, connection)
        except Exception as failure:  # noqa: BLE001 - told, and the connection goes
            logger.debug("%s: close of a connection failed: %s", self.name, describe(failure))

    async def _check_job(self, entry: Entry, waiter: Waiter) -> None:
        core = self._core
        error: BaseException | None = ConnectionAbortedError("check interrupted")
        began = self._clock()
        try:
            error = await self._ask_server(entry)
        finally:
            if core is self._core:
                now = self._clock()
                waiter.checking += now - began
                self._gate.step(core.checked, entry, waiter, error, now)
                assert waiter.parker is not None
                waiter.parker.wake()

    def _peek(self, entry: Entry) -> Exception | None:
        try:
            peek = self._peek_method
            if peek is not None and verdict_of(self._connector, "peek", peek(entry.connection)) is False:
                return ConnectionResetError("closed by the peer while idle")
        except Exception as error:  # noqa: BLE001  whatever it is, the connection is not alive
            if isinstance(error, BrokenContract):
                self._complain(error)
            return error
        return None

    async def _ask_server(self, entry: Entry) -> Exception | None:
        runtime = cast("AsyncRuntime", self._runtime)
        limit = self._config.check_timeout
        try:
            said = await runtime.bounded(limit, self._called, "check", self._check_method, entry.connection, limit)
            if verdict_of(self._connector, "check", said) is False:
                return ConnectionAbortedError("the check failed")
        except Exception as error:  # noqa: BLE001  whatever it is, the connection is not alive
            if isinstance(error, BrokenContract):
                self._complain(error)
            return error
        return None

    async def _reset_job(self, record: Held, ended: float, parker: AsyncParker | None, done: list[bool]) -> None:
        sound, core, entry = False, self._core, record.slot
        try:
            runtime = cast("AsyncRuntime", self._runtime)
            await runtime.bounded(
                self._config.check_timeout, self._called, "reset", self._reset_method, entry.connection
            )
            sound = True
        except Exception as failure:  # noqa: BLE001 - told, and the connection goes
            logger.debug("%s: reset of connection %d failed: %s", self.name, entry.id, describe(failure))
        finally:
            if core is self._core:
                if sound:
                    self._gate.post(core.give_back, record, ended)
                else:
                    self._gate.post(core.discard, record, ended, Verdict.DISCARD)
                done.append(sound)
                if parker is not None:
                    parker.wake()

    def _name_of(self, holder: Hashable) -> str:
        return "a task" if self._runtime is None else shown_again(self._runtime.name_of(holder))
