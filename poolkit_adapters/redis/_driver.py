"""The parts of redis-py 5.1 to 8.x that the adapter uses. A name that this version of redis-py lacks is None.

``poolkit_adapters.valkey`` has the same modules as this package, except for this one.
"""

from __future__ import annotations

import inspect
from typing import Any

from .._errors import missing_extra

try:
    import redis
    import redis._parsers as _parsers
    import redis.asyncio.connection as _async_connection
    import redis.asyncio.retry as _async_retry
    import redis.asyncio.sentinel as _async_sentinel
    import redis.backoff as _backoff
    import redis.connection as _sync_connection
    import redis.exceptions as exceptions
    import redis.retry as _retry
    import redis.sentinel as _sentinel
except ImportError as error:
    raise missing_extra("poolkit_adapters.redis", "redis-py 5.1 or newer", "redis") from error

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
    "version",
    "waits_recorded",
)


DRIVER = "redis-py"
"""The name of the library in messages and in the sources of settings."""
PACKAGE = "redis"
CLUSTER = "redis.cluster"
"""The module of ``RedisCluster``."""
OTHER = "valkey"
"""The package of the other library, whose clients and connections a pool of this one does not serve."""


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())


version = _version(redis.__version__)

parsers: Any = _parsers
sync_connection: Any = _sync_connection
async_connection: Any = _async_connection

sync_driver: Any = redis
async_driver: Any = redis.asyncio
DriverError = exceptions.RedisError
"""The base class of the driver's errors."""

# The stock classes as they are when this module is imported: an instrumentation may replace them in redis-py later.
ConnectionPool: Any = sync_connection.ConnectionPool
Connection: Any = sync_connection.Connection
Abstract: Any = sync_connection.AbstractConnection
CacheProxy: Any = sync_connection.CacheProxyConnection
AsyncConnectionPool: Any = async_connection.ConnectionPool
AsyncConnection: Any = async_connection.Connection
AsyncAbstract: Any = async_connection.AbstractConnection
SyncTLS: Any = sync_connection.SSLConnection
AsyncTLS: Any = async_connection.SSLConnection
AsyncTLSContext: Any = async_connection.RedisSSLContext
SentinelConnectionPool: Any = _sentinel.SentinelConnectionPool
AsyncSentinelConnectionPool: Any = _async_sentinel.SentinelConnectionPool
Client: Any = redis.Redis
AsyncClient: Any = redis.asyncio.Redis
Retry: Any = _retry.Retry
AsyncRetry: Any = _async_retry.Retry
NoBackoff: Any = _backoff.NoBackoff

GET_CONNECTION_ARGS_DEPRECATED = version >= (5, 3)
"""Whether ``get_connection(command_name)`` is deprecated; redis-py's own clients still call it so before 5.3."""

MARKS_FOR_RECONNECT = hasattr(Abstract, "should_reconnect")
"""Whether connections can be marked for replacement on release (maintenance notifications)."""

NO_WAIT: dict[str, Any] = {"timeout": 0} if "timeout" in inspect.signature(Abstract.read_response).parameters else {}
"""Arguments that keep a sync ``read_response`` from waiting for the rest of a message."""

ReleasedEvent: Any = None
AsyncReleasedEvent: Any = None
EventDispatcher: Any = None
ReAuthListener: Any = None
AsyncReAuthListener: Any = None
try:
    import redis.event as _event
except ImportError:  # before 5.3
    pass
else:
    ReleasedEvent = _event.AfterConnectionReleasedEvent
    AsyncReleasedEvent = _event.AsyncAfterConnectionReleasedEvent
    EventDispatcher = _event.EventDispatcher
    ReAuthListener = _event.ReAuthConnectionListener
    AsyncReAuthListener = _event.AsyncReAuthConnectionListener

driver_info: Any = None
"""Creates the description of the client that each connection sends to the server; None: redis-py creates it once."""
try:
    import redis.driver_info as _driver_info
except ImportError:  # before 7.2
    pass
else:
    driver_info = _driver_info.DriverInfo

NativeParser: Any = _parsers._HiredisParser
AsyncNativeParser: Any = _parsers._AsyncHiredisParser
"""The parsers written in C."""
NativePush: Any = None
"""The type of a push message that they return; None: push messages cannot be distinguished from replies."""
try:
    import hiredis as _hiredis
except ImportError:
    pass
else:
    NativePush = getattr(_hiredis, "PushNotification", None)


def native_holds(parser: Any) -> bool:
    """Return whether a parser written in C holds bytes, or a message, that nobody has read."""
    return parser._reader.has_data()  # type: ignore[no-any-return]


def shared_cache(pool: Any) -> Any:
    """Return the client-side cache that all connections of a synchronous pool share, or None."""
    return pool.cache


_recorder: Any = None
_names: Any = None
_observability: Any = None
try:
    import redis.observability.attributes as _names  # type: ignore[no-redef, unused-ignore]
    import redis.observability.providers as _observability  # type: ignore[no-redef, unused-ignore]
    import redis.observability.recorder as _recorder  # type: ignore[no-redef, unused-ignore]
except ImportError:  # before 7.1
    pass
_COUNTS = hasattr(_recorder, "record_connection_count")


def metering() -> bool:
    """Return whether redis-py's own OpenTelemetry metrics are on.

    Runs at every checkout, so it reads redis-py's variables instead of calling its slower functions.
    """
    if _recorder is None:
        return False
    if _recorder._metrics_collector is not None:
        return True
    instance = _observability._observability_instance
    return instance is not None and instance._provider_manager is not None


def record_count(pool: Any, used: bool, change: int) -> None:
    """Change redis-py's metric of idle and used connections."""
    if _COUNTS:
        state = _names.ConnectionState.USED if used else _names.ConnectionState.IDLE
        _recorder.record_connection_count(pool_name=_names.get_pool_name(pool), connection_state=state, counter=change)


def record_created(pool: Any, seconds: float) -> None:
    """Record in redis-py's metrics how many seconds a connect took."""
    record = getattr(sync_connection, "record_connection_create_time", None)
    if record is not None:
        record(connection_pool=pool, duration_seconds=seconds)


async def async_record_created(pool: Any, seconds: float) -> None:
    """Record in redis-py's metrics how many seconds a connect took."""
    record = getattr(async_connection, "record_connection_create_time", None)
    if record is not None:
        await record(connection_pool=pool, duration_seconds=seconds)


def record_wait(pool: Any, seconds: float) -> None:
    """Record in redis-py's metrics how many seconds a caller waited for a connection."""
    sync_connection.record_connection_wait_time(pool_name=_names.get_pool_name(pool), duration_seconds=seconds)


async def async_record_wait(pool: Any, seconds: float) -> None:
    """Record in redis-py's metrics how many seconds a caller waited for a connection."""
    await async_connection.record_connection_wait_time(pool_name=_names.get_pool_name(pool), duration_seconds=seconds)


_WAIT = getattr(sync_connection, "record_connection_wait_time", None)
_ASYNC_WAIT = getattr(async_connection, "record_connection_wait_time", None)


def waits_recorded() -> bool:
    """Return whether waits must be recorded: redis-py's metrics are on, or its recording function was replaced."""
    return _WAIT is not None and (sync_connection.record_connection_wait_time is not _WAIT or metering())


def async_waits_recorded() -> bool:
    """Do the same as :func:`waits_recorded` for asyncio."""
    return _ASYNC_WAIT is not None and (async_connection.record_connection_wait_time is not _ASYNC_WAIT or metering())
