"""The driver library of this package. Its other modules are those of ``poolkit_adapters.httpcore``."""

from __future__ import annotations

from .._errors import missing_extra

try:
    import httpcore2 as httpcore
except ImportError as _error:
    raise missing_extra("poolkit_adapters.httpcore2", "httpcore2 (Python 3.11 or newer)", "httpx2") from _error

from httpcore2._async import http11 as async_http11
from httpcore2._backends.sync import SyncStream
from httpcore2._sync import http11 as sync_http11
from httpcore2._trace import Trace

try:
    from httpcore2._backends.anyio import AnyIOStream
except ImportError:  # no anyio, or another version of the library
    AnyIOStream = None  # type: ignore[assignment, misc, unused-ignore]

__all__ = ("DRIVER", "PACKAGES", "AnyIOStream", "SyncStream", "Trace", "async_http11", "httpcore", "sync_http11")

DRIVER = "httpcore2"
"""The name of the library in messages and in the sources of settings."""
PACKAGES = ("httpx2", "httpcore2")
"""Packages between the caller and the pool, which warnings do not blame."""
