"""The driver libraries of this package. ``poolkit_adapters.httpx2`` has the same modules, except for this one."""

from __future__ import annotations

from .._errors import missing_extra

try:
    import httpcore
    import httpx
    from httpx._transports.default import map_httpcore_exceptions
except ImportError as _error:
    raise missing_extra("poolkit_adapters.httpx", "httpx", "httpx") from _error

# The only adapter that uses another one: a transport of httpx is a thin wrapper of a pool of httpcore.
from ..httpcore import AsyncPoolkitConnectionPool, PoolkitConnectionPool
from ..httpcore._base import Reopening
from ..httpcore._errors import rows_of_waits
from ..httpcore._http11_async import AsyncAnswer
from ..httpcore._http11_sync import Answer
from ..httpcore._settings import pool_settings

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

DRIVER = "httpx"
"""The name of the library in messages and in the sources of settings."""
