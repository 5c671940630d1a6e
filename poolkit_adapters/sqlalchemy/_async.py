"""AsyncPoolkitPool: the same pool for create_async_engine."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.pool.base import _AsyncConnDialect
from sqlalchemy.util import greenlet_spawn

from poolkit import PoolError
from poolkit.errors import describe, shown
from poolkit.runtimes import Runtime

from .._hang_up import finish, hang_up
from .._time_limits import rollback_limit
from ._connect_time import Attempt
from ._connects import GRACE, Connects
from ._errors import LATE_ROLLBACK, rollback_cut
from ._first import OneAtATime
from ._greenlets import GreenletRuntime, await_, in_greenlet, running_loop
from ._pool import BasePool
from ._record import Record

__all__ = ("AsyncPoolkitPool",)


class AsyncRecord(Record):
    """A record whose connection may be ended by a task that outlives the caller."""

    pool: AsyncPoolkitPool

    def open(self) -> None:
        """Connect for the first time, in a task of the pool's."""
        self.attempt = Attempt(self.pool.poolkit.config, self.most)
        connects = self.pool._connects
        run = connects.run if self.pool.poolkit.config.connect_in_caller else connects.open
        run(self)

    def _ConnectionRecord__connect(self) -> None:  # noqa: N802  its name in SQLAlchemy
        """As in SQLAlchemy, in a task of the pool's."""
        self.most = None  # from here on its user's deadline counts
        self.attempt = Attempt(self.pool.poolkit.config)
        self.pool._connects.run(self)


class AsyncPoolkitPool(BasePool):
    """Replaces ``AsyncAdaptedQueuePool``: ``create_async_engine(url, poolclass=AsyncPoolkitPool)``.

    Takes the arguments of :class:`~poolkit_adapters.sqlalchemy.PoolkitPool` and raises its errors. May be created
    anywhere, and used by concurrent tasks of any event loop: a connection of another loop is replaced, never used.
    Waiting callers are served in order, and a cancelled one passes its turn on. The engine's blocking calls
    (``warm_up``, ``drain``, ``close``) need a greenlet: ``await greenlet_spawn(engine.pool.poolkit.warm_up, 4)``.
    """

    _is_asyncio = True
    _sqla_logger_namespace = "sqlalchemy.pool.impl.AsyncPoolkitPool"
    _barging_window = 0.0  # task switches are cheap, so no caller needs to overtake
    _dialect: Any = _AsyncConnDialect()

    def _runtime_for_engine(self) -> Runtime:
        self._runtime = GreenletRuntime()
        self._connects = Connects(self, self._runtime)
        listeners: Any = self.dispatch.connect
        listeners.for_modify(self.dispatch)._exec_once_mutex = OneAtATime(self._runtime)
        return self._runtime

    def _create_connection(self, most: float | None = None) -> Record:
        record = AsyncRecord(self, most)
        record.loop = running_loop()
        try:
            record.open()
        except BaseException:
            self._runtime.here.leftover = record.ending
            raise
        return record

    def _leftover(self) -> Any:
        here = self._runtime.here
        left, here.leftover = here.leftover, None
        return left

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
                self._move(record, loop)
            return record
        raise self._translate(failure)  # outside the except block, so that the cause does not become the context

    def _do_return_conn(self, record: Any, discard: bool = False) -> None:
        if record.ending is not None and self._endings.delay(record, partial(self._do_return_conn, record, discard)):
            return
        here = self._runtime.here
        here.forget()
        live = record.dbapi_connection is not None  # an empty one may come from a finalizer, where nobody can wait
        if discard:
            self.poolkit.release(record, discard=True)
        elif not live or record.wrong_server is not None:
            self._release_useless(record)
        elif self._in_transaction is not None and self._in_transaction(record.dbapi_connection):
            self._release_in_transaction(record)
        else:
            self.poolkit.release(record)
        if live and here.latest is not None:
            self._settle(here.latest)

    def dispose(self) -> None:
        """Do the same as the sync pool, and wait until the connections are closed if the caller can wait."""
        self._rest()
        self._connects.end()
        self.poolkit.discard_idle(rest=True)
        self._settle(*self._runtime.pending())
        self.logger.info("Pool disposed. %s", self.status())

    def _settle(self, *tasks: asyncio.Task[None]) -> None:
        """Wait for closes, as QueuePool does. A cancellation ends the wait but not the close."""
        if tasks and running_loop() is not None and in_greenlet():
            await_(asyncio.wait(tasks))

    # -- ends that outlive their caller -----------------------------------------------------------------------------

    def _close_connection(self, connection: Any, *, terminate: bool = False) -> None:
        """As in SQLAlchemy, in a task of its own that ends within ``check_timeout`` (see :meth:`_end`).

        A caller that was cancelled in the middle of a statement gets here, and anyio cancels it again at every step.
        In its own task the server would learn neither of the cancelled statement nor of the end of the session.
        A driver that closes without waiting needs no task, and a cancellation cannot interrupt it.
        """
        if self._endings.closes_at_once or running_loop() is None or not in_greenlet():
            self._endings.close(connection, partial(super()._close_connection, connection, terminate=terminate))
            return
        task = self._runtime.keep(self._end(connection, terminate=terminate))
        if terminate and self._dialect.has_terminate:  # a dialect that cannot terminate hangs up without waiting
            self._endings.add(connection, task)
        await_(asyncio.wait([task]))

    async def _end(self, connection: Any, *, terminate: bool) -> None:
        """Close a connection; after ``check_timeout`` seconds its socket is shut down, whatever the peer does.

        A server that has vanished never replies to a close, or to a request to stop the running statement. Without the
        limit the slot of the connection would be taken until the operating system gives up.
        """
        limit = self.poolkit.config.check_timeout
        task = asyncio.ensure_future(greenlet_spawn(super()._close_connection, connection, terminate=terminate))
        try:
            await asyncio.wait([task], timeout=limit)
        finally:  # also when the loop is about to end and cancels this task
            if not task.done():
                self.logger.warning(
                    "Connection %r: the server did not reply to the close within check_timeout=%s, shutting it down",
                    connection, limit,
                )  # fmt: skip
                await self._force_end(connection, task)

    async def _force_end(self, connection: Any, closing: asyncio.Future[None]) -> None:
        """End ``closing``, which waits for the peer in vain, and the connection with it."""
        driver = self._endings.driver_of(connection)
        hang_up(driver)
        try:
            await asyncio.wait([closing], timeout=GRACE)
        finally:
            closing.cancel()  # where the socket could not be reached
            self._terminate(connection)  # in no greenlet: the dialect waits for nothing
            if not self._dialect.has_terminate:
                finish(driver)
            closing.add_done_callback(_ask_nothing)

    # -- event loops ------------------------------------------------------------------------------------------------

    def _elsewhere(self, record: Record) -> bool:
        return record.loop is not running_loop()

    def _move(self, record: Record, loop: asyncio.AbstractEventLoop | None) -> None:
        """Empty the slot of a connection that belongs to another loop. SQLAlchemy reconnects it here."""
        connection, home = record.dbapi_connection, record.loop
        record.loop = loop
        if connection is None or home is None:
            return
        self.logger.info("Connection %r belongs to another event loop, replacing it", connection)
        record.finalize_callback.clear()
        if self.dispatch.close:
            self.dispatch.close(connection, record)
        driver = record.driver_connection
        record.dbapi_connection = None
        self._leave(connection, driver, home)

    def _leave(self, connection: Any, driver: Any, home: asyncio.AbstractEventLoop) -> None:
        """Close a connection in its own loop, or at its socket if that loop has ended."""
        if home.is_running():
            try:
                home.call_soon_threadsafe(self._end_at_home, connection)
                return
            except RuntimeError:
                pass  # it has just ended
        finish(driver)
        if not self._dialect.has_terminate:
            return
        loop = running_loop()
        if loop is None:
            self._terminate(connection)
        else:
            loop.call_soon(self._terminate, connection)  # out of this greenlet: in one, the dialect would try to wait

    def _end_at_home(self, connection: Any) -> None:
        """In the loop of the connection."""
        self._runtime.keep(self._end(connection, terminate=True))

    def _terminate(self, connection: Any) -> None:
        try:
            self._dialect.do_terminate(connection)
        except Exception as failure:  # noqa: BLE001 - told, and the connection is gone
            self.logger.debug("Exception terminating connection %s: %s", shown(repr(connection)), describe(failure))

    def _ping(self, record: Record, dbapi_connection: Any, timeout: float | None) -> bool:
        loop = running_loop()
        if timeout is None or loop is None:
            return self._ask(dbapi_connection)
        ping = loop.create_task(greenlet_spawn(self._ask, dbapi_connection))
        try:
            done, _ = await_(asyncio.wait([ping], timeout=timeout))
        except BaseException:
            ping.cancel()  # the connection is marked as broken and will be cut
            raise
        if not done:
            hang_up(self._endings.driver_of(dbapi_connection))  # its close must not wait for the same peer once more
            try:
                await_(asyncio.wait([ping], timeout=GRACE))
            finally:
                ping.cancel()  # where the socket could not be reached: psycopg would first ask the peer to stop
                ping.add_done_callback(_ask_nothing)
            raise TimeoutError(f"no reply to the ping within {timeout:g} s")
        return bool(ping.result())

    def _roll_back(self, dbapi_connection: Any) -> None:
        loop, limit = running_loop(), rollback_limit(self.poolkit.config.check_timeout, self._server)
        if loop is None or limit is None:
            dbapi_connection.rollback()
            return
        watch, driver = self._runtime.here.watch(loop), self._endings.driver_of(dbapi_connection)
        watch.begin(driver, limit)
        try:
            dbapi_connection.rollback()
        finally:
            late = watch.end(driver)
            if late:
                self.logger.warning(LATE_ROLLBACK, dbapi_connection, limit)
        if late:  # the reply arrived at the deadline, but the socket is already shut down
            raise rollback_cut(self._dialect, self.poolkit.name, limit)


def _ask_nothing(task: asyncio.Future[Any]) -> None:
    """Retrieve the error of an abandoned task, which asyncio would otherwise report as never retrieved."""
    if not task.cancelled():
        task.exception()
