"""httpcore: pools that replace ``httpcore.ConnectionPool`` and ``httpcore.AsyncConnectionPool``.

>>> import httpcore
>>> from poolkit_adapters.httpcore import PoolkitConnectionPool
>>> with PoolkitConnectionPool(max_connections=20, http2=True) as pool:
...     pool.request("GET", "https://example.org/")

The constructors take every argument of httpcore's, with the same meaning and default, and poolkit's settings as
further keywords. Requests, responses, extensions and exceptions are httpcore's own.
"""

from ._async import AsyncPoolkitConnectionPool
from ._errors import (
    AcquireTimeout,
    CircuitOpen,
    ConnectFailed,
    ConnectTimeout,
    LeaseOverdue,
    PoolBusy,
    PoolClosed,
    PoolSuspended,
    RequestRefused,
    ServerUnavailable,
    UnsupportedProtocol,
    UsageError,
    WrongLoop,
)
from ._sync import PoolkitConnectionPool

__all__ = (
    "AsyncPoolkitConnectionPool",
    "PoolkitConnectionPool",
    "AcquireTimeout",
    "CircuitOpen",
    "ConnectFailed",
    "ConnectTimeout",
    "LeaseOverdue",
    "PoolBusy",
    "PoolClosed",
    "PoolSuspended",
    "RequestRefused",
    "ServerUnavailable",
    "UnsupportedProtocol",
    "UsageError",
    "WrongLoop",
)
