"""Opens connections before a request is sent on them.

httpcore's connections to a server, through a proxy or through a tunnel open in their first request. They connect,
negotiate, and then store the object that speaks the protocol in an attribute of their own. Here they get an empty
request. For that one assignment they have a class in which the attribute is a property, and what it stores is a
stand-in, which ends the empty request before anything of it is sent. So everything until then is httpcore's, and so is
HTTP/1.1. For HTTP/2 poolkit's connection takes the place of httpcore's.

A connection of any other class, made by ``create_connection()`` of a subclass of the pool, opens in its first request.
"""

from __future__ import annotations

import asyncio
import functools
import time
import weakref
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import Any, Generic, TypeVar

from .._errors import of_connect, release_locals
from .._time_limits import caller_limit
from ._driver import httpcore
from ._errors import error_for_caller
from ._link import Key, Link, network_stream
from ._look import innermost
from ._network import ABANDONED, Watchable

__all__ = ("ASKED", "NOBODY", "Opener", "Opening", "error_of_wait", "until_nobody_waits")

L = TypeVar("L")

NOBODY: Mapping[str, Any] = {}
ASKED: ContextVar[Mapping[str, Any]] = ContextVar("poolkit_http_asked", default=NOBODY)
"""The extensions of the request that waits for a connection in this context: its timeouts, trace and server name. A
connect runs in a copy of the context. Not the request itself: asyncio keeps the context as long as the connection, and
would keep the body of the request with it."""

_REMEMBERED = 10_000
"""How many origins are remembered as HTTP/1.1 only. When the set is full, it is cleared."""

_HTTP11 = (httpcore.HTTP11Connection, httpcore.AsyncHTTP11Connection)
_HTTP2 = (httpcore.HTTP2Connection, httpcore.AsyncHTTP2Connection)


def _classes(*names: tuple[str, str]) -> tuple[Any, ...]:
    packages = (("", httpcore._sync), ("Async", httpcore._async))
    return tuple(
        getattr(getattr(package, module), prefix + name)
        for prefix, package in packages
        for module, name in names
        if hasattr(package, module)  # httpcore has no socks_proxy where socksio is not installed
    )


_FORWARDING = _classes(("http_proxy", "ForwardHTTPConnection"))
_OPENING = _classes(
    ("connection", "HTTPConnection"), ("http_proxy", "TunnelHTTPConnection"), ("socks_proxy", "Socks5Connection")
)


class _StandIn:
    """In the place of an HTTP connection that has just been opened: ends the empty request that opened it."""

    __slots__ = ("inner",)

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def handle_request(self, request: httpcore.Request) -> None:
        """Send nothing."""

    async def handle_async_request(self, request: httpcore.Request) -> None:
        """Send nothing."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Opening(Generic[L]):
    """One connection that is being opened, for the request with the extensions ``asked``.

    It is the trace of the empty request. ``part`` is the object that connects, or None if the first request opens the
    connection. ``limit``: seconds for each step of the connect (None: no limit).
    """

    def __init__(self, link: Link[L], part: Any, asked: Mapping[str, Any], limit: float | None) -> None:
        self.link = link
        self.part = part
        self.limit = limit
        self.user_trace: Any = asked.get("trace")
        self.timeouts: Mapping[str, Any] = asked.get("timeout") or {}
        self._asked = asked

    def note(self, event: str, info: dict[str, Any]) -> None:
        """Handle one trace event."""
        stream = network_stream(event, info)
        if stream is not None:
            self.link.streams.append(stream)

    def request(self) -> httpcore.Request:
        """Return the empty request."""
        origin = getattr(self.part, "_origin", None) or httpcore.Origin(*self.link.key)
        url = httpcore.URL(scheme=origin.scheme, host=origin.host, port=origin.port, target=b"/")
        timeouts = {**self.timeouts, "connect": self.limit}
        return httpcore.Request(b"GET", url, extensions={**self._asked, "timeout": timeouts, "trace": self})

    def finish(self) -> bool:
        """Record that the connection is open. Return whether it speaks HTTP/1.1."""
        link, part = self.link, self.part
        part._connection = part._connection.inner
        for stream in link.streams:
            if isinstance(stream, Watchable):
                stream.opens_until = None
        if link.http2 is not None:
            link.http2.state.heard_at = time.monotonic()  # the server has negotiated the protocol just now
            return False
        inner = innermost(link.connection)
        if type(inner) in _HTTP11:
            inner._state = type(inner._state).IDLE
        link.capacity = 1
        return True


class Opener(Generic[L]):
    """Makes the connections of a pool, and knows which origins speak HTTP/1.1 only. Thread-safe.

    Holds only a weak reference to the pool, so that a dropped pool is freed at once.
    """

    def __init__(self, owner: Any) -> None:
        self._owner = weakref.ref(owner)
        self._multiplexed = owner._http2
        self._only_http2 = not owner._http1
        self._http11_only: set[Key] = set()
        self.links: dict[int, Link[L]] = {}

    def begin(self, kind: type[Opening[L]], key: Key, timeout: float | None) -> Opening[L]:
        """Make a connection for the request that asks in this context. ``timeout``: the limit of the pool."""
        owner, asked = self._owner(), ASKED.get()
        ASKED.set(NOBODY)  # the event loop keeps this context for as long as the connection is open
        if owner is None:
            raise RuntimeError("bug in poolkit: a request is running, but its pool no longer exists")
        connection = owner.create_connection(httpcore.Origin(*key))
        if owner._proxy is not None:
            # httpcore does not pass these on to the connection to the proxy
            inner = getattr(connection, "_connection", None)
            if isinstance(inner, (httpcore.HTTPConnection, httpcore.AsyncHTTPConnection)):
                inner._retries, inner._local_address = owner._retries, owner._local_address
                inner._socket_options = owner._socket_options
        link: Link[L] = Link(connection, key)
        part = _prepared(connection, link, owner._rereadable)
        self.links[id(link)] = link
        return kind(link, part, asked, _limit(owner, asked, timeout))

    def longest(self, opening: Opening[L], addresses: int = 1) -> float:
        """Return the most seconds of a connect with a limit: to a proxy and through it, in each attempt.

        In threads each of the ``addresses`` of a name has the limit.
        """
        owner, read = self._owner(), opening.timeouts.get("read")
        retries = 0 if owner is None else owner._retries
        limit = opening.limit or 0.0
        steps = _STEPS * (limit + (read or 0.0)) + (addresses - 1) * limit
        return float(2 * steps * (retries + 1) + 2**retries + 1)

    def error(self, error: BaseException) -> BaseException:
        """Return the error of a connect as the adapter's, and let go of what its frames hold."""
        owner = self._owner()
        raised = error if owner is None else error_for_caller(error, True, owner._errors)
        del owner
        release_locals(error)
        return raised

    def streams(self, key: Key) -> int:
        """Return how many requests a new connection may carry at the same time: many, if it may become HTTP/2."""
        if self._multiplexed and (self._only_http2 or (key[0] in (b"https", b"wss") and key not in self._http11_only)):
            return 100
        return 1

    def on_http11(self, key: Key) -> None:
        """Remember that a connection to ``key`` turned out to be HTTP/1.1."""
        if self._multiplexed:
            if len(self._http11_only) >= _REMEMBERED:
                self._http11_only.clear()
            self._http11_only.add(key)

    def waiting(self, key: Key) -> int:
        """Return how many requests wait for a connection to ``key``."""
        owner = self._owner()
        engine = None if owner is None else owner._reopening.peek()
        return 0 if engine is None else sum(one.waiting for one in engine.lane_stats() if one.key == key)

    def grace(self, over: float) -> float:
        """Return how much longer the request of this context waits for its connect, ``over`` seconds after its time.

        The limits of a request for the wait and for the connect count one after the other, as with httpcore.
        ``acquire_timeout`` of the pool limits both together.
        """
        owner, asked = self._owner(), ASKED.get()
        engine = None if owner is None else owner._reopening.peek()
        if owner is None or engine is None:
            return 0.0
        config = engine.config
        limit = _limit(owner, asked, config.connect_timeout)
        most = _STEP if limit is None else _STEPS * limit * (owner._retries + 1) - over
        if config.acquire_timeout is not None:
            waited = (asked.get("timeout") or {}).get("pool", config.acquire_timeout)
            waited = config.acquire_timeout if waited is None else min(waited, config.acquire_timeout)
            most = min(most, config.acquire_timeout - waited - over)
        return max(0.0, min(most, _STEP))


_STEP = 1.0
"""Seconds after which a request that waits beyond its limit checks again whether its connect is in progress."""
_STEPS = 2
"""Steps of a connect that may each take the whole limit: TCP and TLS."""


def _limit(owner: Any, asked: Mapping[str, Any], timeout: float | None) -> float | None:
    """Return the seconds for a connect: those of the request, or else ``timeout``, those of the pool."""
    own: float | None = (asked.get("timeout") or {}).get("connect")
    if own is None:
        return timeout
    engine = owner._reopening.peek()
    late = None if engine is None else caller_limit(engine.config, timeout)
    return own if late is None else min(own, late)


def error_of_wait(error: Any, table: Any) -> Any:
    """Return an error of the engine as the adapter's: for a failed connect, a copy of what that has raised."""
    failed = of_connect(error)
    return table.adapted(error) if failed is None else failed


# -- httpcore's connections --------------------------------------------------------------------------------------------


def _prepared(connection: Any, link: Link[Any], held: tuple[type, ...]) -> Any:
    """Return the part of the connection that connects. None: it opens in its first request.

    Let it speak HTTP/2 by poolkit's class, if it turns out to be HTTP/2. ``held``: types of bodies that are in memory.
    A subclass of httpcore's HTTP/2 connection stays as it is, and carries one request at a time.
    """
    if type(connection) in _HTTP2:
        link.connection = link.direct = _made(link, connection, held)
        return None
    part = connection._connection if type(connection) in _FORWARDING else connection
    known = type(part) in _OPENING
    if known or (isinstance(part, _OPENING) and part._http2):
        vars(part)["_poolkit"] = weakref.ref(link), held, known
        part.__class__ = _with_property(type(part))  # type: ignore[arg-type, unused-ignore]
    return part if known else None


@functools.lru_cache(None)
def _with_property(kind: type) -> type:
    def get(connection: Any) -> Any:
        return vars(connection)["_connection"]

    def put(connection: Any, inner: Any) -> None:
        reference, held, stop = vars(connection).pop("_poolkit")
        connection.__class__ = kind
        link = reference()
        if type(inner) in _HTTP2 and link is not None:
            inner = _made(link, inner, held)
        connection._connection = _StandIn(inner) if stop else inner

    return type(kind.__name__, (kind,), {"__module__": kind.__module__, "_connection": property(get, put)})


def _made(link: Link[Any], theirs: Any, held: tuple[type, ...]) -> Any:
    made: Any
    if isinstance(theirs, httpcore.HTTP2Connection):
        from ._h2_sync import H2Connection  # only here, because these need h2

        made = H2Connection(theirs._origin, theirs._network_stream, held)
    else:
        from ._h2_async import AsyncH2Connection

        made = AsyncH2Connection(theirs._origin, theirs._network_stream, held)
    link.http2 = made
    for stream in link.streams:
        if isinstance(stream, Watchable):
            stream.opens_until = None
    return made


# -- connects of tasks without a limit ---------------------------------------------------------------------------------


async def until_nobody_waits(key: Key, connect: Callable[[], Awaitable[Any]], waiting: Callable[[Key], int]) -> None:
    """Await ``connect()``, which has no limit of time. Raises ConnectTimeout some time after its last caller is gone.

    Otherwise a server that never answers would keep the place of a connection for ever.
    ``waiting(key)`` returns how many callers wait for a connection to ``key``.
    """
    if asyncio._get_running_loop() is None:
        await _on_trio(key, connect, waiting)
        return
    task: Any = asyncio.current_task()
    loop, ended = asyncio.get_running_loop(), False
    timer: asyncio.TimerHandle | None = None

    def look() -> None:
        nonlocal ended, timer
        if timer is None or waiting(key):
            timer = loop.call_later(ABANDONED, look)
        else:
            ended = True
            task.cancel()

    look()
    try:
        await connect()
    except asyncio.CancelledError:
        if not ended:
            raise
        if hasattr(task, "uncancel"):  # Python 3.11
            task.uncancel()
        raise httpcore.ConnectTimeout(_NOBODY_WAITS) from None
    finally:
        timer.cancel()  # type: ignore[union-attr]


async def _on_trio(key: Key, connect: Callable[[], Awaitable[Any]], waiting: Callable[[Key], int]) -> None:
    import trio

    scope, done = trio.CancelScope(), trio.Event()

    async def look() -> None:
        while not done.is_set():
            with trio.move_on_after(ABANDONED):
                await done.wait()
            if not done.is_set() and not waiting(key):
                scope.cancel()
                return

    trio.lowlevel.spawn_system_task(look)
    try:
        with scope:
            await connect()
    finally:
        done.set()
    if scope.cancelled_caught:
        raise httpcore.ConnectTimeout(_NOBODY_WAITS)


_NOBODY_WAITS = "no caller waited for the connection any more"
