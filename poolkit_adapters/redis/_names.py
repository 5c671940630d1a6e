"""Resolves host names in a separate thread, within the time limit of the connect.

redis-py calls the system's resolver in the calling thread, where nothing can interrupt it, or in one of the few
threads of the event loop's default executor. See :mod:`poolkit.runtimes.names`. Connection classes with their own way
to connect are left alone.
"""

from __future__ import annotations

import asyncio
import socket
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

from poolkit.runtimes.names import addresses, addresses_async, is_name

from .._time_limits import parts
from ._driver import AsyncConnection, Connection, DriverError, SyncTLS, async_connection

__all__ = ("connect_by_address",)

_PLAIN, _TLS, _ASYNC = Connection._connect, SyncTLS._connect, AsyncConnection._connect


def connect_by_address(connection: Any, limit: Callable[[], float | None]) -> None:
    """Make a new redis-py connection resolve its host here. ``limit`` returns how many seconds a caller may wait."""
    own = getattr(type(connection), "_connect", None)
    if own in (_PLAIN, _TLS):
        connection._connect = partial(_connect, weakref.ref(connection), limit)
    elif own is _ASYNC:
        connection._connect = partial(_connect_async, weakref.ref(connection), limit)


def _time(connection: Any, limit: Callable[[], float | None]) -> float | None:
    """Return the seconds for the connect: the shorter one of the driver's limit and the pool's."""
    times = [seconds for seconds in (connection.socket_connect_timeout, limit()) if seconds]
    return min(times, default=None)


def _left(timeout: float | None, begun: float) -> float | None:
    """Return the seconds that the lookup has left for the addresses; they share them."""
    return None if timeout is None else max(0.0, begun + timeout - time.monotonic())


def _connect(ref: Callable[[], Any], limit: Callable[[], float | None]) -> Any:
    # close_sockets_of() recognizes an interrupted connect by the name of this function and the name "self"
    self = ref()
    found = None
    if is_name(self.host):
        begun, timeout = time.monotonic(), _time(self, limit)
        found = addresses(self.host, self.port, timeout, self.socket_type)
    if found is None:
        return type(self)._connect(self)
    host, own = self.host, self.socket_connect_timeout
    sock, failure = None, OSError("the resolver found no address for the host")
    try:
        for address, seconds in parts(found, _left(timeout, begun)):
            self.host = address
            if seconds is not None:
                self.socket_connect_timeout = max(0.001, seconds)
            try:
                sock = _PLAIN(self)
                break
            except OSError as error:
                failure = error
    finally:
        self.host, self.socket_connect_timeout = host, own
    if sock is None:
        raise failure
    if type(self)._connect is _PLAIN:
        return sock
    try:
        return self._wrap_socket_with_ssl(sock)
    except (OSError, DriverError):
        sock.close()
        raise


async def _connect_async(ref: Callable[[], Any], limit: Callable[[], float | None]) -> None:
    self = ref()
    found = None
    if is_name(self.host):
        begun, timeout = time.monotonic(), _time(self, limit)
        try:
            found = await addresses_async(self.host, self.port, timeout)
        except TimeoutError as error:
            raise asyncio.TimeoutError(str(error)) from error  # another class before Python 3.11
    if found is None:
        await _ASYNC(self)
        return
    arguments = _arguments(self)  # before there is a socket, because a subclass may raise an error here
    failure: Exception = OSError("the resolver found no address for the host")
    for address, seconds in parts(found, _left(timeout, begun)):
        try:
            async with async_connection.async_timeout(seconds):
                sock = await _opened(address, self.port)
            break
        except (OSError, asyncio.TimeoutError) as error:  # the latter is no OSError before Python 3.11
            failure = error
    else:
        raise failure
    self._connection_arguments = lambda: {**arguments, "sock": sock}
    try:
        # TLS has all the time that is left, as in threads
        async with async_connection.async_timeout(_left(timeout, begun)):
            await _ASYNC(self)
    finally:
        del self._connection_arguments


async def _opened(address: str, port: int) -> socket.socket:
    """Connect to an address and return the socket."""
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (address, port))
    except BaseException:
        sock.close()
        raise
    return sock


def _arguments(connection: Any) -> dict[str, Any]:
    """Return the connection's arguments without its address, for a connected socket. TLS still verifies the name."""
    arguments = dict(type(connection)._connection_arguments(connection))
    if "ssl" in arguments:
        arguments.setdefault("server_hostname", arguments.get("host"))
    return {name: value for name, value in arguments.items() if name not in ("host", "port")}
