"""Replaces the transport adapter of requests with poolkit: same arguments, same errors.

::

    from poolkit_adapters.requests import PoolkitAdapter

    session = requests.Session()
    session.mount("https://", PoolkitAdapter())
    session.mount("http://", PoolkitAdapter())

``PoolkitAdapter`` is a subclass of ``requests.adapters.HTTPAdapter``. It uses :mod:`poolkit_adapters.urllib3`, as
requests uses urllib3. ``docs/adapters/urllib3.md`` lists the differences.
"""

from __future__ import annotations

from .._errors import missing_extra

try:
    import requests
except ImportError as error:
    raise missing_extra("poolkit_adapters.requests", "requests", "requests") from error

from ._adapter import PoolkitAdapter
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

__all__ = (
    "AcquireTimeout",
    "CircuitOpen",
    "ConnectFailed",
    "ConnectTimeout",
    "LeaseOverdue",
    "PoolBusy",
    "PoolClosed",
    "PoolSuspended",
    "PoolkitAdapter",
    "ServerUnavailable",
)

del requests
