"""The methods of a connector, looked up once, with checks of what they return."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from ._core.slots import Slot
from ._core.state import Features
from ._log import logger
from ._numbers import is_whole
from .connector import Verdict, default_classify, overloaded, overridden
from .errors import UsageError, describe, said
from .policies.connects import default_bound

__all__ = ("BrokenContract", "Operations", "broken", "returned")

C = TypeVar("C")


class BrokenContract(UsageError):
    """A method of the connector raised an error or returned a value that its contract does not allow.

    An error is the ``__cause__``. Without a cause, the method returned a wrong value, and connecting again cannot help.
    """

    left: Any = None  # what the new connection that the pool could not use has left at the server


def broken(connector: object, method: str, found: str, wanted: str) -> BrokenContract:
    """Return an error that names the method, what it did and what would be right."""
    return BrokenContract(f"{type(connector).__name__}.{method}() {found}: {wanted}")


def returned(value: object) -> str:
    """Return a short description of a returned value."""
    try:
        text = said(repr(value), 80)
    except Exception:  # noqa: BLE001  repr() of a driver's object may raise
        text = f"an object of {type(value).__name__}"
    return f"returned {text}"


def _raised(error: BaseException) -> str:
    """Return a short description of an error."""
    return f"raised {describe(error)}"


class Operations(Generic[C]):
    """The methods of a pool's connector. Methods that it does not have are None.

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
        self._lazy = overridden(connector, "lazy")
        self._streams = getattr(connector, "streams", None) if keyed else None
        self._classify = getattr(connector, "classify", None) or default_classify
        self._bound = getattr(connector, "connect_bound", None)  # see BoundedConnects
        self._give_up = getattr(connector, "give_up", None)
        self.close_in_caller = bool(getattr(connector, "close_in_caller", False))
        self.bounds_connects = bool(getattr(connector, "bounds_connects", False))
        # with start="eager", an adapter whose pool has its own open() opens its connections there
        self.opens_later = bool(getattr(connector, "opens_later", False))
        # for an adapter whose driver applies the limits of a wait and of a connect one after the other: called with the
        # seconds that a caller has waited beyond its timeout, returns how much longer a connect for it may take
        self.connect_grace: Callable[[float], float] | None = getattr(connector, "connect_grace", None)
        self.elsewhere = False  # a cluster sets it: its callers go to another node
        self._complaints: set[str] = set()

    @property
    def shared(self) -> bool:
        """Whether a connection may have several leases."""
        return self.keyed or self.capacity is not None

    @property
    def features(self) -> Features:
        """The features of the connector, for the core."""
        return Features(
            reports_errors=bool(getattr(self.connector, "reports_errors", False)),
            checks=self.check is not None,
            peeks=self.peek is not None,
            keyed=self.keyed,
            lazy=self._lazy is not None,
            elsewhere=self.elsewhere,
        )

    @property
    def connect_method(self) -> str:
        """The name of the method that opens connections, for messages."""
        return "connect" if self.connect_to is None else "connect_to"

    def complain(self, error: BrokenContract) -> None:
        """Log an error of the connector that no caller gets, once for each text."""
        if str(error) not in self._complaints and len(self._complaints) < 100:
            self._complaints.add(str(error))
            logger.error("%s: %s", self.name, error)

    def verdict(self, error: BaseException) -> Verdict:
        """Classify an error of a connection. DISCARD if the connector's ``classify`` fails."""
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
        """Classify the error of a connect. ``elastic``: the pool has ``autoscale``; a full server reduces its size."""
        if isinstance(error, BrokenContract):
            return Verdict.DISCARD if error.__cause__ else Verdict.FATAL
        if elastic and overloaded(error):
            return Verdict.OVERLOADED
        return self.verdict(error)

    def left_by(self, error: BaseException) -> Any:
        """Return what a failed connect has left at the server, if the connector reports it: ``Connector.leftover``."""
        if isinstance(error, BrokenContract) and error.left is not None:
            return error.left
        if self._leftover is None:
            return None
        try:
            left = self._leftover(error)
        except Exception as failure:  # noqa: BLE001 - logged; the connect has failed in any case
            self.complain(broken(self.connector, "leftover", _raised(failure), "it must not raise"))
            return None
        if left is None or callable(getattr(left, "add_done_callback", None)):
            return left
        wanted = "it must return None, or an object with add_done_callback()"
        self.complain(broken(self.connector, "leftover", returned(left), wanted))
        return None

    def bound(self, thread: int, timeout: float | None) -> float | None:
        """See ``BoundedConnects.connect_bound``."""
        if self._bound is None:
            return default_bound(timeout)
        try:
            bound: float | None = self._bound(thread, timeout)
        except Exception as failure:  # noqa: BLE001 - told, and the default applies
            self.complain(broken(self.connector, "connect_bound", _raised(failure), "it must not raise"))
            return default_bound(timeout)
        return bound

    def give_up(self, thread: int) -> bool:
        """See ``BoundedConnects.give_up``."""
        try:
            return self._give_up is not None and self._give_up(thread) is True
        except Exception as failure:  # noqa: BLE001 - told; what it may have left keeps its permit
            self.complain(broken(self.connector, "give_up", _raised(failure), "it must not raise"))
            return False

    def abort(self, connection: Any) -> Any:
        """Abort a connection; an error is logged. Returns False if that failed or the connector has no ``abort``.
        Otherwise returns True, or what the connection has left at the server (see ``Connector.abort``).
        """
        if self.aborts is None:
            return False
        try:
            left = self.aborts(connection)
        except Exception as failure:  # noqa: BLE001 - logged, and the connection is dropped
            logger.debug("%s: abort of a connection failed: %s", self.name, describe(failure))
            return False
        return left if callable(getattr(left, "add_done_callback", None)) else True

    def examine(self, connection: C) -> tuple[C, int, bool]:
        """Return a new connection, how many leases it serves at once, and whether the driver connects at its first use.
        Raises BrokenContract if the connector's answers are invalid.
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
        """Return how many leases a connection to this endpoint may serve; None if the connector has no ``streams``."""
        if self._streams is None:
            return None
        try:
            streams = self._streams(key)
        except Exception as error:
            raise broken(self.connector, "streams", _raised(error), "it must not raise") from error
        return max(1, _capacity_of(self.connector, "streams", streams))

    def look(self, connection: C) -> Exception | None:
        """Look at an idle connection without asking the server. Returns an error if it cannot be used."""
        try:
            if self.peek is not None and _verdict_of(self.connector, "peek", self.peek(connection)) is False:
                return ConnectionResetError("closed by the peer while idle")
        except Exception as error:  # noqa: BLE001  whatever it is, the connection is not alive
            return self.dead(error)
        return None

    def refused(self, answer: Any) -> Exception | None:
        """Return an error if a check has answered False. Raises BrokenContract if the answer is invalid."""
        if _verdict_of(self.connector, "check", answer) is False:
            return ConnectionAbortedError("the check failed")
        return None

    def dead(self, error: Exception) -> Exception:
        """Return the error of a look or a check, which no caller gets. Log it if the connector is at fault."""
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
    """Return what ``connect`` returned. Raises BrokenContract if it cannot be a connection."""
    if value is None:
        raise broken(connector, method, "returned None", "it must return the connection")
    if inspect.iscoroutine(value):
        value.close()  # it has not started; closed, so that Python does not warn that it was never awaited
        raise broken(connector, method, "returned a coroutine", "that of a Connector must return the connection itself")
    return value


def _capacity_of(connector: object, method: str, value: Any) -> int:
    """Return how many leases a connection serves. Raises BrokenContract if that is no number."""
    if not is_whole(value):
        raise broken(connector, method, returned(value), "it must return a number of leases, an int")
    return value


def _verdict_of(connector: object, method: str, value: Any) -> bool | None:
    """Return the answer of ``check`` or ``peek``. Raises BrokenContract if it is neither a bool nor None."""
    if value is None or isinstance(value, bool):
        return value
    raise broken(connector, method, returned(value), "it must return True, or False for a dead connection")
