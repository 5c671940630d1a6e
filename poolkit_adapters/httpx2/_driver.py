"""The driver libraries of this package. Its other modules are those of ``poolkit_adapters.httpx``."""

from __future__ import annotations

from .._errors import missing_extra

try:
    import httpcore2 as httpcore
    import httpx2 as httpx
    from httpx2._transports.default import map_httpcore_exceptions
except ImportError as _error:
    raise missing_extra("poolkit_adapters.httpx2", "httpx2 (Python 3.11 or newer)", "httpx2") from _error

# The only adapter that uses another one: a transport of httpx2 is a thin wrapper of a pool of httpcore2.
from ..httpcore2 import AsyncPoolkitConnectionPool, PoolkitConnectionPool
from ..httpcore2._base import Reopening
from ..httpcore2._errors import rows_of_waits
from ..httpcore2._http11_async import AsyncAnswer
from ..httpcore2._http11_sync import Answer
from ..httpcore2._settings import pool_settings

__all__ = (
    "DRIVER",
    "Answer",
    "AsyncAnswer",
    "AsyncPoolkitConnectionPool",
    "PoolkitConnectionPool",
    "Reopening",
    "httpcore",
    "httpx",
    "map_httpcore_exceptions",
    "pool_settings",
    "rows_of_waits",
)

DRIVER = "httpx2"
"""The name of the library in messages and in the sources of settings."""
