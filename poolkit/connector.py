"""Connectors: the interface between the engine and a driver.

Subclass :class:`Connector` (threads) or :class:`AsyncConnector` (asyncio, trio) and implement ``connect``; everything
else has a default. The engine checks once, when the pool is created, which methods are overridden, and never calls the
others.
"""

from __future__ import annotations

import inspect
import sys
from enum import Enum
from typing import Any, Generic, Protocol, TypeVar

from .errors import ConfigError, LeaseOverdue, raw_text

__all__ = ("AsyncConnector", "BoundedConnects", "Connector", "Verdict", "default_classify", "overloaded")

C = TypeVar("C")


class Verdict(Enum):
    """What an error means for its connection, or for opening further connections."""

    KEEP = "keep"
    """The connection is intact: reset it and use it again."""
    DISCARD = "discard"
    """The connection is broken or its state is unknown: abort it."""
    SUSPECT = "suspect"
    """The connection is broken, and others may be too: abort it, and check the idle ones before their next use."""
    RETIRE = "retire"
    """The server is the wrong one (for example a demoted primary): retire the whole generation of connections."""
    FATAL = "fatal"
    """Another connect cannot help (authentication, unknown database, TLS): fail all waiting callers at once."""
    OVERLOADED = "overloaded"
    """The server is overloaded or has too many connections: as DISCARD, and an elastic pool (``autoscale``) becomes
    smaller for a while. :func:`overloaded` recognises refused connects."""


_FULL = (
    "too many clients", "remaining connection slots are reserved", "too many connections",  # PostgreSQL, also MySQL
    "max_user_connections",  # MySQL and MariaDB
    "no more connections allowed",  # PgBouncer
    "max number of clients reached",  # Redis
)  # fmt: skip


def overloaded(error: BaseException) -> bool:
    """Return whether ``error``, raised by a connect, says that the server accepts no more connections.

    If the driver provides the SQLSTATE, 53300 decides (PostgreSQL documentation, appendix A). Otherwise the server's
    message in the error or in one of its causes decides. Drivers pass the message on, and adapters keep the error as
    the cause.
    """
    seen: list[BaseException] = []
    while error not in seen and len(seen) < 10:
        seen.append(error)
        if "53300" in (getattr(error, "sqlstate", None), getattr(error, "pgcode", None)):
            return True
        text = raw_text(error).lower()
        if any(words in text for words in _FULL):
            return True
        error = error.__cause__ or error.__context__ or error
    return False


def default_classify(error: BaseException) -> Verdict:
    """Return the verdict for an error if the adapter has no better one.

    An exception that is not an :class:`Exception` (cancellation, KeyboardInterrupt, GeneratorExit) and a timeout may
    have interrupted an exchange: DISCARD. Network errors: SUSPECT. A host name that does not exist and a failed TLS
    verification: FATAL. Any other exception comes from the application and leaves the connection intact: KEEP.
    """
    if not isinstance(error, Exception):
        return Verdict.DISCARD
    ssl = sys.modules.get("ssl")  # not imported only for this check: the import takes 4 ms
    if ssl is not None and isinstance(error, ssl.SSLCertVerificationError):
        return Verdict.FATAL
    socket = sys.modules.get("socket")
    if socket is not None and isinstance(error, socket.gaierror):
        # getaddrinfo(3): the name does not exist, or has no address; "try again" (EAI_AGAIN) is not fatal
        names = ("EAI_NONAME", "EAI_NODATA")  # EAI_NODATA does not exist on every system
        if error.errno in {getattr(socket, name, None) for name in names}:
            return Verdict.FATAL
    if isinstance(error, TimeoutError):
        return Verdict.DISCARD
    if isinstance(error, (OSError, EOFError)):
        return Verdict.SUSPECT
    return Verdict.KEEP


class _Base(Generic[C]):
    """The part that both kinds of connector share: everything that does no I/O."""

    connect_in_caller: bool = False
    """Open connections on demand in the calling thread or task, if the driver or its users require it.
    Otherwise a connect runs in the background: it continues when its caller is gone, and the caller takes whichever
    comes first, the new connection or a returned one."""

    reports_errors: bool = False
    """What a caller hears of a failed connect if no connection exists that it could wait for. False: the pool tries
    again until the caller's ``acquire_timeout``. True: the caller gets the error at once, as with most drivers' own
    pools; the next try still waits for the backoff."""

    close_in_caller: bool = False
    """Close connections in the thread or task that decides it, not in the background."""

    packages: tuple[str, ...] = ()
    """Packages between the application and the pool ("sqlalchemy"). Leak reports skip their frames to find the place in
    the application where a lease was taken."""

    overdue_error: type[LeaseOverdue] = LeaseOverdue
    """The class of the error for an overdue lease (``on_leak="raise"``). An adapter's class also inherits from the
    driver's error."""

    counted: bool = True
    """Whether the application created the pool: the log reports pools that it creates again and again. False for a pool
    that only replaces another one."""

    must_be_closed: bool = True
    """Whether the log reports a pool that is garbage-collected with open connections. False where users may drop it, as
    with a SQLAlchemy engine: its drivers then close the connections."""

    def abort(self, connection: C) -> Any:
        """Drop the connection at once. Must not block, wait for the server, or raise.

        May return what is left at the server, as :meth:`leftover` does, because its session may still run a statement;
        None: nothing. May be called again for the same connection.
        """
        raise NotImplementedError

    def peek(self, connection: C) -> bool:
        """Test the connection without blocking and without a request to the server: False if the peer has closed it or
        it holds unread data. Called before ``check``, and from time to time on idle connections.
        """
        raise NotImplementedError

    def needs_reset(self, connection: C) -> bool:
        """Whether the returned connection is in a state that ``reset`` has to clean. Must not block."""
        raise NotImplementedError

    def classify(self, error: BaseException) -> Verdict:
        """Return what ``error`` means for its connection, or for opening further ones."""
        return default_classify(error)

    def leftover(self, error: BaseException) -> Any:
        """Return what a connect that raised ``error`` has left at the server; None: nothing.

        Otherwise an object with ``add_done_callback`` (an asyncio task, a future) that is done when nothing is left.
        Until then the pool counts it as a connection that is being closed, so that the limit holds. Called once, right
        after the connect, in the same thread or task. Must not block or raise.
        """
        raise NotImplementedError

    def capacity(self, connection: C) -> int:
        """The number of leases that the connection serves at once: 1, or the streams of a multiplexed connection."""
        raise NotImplementedError

    def streams(self, key: Any) -> int:
        """Keyed pools: the number of leases that a connection for ``key`` will probably serve, before one exists."""
        return 1

    def lazy(self, connection: C) -> bool:
        """Return whether the first user opens the connection. ``Lease.set_capacity`` tells the pool that it is open.
        Until then, in a keyed pool, up to ``streams`` callers wait for it instead of opening their own. ``min_size``
        does not apply: the pool opens connections only for callers.
        """
        return False

    def forget(self, connection: C) -> None:
        """In a forked child: release the parent's connection without sending anything to the server (``close(fd)`` at
        most). By default the object is kept alive forever, so that no finalizer of the driver sends anything.
        """
        raise NotImplementedError


class Connector(_Base[C]):
    """A connector for a synchronous driver. Methods are called from any thread, never two at once for one
    connection.
    """

    def connect(self, timeout: float | None) -> C:
        """Open a connection within ``timeout`` seconds (None: no limit). Raises the driver's error if that fails."""
        raise NotImplementedError

    def connect_to(self, key: Any, timeout: float | None) -> C:
        """Keyed pools call this instead of ``connect``: open a connection to the endpoint ``key``."""
        return self.connect(timeout)

    def close(self, connection: C) -> None:
        """Close the connection in an orderly way, with the protocol's goodbye. May block; errors are ignored."""
        raise NotImplementedError

    def check(self, connection: C, timeout: float | None) -> bool | None:
        """Ask the server for a reply within ``timeout`` seconds (None: no limit). False or an exception: dead.

        It must keep to ``timeout`` by itself, because Python cannot end a thread.
        """
        raise NotImplementedError

    def reset(self, connection: C) -> None:
        """Bring a returned connection back to its initial state; an exception makes the pool abort it.

        The pool sets no limit to its time. Set one in the driver.
        """
        raise NotImplementedError


class BoundedConnects(Protocol):
    """What a :class:`Connector` may have in addition, so that a connect that hangs does not keep its place.

    Python cannot end a thread. A connect in a thread of the pool that does not return in time is given up: its callers
    hear of a timeout, and a connection that it opens later is closed. Both methods must not block.
    """

    def connect_bound(self, thread: int, timeout: float | None) -> float | None:
        """Return the seconds after which a connect in the thread ``thread`` is given up; None: never.

        ``timeout`` is that of ``connect``. Asked when the connect begins and again when that time is over. Without this
        method: twice ``timeout`` and one second, as some drivers round it up or have it for each address.
        """

    def give_up(self, thread: int) -> bool:
        """End a connect in the thread ``thread`` (``threading.get_ident()``). Called in another thread.

        Return True if it has no session at the server and will not open one: its place is then free at once. Otherwise,
        and without this method, it is free when the connect has returned: the server never has more than ``max_size``
        sessions.
        """


class AsyncConnector(_Base[C]):
    """A connector for an asynchronous driver. The engine enforces its own deadline for every coroutine by cancelling
    it.
    """

    bounds_connects: bool = False
    """Whether ``connect`` keeps to ``timeout`` by itself, for example for each of several attempts. Otherwise the
    engine cancels it after ``connect_timeout`` seconds, and with ``connect_in_caller`` at the caller's deadline."""

    any_loop: bool = False
    """Whether an idle connection is independent of event loops, so that any asyncio loop may use the pool. Methods are
    called in the loop that needs the connection, ``abort`` in any thread."""

    async def connect(self, timeout: float | None) -> C:
        """Open a connection within ``timeout`` seconds (None: no limit). See ``bounds_connects``."""
        raise NotImplementedError

    async def connect_to(self, key: Any, timeout: float | None) -> C:
        """Keyed pools call this instead of ``connect``: open a connection to the endpoint ``key``."""
        return await self.connect(timeout)

    async def close(self, connection: C) -> None:
        """Close the connection in an orderly way, with the protocol's goodbye. Errors are ignored."""
        raise NotImplementedError

    async def check(self, connection: C, timeout: float | None) -> bool | None:
        """Ask the server for a reply. False or an exception: dead."""
        raise NotImplementedError

    async def reset(self, connection: C) -> None:
        """Bring a returned connection back to its initial state; an exception makes the pool abort it."""
        raise NotImplementedError


def overridden(connector: Any, name: str) -> Any:
    """The bound method ``name`` of ``connector`` if its class overrides it, else None."""
    method = getattr(connector, name, None)
    if method is None:
        return None
    default = getattr(_Base, name, None) or getattr(Connector, name, None)
    async_default = getattr(AsyncConnector, name, None)
    if getattr(method, "__func__", None) in (default, async_default):
        return None
    return method


_PLAIN = ("abort", "peek", "needs_reset", "classify", "capacity", "streams", "lazy", "forget", "leftover")
_IO = ("connect", "connect_to", "close", "check", "reset")


def _require_plain(connector: Any, *, asynchronous: bool) -> None:
    """Raise ConfigError if a method is a coroutine function that is called without ``await``."""
    for name in _PLAIN if asynchronous else (*_PLAIN, *_IO):
        if inspect.iscoroutinefunction(overridden(connector, name)):
            kind = "an AsyncConnector" if asynchronous else "a Connector"
            raise ConfigError(
                f"connector: {type(connector).__name__}.{name}() is a coroutine function; that of {kind} must be a "
                "plain one (def)", "connector",
            )  # fmt: skip


def require_kind(connector: Any, *, asynchronous: bool) -> None:
    """Raise ConfigError if ``connector`` is clearly for the other kind of pool."""
    _refuse_class(connector)
    connect = overridden(connector, "connect") or overridden(connector, "connect_to")
    found = asynchronous
    if isinstance(connector, (Connector, AsyncConnector)):
        found = isinstance(connector, AsyncConnector)
    elif inspect.ismethod(connect):
        found = inspect.iscoroutinefunction(connect)
    if found is not asynchronous:
        this, other = ("AsyncPool", "Pool") if asynchronous else ("Pool", "AsyncPool")
        kinds = ("an asynchronous", "a synchronous") if asynchronous else ("a synchronous", "an asynchronous")
        raise ConfigError(
            f"connector={connector!r}: {this} needs {kinds[0]} connector; use {other} for {kinds[1]} one", "connector"
        )
    _require_plain(connector, asynchronous=asynchronous)


def _refuse_class(connector: Any) -> None:
    if isinstance(connector, type) and any(
        inspect.isfunction(inspect.getattr_static(connector, name, None)) for name in ("connect", "connect_to")
    ):
        name = connector.__name__
        raise ConfigError(f"connector={name}: must be an object, not its class: {name}(...)", "connector")


def require_connect(connector: Any) -> None:
    """Raise ConfigError unless ``connector`` can connect."""
    if not callable(overridden(connector, "connect")) and not callable(overridden(connector, "connect_to")):
        raise ConfigError(
            f"connector: {type(connector).__name__} has no connect(timeout) method; "
            "subclass poolkit.Connector (or AsyncConnector) and implement it",
            "connector",
        )
