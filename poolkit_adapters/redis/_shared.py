"""Objects that the connections of one pool share, while redis-py creates them for each connection."""

from __future__ import annotations

import math
import os
import sys
import time
import weakref
from collections.abc import Mapping
from functools import partial
from typing import Any

from poolkit import deadline

from .._time_limits import shortest
from ._driver import CLUSTER, PACKAGE, Abstract, AsyncAbstract, AsyncTLS, AsyncTLSContext, SyncTLS, driver_info
from ._names import connect_by_address

__all__ = ("Former", "Shared", "check_limit", "made_by_cluster_client", "time_left")

_FILES = ("ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "ssl_ca_path")
_NAMES = ("driver_info", "lib_name", "lib_version")


def made_by_cluster_client() -> bool:
    """Return whether redis-py's ``RedisCluster`` is creating the pool.

    It creates one pool for each node, and drops it without closing it when the node leaves.
    """
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == CLUSTER:  # also through a factory of the application
            return True
        frame = frame.f_back
    return False


def time_left(timeout: float | None, started: float) -> float | None:
    """Return the seconds that a caller has left that asked at ``started``; None: no limit."""
    return None if timeout in (None, math.inf) else max(0.0, timeout - (time.monotonic() - started))


def check_limit(timeout: float | None, started: float, check_timeout: float | None) -> float | None:
    """Return the time limit, in seconds, of a question to the server before a caller gets a connection; None: no limit.

    At most the time that the caller has left, also in its ``poolkit.deadline`` block. Even a caller that never waits
    (``timeout=0``), or that comes after its deadline, waits for the answer: the connection would be closed otherwise.
    """
    return shortest(time_left(timeout, started) if timeout else None, check_timeout, deadline.left() or None)


class Former:
    """Connections that reset() left to their users. They are closed on release, and forgotten if never released."""

    def __init__(self) -> None:
        self._members: weakref.WeakSet[Any] = weakref.WeakSet()

    def add(self, connection: Any) -> None:
        """Add a connection."""
        try:
            self._members.add(connection)
        except TypeError:  # a custom class without weak references: its user closes it, as with redis-py's pools
            pass

    def take(self, connection: Any) -> bool:
        """Remove a connection, and return whether it was here."""
        try:
            self._members.remove(connection)
        except (KeyError, TypeError):
            return False
        return True


class Shared:
    """The driver info and the TLS context of a pool.

    For the one redis-py reads the metadata of its package, for the other the certificates of all authorities. That
    takes tens of milliseconds, on the event loop too. A context is reused for as long as the arguments and the files
    are unchanged. Thread-safe: after a race one of several equal contexts is kept.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = weakref.ref(pool)
        self._info: Any = None
        self._tls: tuple[Any, Any] | None = None  # arguments, state of the files, context

    def forget(self) -> None:
        """Create the TLS context again for the next connection."""
        self._tls = None

    def make(self, kind: Any, kwargs: Mapping[str, Any]) -> Any:
        """Return a new connection of this class, not connected."""
        if driver_info is None or not _takes_driver_info(kind) or any(name in kwargs for name in _NAMES):
            connection = kind(**kwargs)
        else:
            if self._info is None:
                self._info = driver_info()
            connection = kind(**kwargs, driver_info=self._info)
        if isinstance(connection, SyncTLS):
            self._share_sync(connection, kwargs)
        elif isinstance(connection, AsyncTLS):
            self._share_async(connection, kwargs)
        connect_by_address(connection, self._limit)
        return connection

    def _limit(self) -> float | None:
        """Return how many seconds a caller of the pool may wait."""
        pool = self._pool()
        return None if pool is None else pool.timeout

    def _share_sync(self, connection: Any, kwargs: Mapping[str, Any]) -> None:
        own = type(connection)._wrap_socket_with_ssl
        plain = not (connection.ssl_validate_ocsp or connection.ssl_validate_ocsp_stapled)  # OCSP needs a context each
        if own is SyncTLS._wrap_socket_with_ssl and plain:
            connection._wrap_socket_with_ssl = partial(self._wrap, weakref.ref(connection), _arguments(kwargs))

    def _wrap(self, ref: Any, arguments: dict[str, Any], sock: Any) -> Any:
        """Replace the connection's own method, which creates a context each time."""
        connection = ref()
        made_of = _with_files(arguments)
        known = self._tls
        if known is not None and known[0] == made_of:
            return known[1].wrap_socket(sock, server_hostname=connection.host)
        wrapped = SyncTLS._wrap_socket_with_ssl(connection, sock)
        self._tls = made_of, wrapped.context
        return wrapped

    def _share_async(self, connection: Any, kwargs: Mapping[str, Any]) -> None:
        own = getattr(connection, "ssl_context", None)
        if type(own) is not AsyncTLSContext:
            return
        made_of = _with_files(_arguments(kwargs))
        known = self._tls
        if known is not None and known[0] == made_of:
            connection.ssl_context = known[1]
        else:
            self._tls = made_of, own


def _takes_driver_info(kind: Any) -> bool:
    """Return whether the class has redis-py's own constructor."""
    if not (isinstance(kind, type) and issubclass(kind, (Abstract, AsyncAbstract))):
        return False
    return str(kind.__init__.__module__).startswith(f"{PACKAGE}.")  # type: ignore[misc]


def _arguments(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name.startswith("ssl_")}


def _with_files(arguments: dict[str, Any]) -> tuple[Any, ...]:
    """Return the arguments and the state of the files that they name, because certificates are replaced in place."""
    states: list[Any] = []
    for name in _FILES:
        path = arguments.get(name)
        if path:
            try:
                status = os.stat(path)
            except OSError:
                states.append(None)
            else:
                states.append((status.st_ino, status.st_size, status.st_mtime_ns))
    return arguments, states
