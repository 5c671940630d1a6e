"""The connects of an async pool: each in a task of its own, which outlives a caller that is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sqlalchemy.util import greenlet_spawn

from .._hang_up import hang_up
from ._greenlets import GreenletRuntime, await_, in_greenlet, running_loop

if TYPE_CHECKING:
    from ._async import AsyncPoolkitPool, AsyncRecord

__all__ = ("GRACE", "Connects")

GRACE = 0.5
"""Seconds for a driver to notice that its socket was shut down: it does so in the next round of the event loop."""


class Connects:
    """Runs connects; sees to their end those whose callers have been cancelled.

    The server learns of a cancelled connect only by the end of the connection, and goes on until then: it starts a
    process, asks for the password, runs the statements of "connect" events. So a connect goes on when its caller is
    gone, is closed when it stands, and its place in the pool is taken until then.
    """

    def __init__(self, pool: AsyncPoolkitPool, runtime: GreenletRuntime) -> None:
        self._pool = pool
        self._runtime = runtime

    def run(self, record: AsyncRecord, connect: Callable[[], object]) -> None:
        """``connect()``, on behalf of the calling greenlet. When that is cancelled, or the time is up,
        ``record.ending`` is the task that ends with the last trace of the connect.
        """
        record.ending = None
        loop = running_loop()
        if loop is None or not in_greenlet():
            connect()  # nobody can wait here: the driver says so
            return
        task = loop.create_task(_outcome(connect))
        try:
            await_(_in_time(record, task))
        except BaseException:
            config = self._pool.poolkit.config
            # without a connect_timeout a driver may wait for a dead server for minutes, and the place would be taken
            limit = config.check_timeout if config.connect_timeout is None else config.connect_timeout
            record.ending = self._runtime.keep(self._see_off(record, task, limit))
            raise
        if not task.done():
            record.ending = self._runtime.keep(self._see_off(record, task, 0.0))
            assert record.attempt is not None
            raise self._pool._overdue(record.attempt)
        error = task.result()
        if error is not None:
            try:
                raise error
            finally:
                del error  # no cycle of error, traceback and this frame

    async def _see_off(self, record: AsyncRecord, connect: asyncio.Task[Any], limit: float | None) -> None:
        """Wait for a connect that nobody wants any more, and close what it has opened."""
        try:
            await self._ended(record, connect, limit)
        finally:  # also when the loop is about to end and cancels this task
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


async def _in_time(record: AsyncRecord, task: asyncio.Task[Any]) -> None:
    """Wait until ``task`` has ended, or its connect has used up its time."""
    await asyncio.sleep(0)  # the driver is called: from here on the attempt knows what its arguments allow
    while not task.done():
        attempt = record.attempt
        left = None if attempt is None else attempt.left()
        if left == 0.0:
            return
        await asyncio.wait([task], timeout=left)


async def _outcome(connect: Callable[[], object]) -> BaseException | None:
    """What ``connect()`` ended with: returned, so that asyncio does not report it where nobody asks any more."""
    try:
        await greenlet_spawn(connect)
    except (KeyboardInterrupt, SystemExit):
        raise  # they end the loop
    except BaseException as error:  # noqa: BLE001  raised in the caller
        return error
    return None
