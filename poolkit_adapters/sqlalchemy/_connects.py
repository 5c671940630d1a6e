"""The connects of an async pool: each in a task of its own, which outlives a caller that is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sqlalchemy.util import greenlet_spawn

from .._hang_up import hang_up
from .._time_limits import shortest
from ._errors import connect_error, overdue
from ._greenlets import GreenletRuntime, await_, in_greenlet, running_loop

if TYPE_CHECKING:
    from ._async_io import AsyncRecord
    from ._pool import BasePool

__all__ = ("GRACE", "Connects")

GRACE = 0.5
"""Seconds for a driver to notice that its socket was shut down: it does so in the next round of the event loop."""


class Connects:
    """Runs connects within their time limits, in tasks that no caller's cancellation reaches.

    The server notices a cancelled connect only when the connection ends. Until then it starts a process, asks for the
    password, and runs the statements of "connect" events. So a connect that a caller makes itself continues after the
    caller is gone. When it has succeeded, it is closed. Its slot is taken until then.
    """

    def __init__(self, pool: BasePool, runtime: GreenletRuntime) -> None:
        self._pool = pool
        self._runtime = runtime

    def open(self, record: AsyncRecord) -> None:
        """Call ``record.connect()`` in a task of the pool. At its time limit, or the end of the loop, it is cut off."""
        loop = running_loop()
        if loop is None or not in_greenlet():
            record.connect()  # this code cannot wait, so the driver raises its own error
            return
        task = loop.create_task(_outcome(record.connect))
        try:
            await_(_in_time(record, task))
            late = not task.done()
            if late:
                await_(self._see_off(record, task, 0.0))
        except asyncio.CancelledError:
            await_(self._see_off(record, task, 0.0))
            # an error, not a cancellation: the callers that get it may run in another loop
            raise self._interrupted() from None
        if late:
            assert record.attempt is not None
            raise overdue(self._pool._dialect, record.attempt.seconds)
        _raise(self._error_of(record, task))

    def run(self, record: AsyncRecord) -> None:
        """Call ``record.connect()`` for the calling greenlet. If that is cancelled, or its time is up, the connect
        continues in the task ``record.ending``. The connection of a slot is then kept; that of a new record is closed.
        """
        record.ending = None
        loop = running_loop()
        if loop is None or not in_greenlet():
            record.connect()  # this code cannot wait, so the driver raises its own error
            return
        kept = record.asked > 0.0
        task = loop.create_task(_outcome(record.connect))
        try:
            await_(_in_time(record, task, asked=True))
        except BaseException:
            record.ending = self._runtime.keep(self._see_off(record, task, self._limit(), kept=kept))
            raise
        if task.done():
            _raise(self._error_of(record, task))
            return
        assert record.attempt is not None
        if record.attempt.left() != 0.0:
            record.ending = self._runtime.keep(self._see_off(record, task, self._limit(), kept=kept))
            raise record.too_late("the connect continues for the next caller")
        record.ending = self._runtime.keep(self._see_off(record, task, 0.0))
        raise overdue(self._pool._dialect, record.attempt.seconds)

    def _error_of(self, record: AsyncRecord, task: asyncio.Task[BaseException | None]) -> BaseException | None:
        """Return the error of a connect that has ended, or None. A cancelled one is an error: its caller was not
        cancelled, and drivers end connects by a cancellation at their own time limit.
        """
        error = asyncio.CancelledError() if task.cancelled() else task.result()
        if not isinstance(error, asyncio.CancelledError):
            return error
        if record.attempt is not None and record.attempt.left() == 0.0:
            return overdue(self._pool._dialect, record.attempt.seconds)
        return self._interrupted()

    def _limit(self) -> float | None:
        """Return the seconds for a connect whose caller has given up."""
        config = self._pool.poolkit.config
        # without a connect_timeout a driver may wait for a dead server for minutes, and its slot would stay taken
        return config.check_timeout if config.connect_timeout is None else config.connect_timeout

    def _interrupted(self) -> BaseException:
        """Return the error of a connect that was cancelled. It has the driver's class."""
        kind: Any = getattr(getattr(self._pool._dialect, "dbapi", None), "OperationalError", ConnectionError)
        return connect_error(kind("the connect was cancelled, or its event loop has ended"))

    def end(self) -> None:
        """Wait for connects that nobody waits for, at most ``check_timeout`` seconds; then cut them off."""
        connects = self._runtime.pending(opening=True)
        if connects and in_greenlet() and not self._pool.poolkit.stats().waiting:
            await_(self._end(connects))

    async def _end(self, connects: list[asyncio.Task[None]]) -> None:
        _, going_on = await asyncio.wait(connects, timeout=self._pool.poolkit.config.check_timeout)
        for task in going_on:
            task.cancel()
        if going_on:
            await asyncio.wait(going_on)

    async def _see_off(
        self, record: AsyncRecord, connect: asyncio.Task[Any], limit: float | None, *, kept: bool = False
    ) -> None:
        """Wait at most ``limit`` seconds for a connect whose caller is gone, and close what it has opened.

        ``kept``: leave an open connection in the record.
        """
        stands = False
        try:
            await self._ended(record, connect, limit)
            stands = kept
        finally:  # also when the loop is about to end and cancels this task
            connection = None
            if not stands:
                connection, record.dbapi_connection = record.dbapi_connection, None
            if connection is not None:
                record.finalize_callback.clear()
                if self._pool.dispatch.close:
                    await greenlet_spawn(self._pool.dispatch.close, connection, record)
                # as SQLAlchemy does, through the method that a subclass of the application's may have extended
                await greenlet_spawn(self._pool._close_connection, connection, terminate=True)

    async def _ended(self, record: AsyncRecord, task: asyncio.Task[Any], limit: float | None) -> None:
        """Wait until ``task`` has ended; after ``limit`` seconds it is cut off."""
        try:
            await asyncio.wait([task], timeout=limit)
            half = record.dbapi_connection
            if not task.done() and half is not None:
                # in a "connect" event: psycopg would wait 10 s for the server to hear of the cancellation
                hang_up(self._pool._endings.driver_of(half))
                await asyncio.wait([task], timeout=GRACE)
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait([task])


async def _in_time(record: AsyncRecord, task: asyncio.Task[Any], *, asked: bool = False) -> None:
    """Wait until ``task`` has ended or its connect has used up its time; with ``asked`` also until its caller has.

    The driver's arguments may set another limit, which is known only after the host's name has been looked up. And
    addresses that were not tried leave their time unused. So the record says when its limit may have changed.
    """
    await asyncio.sleep(0)  # without a name to look up, the limit is known then
    try:
        await _until_limit(record, task, asked=asked)
    finally:
        record.changed = None


async def _until_limit(record: AsyncRecord, task: asyncio.Task[Any], *, asked: bool) -> None:
    while not task.done():
        assert record.attempt is not None
        left = shortest(record.attempt.left(), record.left() if asked else None)
        if left == 0.0:
            return
        record.changed = changed = asyncio.get_running_loop().create_future()
        await asyncio.wait([task, changed], timeout=left, return_when=asyncio.FIRST_COMPLETED)


def _raise(error: BaseException | None) -> None:
    if error is not None:
        try:
            raise error
        finally:
            del error  # no cycle of error, traceback and this frame


async def _outcome(connect: Callable[[], object]) -> BaseException | None:
    """Return the error of ``connect()``, or None. If the task raised it, asyncio would log it as never retrieved."""
    try:
        await greenlet_spawn(connect)
    except (KeyboardInterrupt, SystemExit):
        raise  # they end the loop
    except BaseException as error:  # noqa: BLE001  raised in the caller
        return error
    return None
