"""The keywords of the pools: poolkit's settings, and what the library's connections take."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, TypeVar

from poolkit import PoolConfig, PoolSettings
from poolkit.cluster import ClusterSettings
from poolkit.config import NodePoolSettings
from poolkit.events import Listener

from .._cluster_options import parameters_of
from .._options import refuse_misspelt

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ("ConnectionKeywords", "FromURL", "GroupKeywords", "PoolKeywords", "SentinelKeywords", "check_keywords")

P = TypeVar("P", covariant=True)


class _OfConnections(TypedDict, total=False):
    """The arguments of the library's connections: TCP, TLS and Unix sockets, threads and asyncio."""

    host: str
    port: int | str
    path: str
    db: int | str
    username: str | None
    password: str | None
    credential_provider: Any
    socket_timeout: float | None
    socket_connect_timeout: float | None
    socket_keepalive: bool | None
    socket_keepalive_options: Any
    socket_type: int
    socket_read_size: int
    retry: Any
    retry_on_timeout: bool
    retry_on_error: Any
    health_check_interval: float
    client_name: str | None
    lib_name: Any
    lib_version: Any
    driver_info: Any
    redis_connect_func: Callable[..., Any] | None
    valkey_connect_func: Callable[..., Any] | None
    protocol: int | None
    legacy_responses: bool
    encoding: str
    encoding_errors: str
    decode_responses: bool
    parser_class: Any
    encoder_class: Any
    command_packer: Any
    cache: Any
    cache_config: Any
    event_dispatcher: Any
    maint_notifications_config: Any
    maint_notifications_pool_handler: Any
    maintenance_state: Any
    maintenance_notification_hash: int | None
    oss_cluster_maint_notifications_handler: Any
    orig_host_address: str | None
    orig_socket_timeout: float | None
    orig_socket_connect_timeout: float | None
    himport_registry: Any
    ssl_keyfile: str | None
    ssl_certfile: str | None
    ssl_cert_reqs: Any
    ssl_include_verify_flags: Any
    ssl_exclude_verify_flags: Any
    ssl_ca_certs: str | None
    ssl_ca_path: str | None
    ssl_ca_data: str | None
    ssl_check_hostname: bool
    ssl_password: str | None
    ssl_validate_ocsp: bool
    ssl_validate_ocsp_stapled: bool
    ssl_ocsp_context: Any
    ssl_ocsp_expected_cert: Any
    ssl_min_version: Any
    ssl_ciphers: str | None


class _OfPools(TypedDict, total=False):
    """The arguments of the library's pools, and ``debug``."""

    max_connections: int | None
    timeout: float | None
    connection_class: Any
    queue_class: Any
    debug: bool


class _OfOnePool(TypedDict, total=False):
    config: PoolConfig | None
    name: str | None
    listeners: Iterable[Listener]


class ConnectionKeywords(PoolSettings, _OfConnections, total=False):
    """The keywords that a pool takes besides its own."""


class GroupKeywords(ClusterSettings, NodePoolSettings, _OfConnections, _OfPools, total=False):
    """The keywords that a group of servers takes besides its own."""


class PoolKeywords(PoolSettings, _OfConnections, _OfPools, _OfOnePool, total=False):
    """The keywords of ``from_url()``."""


class SentinelKeywords(PoolSettings, _OfConnections, _OfPools, _OfOnePool, total=False):
    """The keywords of a pool that asks Sentinel for its server."""

    is_master: bool
    check_connection: bool
    ssl: bool


class FromURL(Protocol[P]):
    """The signature of redis-py's ``from_url()``, with the keywords of a pool."""

    def __call__(self, url: str, **kwargs: Unpack[PoolKeywords]) -> P:
        """Create a pool from a ``redis://``, ``rediss://`` or ``unix://`` URL. Its query may hold poolkit's settings.

        Raises ``ConfigError`` for a wrong setting, and ``ValueError`` for a URL that redis-py does not accept.
        """


def check_keywords(keywords: Iterable[str], pool_class: type, connection_class: Any) -> None:
    """Raise ConfigError for a keyword that is probably a misspelt setting."""
    if isinstance(connection_class, type):  # otherwise a function, which may take any keyword
        refuse_misspelt(keywords, parameters_of(pool_class, connection_class))
