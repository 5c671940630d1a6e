"""What an async pool does with its server, in greenlets and in tasks that outlive their caller."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from sqlalchemy.pool import Pool as SQLAlchemyPool
from sqlalchemy.util import greenlet_spawn

from poolkit.errors import describe, shown

from .._hang_up import finish, hang_up
from .._time_limits import rollback_limit
from ._connect_time import Attempt
from ._connects import GRACE, Connects
from ._errors import LATE_ROLLBACK, rollback_cut
from ._exchange import opened
from ._first import OneAtATime
from ._greenlets import GreenletRuntime, await_, in_greenlet, running_loop
from ._pings import ask
from ._record import Record

if TYPE_CHECKING:
    from ._pool import BasePool

__all__ = ("AsyncRecord", "GreenletIO", "settle")


_close_until: ContextVar[float | None] = ContextVar("poolkit_close_until", default=None)
"""Until when a caller waits for the close of its outdated connection, in monotonic seconds (None: no limit)."""


class AsyncRecord(Record):
    """A record whose connection may be ended by a task that outlives the caller."""

    _replaces = False
    """Whether the next connect replaces its connection in place."""
    changed: asyncio.Future[None] | None = None
    """To be done when the time limit of its connect may have changed. None: nobody waits for the connect."""

    def __init__(self, pool: BasePool, most: float | None, io: GreenletIO) -> None:
        self._io = io
        super().__init__(pool, most)

    def open(self) -> None:
        """Connect for the first time, in a task of the pool."""
        self.attempt = Attempt(self.pool.poolkit.config, self.most)
        connects = self._io.connects
        run = connects.run if self.pool.poolkit.config.connect_in_caller else connects.open
        self.loop = running_loop()
        try:
            run(self)
        except BaseException:
            self._io.runtime.here.leftover = self.ending
            raise

    def current(self) -> Any:
        """Do the same as :meth:`Record.current`. The close of an outdated connection takes no more of the caller's time
        than the caller has.
        """
        left = self.left()
        token = _close_until.set(None if left is None else time.monotonic() + left)
        try:
            return super().current()
        finally:
            _close_until.reset(token)

    def _ConnectionRecord__connect(self) -> None:  # noqa: N802  its name in SQLAlchemy
        """Do the same as :meth:`Record._ConnectionRecord__connect`. A moved record connects in place, in a task.

        If the record were exchanged, the engine could return another connection of the other loop, again and again.
        """
        if not self.moved:
            super()._ConnectionRecord__connect()
        self.loop, self.moved, self._replaces = running_loop(), False, True
        self.most = None  # from here on the deadline of its user applies
        self.attempt = Attempt(self.pool.poolkit.config)
        self._io.connects.run(self)

    def begun(self, attempt: Attempt) -> None:
        """Do the same as :meth:`Record.begun`. The code that waits for the connect looks at its limit again."""
        super().begun(attempt)
        self._limit_changed()

    def opened(self, connection: Any) -> None:
        """Do the same as :meth:`Record.opened`. "connect" events may have less time than the driver had."""
        super().opened(connection)
        self._limit_changed()

    def _limit_changed(self) -> None:
        if self.changed is not None and not self.changed.done():
            self.changed.set_result(None)

    def connect(self) -> None:
        """Do the same as :meth:`Record.connect`, and count a connect that replaces the connection in place."""
        replaces, self._replaces = self._replaces, False
        engine = self.pool.poolkit
        began = engine._clock()
        super().connect()
        if replaces:
            engine._driver.loops.replaced(self, began)


class GreenletIO:
    """Waits in the calling greenlet, which switches to its event loop meanwhile."""

    def __init__(self, pool: BasePool) -> None:
        self._pool = pool
        self._endings = pool._endings
        self.runtime = GreenletRuntime()
        self.connects = Connects(pool, self.runtime)
        listeners: Any = pool.dispatch.connect
        listeners.for_modify(pool.dispatch)._exec_once_mutex = OneAtATime(self.runtime)

    def connected(self, most: float | None) -> Record:
        """See :meth:`ServerIO.connected`."""
        return opened(self._pool, lambda: AsyncRecord(self._pool, most, self), most)

    def connect_bound(self, thread: int, timeout: float | None) -> float | None:
        """Return None: a task is cancelled at its deadline."""
        return None

    def give_up(self, thread: int) -> bool:
        """Return False: no connect is given up."""
        return False

    def leftover(self) -> Any:
        """See :meth:`ServerIO.leftover`."""
        here = self.runtime.here
        left, here.leftover = here.leftover, None
        return left

    # -- ends that outlive their caller -----------------------------------------------------------------------------

    def close(self, connection: Any, close: Callable[[], None], *, terminate: bool) -> None:
        """End as SQLAlchemy does, in a task of its own that ends within ``check_timeout`` (see :meth:`_end`).

        A caller that was cancelled in the middle of a statement gets here, and anyio cancels it again at every step.
        In its own task the server would learn neither of the cancelled statement nor of the end of the session.
        A driver that closes without waiting needs no task, and a cancellation cannot interrupt it.
        """
        if self._endings.closes_at_once or running_loop() is None or not in_greenlet():
            self._endings.close(connection, close)
            return
        task = self.runtime.keep(self._end(connection, terminate=terminate))
        until = None
        if terminate and self._pool._dialect.has_terminate:  # a dialect that cannot terminate hangs up without waiting
            self._endings.add(connection, task)
            until = _close_until.get()  # the slot is kept until the end, so the caller need not wait for it
        await_(asyncio.wait([task], timeout=None if until is None else max(0.0, until - time.monotonic())))

    async def _end(self, connection: Any, *, terminate: bool) -> None:
        """Close a connection; after ``check_timeout`` seconds its socket is shut down, whatever the peer does.

        A server that has vanished never replies to a close, or to a request to stop the running statement. Without the
        limit the slot of the connection would be taken until the operating system gives up.
        """
        limit = self._pool.poolkit.config.check_timeout
        task = asyncio.ensure_future(
            greenlet_spawn(SQLAlchemyPool._close_connection, self._pool, connection, terminate=terminate)
        )
        try:
            await asyncio.wait([task], timeout=limit)
        finally:  # also when the loop is about to end and cancels this task
            if not task.done():
                self._pool.logger.warning(
                    "Connection %r: the server did not reply to the close within check_timeout=%s, shutting it down",
                    connection, limit,
                )  # fmt: skip
                await self._force_end(connection, task)

    async def _force_end(self, connection: Any, closing: asyncio.Future[None]) -> None:
        """End ``closing``, for which the peer does not reply, and its connection."""
        driver = self._endings.driver_of(connection)
        hang_up(driver)
        try:
            await asyncio.wait([closing], timeout=GRACE)
        finally:
            closing.cancel()  # where the socket could not be reached
            self._terminate(connection)  # outside a greenlet the dialect waits for nothing
            if not self._pool._dialect.has_terminate:
                finish(driver)
            closing.add_done_callback(_ask_nothing)

    # -- event loops ------------------------------------------------------------------------------------------------

    def elsewhere(self, record: Record) -> bool:
        """See :meth:`ServerIO.elsewhere`."""
        return record.loop is not running_loop()

    def left(self, record: Record) -> bool:
        """See :meth:`ServerIO.left`."""
        elsewhere = self.elsewhere(record)
        if elsewhere:
            self.move(record, None)
        return elsewhere

    def enter(self) -> asyncio.AbstractEventLoop | None:
        """Tell the engine the loop of the caller, and return that loop."""
        runtime = self._pool._runtime
        runtime.here.loop = loop = running_loop()
        if loop is not runtime.loop:
            runtime.enter(loop)
        return loop

    def move(self, record: Record, loop: asyncio.AbstractEventLoop | None) -> None:
        """Empty the slot of a connection that belongs to another loop.

        If that loop is closed, the engine replaces the connection, and the idle ones of the loop are closed: nobody can
        use them. Otherwise the connection is replaced in place: a loop that does not run may run again.
        """
        connection, home = record.dbapi_connection, record.loop
        record.loop, record.moved = loop, False
        if connection is None or home is None:
            return
        record.moved = not home.is_closed()
        if not record.moved and loop is not None:
            self._pool.poolkit.discard_idle(lambda idle: idle.loop is home)
        self._pool.logger.info("Connection %r belongs to another event loop, replacing it", connection)
        record.finalize_callback.clear()
        if self._pool.dispatch.close:
            self._pool.dispatch.close(connection, record)
        driver = record.driver_connection
        record.dbapi_connection = None
        self._leave(connection, driver, home)

    def _leave(self, connection: Any, driver: Any, home: asyncio.AbstractEventLoop) -> None:
        """Close a connection in its own loop, or at its socket if that loop does not run."""
        if home.is_running():
            try:
                home.call_soon_threadsafe(self._end_at_home, connection)
                return
            except RuntimeError:
                pass  # it has just ended
        finish(driver)
        if not self._pool._dialect.has_terminate:
            return
        loop = running_loop()
        if loop is None:
            self._terminate(connection)
        else:
            # outside this greenlet: inside one, the dialect would try to wait
            loop.call_soon(self._terminate, connection)

    def _end_at_home(self, connection: Any) -> None:
        """End the connection. Runs in its loop."""
        self.runtime.keep(self._end(connection, terminate=True))

    def _terminate(self, connection: Any) -> None:
        try:
            self._pool._dialect.do_terminate(connection)
        except Exception as failure:  # noqa: BLE001 - told, and the connection is gone
            self._pool.logger.debug(
                "Exception terminating connection %s: %s", shown(repr(connection)), describe(failure)
            )

    def ping(self, dbapi_connection: Any, timeout: float | None) -> bool:
        """See :meth:`ServerIO.ping`."""
        loop = running_loop()
        if timeout is None or loop is None:
            return ask(self._pool._dialect, dbapi_connection)
        ping = loop.create_task(greenlet_spawn(ask, self._pool._dialect, dbapi_connection))
        try:
            done, _ = await_(asyncio.wait([ping], timeout=timeout))
        except BaseException:
            ping.cancel()  # the connection is marked as broken and will be cut
            raise
        if not done:
            hang_up(self._endings.driver_of(dbapi_connection))  # its close must not wait for the same peer again
            try:
                await_(asyncio.wait([ping], timeout=GRACE))
            finally:
                ping.cancel()  # where the socket could not be reached: psycopg would first ask the peer to stop
                ping.add_done_callback(_ask_nothing)
            raise TimeoutError(f"no reply to the ping within {timeout:g} s")
        return bool(ping.result())

    def roll_back(self, dbapi_connection: Any) -> None:
        """See :meth:`ServerIO.roll_back`."""
        pool, loop = self._pool, running_loop()
        limit = rollback_limit(pool.poolkit.config.check_timeout, pool._server)
        if loop is None or limit is None:
            dbapi_connection.rollback()
            return
        watch, driver = self.runtime.here.watch(loop), self._endings.driver_of(dbapi_connection)
        watch.begin(driver, limit)
        try:
            dbapi_connection.rollback()
        finally:
            late = watch.end(driver)
            if late:
                pool.logger.warning(LATE_ROLLBACK, dbapi_connection, limit)
        if late:  # the reply arrived at the deadline, but the socket is already shut down
            raise rollback_cut(pool._dialect, pool.poolkit.name, limit)


def settle(*tasks: asyncio.Task[None]) -> None:
    """Wait for closes, as QueuePool does. A cancellation ends the wait but not the close."""
    if tasks and running_loop() is not None and in_greenlet():
        await_(asyncio.wait(tasks))


def _ask_nothing(task: asyncio.Future[Any]) -> None:
    """Retrieve the error of an abandoned task, which asyncio would otherwise report as never retrieved."""
    if not task.cancelled():
        task.exception()
