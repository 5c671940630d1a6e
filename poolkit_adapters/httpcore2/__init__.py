"""httpcore2: pools that replace ``httpcore2.ConnectionPool`` and ``httpcore2.AsyncConnectionPool``.

>>> import httpcore2
>>> from poolkit_adapters.httpcore2 import PoolkitConnectionPool
>>> with PoolkitConnectionPool(max_connections=20, http2=True) as pool:
...     pool.request("GET", "https://example.org/")

The constructors take every argument of httpcore2's, with the same meaning and default, and poolkit's settings as
further keywords. Requests, responses, extensions and exceptions are httpcore2's own.
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
