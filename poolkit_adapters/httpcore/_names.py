"""Resolves host names in a separate thread, within the connect timeout of the request.

httpcore's own backends call the system's resolver in the calling thread, where nothing can interrupt it, or in one of
the few threads of the event loop's default executor. See :mod:`poolkit.runtimes.names`. Custom backends get the name
as before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from itertools import chain, zip_longest
from typing import Any

from poolkit.runtimes.names import addresses, addresses_async

from ._asyncio_stream import close_leftovers
from ._driver import httpcore
from ._network import first_step

try:
    import anyio
except ImportError:  # httpcore under trio alone
    anyio = None  # type: ignore[assignment, unused-ignore]

__all__ = ("ON_ADDRESSES", "AsyncNamesBackend", "NamesBackend")

ON_ADDRESSES: ContextVar[Callable[[int], object] | None] = ContextVar("poolkit_http_on_addresses", default=None)
"""Called in threads with the number of addresses that are tried in turn: each of them has the time of the connect."""

_PAUSE = 0.25
"""Seconds after which the next address is tried in parallel with one that does not answer (RFC 8305, 5). anyio and trio
use the same value."""

_FAILED = (httpcore.ConnectError, httpcore.ConnectTimeout)


def _left(timeout: float | None, begun: float) -> float | None:
    return None if timeout is None else max(0.001, begun + timeout - time.monotonic())


def _failed(error: OSError) -> Exception:
    """Return httpcore's error for a failed lookup."""
    return (httpcore.ConnectTimeout if isinstance(error, TimeoutError) else httpcore.ConnectError)(str(error))


class NamesBackend(httpcore.NetworkBackend):
    """Wraps httpcore's backend for threads and passes it addresses instead of names."""

    def __init__(self, backend: httpcore.NetworkBackend) -> None:
        self._backend = backend

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:  # fmt: skip
        """Connect through the wrapped backend, to one address of the name after the other."""
        begun = time.monotonic()
        try:
            found = addresses(host, port, timeout)
        except OSError as error:
            raise _failed(error) from error
        if found is None:
            return self._backend.connect_tcp(host, port, timeout, local_address, socket_options)
        left, report = _left(timeout, begun), ON_ADDRESSES.get()
        if report is not None:
            report(len(found))
        for address in found[:-1]:
            try:
                return self._backend.connect_tcp(address, port, left, local_address, socket_options)
            except _FAILED:  # as in socket.create_connection(), only the error of the last address is raised
                continue
        return self._backend.connect_tcp(found[-1], port, left, local_address, socket_options)

    def connect_unix_socket(self, *args: Any, **kwargs: Any) -> httpcore.NetworkStream:
        """Call the wrapped backend."""
        return self._backend.connect_unix_socket(*args, **kwargs)

    def sleep(self, seconds: float) -> None:
        """Call the wrapped backend."""
        self._backend.sleep(seconds)


class AsyncNamesBackend(httpcore.AsyncNetworkBackend):
    """Wraps httpcore's backend for tasks and passes it addresses instead of names."""

    def __init__(self, backend: httpcore.AsyncNetworkBackend) -> None:
        self._backend = backend

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:  # fmt: skip
        """Connect through the wrapped backend. Try several addresses in parallel, as the backend does for a name."""
        begun = time.monotonic()
        try:
            found = await addresses_async(host, port, timeout)
        except OSError as error:
            raise _failed(error) from error
        if found is None or (len(found) > 1 and anyio is None):
            return await self._backend.connect_tcp(host, port, timeout, local_address, socket_options)
        left = _left(timeout, begun)
        if len(found) == 1:
            return await self._backend.connect_tcp(found[0], port, left, local_address, socket_options)
        return await self._first_of(found, port, left, local_address, socket_options)

    async def _first_of(self, found: list[str], *rest: Any) -> httpcore.AsyncNetworkStream:
        """Return the first connection that opens, to any of the addresses."""
        won: list[httpcore.AsyncNetworkStream] = []
        errors: list[Exception] = []

        async def attempt(address: str, ended: anyio.Event) -> None:
            try:
                stream = await self._backend.connect_tcp(address, *rest)
            except Exception as error:  # noqa: BLE001  raised below if none succeeds
                errors.append(error)
            except BaseException as error:
                close_leftovers(error)
                raise
            else:
                if won:
                    first_step(stream.aclose)
                else:
                    won.append(stream)
                    group.cancel_scope.cancel()
            ended.set()

        try:
            async with anyio.create_task_group() as group:
                for address in _alternating(found):
                    ended = anyio.Event()
                    group.start_soon(attempt, address, ended)
                    with anyio.move_on_after(_PAUSE):
                        await ended.wait()
        except BaseException:  # the caller is cancelled
            for stream in won:
                first_step(stream.aclose)
            raise
        if not won:
            raise errors[0]
        return won[0]

    async def connect_unix_socket(self, *args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
        """Call the wrapped backend."""
        return await self._backend.connect_unix_socket(*args, **kwargs)

    async def sleep(self, seconds: float) -> None:
        """Call the wrapped backend."""
        await self._backend.sleep(seconds)


def _alternating(found: list[str]) -> list[str]:
    """Return the IPv4 and IPv6 addresses alternately, so that the second try works if one of the two does not."""
    first = ":" in found[0]
    kinds = [[address for address in found if (":" in address) is kind] for kind in (first, not first)]
    return [address for address in chain.from_iterable(zip_longest(*kinds)) if address is not None]
