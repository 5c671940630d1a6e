"""The keywords of managers and pools, for type checkers: poolkit's settings, and what urllib3's classes take."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypedDict

from poolkit import PoolConfig, PoolSettings
from poolkit.events import Listener

__all__ = ("ManagerKeywords", "PoolKeywords", "ProxyURLKeywords", "URLKeywords")


class _OfConnections(TypedDict, total=False):
    """The arguments of urllib3's pools and connections. Its managers pass those with a private name."""

    headers: Any
    retries: Any
    source_address: tuple[str, int] | None
    socket_options: Any
    blocksize: int | None
    key_file: str | None
    cert_file: str | None
    cert_reqs: int | str | None
    key_password: str | None
    ca_certs: str | None
    ca_cert_dir: str | None
    ca_cert_data: str | bytes | None
    ssl_version: int | str | None
    ssl_minimum_version: int | None
    ssl_maximum_version: int | None
    ssl_context: Any
    assert_hostname: Any
    assert_fingerprint: str | None
    server_hostname: str | None
    _proxy: Any
    _proxy_headers: Any
    _proxy_config: Any
    _socks_options: Any


class _Sizes(TypedDict, total=False):
    timeout: Any
    maxsize: int
    block: bool | None


class _OfManagers(TypedDict, total=False):
    num_pools: int
    strict: Any
    proxy_headers: Any
    proxy_ssl_context: Any
    use_forwarding_for_https: bool
    proxy_assert_hostname: Any
    proxy_assert_fingerprint: str | None
    username: str | None
    password: str | None


class _Ours(TypedDict, total=False):
    config: PoolConfig | None
    name: str | None
    listeners: Iterable[Listener]
    debug: bool


class PoolKeywords(PoolSettings, _OfConnections, total=False):
    """The keywords of a pool that its signature does not list."""


class ManagerKeywords(PoolSettings, _OfConnections, _Sizes, _OfManagers, total=False):
    """The keywords of a manager that its signature does not list. Includes those of a manager for a proxy."""

    proxy_url: str


class URLKeywords(PoolSettings, _OfConnections, _Sizes, _Ours, total=False):
    """The keywords of ``connection_from_url()``."""


class ProxyURLKeywords(PoolSettings, _OfConnections, _Sizes, _OfManagers, _Ours, total=False):
    """The keywords of ``proxy_from_url()``."""

    max_connections: int | None
