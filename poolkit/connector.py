"""What an adapter supplies: the only knowledge of a driver that the engine has.

Subclass :class:`Connector` (threads) or :class:`AsyncConnector` (asyncio, trio) and implement ``connect``; all
else has a default. The engine looks once, when the pool is made, at which methods are overridden, and never
calls one that is not.
"""

from __future__ import annotations

import inspect
import sys
from enum import Enum
from typing import Any, Generic, TypeVar

from .errors import ConfigError, raw_text

__all__ = ("AsyncConnector", "Connector", "Verdict", "default_classify", "overloaded")

C = TypeVar("C")


class Verdict(Enum):
    """What an error means for the connection on which it happened, or for opening one."""

    KEEP = "keep"
    """The connection is sound; reset it and use it again."""
    DISCARD = "discard"
    """The state of the connection is unknown or it is broken: abort it."""
    SUSPECT = "suspect"
    """Broken, and others may be too: abort it, and check the idle ones before their next use."""
    RETIRE = "retire"
    """The server behind it is wrong (a demoted primary, say): retire the whole generation."""
    FATAL = "fatal"
    """Connecting again cannot help (authentication, unknown database, TLS): tell all waiters at once."""
    OVERLOADED = "overloaded"
    """The server has as much to do, or as many connections, as it bears: as DISCARD, and an elastic pool
    (``autoscale``) makes itself smaller for a while. Refused connects are recognised by :func:`overloaded`."""


_FULL = (
    "too many clients", "remaining connection slots are reserved", "too many connections",  # PostgreSQL, also MySQL
    "max_user_connections",  # MySQL and MariaDB
    "no more connections allowed",  # PgBouncer
    "max number of clients reached",  # Redis
)  # fmt: skip


def overloaded(error: BaseException) -> bool:
    """Whether ``error``, met when connecting, says that the server takes no more connections.

    By SQLSTATE 53300 (PostgreSQL documentation, appendix A) where the driver has it, else by the servers' own words,
    of the error or of one that caused it: drivers hand them on, and adapters keep them as the cause.
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
    """The verdict when the adapter has no better one.

    Whatever is not an :class:`Exception` (cancellation, KeyboardInterrupt, GeneratorExit) may have struck in
    mid-exchange: discard; a timeout too. Network errors: suspect the others as well. A host name that does not
    exist and a failed TLS verification are fatal. Any other exception is the application's and leaves the
    connection sound.
    """
    if not isinstance(error, Exception):
        return Verdict.DISCARD
    ssl = sys.modules.get("ssl")  # not imported for this alone: 4 ms
    if ssl is not None and isinstance(error, ssl.SSLCertVerificationError):
        return Verdict.FATAL
    socket = sys.modules.get("socket")
    if socket is not None and isinstance(error, socket.gaierror):
        # getaddrinfo(3): the name does not exist, or has no address; "try again" (EAI_AGAIN) is another one
        names = ("EAI_NONAME", "EAI_NODATA")  # the latter not everywhere
        if error.errno in {getattr(socket, name, None) for name in names}:
            return Verdict.FATAL
    if isinstance(error, TimeoutError):
        return Verdict.DISCARD
    if isinstance(error, (OSError, EOFError)):
        return Verdict.SUSPECT
    return Verdict.KEEP


class _Base(Generic[C]):
    """What both kinds of connector share: everything that does no I/O."""

    connect_in_caller: bool = False
    """Open connections on demand in the calling thread or task (the driver, or its users, require it).
    Otherwise a connect runs detached: it survives its caller, and the caller takes whichever comes first,
    the new connection or a returned one."""

    close_in_caller: bool = False
    """Close connections where the pool decides it, not in the background."""

    packages: tuple[str, ...] = ()
    """Packages that stand between the application and the pool ("sqlalchemy"): the place where a lease was taken,
    which leak reports name, is looked for outside of them."""

    counted: bool = True
    """Whether the application made the pool: pools that it makes again and again are named in the log. False for a
    pool that only takes the place of another one."""

    must_be_closed: bool = True
    """Whether a pool that is collected with open connections is named in the log. False where users may drop it, as
    SQLAlchemy's may drop an engine: its drivers close the connections then."""

    def abort(self, connection: C) -> Any:
        """Drop the connection at once: never block, never wait for the server, never raise.

        May return what the connection has left at the server, as :meth:`leftover` does: its session may still be at
        work on a statement. None: nothing. May be called again for the same connection.
        """
        raise NotImplementedError

    def peek(self, connection: C) -> bool:
        """A look that never blocks and asks the server nothing: False if the peer has closed the connection
        or it holds unread data. Called before ``check``, and now and then on idle connections.
        """
        raise NotImplementedError

    def needs_reset(self, connection: C) -> bool:
        """Whether the returned connection was left in a state that ``reset`` has to clean. Never blocks."""
        raise NotImplementedError

    def classify(self, error: BaseException) -> Verdict:
        """What ``error`` means for the connection it happened on, or for opening further ones."""
        return default_classify(error)

    def leftover(self, error: BaseException) -> Any:
        """What a connect that raised ``error`` has left at the server: None if nothing.

        Otherwise an object with ``add_done_callback`` (an asyncio task, a future) that is done when nothing is
        left. Until then the pool counts it as a connection that is being closed, so that the limit holds. Called
        once, right after the connect, in the same thread or task. Must not block or raise.
        """
        raise NotImplementedError

    def capacity(self, connection: C) -> int:
        """How many leases the connection serves at once: 1, or the streams of a multiplexed one."""
        raise NotImplementedError

    def streams(self, key: Any) -> int:
        """Keyed pools: how many leases a connection for ``key`` will probably serve, before there is one."""
        return 1

    def lazy(self, connection: C) -> bool:
        """Keyed pools: whether the connection is opened by its first user. ``Lease.set_capacity`` tells the pool
        that it stands; until then others wait for it rather than open their own, ``streams`` of them.
        """
        return False

    def forget(self, connection: C) -> None:
        """In a forked child: let go of the parent's connection without a word to the server (``close(fd)``
        at most). The default keeps the object alive for ever, so that no finalizer of the driver speaks.
        """
        raise NotImplementedError


class Connector(_Base[C]):
    """A synchronous driver. Methods are called from any thread, never two at once for one connection."""

    def connect(self, timeout: float | None) -> C:
        """Open a connection within ``timeout`` seconds (None: no limit); raise the driver's error if it fails."""
        raise NotImplementedError

    def connect_to(self, key: Any, timeout: float | None) -> C:
        """Keyed pools call this instead of ``connect``: open a connection to the endpoint ``key``."""
        return self.connect(timeout)

    def close(self, connection: C) -> None:
        """Close in good order (say goodbye to the server). May block; errors are ignored."""
        raise NotImplementedError

    def check(self, connection: C, timeout: float | None) -> bool | None:
        """Ask the server for a sign of life within ``timeout`` seconds; False or an exception: dead."""
        raise NotImplementedError

    def reset(self, connection: C) -> None:
        """Bring a returned connection back to its initial state; an exception makes the pool abort it."""
        raise NotImplementedError


class AsyncConnector(_Base[C]):
    """An asynchronous driver. The engine puts its own deadline around every coroutine, by cancellation."""

    any_loop: bool = False
    """Whether an idle connection belongs to no event loop: then any asyncio loop may use the pool. Methods are called
    in the loop that needs the connection, ``abort`` in any thread."""

    async def connect(self, timeout: float | None) -> C:
        """Open a connection; cancelled after ``timeout`` seconds when the connect is detached."""
        raise NotImplementedError

    async def connect_to(self, key: Any, timeout: float | None) -> C:
        """Keyed pools call this instead of ``connect``: open a connection to the endpoint ``key``."""
        return await self.connect(timeout)

    async def close(self, connection: C) -> None:
        """Close in good order (say goodbye to the server); errors are ignored."""
        raise NotImplementedError

    async def check(self, connection: C, timeout: float | None) -> bool | None:
        """Ask the server for a sign of life; False or an exception: dead."""
        raise NotImplementedError

    async def reset(self, connection: C) -> None:
        """Bring a returned connection back to its initial state; an exception makes the pool abort it."""
        raise NotImplementedError


def overridden(connector: Any, name: str) -> Any:
    """The bound method ``name`` of ``connector`` if its author supplied one, else None."""
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
    """Raise ConfigError if ``connector`` is plainly one for the other kind of pool."""
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


def require_connect(connector: Any) -> None:
    """Raise ConfigError unless ``connector`` can connect."""
    if not callable(overridden(connector, "connect")) and not callable(overridden(connector, "connect_to")):
        raise ConfigError(
            f"connector: {type(connector).__name__} has no connect(timeout) method; "
            "subclass poolkit.Connector (or AsyncConnector) and implement it",
            "connector",
        )
