"""The driver library of this package. ``poolkit_adapters.httpcore2`` has the same modules, except for this one."""

from __future__ import annotations

from .._errors import missing_extra

try:
    import httpcore
except ImportError as _error:
    raise missing_extra("poolkit_adapters.httpcore", "httpcore", "httpx") from _error

if not hasattr(httpcore, "Proxy"):  # exists since 1.0.7, as does the pools' argument
    raise missing_extra("poolkit_adapters.httpcore", "httpcore 1.0.7 or newer", "httpx")

from httpcore._async import http11 as async_http11
from httpcore._backends.sync import SyncStream
from httpcore._sync import http11 as sync_http11
from httpcore._trace import Trace

try:
    from httpcore._backends.anyio import AnyIOStream
except ImportError:  # no anyio, or another version of the library
    AnyIOStream = None  # type: ignore[assignment, misc, unused-ignore]

__all__ = ("DRIVER", "PACKAGES", "AnyIOStream", "SyncStream", "Trace", "async_http11", "httpcore", "sync_http11")

DRIVER = "httpcore"
"""The name of the library in messages and in the sources of settings."""
PACKAGES = ("httpx", "httpcore")
"""Packages between the caller and the pool, which warnings do not blame."""
