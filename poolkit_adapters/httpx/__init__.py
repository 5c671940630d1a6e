"""httpx: clients whose connections are poolkit's, and their transports.

>>> from poolkit_adapters.httpx import Client
>>> with Client(http2=True) as client:
...     client.get("https://example.org/")

:class:`Client` and :class:`AsyncClient` are httpx's clients with poolkit's transports, and take all their arguments.
``httpx.Timeout(pool=)`` limits the wait for a connection, and ``connect=`` limits the opening of one.

With a transport of your own (``httpx.Client(transport=PoolkitTransport())``), the client ignores its arguments
``verify``, ``cert``, ``http2`` and ``limits`` and the proxies of the environment. Pass them to the transport.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._client import AsyncClient, Client
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
    "AsyncClient",
    "Client",
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
