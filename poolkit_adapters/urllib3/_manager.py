"""Managers: a pool for each host."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import urllib3
from urllib3._collections import RecentlyUsedContainer
from urllib3.poolmanager import SSL_KEYWORDS

from poolkit import Budget, Pool, PoolConfig
from poolkit.config import whole
from poolkit.events import Listener
from poolkit.runtimes.fork import Stage, restart_after_fork

from .._options import is_default, split_options
from ._link import Link
from ._pool import LIBRARIES, Pooled, pooled
from ._settings import MAXSIZE, check_words, words_of, words_of_keys
from ._share import Share

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._keywords import ManagerKeywords, ProxyURLKeywords, URLKeywords

__all__ = ("Managed", "PoolkitPoolManager", "PoolkitProxyManager", "connection_from_url", "proxy_from_url")

_HOSTS = 1000
"""Pools that a manager keeps if ``num_pools`` is not given. With urllib3's default of 10, an application that calls
eleven hosts in turn would lose a pool at each call. Other settings limit the connections, and a pool without
connections costs only memory."""


_BLOCKSIZE = 16384
"""urllib3's default."""


_KEYWORD_METHODS = frozenset(
    ("__init__", "_merge_pool_kwargs", "_new_pool", "connection_from_context", "connection_from_host",
     "connection_from_pool_key")
)  # fmt: skip
"""Methods through which a keyword of a manager passes on its way to a pool."""
_CHOICE = frozenset(("_merge_pool_kwargs", "connection_from_context", "connection_from_pool_key"))
"""Methods that choose the pool of a request."""


def _overridden(kind: type, methods: frozenset[str]) -> bool:
    """Return whether a class of the application overrides one of these methods."""
    return any(
        one.__module__.partition(".")[0] not in LIBRARIES and not methods.isdisjoint(vars(one)) for one in kind.__mro__
    )


def _retire(pool: Any) -> None:
    """Close the idle connections of a pool that its manager drops, and those in use when they are returned."""
    if isinstance(pool, Pooled):
        pool.poolkit.clear()


def _renew_lock(manager: Any) -> None:
    manager.pools.lock = threading.RLock()  # another thread of the parent may have held the old lock


class Managed:
    """Base class that gives a manager of urllib3 poolkit's pools. Must come before urllib3's class among the bases."""

    connection_pool_kw: dict[str, Any]
    key_fn_by_scheme: dict[str, Any]
    pool_classes_by_scheme: dict[str, Any]

    def __init__(
        self,
        *args: Any,
        config: PoolConfig | None = None,
        name: str | None = None,
        listeners: Iterable[Listener] = (),
        debug: bool = False,
        max_connections: int | None = None,
        _share: Share | None = None,
        **options: Unpack[ManagerKeywords],
    ) -> None:
        settings, driver = split_options(options)
        base: Any = super()
        signature = inspect.signature(base.__init__)
        given = signature.bind_partial(*args, **driver).arguments.get("num_pools", driver.get("num_pools"))
        self._check(driver)
        self._share = _share or Share(
            config, settings, name=name, listeners=listeners, debug=debug, max_connections=max_connections
        )
        self._share.config(driver.get("maxsize", MAXSIZE), driver.get("block"))
        base.__init__(*args, **driver)
        known = _HOSTS if given is None or is_default(given) else given
        whole("num_pools", known, 0)
        self._keys: dict[Any, tuple[Any, dict[str, Any], Any]] = {}  # by the arguments of connection_from_host
        self._asks_again = _overridden(type(self), _CHOICE)  # for each request: the application may choose by anything
        self.pools: Any = RecentlyUsedContainer(known, dispose_func=_retire)
        restart_after_fork(Stage.ADAPTERS, self, _renew_lock)

    def _check(self, options: dict[str, Any]) -> None:
        """Raise ConfigError for a keyword that no pool of this manager can take.

        A class of the application may take further ones: it may remove them, or set pool keys of its own afterwards.
        """
        kind = type(self)
        of_keys, complete = words_of_keys()
        known = words_of(kind)[0] | words_of(kind, after=Managed)[0] | of_keys
        check_words(options, known, all_known=complete and not _overridden(kind, _KEYWORD_METHODS))

    @property
    def engines(self) -> list[Pool[Link]]:
        """The engines of all pools, one for each host: ``stats()``, ``explain()``, ``reconfigure()``, ..."""
        return self._share.engines

    @property
    def budget(self) -> Budget | None:
        """The limit over all hosts (``max_connections``); None: there is none."""
        return self._share.budget

    def connection_from_host(
        self, host: str | None, port: int | None = None, scheme: str | None = "http", pool_kwargs: Any = None
    ) -> Any:
        """Return the pool of a host. Arguments as with urllib3, which builds the pool key for each request."""
        base: Any = super()
        asked = host, port, scheme, None if pool_kwargs is None else tuple(pool_kwargs.items())
        try:
            known = self._keys.get(asked)
        except TypeError:  # an argument without a hash
            return base.connection_from_host(host, port, scheme, pool_kwargs)
        make = self.key_fn_by_scheme.get(scheme or "http")
        if known is not None and known[1] == self.connection_pool_kw and known[2] is make:
            pool = self.pools.get(known[0])
            if pool is not None:
                return pool
        pool = base.connection_from_host(host, port, scheme, pool_kwargs)
        if isinstance(pool, Pooled) and pool.key is not None and not self._asks_again:
            if len(self._keys) >= _HOSTS:
                self._keys.clear()
            self._keys[asked] = pool.key, dict(self.connection_pool_kw), make
        return pool

    def connection_from_pool_key(self, pool_key: Any, request_context: dict[str, Any]) -> Any:
        """Return the pool of a pool key, as with urllib3."""
        base: Any = super()
        pool = base.connection_from_pool_key(pool_key, request_context)
        if isinstance(pool, Pooled):
            pool.key = pool_key
        return pool

    def _new_pool(self, scheme: str, host: str, port: int, request_context: dict[str, Any] | None = None) -> Any:
        given = dict(self.connection_pool_kw if request_context is None else request_context)
        if given.get("blocksize") is None:
            given["blocksize"] = _BLOCKSIZE
        for name in ("scheme", "host", "port", *(SSL_KEYWORDS if scheme == "http" else ())):
            given.pop(name, None)
        kind = pooled(self.pool_classes_by_scheme[scheme])
        ours = {"_share": self._share} if isinstance(kind, type) and issubclass(kind, Pooled) else {}
        return kind(host, port, **ours, **given)


class PoolkitPoolManager(Managed, urllib3.PoolManager):  # type: ignore[misc]
    """Replaces ``urllib3.PoolManager``. Thread-safe, and safe after ``fork()``.

    Takes every argument of the class that it replaces, with the same meaning. Also takes the settings of
    :class:`poolkit.PoolConfig`, as keywords or as ``config``; they apply to each host. ``max_connections`` limits the
    connections over all hosts. ``name``, ``listeners`` and ``debug``: as :class:`poolkit.Pool`. Raises
    :class:`poolkit.ConfigError` for a wrong value.
    """


class PoolkitProxyManager(Managed, urllib3.ProxyManager):  # type: ignore[misc]
    """Replaces ``urllib3.ProxyManager``. See :class:`PoolkitPoolManager`."""


def proxy_from_url(url: str, **options: Unpack[ProxyURLKeywords]) -> PoolkitProxyManager:
    """Replaces ``urllib3.proxy_from_url``. Takes the arguments of :class:`PoolkitProxyManager`."""
    return PoolkitProxyManager(proxy_url=url, **options)


def connection_from_url(url: str, **options: Unpack[URLKeywords]) -> Any:
    """Replaces ``urllib3.connection_from_url``. Takes the arguments of :class:`.PoolkitHTTPConnectionPool`."""
    parts = urllib3.util.parse_url(url)
    scheme = parts.scheme or "http"
    kind = pooled(urllib3.HTTPSConnectionPool if scheme == "https" else urllib3.HTTPConnectionPool)
    return kind(parts.host, port=parts.port or (443 if scheme == "https" else 80), **options)
