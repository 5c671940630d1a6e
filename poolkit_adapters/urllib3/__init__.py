"""Replaces urllib3's pools with poolkit: same arguments, same methods, same errors.

::

    from poolkit_adapters.urllib3 import PoolkitPoolManager

    http = PoolkitPoolManager()  # before: urllib3.PoolManager()

==============================  =============================================
name                            replaces
==============================  =============================================
``PoolkitPoolManager``          ``urllib3.PoolManager``
``PoolkitProxyManager``         ``urllib3.ProxyManager``
``PoolkitSOCKSProxyManager``    ``urllib3.contrib.socks.SOCKSProxyManager``
``PoolkitHTTPConnectionPool``   ``urllib3.HTTPConnectionPool``
``PoolkitHTTPSConnectionPool``  ``urllib3.HTTPSConnectionPool``
``proxy_from_url``              ``urllib3.proxy_from_url``
``connection_from_url``         ``urllib3.connection_from_url``
``Timeout``                     ``urllib3.Timeout``, with ``pool=``
==============================  =============================================

Each class is a subclass of the class that it replaces. HTTP/1.1 only. ``docs/adapters/urllib3.md`` lists the
differences. For requests see :mod:`poolkit_adapters.requests`.
"""

from __future__ import annotations

from typing import Any

from .._errors import missing_extra

try:
    import urllib3
except ImportError as error:
    raise missing_extra("poolkit_adapters.urllib3", "urllib3", "urllib3") from error

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
)
from ._manager import PoolkitPoolManager, PoolkitProxyManager, connection_from_url, proxy_from_url
from ._pool import PoolkitHTTPConnectionPool, PoolkitHTTPSConnectionPool
from ._timeout import Timeout

__all__ = (
    "AcquireTimeout",
    "CircuitOpen",
    "ConnectFailed",
    "ConnectTimeout",
    "LeaseOverdue",
    "PoolBusy",
    "PoolClosed",
    "PoolSuspended",
    "PoolkitHTTPConnectionPool",
    "PoolkitHTTPSConnectionPool",
    "PoolkitPoolManager",
    "PoolkitProxyManager",
    "ServerUnavailable",
    "Timeout",
    "connection_from_url",
    "proxy_from_url",
)

del urllib3


def __getattr__(name: str) -> Any:
    if name == "PoolkitSOCKSProxyManager":  # needs PySocks
        from ._socks import PoolkitSOCKSProxyManager

        return PoolkitSOCKSProxyManager
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
