"""The transports, which are thin wrappers of httpcore pools."""

from __future__ import annotations

import inspect
import ssl
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from poolkit import AsyncPool, Pool, PoolConfig, PoolSettings, errors
from poolkit.events import Listener

from .._options import driver_default
from ._driver import (
    DRIVER,
    Answer,
    AsyncAnswer,
    AsyncPoolkitConnectionPool,
    PoolkitConnectionPool,
    httpcore,
    httpx,
    pool_settings,
)
from ._errors import ERRORS, keep_poolkit_types, raise_as_httpx, refuse_foreign

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ("AsyncPoolkitTransport", "PoolkitTransport", "effective")

_LIMITS: httpx.Limits = inspect.signature(httpx.HTTPTransport.__init__).parameters["limits"].default
"""The default limits of httpx. Its clients pass this object if their user gave no limits."""


def _core_proxy(proxy: Any) -> httpcore.Proxy | None:
    if proxy is None:
        return None
    given = httpx.Proxy(url=proxy) if isinstance(proxy, (str, httpx.URL)) else proxy
    url = given.url
    if url.scheme not in ("http", "https", "socks5", "socks5h"):
        raise errors.ConfigError(
            f"proxy={str(url)!r}: must have the scheme 'http', 'https', 'socks5' or 'socks5h'", "proxy"
        )
    if url.scheme.startswith("socks5"):
        try:
            import socksio  # noqa: F401
        except ImportError as error:
            raise errors.MissingExtra(f"a SOCKS proxy needs socksio: pip install '{DRIVER}[socks]'") from error
    return httpcore.Proxy(
        url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
        auth=given.raw_auth,
        headers=given.headers.raw,
        ssl_context=given.ssl_context,
    )


class _Answer(Answer, httpx.SyncByteStream):
    def _raise(self, error: BaseException) -> NoReturn:
        raise_as_httpx(error)


class _AsyncAnswer(AsyncAnswer, httpx.AsyncByteStream):
    def _raise(self, error: BaseException) -> NoReturn:
        raise_as_httpx(error)


class _TransportPool(PoolkitConnectionPool):
    _driver = DRIVER
    _errors = ERRORS
    _answer_kind = _Answer


class _AsyncTransportPool(AsyncPoolkitConnectionPool):
    _driver = DRIVER
    _errors = ERRORS
    _answer_kind = _AsyncAnswer


class _Body(httpx.SyncByteStream):
    """The stream of a response that came through httpcore's layers."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._stream
        except Exception as error:  # noqa: BLE001  raised again
            raise_as_httpx(error)

    def close(self) -> None:
        self._stream.close()


class _AsyncBody(httpx.AsyncByteStream):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for part in self._stream:
                yield part
        except Exception as error:  # noqa: BLE001  raised again
            raise_as_httpx(error)

    async def aclose(self) -> None:
        await self._stream.aclose()


def _core_request(request: httpx.Request) -> httpcore.Request:
    """Return the request for httpcore, without its checks: httpx has done them."""
    url = request.url
    core_url: httpcore.URL = httpcore.URL.__new__(httpcore.URL)
    core_url.scheme, core_url.host, core_url.port = url.raw_scheme, url.raw_host, url.port
    core_url.target = url.raw_path
    extensions = request.extensions
    if "target" in extensions:
        return httpcore.Request(
            method=request.method, url=core_url, headers=request.headers.raw, content=request.stream,
            extensions=extensions,
        )  # fmt: skip
    core: httpcore.Request = httpcore.Request.__new__(httpcore.Request)
    core.method = request.method.encode("ascii")
    core.url = core_url
    core.headers = request.headers.raw
    core.stream = request.stream
    core.extensions = extensions
    return core


class PoolkitTransport(httpx.HTTPTransport):
    """Replaces ``httpx.HTTPTransport``. Thread-safe, and safe after ``fork()``.

    Takes every argument of the class that it replaces, with the same meaning and default. Also takes the settings of
    :class:`poolkit.PoolConfig`, as keywords or as ``config``, and ``name`` and ``listeners`` as :class:`poolkit.Pool`
    does. Raises :class:`poolkit.ConfigError` for a wrong value.
    """

    def __init__(
        self,
        verify: ssl.SSLContext | str | bool = True,
        cert: Any = None,
        trust_env: bool = True,
        http1: bool = True,
        http2: bool = False,
        limits: httpx.Limits = _LIMITS,
        proxy: Any = None,
        uds: str | None = None,
        local_address: str | None = None,
        retries: int = 0,
        socket_options: Iterable[Any] | None = None,
        *,
        config: PoolConfig | None = None,
        name: str | None = None,
        listeners: Iterable[Listener] = (),
        **settings: Unpack[PoolSettings],
    ) -> None:
        context = httpx.create_ssl_context(verify=verify, cert=cert, trust_env=trust_env)
        super().__init__(verify=context)  # for whatever else the base class sets up; its own pool is never used
        self._pool = pool = _TransportPool(
            **_core_arguments(context, limits, proxy),
            http1=http1, http2=http2, uds=uds, local_address=local_address, retries=retries,
            socket_options=socket_options, config=config, name=name, listeners=listeners, **settings,
        )  # fmt: skip
        pool._rereadable += (httpx.ByteStream,)

    @property
    def poolkit(self) -> Pool[Any]:
        """The underlying engine: ``stats()``, ``explain()``, ``reconfigure()``, ``clear()``, ``suspend()``, ..."""
        return self._pool.poolkit  # type: ignore[attr-defined, no-any-return]

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request. When its response is closed, the connection is free for the next request."""
        refuse_foreign(self, request)
        pool: Any = self._pool
        if type(pool) is not _TransportPool:  # the user's own
            with keep_poolkit_types():
                return super().handle_request(request)
        if not isinstance(request.stream, httpx.SyncByteStream):
            raise TypeError("a synchronous client needs a request with a synchronous body")
        try:
            found = pool.answer(_core_request(request))
        except Exception as error:  # noqa: BLE001  raised again
            with keep_poolkit_types():
                raise_as_httpx(error)
        stream: Any = _Body(found.stream) if isinstance(found, httpcore.Response) else found
        return httpx.Response(found.status, headers=found.headers, stream=stream, extensions=found.extensions)


class AsyncPoolkitTransport(httpx.AsyncHTTPTransport):
    """Replaces ``httpx.AsyncHTTPTransport``, on asyncio and trio. Takes the arguments of :class:`PoolkitTransport`.

    Safe for concurrent tasks of one event loop.
    """

    def __init__(
        self,
        verify: ssl.SSLContext | str | bool = True,
        cert: Any = None,
        trust_env: bool = True,
        http1: bool = True,
        http2: bool = False,
        limits: httpx.Limits = _LIMITS,
        proxy: Any = None,
        uds: str | None = None,
        local_address: str | None = None,
        retries: int = 0,
        socket_options: Iterable[Any] | None = None,
        *,
        config: PoolConfig | None = None,
        name: str | None = None,
        listeners: Iterable[Listener] = (),
        **settings: Unpack[PoolSettings],
    ) -> None:
        context = httpx.create_ssl_context(verify=verify, cert=cert, trust_env=trust_env)
        super().__init__(verify=context)  # for whatever else the base class sets up; its own pool is never used
        self._pool = pool = _AsyncTransportPool(
            **_core_arguments(context, limits, proxy),
            http1=http1, http2=http2, uds=uds, local_address=local_address, retries=retries,
            socket_options=socket_options, config=config, name=name, listeners=listeners, **settings,
        )  # fmt: skip
        pool._rereadable += (httpx.ByteStream,)

    @property
    def poolkit(self) -> AsyncPool[Any]:
        """The underlying engine: ``stats()``, ``explain()``, ``reconfigure()``, ``clear()``, ``suspend()``, ..."""
        return self._pool.poolkit  # type: ignore[attr-defined, no-any-return]

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request. When its response is closed, the connection is free for the next request."""
        refuse_foreign(self, request)
        pool: Any = self._pool
        if type(pool) is not _AsyncTransportPool:  # the user's own
            with keep_poolkit_types():
                return await super().handle_async_request(request)
        if not isinstance(request.stream, httpx.AsyncByteStream):
            raise TypeError("an asynchronous client needs a request with an asynchronous body")
        try:
            found = await pool.answer(_core_request(request))
        except Exception as error:  # noqa: BLE001  raised again
            with keep_poolkit_types():
                raise_as_httpx(error)
        stream: Any = _AsyncBody(found.stream) if isinstance(found, httpcore.Response) else found
        return httpx.Response(found.status, headers=found.headers, stream=stream, extensions=found.extensions)


def _core_arguments(context: ssl.SSLContext, limits: httpx.Limits, proxy: Any) -> dict[str, Any]:
    return {"ssl_context": context, "proxy": _core_proxy(proxy), **_numbers(limits)}


def _numbers(limits: httpx.Limits) -> dict[str, Any]:
    """Return the limits as httpcore's arguments. Mark those that nobody chose as httpx's defaults."""
    numbers: dict[str, Any] = {
        "max_connections": limits.max_connections,
        "max_keepalive_connections": limits.max_keepalive_connections,
        "keepalive_expiry": limits.keepalive_expiry,
    }
    chosen = set(numbers) if limits is not _LIMITS else set()
    if limits.keepalive_expiry == _LIMITS.keepalive_expiry:  # a new Limits has the same default
        chosen.discard("keepalive_expiry")
    return {
        name: value if name in chosen or value is None else driver_default(value) for name, value in numbers.items()
    }


def effective(config: PoolConfig) -> PoolConfig:
    """Return the settings that a transport uses if only this config is given."""
    return pool_settings(_numbers(_LIMITS), config, {}, DRIVER)
