"""httpx: transports that stand in for ``httpx.HTTPTransport`` and ``httpx.AsyncHTTPTransport``.

>>> import httpx
>>> from poolkit_adapters.httpx import PoolkitTransport
>>> with httpx.Client(transport=PoolkitTransport(http2=True)) as client:
...     client.get("https://example.org/")

What ``httpx.Client`` would hand on to its own transport (``verify``, ``cert``, ``http2``, ``limits``, ``proxy``) is
given to the transport here. Timeouts stay where they are: ``httpx.Timeout(pool=)`` is the wait for a connection,
``connect=`` the opening of one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._errors import (
    AcquireTimeout,
    CircuitOpen,
    ConnectFailed,
    ConnectTimeout,
    LeaseOverdue,
    PoolBusy,
    PoolClosed,
    PoolSuspended,
    ServerUnavailable,
    UsageError,
    WrongLoop,
)
from ._transport import AsyncPoolkitTransport, PoolkitTransport

if TYPE_CHECKING:
    from ._cluster import AsyncPoolkitClusterTransport, NoServerAvailable, PoolkitClusterTransport


def __getattr__(name: str) -> Any:
    """What stands behind several servers is imported when it is asked for: most programs have one."""
    if name in ("AsyncPoolkitClusterTransport", "NoServerAvailable", "PoolkitClusterTransport"):
        from . import _cluster

        return getattr(_cluster, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = (
    "AsyncPoolkitTransport",
    "PoolkitTransport",
    "AsyncPoolkitClusterTransport",
    "PoolkitClusterTransport",
    "AcquireTimeout",
    "CircuitOpen",
    "ConnectFailed",
    "ConnectTimeout",
    "LeaseOverdue",
    "NoServerAvailable",
    "PoolBusy",
    "PoolClosed",
    "PoolSuspended",
    "ServerUnavailable",
    "UsageError",
    "WrongLoop",
)
