"""A network for httpcore that answers each request at once, without a socket."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import httpcore

__all__ = ("AnsweringBackend", "AsyncAnsweringBackend")

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class _Stream(httpcore.NetworkStream):
    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return _ANSWER

    def write(self, buffer: bytes, timeout: float | None = None) -> None: ...
    def close(self) -> None: ...
    def get_extra_info(self, info: str) -> Any:
        return False if info == "is_readable" else None


class _AsyncStream(httpcore.AsyncNetworkStream):
    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return _ANSWER

    async def write(self, buffer: bytes, timeout: float | None = None) -> None: ...
    async def aclose(self) -> None: ...
    def get_extra_info(self, info: str) -> Any:
        return False if info == "is_readable" else None


class AnsweringBackend(httpcore.NetworkBackend):
    """For ``httpcore.ConnectionPool(network_backend=)``."""

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Return a stream that answers."""
        return _Stream()


class AsyncAnsweringBackend(httpcore.AsyncNetworkBackend):
    """For ``httpcore.AsyncConnectionPool(network_backend=)``."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Return a stream that answers."""
        return _AsyncStream()
