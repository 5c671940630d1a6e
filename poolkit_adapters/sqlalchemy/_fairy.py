"""SQLAlchemy's checkout at half the cost: this module handles the common case, the base classes all others.

A checked-out connection is SQLAlchemy's ``_ConnectionFairy``. More than half of the time of connect() and close() on
QueuePool is spent outside the queue: ``weakref.finalize`` (pure Python), a second weak reference, and a dozen calls
that have nothing to do. Here one weak reference (:class:`CheckoutRef`) is both ``record.fairy_ref`` and the finalizer,
and the calls are made only when they have something to do. No rule is duplicated. Every other case (a ping, a
listener, a log line, an empty or outdated record, a failed reset, a dropped connection) goes to the base class's own
function, in the state that it expects.
"""

from __future__ import annotations

import inspect
import logging
import weakref
from time import monotonic
from typing import TYPE_CHECKING, Any

from sqlalchemy.pool import base

from ._exchange import usable
from ._pings import pre_ask

if TYPE_CHECKING:
    from ._pool import BasePool
    from ._record import Record

__all__ = ("BoundedFairy", "Fairy", "check_out")

_DEBUG = logging.DEBUG
_Base = base._ConnectionFairy
_finalize: Any = base._finalize_fairy
_TAKES_REF = "ref" in inspect.signature(_finalize).parameters  # SQLAlchemy 2.0
_rollback: Any = base.reset_rollback

_checkout_refs: set[CheckoutRef] = set()
"""References to checked-out connections, kept alive here: a weak reference that is garbage collected together with its
object does not call its callback."""


class CheckoutRef(weakref.ref["Fairy"]):
    """A record's reference to the fairy that has it checked out. If the fairy is collected, the record is returned."""

    __slots__ = ("record",)

    record: Record

    def detach(self) -> None:
        """Cancel the return of the record (SQLAlchemy's name, as in ``weakref.finalize``)."""
        _checkout_refs.discard(self)


def _collected(ref: weakref.ref[Any]) -> None:
    """Run SQLAlchemy's own clean-up, with its warnings, for a fairy that was dropped without close()."""
    assert isinstance(ref, CheckoutRef)
    _checkout_refs.discard(ref)
    record = ref.record
    if record.fairy_ref is not ref:
        return  # checked in, or checked out again
    pool = record.pool
    echo = pool._should_log_debug()
    if _TAKES_REF:
        _finalize(None, record, pool, ref, echo, transaction_was_reset=False)
    else:
        _finalize(None, record, pool, echo, transaction_was_reset=False, is_gc_cleanup=True)


class Fairy(_Base):
    """A checked-out connection of a poolkit pool."""

    _pool: Any
    _failure: BaseException | None = None
    """The error of the reset, which SQLAlchemy's clean-up then raises again and handles."""

    # replaces that of the base class, which creates a weakref.finalize
    def __init__(self, pool: BasePool, dbapi_connection: Any, record: Record, echo: Any) -> None:
        self._pool = pool
        self._counter = 0
        self.dbapi_connection = dbapi_connection
        self._connection_record = record
        self._echo = echo
        ref = CheckoutRef(self, _collected)
        ref.record = record
        _checkout_refs.add(ref)
        self._finalizer: Any = ref
        record.fairy_ref = ref  # type: ignore[assignment]

    def rollback(self) -> None:
        """Roll back. This method saves the lookup through ``__getattr__``."""
        self.dbapi_connection.rollback()

    def commit(self) -> None:
        """Commit. This method saves the lookup through ``__getattr__``."""
        self.dbapi_connection.commit()

    def _reset(self, *arguments: Any, **keywords: Any) -> None:
        if self._failure is not None:
            raise self._failure
        super()._reset(*arguments, **keywords)

    def detach(self) -> None:
        """Take the connection out of the pool, as in SQLAlchemy. Its slot becomes free."""
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
        ref = self._finalizer
        connection: Any = self.dbapi_connection
        if record is None or record.fairy_ref is not ref or connection is None or self._echo or pool.dispatch.reset:
            self._checkin_as_base(transaction_was_reset)
            return
        how = pool._reset_on_return
        try:
            if how is _rollback:
                if not transaction_was_reset:
                    pool._dialect.do_rollback(self)
            elif how is base.reset_commit:
                pool._dialect.do_commit(self)
        except BaseException as error:  # noqa: BLE001  re-raised by _reset, where SQLAlchemy handles it
            self._failure = error
        if self._failure is not None:
            try:
                self._checkin_as_base(transaction_was_reset)
            finally:
                self._failure = None  # avoids a cycle, so that a dropped fairy is collected at once
            return
        if record.finalize_callback or pool.dispatch.checkin:
            try:
                record.checkin()
            except BaseException:
                self._forget(record)
                raise
        else:
            record.fairy_ref = None
            pool._do_return_conn(record)
        _checkout_refs.discard(ref)
        self.dbapi_connection = self._connection_record = None  # type: ignore[assignment]

    def _checkin_as_base(self, transaction_was_reset: bool) -> None:
        record: Any = self._connection_record
        try:
            super()._checkin(transaction_was_reset)
        finally:
            self._forget(record)

    def _forget(self, record: Any) -> None:
        """End this checkout, unless the record was not checked in: it is returned when this object is collected."""
        if record is None or record.fairy_ref is not self._finalizer:
            _checkout_refs.discard(self._finalizer)  # SQLAlchemy 2.0 does not know of it
            self.dbapi_connection = self._connection_record = None  # type: ignore[assignment]


class BoundedFairy(Fairy):
    """A fairy whose driver has a server, which may vanish and never reply to a rollback."""

    def rollback(self) -> None:
        """Roll back with a time limit. Every reset, and ``Connection.close()`` in a transaction, calls this."""
        self._pool._roll_back(self.dbapi_connection)


class _BoundedPings:
    """Wraps a pool and its dialect for SQLAlchemy's checkout, and gives the ping of ``pre_ping`` a time limit."""

    def __init__(self, pool: BasePool, ref: CheckoutRef) -> None:
        self._pool = pool
        self._ref = ref  # refers to another record after an exchange
        self._dialect = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def _do_ping_w_event(self, dbapi_connection: Any) -> bool:
        return pre_ask(self._pool, self._ref.record, dbapi_connection)

    do_ping = _do_ping_w_event  # in the first 2.0


def check_out(pool: BasePool) -> Any:
    """Check a connection out and return it, as ``_ConnectionFairy._checkout(pool)`` does."""
    asked = monotonic()
    record: Any = pool._do_get()
    record.asked = asked
    dbapi_connection = record.dbapi_connection
    started = record.starttime
    if (
        dbapi_connection is None
        or pool._recycle > -1
        or pool._invalidate_time > started
        or record._soft_invalidate_time > started
    ):
        record = usable(pool, record)
        dbapi_connection = record.dbapi_connection
    echo = pool.logger.isEnabledFor(_DEBUG)
    fairy = pool._fairy(pool, dbapi_connection, record, echo)
    if echo:
        pool.logger.debug("Connection %r checked out from pool", dbapi_connection)
    if pool._pre_ping and pool._server:  # a pool created by hand has no ping, and SQLAlchemy raises an error
        asking: Any = _BoundedPings(pool, fairy._finalizer)
        return _Base._checkout(asking, fairy=fairy)
    if pool._pre_ping or pool.dispatch.checkout:
        return _Base._checkout(pool, fairy=fairy)
    fairy._counter = 1
    return fairy
