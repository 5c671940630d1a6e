"""httpx2: transports that replace ``httpx2.HTTPTransport`` and ``httpx2.AsyncHTTPTransport``.

>>> import httpx2
>>> from poolkit_adapters.httpx2 import PoolkitTransport
>>> with httpx2.Client(transport=PoolkitTransport(http2=True)) as client:
...     client.get("https://example.org/")

Pass the arguments that ``httpx2.Client`` would pass on to its own transport (``verify``, ``cert``, ``http2``,
``limits``, ``proxy``) to this transport. Timeouts stay with the client: ``httpx2.Timeout(pool=)`` limits the wait for a
connection, and ``connect=`` limits the opening of one.
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
    """Import the names for several servers on first use: most programs have one server and need none of them."""
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
