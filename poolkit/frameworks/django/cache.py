"""The cache backend: Django's Redis backend with poolkit's pool, and one pool for the process.

Django creates a cache object for each thread (under ASGI for each request), each with its own pool. Here all cache
objects with the same server and options share one pool.
"""

from __future__ import annotations

from typing import Any

from ...errors import MissingExtra
from .._pools import engine_of

try:
    from django.core.cache.backends import redis as django_redis
    from django.utils.module_loading import import_string
except ImportError as error:
    raise MissingExtra("poolkit.frameworks.django needs Django: pip install 'poolkit[django]'") from error

__all__ = ("RedisCache", "RedisCacheClient")

_POOL = "poolkit_adapters.redis.PoolkitConnectionPool"
_made: list[tuple[Any, Any]] = []  # (server, class, options) and its pool; there are few, so a linear search is enough


class RedisCacheClient(django_redis.RedisCacheClient):  # type: ignore[misc]
    """Like Django's, but ``pool_class`` is poolkit's by default, and the process shares the pools."""

    def __init__(self, servers: Any, serializer: Any = None, pool_class: Any = _POOL, **options: Any) -> None:
        if isinstance(pool_class, str):
            pool_class = import_string(pool_class)
        super().__init__(servers, serializer, pool_class, **options)

    def _get_connection_pool(self, write: bool) -> Any:
        server = self._servers[self._get_connection_pool_index(write)]
        wanted = server, self._pool_class, self._pool_options
        found = _find(wanted)
        if found is None:
            made = self._pool_class.from_url(server, **self._pool_options)
            _made.append((wanted, made))
            found = _find(wanted)
            if found is not made:  # another thread created it first
                _made.remove((wanted, made))
                made.disconnect()
        return found


def _find(wanted: Any) -> Any:
    """The pool for these arguments that is not closed; None if there is none."""
    for known, pool in tuple(_made):
        if known == wanted and not getattr(engine_of(pool), "closed", False):
            return pool
    return None


class RedisCache(django_redis.RedisCache):  # type: ignore[misc]
    """``BACKEND = "poolkit.frameworks.django.cache.RedisCache"``.

    ``OPTIONS`` as Django's. Options that Django does not know are passed to
    :class:`poolkit_adapters.redis.PoolkitConnectionPool`: redis-py's arguments and all settings of
    :class:`poolkit.PoolConfig`.
    """

    def __init__(self, server: Any, params: dict[str, Any]) -> None:
        super().__init__(server, params)
        self._class = RedisCacheClient
