"""Classes with a known result, to check the harness with: some must score as the library's, some must not."""

from __future__ import annotations

from typing import Any

import httpcore
import httpx

_Sync, _Async = httpcore.ConnectionPool, httpcore.AsyncConnectionPool


class TrivialPool(_Sync):
    """The library's pool by another name."""


class AsyncTrivialPool(_Async):
    """The library's pool by another name."""


class SlotsPool(_Sync):
    """Another memory layout: the proxies' pools cannot simply be given another base."""

    __slots__ = ("_extra",)


class AsyncSlotsPool(_Async):
    """Another memory layout."""

    __slots__ = ("_extra",)


class TrivialTransport(httpx.HTTPTransport):
    """The library's transport by another name."""


class AsyncTrivialTransport(httpx.AsyncHTTPTransport):
    """The library's transport by another name."""


class NoLimitPool(_Sync):
    """Broken: ignores max_connections."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._max_connections = 10**9


class AsyncNoLimitPool(_Async):
    """Broken: ignores max_connections."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._max_connections = 10**9


class NoReusePool(_Sync):
    """Broken: never takes an idle connection again."""

    def _assign_requests_to_connections(self) -> Any:
        closing = [c for c in self._connections if c.is_idle()]
        self._connections = [c for c in self._connections if not c.is_idle()]
        return closing + super()._assign_requests_to_connections()


class AsyncNoReusePool(_Async):
    """Broken: never takes an idle connection again."""

    def _assign_requests_to_connections(self) -> Any:
        closing = [c for c in self._connections if c.is_idle()]
        self._connections = [c for c in self._connections if not c.is_idle()]
        return closing + super()._assign_requests_to_connections()


class RawErrorTransport(httpx.HTTPTransport):
    """Broken: lets httpcore's exceptions through."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        try:
            return super().handle_request(request)
        except httpx.TransportError as error:
            raise error.__cause__ or error from None


class AsyncRawErrorTransport(httpx.AsyncHTTPTransport):
    """Broken: lets httpcore's exceptions through."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            return await super().handle_async_request(request)
        except httpx.TransportError as error:
            raise error.__cause__ or error from None
