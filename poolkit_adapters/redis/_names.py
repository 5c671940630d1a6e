"""Connecting by name: the name is looked up beside the caller, within the time that there is to connect.

redis-py asks the system's resolver in the calling thread, which nothing can interrupt, or in the few threads of the
event loop's default executor. See :mod:`poolkit.runtimes.names`. Classes of connections that connect in a way of their
own are left to it.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

from poolkit.runtimes.names import addresses, addresses_async, is_name
from poolkit_adapters.redis._driver import AsyncConnection, Connection, SyncTLS, async_connection, exceptions

__all__ = ("connect_by_address",)

_PLAIN, _TLS, _ASYNC = Connection._connect, SyncTLS._connect, AsyncConnection._connect


def connect_by_address(connection: Any, limit: Callable[[], float | None]) -> None:
    """Let a new connection of redis-py's look its host up here. ``limit``: how long a caller of the pool may wait."""
    own = getattr(type(connection), "_connect", None)
    if own in (_PLAIN, _TLS):
        connection._connect = partial(_connect, weakref.ref(connection), limit)
    elif own is _ASYNC:
        connection._connect = partial(_connect_async, weakref.ref(connection), limit)


def _time(connection: Any, limit: Callable[[], float | None]) -> float | None:
    """Seconds to connect: the driver's own limit, or the pool's where that is shorter."""
    times = [seconds for seconds in (connection.socket_connect_timeout, limit()) if seconds]
    return min(times, default=None)


def _connect(ref: Callable[[], Any], limit: Callable[[], float | None]) -> Any:
    # an interrupted connect is recognised by this function's name and the name "self": see close_sockets_of()
    self = ref()
    found = None
    if is_name(self.host):
        begun, timeout = time.monotonic(), _time(self, limit)
        found = addresses(self.host, self.port, timeout, self.socket_type)
    if found is None:
        return type(self)._connect(self)
    host, own = self.host, self.socket_connect_timeout
    sock, failure = None, OSError("the resolver knows no address")
    try:
        if timeout is not None:
            self.socket_connect_timeout = max(0.001, timeout - (time.monotonic() - begun))
        for address in found:
            self.host = address
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
    except (OSError, exceptions.RedisError):
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
    failure = OSError("the resolver knows no address")
    async with async_connection.async_timeout(None if timeout is None else begun + timeout - time.monotonic()):
        for address in found:
            self._connection_arguments = partial(_arguments, ref, address)
            try:
                await _ASYNC(self)
                return
            except OSError as error:
                failure = error
            finally:
                del self._connection_arguments
    raise failure


def _arguments(ref: Callable[[], Any], address: str) -> dict[str, Any]:
    """The connection's own arguments, with an address for the name; TLS goes on asking for the name."""
    self = ref()
    arguments = dict(type(self)._connection_arguments(self))
    if "ssl" in arguments:
        arguments.setdefault("server_hostname", arguments["host"])
    return {**arguments, "host": address}
