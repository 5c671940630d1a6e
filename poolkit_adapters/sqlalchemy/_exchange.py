"""Lost and outdated connections: each is exchanged for one of the engine's instead of being reconnected in place.

SQLAlchemy reconnects the connection record that a caller has checked out. Such a connect would know nothing of the
engine's backoff, breaker, pace and ``max_connecting``. So the caller gives the empty record back and gets another one,
within what is left of its time. The next connect of the engine uses the empty record, with its ``record_info``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from sqlalchemy import util

from poolkit import PoolError

if TYPE_CHECKING:
    from ._pool import BasePool
    from ._record import Record

__all__ = ("TIME_LEFT", "Emptied", "exchange", "opened", "patience", "time_left", "usable")


TIME_LEFT: ContextVar[tuple[object, float | None]] = ContextVar("poolkit_time_left", default=(None, None))
"""The dialect of the node that a caller of a cluster asks, and the seconds that it has left (None: no limit).

Each engine has a dialect of its own, which stays when ``dispose()`` replaces the pool. Other engines that the caller's
events use have their own time.
"""


def time_left(pool: BasePool, own: float | None) -> float | None:
    """Return the seconds that a caller of a cluster has left for this pool's node; ``own`` for any other caller."""
    dialect, seconds = TIME_LEFT.get()
    return seconds if dialect is pool._dialect else own


def patience(pool: BasePool) -> float | None:
    """Return how many seconds a caller may wait in total, from its checkout on (None: no limit)."""
    return time_left(pool, pool.timeout() or None)  # with a timeout of 0 it does not wait in the queue, but it connects


class Emptied(Exception):
    """The record has no connection. Raised where SQLAlchemy would connect in place, and always caught."""


class _Gone:
    """Stands for the record of a fairy that has none."""

    def _checkin_failed(self, err: BaseException, _fairy_was_created: bool = True) -> None:
        """Do nothing: the record has been given back."""


def opened(pool: BasePool, new: Callable[[], Record], most: float | None) -> Record:
    """Connect a record: an empty one that lost its connection, whose ``record_info`` stays, or a new one."""
    try:
        record = pool._spare.popleft()
    except IndexError:
        record = new()
    else:
        record.renew(most)
    try:
        record.open()
    except BaseException:
        if record.renewed and record.ending is None:
            pool._spare.appendleft(record)  # it stays when a reconnect fails, as in QueuePool
        raise
    return record


def usable(pool: BasePool, record: Record) -> Record:
    """Return the record, or another one in exchange if its connection is lost or outdated.

    If this fails, the caller no longer has a record.
    """
    asked, begun = record.asked, 0.0
    while True:
        if begun and record.starttime >= begun and not record._is_hard_or_soft_invalidated():
            return record  # new, even if pool_recycle is shorter than a connect takes
        try:
            record.current()
        except Emptied:
            pass
        except BaseException as error:
            with util.safe_reraise():
                record._checkin_failed(error, _fairy_was_created=False)
            raise
        else:
            return record
        begun = begun or time.time()  # SQLAlchemy's clock for the age of connections
        lost, left = record, record.left()
        pool._do_return_conn(lost)
        try:
            record = _another(pool, left)
        except BaseException:
            if pool.dispatch.checkin:
                pool.dispatch.checkin(None, lost)
            raise
        record.asked = asked


def _another(pool: BasePool, left: float | None) -> Record:
    """Get a record for a caller that has waited before, and has ``left`` seconds (None: no limit)."""
    try:
        record = pool.poolkit.acquire(left)
    except PoolError as error:
        failure = error
    else:
        pool._io.left(record)
        return record
    raise pool._translate(failure)  # outside the except block, so that the cause does not become the context


def exchange(record: Record) -> Any:
    """Give the fairy of an empty record another record, and return its connection."""
    ref: Any = record.fairy_ref
    fairy = ref()
    fairy._connection_record = _Gone()
    record.fairy_ref = None
    other = usable(record.pool, record)
    ref.record = fairy._connection_record = other
    other.fairy_ref = ref
    return other.dbapi_connection
