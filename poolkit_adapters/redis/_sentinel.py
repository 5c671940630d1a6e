"""redis-py's Sentinel connection pools on poolkit's engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._options import driver_default
from ._async import AsyncPoolkitConnectionPool
from ._driver import AsyncSentinelConnectionPool, SentinelConnectionPool
from ._sync import PoolkitConnectionPool

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._keywords import SentinelKeywords

__all__ = ("AsyncPoolkitSentinelConnectionPool", "PoolkitSentinelConnectionPool")

_UNUSED = {
    "start": ("lazy", "the sentinel is known only after the pool is created; call engine.warm_up()"),
}


def _arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Apply the defaults of redis-py's Sentinel pool, which does not wait."""
    kwargs.setdefault("timeout", driver_default(0))
    kwargs.setdefault("max_connections", None)
    return kwargs


class PoolkitSentinelConnectionPool(SentinelConnectionPool, PoolkitConnectionPool):  # type: ignore[misc]
    """Replaces ``redis.sentinel.SentinelConnectionPool``. Thread-safe.

    ::

        master = sentinel.master_for("main", connection_pool_class=PoolkitSentinelConnectionPool)

    Takes the arguments of that class and of :class:`PoolkitConnectionPool`. ``timeout`` defaults to 0 seconds.
    """

    _unused = _UNUSED

    def __init__(self, service_name: Any, sentinel_manager: Any, **kwargs: Unpack[SentinelKeywords]) -> None:
        super().__init__(service_name, sentinel_manager, **_arguments(dict(kwargs)))


class AsyncPoolkitSentinelConnectionPool(AsyncSentinelConnectionPool, AsyncPoolkitConnectionPool):  # type: ignore[misc]
    """Replaces ``redis.asyncio.sentinel.SentinelConnectionPool``. See :class:`PoolkitSentinelConnectionPool`."""

    _unused = _UNUSED

    def __init__(self, service_name: Any, sentinel_manager: Any, **kwargs: Unpack[SentinelKeywords]) -> None:
        super().__init__(service_name, sentinel_manager, **_arguments(dict(kwargs)))
