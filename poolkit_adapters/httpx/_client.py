"""Clients whose transports are poolkit's, also those for proxies."""

from __future__ import annotations

import inspect
import ssl
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypedDict

from poolkit import AsyncPool, ConfigError, Pool, PoolConfig, PoolSettings
from poolkit.events import Listener

from ._driver import httpx
from ._transport import AsyncPoolkitTransport, PoolkitTransport

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ("AsyncClient", "Client")


class TransportKeywords(TypedDict, total=False):
    """The arguments of the library's transports that clients and logical hosts pass on."""

    verify: ssl.SSLContext | str | bool
    cert: str | tuple[str, str] | tuple[str, str, str] | None
    trust_env: bool
    http1: bool
    http2: bool
    proxy: str | httpx.URL | httpx.Proxy | None
    limits: httpx.Limits
    uds: str | None
    local_address: str | None
    socket_options: Iterable[Any] | None


class _OfClients(TypedDict, total=False):
    """The arguments that both of the library's clients take, and ``retries``, which is the transports'."""

    auth: Any
    params: Any
    headers: Any
    cookies: Any
    timeout: Any
    follow_redirects: bool
    max_redirects: int
    event_hooks: Mapping[str, list[Callable[..., Any]]] | None
    base_url: str | httpx.URL
    default_encoding: str | Callable[[bytes], str]
    retries: int


class _SyncKeywords(PoolSettings, TransportKeywords, _OfClients, total=False):
    mounts: Mapping[str, httpx.BaseTransport | None] | None
    transport: httpx.BaseTransport | None


class _AsyncKeywords(PoolSettings, TransportKeywords, _OfClients, total=False):
    mounts: Mapping[str, httpx.AsyncBaseTransport | None] | None
    transport: httpx.AsyncBaseTransport | None


_OF_CLIENT = frozenset(inspect.signature(httpx.Client.__init__).parameters)
"""The keywords of the library's clients. All others are for the transports."""


class _Transports:
    """The keywords of a client that its transports get."""

    def __init__(
        self, kind: Any, config: PoolConfig | None, name: str | None, listeners: Iterable[Listener],
        options: Mapping[str, Any],
    ) -> None:  # fmt: skip
        given: dict[str, Any] = {"config": config, "name": name, "listeners": tuple(listeners)}
        self._kind = kind
        self._common = {key: value for key, value in given.items() if value}
        self._common.update((key, value) for key, value in options.items() if key not in _OF_CLIENT)
        self.of_client = {key: value for key, value in options.items() if key in _OF_CLIENT}
        self._proxies = 0

    def main(self, given: Mapping[str, Any]) -> Any:
        """Return the transport for requests without a proxy, or None if the user gave one."""
        foreign = next((word for word in ("transport", "app") if given.get(word) is not None), None)
        if foreign is None:
            return self._kind(**_of_transport(given), **self._common)
        for name, value in self._common.items():
            raise ConfigError(f"{name}={value!r}: has no effect with {foreign}=; pass it to the transport", name)
        return None

    def proxied(self, proxy: Any, given: Mapping[str, Any]) -> Any:
        """Return a transport for requests through this proxy."""
        self._proxies += 1
        own = dict(self._common)
        if "name" in own:
            own["name"] = f"{own['name']}/proxy-{self._proxies}"
        return self._kind(proxy=proxy, **_of_transport(given), **own)


def _of_transport(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name not in ("transport", "app")}


class Client(httpx.Client):
    """The library's ``Client`` on connections of poolkit. Thread-safe, and safe after ``fork()``.

    Takes every argument of the class that it replaces, with the same meaning. ``limits``, ``verify``, ``cert``,
    ``http1``, ``http2`` and ``trust_env`` apply to all its transports, also to those for ``proxy`` and for the proxies
    of the environment. Transports in ``mounts`` stay as they are. Also takes ``config``, ``name`` and ``listeners``. As
    keywords it takes the settings of :class:`poolkit.PoolConfig` and the further arguments of :class:`PoolkitTransport`
    (``retries``, ``uds``, ``local_address``, ``socket_options``). They apply to each transport by itself.

    Raises :class:`poolkit.ConfigError` for a wrong value, and for settings beside your own ``transport``.
    """

    def __init__(
        self, *, config: PoolConfig | None = None, name: str | None = None, listeners: Iterable[Listener] = (),
        **options: Unpack[_SyncKeywords],
    ) -> None:  # fmt: skip
        self._transports = _Transports(PoolkitTransport, config, name, listeners, options)
        super().__init__(**self._transports.of_client)

    @property
    def poolkit(self) -> Pool[Any]:
        """The engine for requests without a proxy: ``stats()``, ``explain()``, ``reconfigure()``, ..."""
        return self._transport.poolkit  # type: ignore[attr-defined, no-any-return]

    def _init_transport(self, *args: Any, **given: Any) -> httpx.BaseTransport:
        return self._transports.main(given) or super()._init_transport(*args, **given)

    def _init_proxy_transport(self, proxy: Any, *args: Any, **given: Any) -> httpx.BaseTransport:
        transport: httpx.BaseTransport = self._transports.proxied(proxy, given)
        return transport


class AsyncClient(httpx.AsyncClient):
    """The twin of :class:`Client`, on asyncio and trio. Safe for concurrent tasks of one event loop."""

    def __init__(
        self, *, config: PoolConfig | None = None, name: str | None = None, listeners: Iterable[Listener] = (),
        **options: Unpack[_AsyncKeywords],
    ) -> None:  # fmt: skip
        self._transports = _Transports(AsyncPoolkitTransport, config, name, listeners, options)
        super().__init__(**self._transports.of_client)

    @property
    def poolkit(self) -> AsyncPool[Any]:
        """The engine for requests without a proxy: ``stats()``, ``explain()``, ``reconfigure()``, ..."""
        return self._transport.poolkit  # type: ignore[attr-defined, no-any-return]

    def _init_transport(self, *args: Any, **given: Any) -> httpx.AsyncBaseTransport:
        return self._transports.main(given) or super()._init_transport(*args, **given)

    def _init_proxy_transport(self, proxy: Any, *args: Any, **given: Any) -> httpx.AsyncBaseTransport:
        transport: httpx.AsyncBaseTransport = self._transports.proxied(proxy, given)
        return transport
