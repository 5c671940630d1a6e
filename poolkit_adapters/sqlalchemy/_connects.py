"""The connects of an async pool: each in a task of its own, which outlives a caller that is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sqlalchemy.util import greenlet_spawn

from ._greenlets import GreenletRuntime, await_, in_greenlet, running_loop

if TYPE_CHECKING:
    from ._async import AsyncPoolkitPool, AsyncRecord

__all__ = ("Connects",)


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
        """``connect()``, on behalf of the calling greenlet. When that is cancelled, ``record.ending`` is the task
        that ends with the last trace of the connect.
        """
        record.ending = None
        loop = running_loop()
        if loop is None or not in_greenlet():
            connect()  # nobody can wait here: the driver says so
            return
        task = loop.create_task(_outcome(connect))
        try:
            await_(asyncio.wait([task]))
        except BaseException:
            record.ending = self._runtime.keep(self._see_off(record, task))
            raise
        error = task.result()
        if error is not None:
            try:
                raise error
            finally:
                del error  # no cycle of error, traceback and this frame

    async def _see_off(self, record: AsyncRecord, connect: asyncio.Task[Any]) -> None:
        """Wait for a connect that nobody wants any more, and close what it has opened."""
        config = self._pool.poolkit.config
        # without a connect_timeout a driver may wait for a dead server for minutes, and the place would be taken
        limit = config.check_timeout if config.connect_timeout is None else config.connect_timeout
        try:
            await _ended(connect, limit)
        finally:  # also when the loop is about to end and cancels this task
            connection, record.dbapi_connection = record.dbapi_connection, None
            if connection is not None:
                record.finalize_callback.clear()
                if self._pool.dispatch.close:
                    await greenlet_spawn(self._pool.dispatch.close, connection, record)
                await self._pool._end(connection, terminate=True)


async def _outcome(connect: Callable[[], object]) -> BaseException | None:
    """What ``connect()`` ended with: returned, so that asyncio does not report it where nobody asks any more."""
    try:
        await greenlet_spawn(connect)
    except (KeyboardInterrupt, SystemExit):
        raise  # they end the loop
    except BaseException as error:  # noqa: BLE001  raised in the caller
        return error
    return None


async def _ended(task: asyncio.Task[Any], limit: float | None) -> None:
    """Wait until ``task`` has ended; after ``limit`` seconds it is cancelled."""
    try:
        await asyncio.wait([task], timeout=limit)
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
