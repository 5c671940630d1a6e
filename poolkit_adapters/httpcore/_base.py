"""What the two pools share: settings, the register of connections, errors. No I/O."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import httpcore

from poolkit import PoolStats, Verdict
from poolkit.errors import LeaseOverdue

from ._link import Key, Link, peek

__all__ = ("ConnectorMixin", "Reopening", "described")

L = TypeVar("L")

_VANISHED = (httpcore.ReadTimeout, httpcore.WriteTimeout, httpcore.ReadError, httpcore.WriteError)
"""How a request ends whose connection the peer does not know any more."""

_REMEMBERED = 10_000
"""Origins remembered for speaking HTTP/1.1 only; beyond that the memory begins anew."""


class ConnectorMixin(Generic[L]):
    """The part of a connector that does no I/O. The pool makes connections; this one only calls it weakly, so that
    a pool that is dropped is freed at once.
    """

    connect_in_caller = True  # a connection of httpcore's opens in its first request, with that one's timeouts

    protocol = "http"
    """What telemetry calls these connections."""

    def __init__(self, owner: Any) -> None:
        self._owner = weakref.ref(owner)
        self.overdue_error: type[LeaseOverdue] = owner._errors.of(LeaseOverdue)
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


def described(name: str, connections: list[Any], stats: PoolStats | None) -> str:
    """The ``repr`` of a pool, in httpcore's words."""
    active, queued = (stats.leases, stats.waiting) if stats is not None else (0, 0)
    idle = sum(connection.is_idle() for connection in connections)
    return (
        f"<{name} [Requests: {active} active, {queued} queued | "
        f"Connections: {len(connections) - idle} active, {idle} idle]>"
    )
