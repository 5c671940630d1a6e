"""What both pools share: settings, the register of connections, errors. Does no I/O."""

from __future__ import annotations

import ssl
import threading
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from poolkit import PoolConfig, PoolSettings, Verdict
from poolkit.errors import LeaseOverdue
from poolkit.events import Listener

from ._driver import DRIVER, PACKAGES, httpcore
from ._errors import ERRORS
from ._link import REREADABLE, Key, Link, peek
from ._opening import Opener
from ._settings import MAX_CONNECTIONS, check_proxy_arguments, pool_settings

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ("ConnectorMixin", "PoolBase", "Reopening")

E = TypeVar("E", bound=Any)  # the engine: Pool or AsyncPool
L = TypeVar("L")
B = TypeVar("B")  # the network backend

_VANISHED = (httpcore.ReadTimeout, httpcore.WriteTimeout, httpcore.ReadError, httpcore.WriteError)
"""Errors of a request on a connection that the peer no longer knows."""


class Tally:
    """A number that threads count up."""

    def __init__(self) -> None:
        self.value = 0
        self._lock = threading.Lock()

    def add(self) -> None:
        """Add one. Thread-safe."""
        with self._lock:
            self.value += 1


class ConnectorMixin(Generic[L]):
    """The part of a connector that does no I/O.

    Holds only a weak reference to the pool, which creates the connections, so that a dropped pool is freed at once.
    """

    reports_errors = True  # as httpcore's own pools do

    packages: tuple[str, ...] = PACKAGES

    protocol = "http"
    """The name of these connections in telemetry."""

    def __init__(self, owner: Any) -> None:
        self._owner = weakref.ref(owner)
        self.overdue_error: type[LeaseOverdue] = owner._errors.of(LeaseOverdue)
        self.opener: Opener[L] = Opener(owner)
        self.links = self.opener.links
        self.odd = Tally()  # see odd_responses

    def lazy(self, link: Link[L]) -> bool:
        """Return whether the first request opens the connection, or shows how many requests it carries (HTTP/2)."""
        return not link.capacity

    def connect_grace(self, over: float) -> float:
        """Return how many seconds a request whose time is up waits longer for its connect."""
        return self.opener.grace(over)

    def streams(self, key: Key) -> int:
        """Return how many requests a new connection may carry at the same time: many, if it may become HTTP/2."""
        return self.opener.streams(key)

    def peek(self, link: Link[L]) -> bool:
        """Return whether an idle connection is usable, without waiting."""
        return peek(link)

    def classify(self, error: BaseException) -> Verdict:
        """Never reuse a connection on which a request failed. After a network error, check the other ones too."""
        lost = (httpcore.NetworkError, httpcore.RemoteProtocolError)
        return Verdict.SUSPECT if isinstance(error, lost) else Verdict.DISCARD

    def failed(self, link: Link[L], since: float, error: BaseException) -> None:
        """Close idle connections to the same origin after a request that started at ``since`` failed on ``link``.

        HTTP has no ping for an idle connection, and looking at the socket does not show that the peer has vanished or
        forgotten the connection. So close those to the same origin that have not answered since. Otherwise each of
        them would cost a request.
        """
        owner = self._owner()
        # httpcore suppresses a write error, which consumes the reset, so the stream merely seems to end
        ended = isinstance(error, httpcore.RemoteProtocolError) and str(error).startswith("Server disconnected")
        if owner is None or not link.answered or not (ended or isinstance(error, _VANISHED)):
            return
        engine = owner._reopening.peek()
        if engine is not None:
            engine.discard_idle(lambda other: other.key == link.key, unused_since=since)

    def forget(self, link: Link[L]) -> None:
        """Drop a connection in a forked child or of an ended event loop. The engine keeps it from being finalized."""
        self.links.pop(id(link), None)


class Reopening(Generic[L]):
    """Holds the engine behind the driver's class, and creates a new one on the first use after a close.

    httpcore's pools can be used again after ``close()``. Thread-safe.
    """

    def __init__(self, make: Callable[[], L]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._pool: L | None = make()

    def get(self) -> L:
        """Return the open pool, or create one."""
        pool = self._pool
        if pool is None:
            with self._lock:
                pool = self._pool = self._pool or self._make()
        return pool

    def peek(self) -> L | None:
        """Return the pool if it is open, or None."""
        return self._pool

    def take(self) -> L | None:
        """Remove and return the pool, which the caller must close, or return None."""
        with self._lock:
            pool, self._pool = self._pool, None
            return pool


class PoolBase(Generic[E, L, B]):
    """The part of a pool that does no I/O. Comes before httpcore's class among the bases."""

    _rereadable: tuple[type, ...] = REREADABLE
    _driver = DRIVER  # the driver whose defaults the arguments have
    _errors = ERRORS  # the errors that the pool raises
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
        **settings: Unpack[PoolSettings],
    ) -> None:
        limits: dict[str, Any] = {
            "max_connections": max_connections,
            "max_keepalive_connections": max_keepalive_connections,
            "keepalive_expiry": keepalive_expiry,
        }
        check_proxy_arguments(
            proxy, retries=retries, local_address=local_address, uds=uds, socket_options=socket_options
        )
        chosen = pool_settings(limits, config, settings, self._driver)
        super().__init__(  # type: ignore[call-arg]  # the next base is httpcore's class
            ssl_context=ssl_context, proxy=proxy, http1=http1, http2=http2, retries=retries, uds=uds,
            local_address=local_address, network_backend=network_backend, socket_options=socket_options, **limits,
        )  # fmt: skip
        self._network_backend = self._backend_of(
            self._network_backend, own=network_backend is None, http2=http2, proxied=proxy is not None
        )
        connector_kind, engine_kind = self._kinds
        self._connector: ConnectorMixin[L] = connector_kind(self)
        heard = tuple(listeners)
        make = partial(engine_kind, self._connector, chosen, name=name, listeners=heard, keyed=True)
        self._reopening: Reopening[E] = Reopening(make)
        connector: Any = self._connector
        connector.counted = False  # a pool that opens again after close() must not count as another new pool

    @property
    def poolkit(self) -> E:
        """The underlying engine: ``stats()``, ``explain()``, ``reconfigure()``, ``clear()``, ``suspend()``, ..."""
        return self._reopening.get()

    @property
    def odd_responses(self) -> int:
        """How many responses to requests on reused HTTP/1.1 connections h11 had to parse, because of their form."""
        return self._connector.odd.value

    @property
    def connections(self) -> list[L]:
        """The connections of the pool, oldest first."""
        return [link.connection for link in list(self._connector.links.values())]

    def __repr__(self) -> str:
        """Return the state of the pool in httpcore's format."""
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
