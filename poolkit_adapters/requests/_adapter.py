"""The transport adapter, which uses poolkit's managers instead of urllib3's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

import requests
from requests import adapters
from requests.utils import get_auth_from_url

from poolkit import Budget, ConfigError, Pool, PoolConfig, PoolSettings
from poolkit.config import nearest
from poolkit.events import Listener

from .._options import SETTINGS, driver_default, split_options
from ..urllib3._manager import PoolkitPoolManager, PoolkitProxyManager
from ..urllib3._settings import pool_config, words_of
from ..urllib3._share import Share
from ._errors import ERRORS, told

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ("PoolkitAdapter", "effective")

_SIZE: int = driver_default(adapters.DEFAULT_POOLSIZE)
_WORDS = ("pool_connections", "pool_maxsize", "max_retries", "pool_block", "max_connections")


class PoolkitAdapter(adapters.HTTPAdapter):  # type: ignore[misc]
    """Replaces ``requests.adapters.HTTPAdapter``. Thread-safe, and safe after ``fork()``.

    Takes every argument of the class that it replaces, with the same meaning. Also takes the settings of
    :class:`poolkit.PoolConfig`, as keywords or as ``config``; they apply to each host. ``max_connections`` limits the
    connections over all hosts and proxies. ``name``, ``listeners`` and ``debug``: as :class:`poolkit.Pool`. Raises
    :class:`poolkit.ConfigError` for a wrong value.

    Can be pickled, without its connections, if its settings can.
    """

    __attrs__: ClassVar[list[str]] = [*adapters.HTTPAdapter.__attrs__, "_given"]
    _share: Share

    def __init__(
        self,
        pool_connections: int = _SIZE,
        pool_maxsize: int = _SIZE,
        max_retries: Any = adapters.DEFAULT_RETRIES,
        pool_block: bool | None = None,
        *,
        config: PoolConfig | None = None,
        name: str | None = None,
        listeners: Iterable[Listener] = (),
        debug: bool = False,
        max_connections: int | None = None,
        **settings: Unpack[PoolSettings],
    ) -> None:
        chosen, driver = split_options(settings)
        known, complete = words_of(type(self), after=PoolkitAdapter)  # an application's class may take further ones
        for word in [each for each in driver if complete and each not in known]:
            # without its value, which may be a password
            hint = nearest(word, [*_WORDS, *sorted(SETTINGS)])
            raise ConfigError(f"{word}: unknown argument or setting; {hint}", word)
        self._given: dict[str, Any] = {
            "config": config, "settings": chosen, "name": name, "listeners": tuple(listeners), "debug": debug,
            "max_connections": max_connections,
        }  # fmt: skip
        super().__init__(
            pool_connections=pool_connections, pool_maxsize=pool_maxsize, max_retries=max_retries,
            pool_block=pool_block, **driver,
        )  # fmt: skip

    @property
    def engines(self) -> list[Pool[Any]]:
        """The engines of all pools, one for each host: ``stats()``, ``explain()``, ``reconfigure()``, ..."""
        return self._share.engines

    @property
    def budget(self) -> Budget | None:
        """The limit over all hosts (``max_connections``); None: there is none."""
        return self._share.budget

    def init_poolmanager(self, connections: int, maxsize: int, block: bool | None = None, **pool_kwargs: Any) -> None:
        """Make the manager. Subclasses may pass further arguments of urllib3's pools (``ssl_context``, ...)."""
        self._pool_connections, self._pool_maxsize, self._pool_block = connections, maxsize, block
        given = dict(self._given)
        self._share = Share(given.pop("config"), given.pop("settings"), driver="requests", errors=ERRORS, **given)
        self.poolmanager = PoolkitPoolManager(**self._arguments(), _share=self._share, **pool_kwargs)

    def _arguments(self) -> dict[str, Any]:
        return {"num_pools": self._pool_connections, "maxsize": self._pool_maxsize, "block": self._pool_block}

    def proxy_manager_for(self, proxy: str, **proxy_kwargs: Any) -> Any:
        """Return the manager for a proxy. Its connections are under the same limits."""
        if proxy not in self.proxy_manager:
            arguments = {**self._arguments(), "_share": self._share, **proxy_kwargs}
            if proxy.lower().startswith("socks"):
                from ..urllib3._socks import PoolkitSOCKSProxyManager

                user, password = get_auth_from_url(proxy)
                made: Any = PoolkitSOCKSProxyManager(proxy, username=user, password=password, **arguments)
            else:
                made = PoolkitProxyManager(proxy, proxy_headers=self.proxy_headers(proxy), **arguments)
            self.proxy_manager[proxy] = made
        return self.proxy_manager[proxy]

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        """Send a request. Arguments, result and errors as with requests; those about connections are also poolkit's.

        ``timeout`` may also be a :class:`poolkit_adapters.urllib3.Timeout`, which limits the wait for a connection.
        """
        try:
            return super().send(request, *args, **kwargs)
        except Exception as error:
            raised: Any = told(error)
            if raised is error:
                raise
            if raised.request is None:
                raised.request = request
            raise raised from raised.__cause__


def effective(config: PoolConfig) -> PoolConfig:
    """Return the settings that a pool uses if only this config is given."""
    return pool_config(config, {}, maxsize=_SIZE, driver="requests")
