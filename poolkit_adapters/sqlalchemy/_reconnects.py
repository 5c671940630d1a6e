"""The reconnects of a sync pool's slots: each in a thread of the pool, which outlives a caller that gives up."""

from __future__ import annotations

from concurrent.futures import Future
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from poolkit import AcquireTimeout
from poolkit.runtimes import ThreadRuntime

if TYPE_CHECKING:
    from ._pool import BasePool
    from ._record import Record

__all__ = ("Reconnects", "too_late")

_THREADS = ThreadRuntime()


class Reconnects:
    """Runs what SQLAlchemy connects by itself: slots that are empty, outdated or failed the ping of ``pre_ping``.

    The caller waits for it until its deadline. After that the connect goes on, its slot is taken, and its connection
    is kept for the next caller.
    """

    def __init__(self, pool: BasePool) -> None:
        self._pool = pool

    def run(self, record: Record) -> None:
        """Connect the record. If the caller gives up, ``record.ending`` is done when the connect has ended."""
        record.ending = None
        record.most = None
        if self._pool.poolkit.config.connect_in_caller:
            record.most = record.left()
            record.connect()
            return
        end: Future[None] = Future()
        parker = _THREADS.parker()
        errors: list[BaseException] = []

        def connect() -> None:
            try:
                record.connect()
            except BaseException as error:  # noqa: BLE001  raised in the caller
                errors.append(error)
            finally:
                end.set_result(None)
                parker.wake()

        try:
            _THREADS.spawn(copy_context().run, connect)
            while not end.done():
                left = record.left()
                if left == 0.0:
                    break
                parker.wait(left)
        except BaseException:
            record.ending = end
            raise
        if not end.done():
            record.ending = end
            raise too_late(record)
        if errors:
            try:
                raise errors.pop()
            finally:
                del errors  # no cycle of error, traceback and this frame


def too_late(record: Record) -> BaseException:
    """Return the error of a caller whose deadline has passed while its slot reconnects."""
    pool: Any = record.pool
    error = AcquireTimeout(
        f"{pool.poolkit.name}: no connection in {pool.timeout():g} s; the connect goes on for the next caller"
    )
    translated: BaseException = pool._translate(error)
    return translated
