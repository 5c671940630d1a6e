"""AsyncPoolkitPool: the same pool for create_async_engine."""

from __future__ import annotations

from functools import partial
from typing import Any

from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.pool.base import _AsyncConnDialect

from poolkit import PoolError

from ._async_io import GreenletIO, settle
from ._greenlets import running_loop
from ._pool import BasePool

__all__ = ("AsyncPoolkitPool",)


class AsyncPoolkitPool(BasePool):
    """Replaces ``AsyncAdaptedQueuePool``: ``create_async_engine(url, poolclass=AsyncPoolkitPool)``.

    Takes the arguments of :class:`~poolkit_adapters.sqlalchemy.PoolkitPool` and raises its errors. May be created
    anywhere, and used by concurrent tasks of any event loop: a connection of another loop is replaced, never used.
    Blocking calls of the engine need a greenlet: ``await greenlet_spawn(engine.pool.poolkit.warm_up, 4)``.
    """

    _is_asyncio = True
    _sqla_logger_namespace = "sqlalchemy.pool.impl.AsyncPoolkitPool"
    _barging_window = 0.0  # a task switch is cheap, so newcomers need not take connections before waiting callers
    _dialect: Any = _AsyncConnDialect()
    _kind = GreenletIO
    _io: GreenletIO

    def _do_get(self) -> ConnectionPoolEntry:
        runtime = self._runtime
        runtime.here.loop = loop = running_loop()  # asked once: it costs a system call
        if loop is not runtime.loop:
            runtime.enter(loop)
        try:
            record = self.poolkit.acquire()
        except PoolError as error:
            failure = error
        else:
            if record.loop is not loop:
                self._io.move(record, loop)
            return record
        raise self._translate(failure)  # outside the except block, so that the cause does not become the context

    def _do_return_conn(self, record: Any, discard: bool = False) -> None:
        if record.ending is not None and self._endings.delay(record, partial(self._do_return_conn, record, discard)):
            return
        here = self._runtime.here
        here.forget()
        connection = record.dbapi_connection  # a finalizer may return a record without one, and cannot wait
        if discard:
            self.poolkit.release(record, discard=True)
        elif connection is None or record.wrong_server is not None:
            self._release_useless(record)
        elif self._in_transaction is not None and self._in_transaction(connection):
            self._release_in_transaction(record)
        else:
            if self._runtime.several:
                self.poolkit._driver.loops.returns(record.loop)
            self.poolkit.release(record)
        if here.latest is not None and connection is not None:
            settle(here.latest)

    def dispose(self) -> None:
        """Do the same as the sync pool, and wait until the connections are closed if the caller can wait."""
        self._rest.begin()
        self._io.connects.end()
        self.poolkit.discard_idle(rest=True)
        settle(*self._runtime.pending())
        self.logger.info("Pool disposed. %s", self.status())
