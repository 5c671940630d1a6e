"""A checkout with SQLAlchemy's meaning at half its price: what is ordinary is done here, all else in the base classes.

A checked-out connection is SQLAlchemy's ``_ConnectionFairy``. Of the time of a connect() and close() on QueuePool more
than half goes into what surrounds the queue: ``weakref.finalize`` (pure Python), a second weak reference, and a dozen
calls that find nothing to do. Here one weak reference (:class:`Tie`) is both ``record.fairy_ref`` and the finalizer,
and the calls are made only when there is something for them to do. No rule stands here twice: whatever is out of the
ordinary (a ping, a listener, a log line, an empty or outdated record, a failed reset, a dropped connection) is handed
to the base class's own function in the same state in which it would have found it.
"""

from __future__ import annotations

import inspect
import logging
import weakref
from typing import TYPE_CHECKING, Any

from sqlalchemy import util
from sqlalchemy.pool import base

if TYPE_CHECKING:
    from ._pool import BasePool
    from ._record import Record

__all__ = ("BoundedFairy", "Fairy", "check_out")

_DEBUG = logging.DEBUG
_Base = base._ConnectionFairy
_finalize: Any = base._finalize_fairy
_TAKES_REF = "ref" in inspect.signature(_finalize).parameters  # SQLAlchemy 2.0
_rollback: Any = base.reset_rollback

_ties: set[Tie] = set()
"""Those of checked-out connections: a weak reference that is collected together with its object calls nobody."""


class Tie(weakref.ref["Fairy"]):
    """From a record to the fairy that has it checked out; when that one is collected, the record comes back."""

    __slots__ = ("record",)

    record: Record

    def detach(self) -> None:
        """There is nothing left to come back (SQLAlchemy's name, as in ``weakref.finalize``)."""
        _ties.discard(self)


def _collected(tie: weakref.ref[Any]) -> None:
    """The fairy of a connection was dropped without close(): SQLAlchemy's own clean-up, with its warnings."""
    assert isinstance(tie, Tie)
    _ties.discard(tie)
    record = tie.record
    if record.fairy_ref is not tie:
        return  # checked in, or checked out anew
    pool = record.pool
    echo = pool._should_log_debug()
    if _TAKES_REF:
        _finalize(None, record, pool, tie, echo, transaction_was_reset=False)
    else:
        _finalize(None, record, pool, echo, transaction_was_reset=False, is_gc_cleanup=True)


class Fairy(_Base):
    """A checked-out connection of a poolkit pool."""

    _failure: BaseException | None = None
    """What the reset has failed with; SQLAlchemy's clean-up is to find that out by itself."""

    # in place of that of the base class, which makes a weakref.finalize
    def __init__(self, pool: BasePool, dbapi_connection: Any, record: Record, echo: Any) -> None:
        self._pool = pool
        self._counter = 0
        self.dbapi_connection = dbapi_connection
        self._connection_record = record
        self._echo = echo
        tie = Tie(self, _collected)
        tie.record = record
        _ties.add(tie)
        self._finalizer: Any = tie
        record.fairy_ref = tie  # type: ignore[assignment]

    def rollback(self) -> None:
        """As without this method, but found at once."""
        self.dbapi_connection.rollback()

    def commit(self) -> None:
        """As :meth:`rollback`."""
        self.dbapi_connection.commit()

    def _reset(self, *arguments: Any, **keywords: Any) -> None:
        if self._failure is not None:
            raise self._failure
        super()._reset(*arguments, **keywords)

    def detach(self) -> None:
        """As in SQLAlchemy: the connection is its holder's, the pool has its place back."""
        super().detach()
        self._finalizer.detach()

    def close(self) -> None:
        """Give the connection back to the pool."""
        self._counter -= 1
        if self._counter == 0:
            self._checkin()

    def _checkin(self, transaction_was_reset: bool = False) -> None:
        record: Any = self._connection_record
        pool: Any = self._pool
        tie = self._finalizer
        connection: Any = self.dbapi_connection
        if record is None or record.fairy_ref is not tie or connection is None or self._echo or pool.dispatch.reset:
            super()._checkin(transaction_was_reset)
            _ties.discard(tie)  # SQLAlchemy 2.0 does not know of it
            return
        how = pool._reset_on_return
        try:
            if how is _rollback:
                if not transaction_was_reset:
                    pool._dialect.do_rollback(self)
            elif how is base.reset_commit:
                pool._dialect.do_commit(self)
        except BaseException as error:  # noqa: BLE001  raised again by _reset, where SQLAlchemy deals with it
            self._failure = error
        if self._failure is not None:
            try:
                super()._checkin(transaction_was_reset)
            finally:
                self._failure = None  # no cycle: whoever drops the fairy has it collected at once
            _ties.discard(tie)  # SQLAlchemy 2.0 does not know of it
            return
        if record.finalize_callback or pool.dispatch.checkin:
            record.checkin()
        else:
            record.fairy_ref = None
            pool._do_return_conn(record)
        _ties.discard(tie)
        self.dbapi_connection = self._connection_record = None  # type: ignore[assignment]


class BoundedFairy(Fairy):
    """One whose driver has a peer: what vanished never answers a rollback."""

    def rollback(self) -> None:
        """As without this method, but with a limit. Each reset of a connection comes by here, and so does
        SQLAlchemy's ``Connection.close()`` in a transaction.
        """
        pool: Any = self._pool
        pool._roll_back(self.dbapi_connection)


class _BoundedPings:
    """A pool, and its dialect, as SQLAlchemy's checkout is to see them: the ping of ``pre_ping`` has a limit."""

    def __init__(self, pool: BasePool, record: Record) -> None:
        self._pool = pool
        self._record = record
        self._dialect = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def _do_ping_w_event(self, dbapi_connection: Any) -> bool:
        return self._pool._pre_ask(self._record, dbapi_connection)

    do_ping = _do_ping_w_event  # in the first 2.0


def check_out(pool: BasePool) -> Any:
    """A connection, checked out: what ``_ConnectionFairy._checkout(pool)`` gives."""
    record: Any = pool._do_get()
    dbapi_connection = record.dbapi_connection
    started = record.starttime
    if (
        dbapi_connection is None
        or pool._recycle > -1
        or pool._invalidate_time > started
        or record._soft_invalidate_time > started
    ):
        try:
            dbapi_connection = record.get_connection()
        except BaseException as error:
            with util.safe_reraise():
                record._checkin_failed(error, _fairy_was_created=False)
            raise
    echo = pool.logger.isEnabledFor(_DEBUG)
    fairy = pool._fairy(pool, dbapi_connection, record, echo)
    if echo:
        pool.logger.debug("Connection %r checked out from pool", dbapi_connection)
    if pool._pre_ping and pool._server:  # one that was made by hand knows no ping, and SQLAlchemy says so
        asking: Any = _BoundedPings(pool, record)
        return _Base._checkout(asking, fairy=fairy)
    if pool._pre_ping or pool.dispatch.checkout:
        return _Base._checkout(pool, fairy=fairy)
    fairy._counter = 1
    return fairy
