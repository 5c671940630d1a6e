"""What the two pools share: settings, the register of connections, errors. No I/O."""

from __future__ import annotations

import ssl
import threading
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Generic, TypeVar

import httpcore

from poolkit import PoolConfig, Verdict
from poolkit.events import Listener

from .._errors import Table
from ._errors import ERRORS
from ._link import HELD, Key, Link, peek
from ._settings import MAX_CONNECTIONS, check_ways, pool_settings

__all__ = ("ConnectorMixin", "PoolBase", "Reopening")

E = TypeVar("E", bound=Any)  # the engine: Pool or AsyncPool
L = TypeVar("L")
B = TypeVar("B")  # the network backend

_VANISHED = (httpcore.ReadTimeout, httpcore.WriteTimeout, httpcore.ReadError, httpcore.WriteError)
"""How a request ends whose connection the peer does not know any more."""

_REMEMBERED = 10_000
"""Origins remembered for speaking HTTP/1.1 only; beyond that the memory begins anew."""


class ConnectorMixin(Generic[L]):
    """The part of a connector that does no I/O. The pool makes connections; this one only calls it weakly, so that
    a pool that is dropped is freed at once.
    """

    connect_in_caller = True  # a connection of httpcore's opens in its first request, with that one's timeouts

    packages: tuple[str, ...] = ("httpx", "httpcore")

    protocol = "http"
    """What telemetry calls these connections."""

    def __init__(self, owner: Any) -> None:
        self._owner = weakref.ref(owner)
        self.errors: Table = owner._errors
        self._multiplexed = owner._http2
        self._only_http2 = not owner._http1
        self._plain: set[Key] = set()
        self.links: dict[int, Link[L]] = {}

    def make(self, key: Key) -> Link[L]:
        """A connection that is not open yet."""
        owner = self._owner()
        if owner is None:
            raise RuntimeError("bug: a request outlives its pool")
        connection = owner.create_connection(httpcore.Origin(*key))
        if owner._proxy is not None:
            # httpcore does not hand these on to the connection that goes to the proxy
            inner = getattr(connection, "_connection", None)
            if isinstance(inner, (httpcore.HTTPConnection, httpcore.AsyncHTTPConnection)):
                inner._retries, inner._local_address = owner._retries, owner._local_address
                inner._socket_options = owner._socket_options
        link: Link[L] = Link(connection, key)
        self.links[id(link)] = link
        return link

    def lazy(self, link: Link[L]) -> bool:
        """All connections are opened by their first request."""
        return True

    def streams(self, key: Key) -> int:
        """How many requests a connection will carry at once: many, if it may turn out to be HTTP/2."""
        if self._multiplexed and (self._only_http2 or (key[0] in (b"https", b"wss") and key not in self._plain)):
            return 100
        return 1

    def on_plain(self, key: Key) -> None:
        """A connection to ``key`` turned out to be HTTP/1.1."""
        if self._multiplexed:
            if len(self._plain) >= _REMEMBERED:
                self._plain.clear()
            self._plain.add(key)

    def peek(self, link: Link[L]) -> bool:
        """A look at an idle connection."""
        return peek(link)

    def classify(self, error: BaseException) -> Verdict:
        """A connection on which a request failed is never used again; if the network did it, doubt the others."""
        lost = (httpcore.NetworkError, httpcore.RemoteProtocolError)
        return Verdict.SUSPECT if isinstance(error, lost) else Verdict.DISCARD

    def failed(self, link: Link[L], since: float, error: BaseException) -> None:
        """A request that began at ``since`` on ``link`` failed: do not let others try the same on its idle neighbours.

        HTTP has no question to ask of an idle connection, and a look does not show that the peer has vanished or
        forgotten it. So those to the same origin that have not answered since are closed. Without this rule each of
        them would cost a request.
        """
        owner = self._owner()
        # httpcore swallows a write error, with which the reset is gone from the socket: then the stream merely ends
        ended = isinstance(error, httpcore.RemoteProtocolError) and str(error).startswith("Server disconnected")
        if owner is None or not link.answered or not (ended or isinstance(error, _VANISHED)):
            return
        engine = owner._reopening.peek()
        if engine is not None:
            engine.discard_idle(lambda other: other.key == link.key, unused_since=since)

    def forget(self, link: Link[L]) -> None:
        """In a forked child, or when the event loop is gone: the engine keeps the object from being finalized."""
        self.links.pop(id(link), None)


class Reopening(Generic[L]):
    """The engine's pool behind the driver's class: made on first use, and anew on the first use after a close,
    because httpcore's pools go on working after ``close()``.
    """

    def __init__(self, make: Callable[[], L]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._pool: L | None = make()

    def get(self) -> L:
        """The pool to use now."""
        pool = self._pool
        if pool is None:
            with self._lock:
                pool = self._pool = self._pool or self._make()
        return pool

    def peek(self) -> L | None:
        """The pool, if it is open."""
        return self._pool

    def take(self) -> L | None:
        """The pool that is to be closed, if there is one."""
        with self._lock:
            pool, self._pool = self._pool, None
            return pool


class PoolBase(Generic[E, L, B]):
    """The part of a pool that does no I/O. Stands before httpcore's class."""

    _held: tuple[type, ...] = HELD
    _driver = "httpcore"  # whose defaults the arguments have
    _errors = ERRORS  # and whose errors leave the pool
    _kinds: tuple[Any, Any]  # the classes of the connector and of the engine
    _backend_of: Callable[..., Any]
    _network_backend: Any  # set by httpcore

    def __init__(
        self,
        ssl_context: ssl.SSLContext | None = None,
        proxy: httpcore.Proxy | None = None,
        max_connections: int | None = MAX_CONNECTIONS,
        max_keepalive_connections: int | None = None,
        keepalive_expiry: float | None = None,
        http1: bool = True,
        http2: bool = False,
        retries: int = 0,
        local_address: str | None = None,
        uds: str | None = None,
        network_backend: B | None = None,
        socket_options: Iterable[Any] | None = None,
        *,
        config: PoolConfig | None = None,
        name: str | None = None,
        listeners: Iterable[Listener] = (),
        **settings: Any,
    ) -> None:
        limits: dict[str, Any] = {
            "max_connections": max_connections,
            "max_keepalive_connections": max_keepalive_connections,
            "keepalive_expiry": keepalive_expiry,
        }
        check_ways(proxy, retries=retries, local_address=local_address, uds=uds, socket_options=socket_options)
        chosen = pool_settings(limits, config, settings, self._driver)
        super().__init__(  # type: ignore[call-arg]  # of the class of httpcore that follows this one
            ssl_context=ssl_context, proxy=proxy, http1=http1, http2=http2, retries=retries, uds=uds,
            local_address=local_address, network_backend=network_backend, socket_options=socket_options, **limits,
        )  # fmt: skip
        self._network_backend = self._backend_of(self._network_backend, own=network_backend is None, http2=http2)
        connector_kind, engine_kind = self._kinds
        self._connector: ConnectorMixin[L] = connector_kind(self)
        heard = tuple(listeners)
        make = partial(engine_kind, self._connector, chosen, name=name, listeners=heard, keyed=True)
        self._reopening: Reopening[E] = Reopening(make)
        connector: Any = self._connector
        connector.counted = False  # a pool that begins anew after a close() is still the one that was made

    @property
    def poolkit(self) -> E:
        """The poolkit pool behind: ``stats()``, ``explain()``, ``reconfigure()``, ``clear()``, ``suspend()``, ..."""
        return self._reopening.get()

    @property
    def connections(self) -> list[L]:
        """The connections of the pool, in the order in which they were made."""
        return [link.connection for link in list(self._connector.links.values())]

    def __repr__(self) -> str:
        """The state of the pool, in httpcore's words."""
        engine = self._reopening.peek()
        active, queued = (0, 0)
        if engine is not None:
            stats = engine.stats()
            active, queued = stats.leases, stats.waiting
        connections: list[Any] = self.connections
        idle = sum(connection.is_idle() for connection in connections)
        return (
            f"<{type(self).__name__} [Requests: {active} active, {queued} queued | "
            f"Connections: {len(connections) - idle} active, {idle} idle]>"
        )
