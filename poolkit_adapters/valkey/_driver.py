"""The parts of valkey-py 6.2 that the adapter uses. Its other modules are those of ``poolkit_adapters.redis``.

valkey-py is a fork of redis-py 5.0. What redis-py has had since is None here.
"""

from __future__ import annotations

from typing import Any

from .._errors import missing_extra

try:
    import valkey
    import valkey._parsers as _parsers
    import valkey._parsers.libvalkey as _libvalkey
    import valkey.asyncio.connection as _async_connection
    import valkey.asyncio.retry as _async_retry
    import valkey.asyncio.sentinel as _async_sentinel
    import valkey.backoff as _backoff
    import valkey.connection as _sync_connection
    import valkey.exceptions as exceptions
    import valkey.retry as _retry
    import valkey.sentinel as _sentinel
except ImportError as error:
    raise missing_extra("poolkit_adapters.valkey", "valkey-py 6.2 or newer (Python 3.11 or newer)", "valkey") from error

__all__ = (
    "Abstract",
    "AsyncAbstract",
    "AsyncClient",
    "AsyncConnection",
    "AsyncConnectionPool",
    "AsyncNativeParser",
    "AsyncReAuthListener",
    "AsyncReleasedEvent",
    "AsyncRetry",
    "AsyncSentinelConnectionPool",
    "AsyncTLS",
    "AsyncTLSContext",
    "CLUSTER",
    "CacheProxy",
    "Client",
    "Connection",
    "ConnectionPool",
    "DRIVER",
    "DriverError",
    "EventDispatcher",
    "GET_CONNECTION_ARGS_DEPRECATED",
    "MARKS_FOR_RECONNECT",
    "NO_WAIT",
    "NativeParser",
    "NativePush",
    "NoBackoff",
    "OTHER",
    "PACKAGE",
    "ReAuthListener",
    "ReleasedEvent",
    "Retry",
    "SentinelConnectionPool",
    "SyncTLS",
    "async_connection",
    "async_driver",
    "async_record_created",
    "async_record_wait",
    "async_waits_recorded",
    "driver_info",
    "exceptions",
    "metering",
    "native_holds",
    "parsers",
    "record_count",
    "record_created",
    "record_wait",
    "shared_cache",
    "sync_driver",
    "waits_recorded",
)

DRIVER = "valkey-py"
"""The name of the library in messages and in the sources of settings."""
PACKAGE = "valkey"
CLUSTER = "valkey.cluster"
"""The module of ``ValkeyCluster``."""
OTHER = "redis"
"""The package of the other library, whose clients and connections a pool of this one does not serve."""

parsers: Any = _parsers
sync_connection: Any = _sync_connection
async_connection: Any = _async_connection
sync_driver: Any = valkey
async_driver: Any = valkey.asyncio
DriverError = exceptions.ValkeyError
"""The base class of the driver's errors."""


class _ConnectionPool(_sync_connection.ConnectionPool):
    """valkey-py's pool, with what only redis-py's has."""

    cache: Any = None

    def get_protocol(self) -> Any:
        from ._other_library import wrong_client

        raise wrong_client()


class _NoCacheProxy:
    """redis-py's caching wrapper of a connection. In valkey-py the connection itself has the cache."""


# The stock classes as they are when this module is imported: an instrumentation may replace them in valkey-py later.
ConnectionPool: Any = _ConnectionPool
Connection: Any = sync_connection.Connection
Abstract: Any = sync_connection.AbstractConnection
CacheProxy: Any = _NoCacheProxy
AsyncConnectionPool: Any = async_connection.ConnectionPool
AsyncConnection: Any = async_connection.Connection
AsyncAbstract: Any = async_connection.AbstractConnection
SyncTLS: Any = sync_connection.SSLConnection
AsyncTLS: Any = async_connection.SSLConnection
AsyncTLSContext: Any = async_connection.ValkeySSLContext
SentinelConnectionPool: Any = _sentinel.SentinelConnectionPool
AsyncSentinelConnectionPool: Any = _async_sentinel.SentinelConnectionPool
Client: Any = valkey.Valkey
AsyncClient: Any = valkey.asyncio.Valkey
Retry: Any = _retry.Retry
AsyncRetry: Any = _async_retry.Retry
NoBackoff: Any = _backoff.NoBackoff
NativeParser: Any = parsers._LibvalkeyParser
AsyncNativeParser: Any = parsers._AsyncLibvalkeyParser
"""The parsers written in C."""
_NOTHING: Any = _libvalkey.NOT_ENOUGH_DATA
NativePush: Any = None
"""The type of a push message that they return; None: push messages cannot be distinguished from replies."""

GET_CONNECTION_ARGS_DEPRECATED = False
"""Whether ``get_connection(command_name)`` is deprecated. valkey-py's own clients call it so."""
MARKS_FOR_RECONNECT = False
NO_WAIT: dict[str, Any] = {}

ReleasedEvent: Any = None
AsyncReleasedEvent: Any = None
EventDispatcher: Any = None
ReAuthListener: Any = None
AsyncReAuthListener: Any = None
driver_info: Any = None


def native_holds(parser: Any) -> bool:
    """Return whether a parser written in C holds bytes, or a message, that nobody has read."""
    # can_read() of the synchronous one takes a message out of the reader to see whether there is one
    return parser._reader.has_data() or getattr(parser, "_next_response", _NOTHING) is not _NOTHING


def shared_cache(pool: Any) -> Any:
    """Return the client-side cache that all connections of a synchronous pool share, or None."""
    return pool.connection_kwargs.get("client_cache")


# valkey-py has no metrics of its own.


def metering() -> bool:
    """Return False: there are no metrics."""
    return False


def record_count(pool: Any, used: bool, change: int) -> None:
    """Do nothing."""


def record_created(pool: Any, seconds: float) -> None:
    """Do nothing."""


async def async_record_created(pool: Any, seconds: float) -> None:
    """Do nothing."""


def record_wait(pool: Any, seconds: float) -> None:
    """Do nothing."""


async def async_record_wait(pool: Any, seconds: float) -> None:
    """Do nothing."""


def waits_recorded() -> bool:
    """Return False: there are no metrics."""
    return False


async_waits_recorded = waits_recorded
