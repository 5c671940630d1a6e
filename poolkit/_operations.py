"""The methods of a connector, looked up once, each with the check of its contract."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from ._core.slots import Slot
from ._core.state import Features
from ._log import logger
from .connector import Verdict, default_classify, overloaded, overridden
from .errors import UsageError, describe, said

__all__ = ("BrokenContract", "Operations", "broken", "returned")

C = TypeVar("C")


class BrokenContract(UsageError):
    """A method of the connector did what it must not do. What it raised is the cause; without one it returned something
    wrong, and will do so again: connecting again cannot help.
    """


def broken(connector: object, method: str, found: str, wanted: str) -> BrokenContract:
    """The error that names the method, what it did and what is right."""
    return BrokenContract(f"{type(connector).__name__}.{method}() {found}: {wanted}")


def returned(value: object) -> str:
    """A value in a few words."""
    try:
        text = said(repr(value), 80)
    except Exception:  # noqa: BLE001  an object of the driver's: nothing about it can be relied on
        text = f"an object of {type(value).__name__}"
    return f"returned {text}"


def _raised(error: BaseException) -> str:
    """An error in a few words."""
    return f"raised {describe(error)}"


class Operations(Generic[C]):
    """What the connector of a pool can do. Methods that it does not have are None.

    Args:
        connector: the connector.
        name: of the pool, for the log.
        keyed: whether the pool has many endpoints.
    """

    def __init__(self, connector: Any, name: str, *, keyed: bool) -> None:
        self.connector = connector
        self.name = name
        self.keyed = keyed
        self.connect_to = getattr(connector, "connect_to", None) if keyed else None
        self.close = overridden(connector, "close")
        self.check = overridden(connector, "check")
        self.peek = overridden(connector, "peek")
        self.reset = overridden(connector, "reset")
        self.needs_reset = overridden(connector, "needs_reset")
        self.capacity = overridden(connector, "capacity")
        self.aborts = overridden(connector, "abort")
        self.forget = overridden(connector, "forget")
        self._leftover = overridden(connector, "leftover")
        self._lazy = getattr(connector, "lazy", None) if keyed else None
        self._streams = getattr(connector, "streams", None) if keyed else None
        self._classify = getattr(connector, "classify", None) or default_classify
        self.close_in_caller = bool(getattr(connector, "close_in_caller", False))
        self.bounds_connects = bool(getattr(connector, "bounds_connects", False))
        # an adapter whose pool has an open() of its own opens its connections there, if start="eager"
        self.opens_later = bool(getattr(connector, "opens_later", False))
        # an adapter whose driver counts the limits of a wait and of a connect one after the other: called with the
        # seconds that a caller is beyond its timeout, it returns how much longer a connect for that caller may go on
        self.connect_grace: Callable[[float], float] | None = getattr(connector, "connect_grace", None)
        self._complaints: set[str] = set()

    @property
    def shared(self) -> bool:
        """Whether a connection may have several leases."""
        return self.keyed or self.capacity is not None

    @property
    def features(self) -> Features:
        """What the core has to know of the connector."""
        return Features(
            reports_errors=bool(getattr(self.connector, "reports_errors", False)),
            checks=self.check is not None,
            peeks=self.peek is not None,
            keyed=self.keyed,
        )

    @property
    def connect_method(self) -> str:
        """The name of the method that opens connections, for messages."""
        return "connect" if self.connect_to is None else "connect_to"

    def complain(self, error: BrokenContract) -> None:
        """Log what is wrong with the connector where no caller can be told; once for each text."""
        if str(error) not in self._complaints and len(self._complaints) < 100:
            self._complaints.add(str(error))
            logger.error("%s: %s", self.name, error)

    def verdict(self, error: BaseException) -> Verdict:
        """What an error means for its connection. DISCARD if the connector cannot tell."""
        try:
            verdict = self._classify(error)
        except Exception:
            logger.exception("%s: connector.classify failed", self.name)
            return Verdict.DISCARD
        if isinstance(verdict, Verdict):
            return verdict
        self.complain(broken(self.connector, "classify", returned(verdict), "it must return a poolkit.Verdict"))
        return Verdict.DISCARD

    def verdict_of_connect(self, error: BaseException, *, elastic: bool) -> Verdict:
        """What the error of a connect means. ``elastic``: the size of the pool follows what the server can bear."""
        if isinstance(error, BrokenContract):
            return Verdict.DISCARD if error.__cause__ else Verdict.FATAL
        if elastic and overloaded(error):
            return Verdict.OVERLOADED
        return self.verdict(error)

    def left_by(self, error: BaseException) -> Any:
        """What a failed connect has left at the server, if the connector can tell (see ``Connector.leftover``)."""
        if self._leftover is None:
            return None
        try:
            left = self._leftover(error)
        except Exception as failure:  # noqa: BLE001 - told; the connect has failed all the same
            self.complain(broken(self.connector, "leftover", _raised(failure), "it must not raise"))
            return None
        if left is None or callable(getattr(left, "add_done_callback", None)):
            return left
        wanted = "it must return None, or an object with add_done_callback()"
        self.complain(broken(self.connector, "leftover", returned(left), wanted))
        return None

    def abort(self, connection: Any) -> Any:
        """Abort a connection, if the connector can: False if that was not done, else True, or what it has left at the
        server (see ``Connector.abort``). An error is logged: nobody can do more.
        """
        if self.aborts is None:
            return False
        try:
            left = self.aborts(connection)
        except Exception as failure:  # noqa: BLE001 - told, and the connection goes
            logger.debug("%s: abort of a connection failed: %s", self.name, describe(failure))
            return False
        return left if callable(getattr(left, "add_done_callback", None)) else True

    def examine(self, connection: C) -> tuple[C, int, bool]:
        """A new connection, how many leases it serves, and whether it is opened by its first user. BrokenContract if
        the connector gave no connection, or cannot tell.
        """
        method = self.connect_method
        _connection_of(self.connector, method, connection)
        capacity, lazy = 1, False
        try:
            method = "capacity"
            if self.capacity is not None:
                capacity = _capacity_of(self.connector, method, self.capacity(connection))
            method = "lazy"
            if self._lazy is not None:
                lazy = bool(self._lazy(connection))
        except BrokenContract:
            raise
        except Exception as error:
            raise broken(self.connector, method, _raised(error), "it must not raise") from error
        return connection, capacity, lazy

    def streams(self, key: Hashable) -> int | None:
        """How many leases a connection to this endpoint may serve; None if the connector does not say."""
        if self._streams is None:
            return None
        try:
            streams = self._streams(key)
        except Exception as error:
            raise broken(self.connector, "streams", _raised(error), "it must not raise") from error
        return max(1, _capacity_of(self.connector, "streams", streams))

    def look(self, connection: C) -> Exception | None:
        """Look at an idle connection without asking the server; why it is of no use, if it is not."""
        try:
            if self.peek is not None and _verdict_of(self.connector, "peek", self.peek(connection)) is False:
                return ConnectionResetError("closed by the peer while idle")
        except Exception as error:  # noqa: BLE001  whatever it is, the connection is not alive
            return self.dead(error)
        return None

    def refused(self, answer: Any) -> Exception | None:
        """The error of a check that has answered no. BrokenContract if it is no answer."""
        if _verdict_of(self.connector, "check", answer) is False:
            return ConnectionAbortedError("the check failed")
        return None

    def dead(self, error: Exception) -> Exception:
        """The error of a look or a check, which no caller is told."""
        if isinstance(error, BrokenContract):
            self.complain(error)
        return error

    def is_dirty(self, slot: Slot) -> bool:
        """Whether the returned connection has to be reset."""
        if self.reset is None:
            return False
        found, slot.dirty = slot.dirty, None
        if isinstance(found, BaseException):
            raise found
        if found is not None:
            return found
        return True if self.needs_reset is None else bool(self.needs_reset(slot.connection))


def _connection_of(connector: object, method: str, value: Any) -> Any:
    """What ``connect`` gave, if it can be a connection. Raises BrokenContract."""
    if value is None:
        raise broken(connector, method, "returned None", "it must return the connection")
    if inspect.iscoroutine(value):
        value.close()  # it has not begun; no warning that nobody awaited it
        raise broken(connector, method, "returned a coroutine", "that of a Connector must return the connection itself")
    return value


def _capacity_of(connector: object, method: str, value: Any) -> int:
    """How many leases a connection serves. Raises BrokenContract if that is no number."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise broken(connector, method, returned(value), "it must return a number of leases, an int")
    return value


def _verdict_of(connector: object, method: str, value: Any) -> bool | None:
    """What ``check`` or ``peek`` said. Raises BrokenContract if that is neither a bool nor None."""
    if value is None or isinstance(value, bool):
        return value
    raise broken(connector, method, returned(value), "it must return True, or False for a dead connection")
