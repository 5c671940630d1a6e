"""The limits of a server, queried with its driver."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import closing
from importlib import import_module
from urllib.parse import urlsplit

from poolkit import ConfigError, MissingExtra
from poolkit.errors import describe, shown, without_quotes

from ._checks import Finding, Limits

__all__ = ("ask",)

_PATIENCE = 5  # seconds


def ask(url: str) -> tuple[Limits | None, list[Finding]]:
    """Query the limits of the server. If it cannot be reached, return None and the error as a finding.

    Raises ConfigError for an invalid URL or an unknown scheme, MissingExtra without the driver.
    """
    scheme = url.partition("://")[0].partition("+")[0].lower() if "://" in url else ""
    kinds: dict[str, Callable[[str], Limits]] = {
        "postgresql": _postgres,
        "postgres": _postgres,
        "redis": _redis,
        "rediss": _redis,
        "valkey": _redis,
        "valkeys": _redis,
        "http": _http,
        "https": _http,
    }
    if scheme not in kinds:
        raise ConfigError(
            f"--url {url}: must start with postgresql://, redis://, rediss://, valkey://, valkeys://, http:// or "
            "https://",
            "url",
        )
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise ConfigError(f"--url {url}: {without_quotes(error)}", "url") from None
    try:
        return kinds[scheme](scheme + "://" + url.partition("://")[2]), []
    except (MissingExtra, ConfigError):
        raise
    except Exception as error:  # noqa: BLE001  a driver may raise anything
        return None, [Finding("error", "server", f"could not be queried: {describe(error, 1000)}")]


def _postgres(url: str) -> Limits:
    try:
        import psycopg
    except ImportError:
        raise MissingExtra("querying PostgreSQL needs psycopg: pip install 'poolkit[psycopg]'") from None
    with psycopg.connect(url, connect_timeout=_PATIENCE, autocommit=True) as connection:
        wanted = ("max_connections", "superuser_reserved_connections", "reserved_connections", "idle_session_timeout")
        rows = connection.execute(
            "select name, setting, unit from pg_settings where name = any(%s)", [list(wanted)]
        ).fetchall()
        settings = {name: int(value) for name, value, _ in rows}
        allowed, name = settings["max_connections"], "max_connections"
        reserved = settings.get("superuser_reserved_connections", 0) + settings.get("reserved_connections", 0)
        own = connection.execute(
            "select (select rolconnlimit from pg_roles where rolname = current_user), datconnlimit "
            "from pg_database where datname = current_database()"
        ).fetchone()
        assert own is not None
        for limit, setting in zip(own, ("the role's CONNECTION LIMIT", "the database's CONNECTION LIMIT"), strict=True):
            if limit is not None and 0 <= limit < allowed - reserved:
                allowed, reserved, name = limit, 0, setting
        used = connection.execute(
            "select count(*) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()"
        ).fetchone()
        assert used is not None
        idle = settings.get("idle_session_timeout", 0) / 1000
        return Limits(
            "PostgreSQL", f"{connection.info.server_version // 10000}", allowed, name, reserved, int(used[0]),
            idle or None, "idle_session_timeout",
        )  # fmt: skip


def _redis(url: str) -> Limits:
    """Query Redis with redis-py, and for a URL of Valkey the server with valkey-py, which has the same functions."""
    package, server = ("valkey", "Valkey") if url.startswith("valkey") else ("redis", "Redis")
    try:
        driver = import_module(package)
    except ImportError:
        raise MissingExtra(f"querying {server} needs {package}-py: pip install 'poolkit[{package}]'") from None
    with closing(
        driver.Redis.from_url(
            url, decode_responses=True, socket_timeout=_PATIENCE, socket_connect_timeout=_PATIENCE, retry=None
        )
    ) as client:
        info = client.info()
        try:
            # two commands: one for both needs Redis 7.0
            config = {**client.config_get("maxclients"), **client.config_get("timeout")}
        except driver.ResponseError:  # managed services forbid it
            config = {"maxclients": info.get("maxclients", 0)}
        allowed = int(config.get("maxclients") or 0)
        idle = float(config.get("timeout") or 0)
        return Limits(
            server, shown(info.get("valkey_version", info.get("redis_version"))), allowed or None, "maxclients", 0,
            int(info["connected_clients"]) - 1, idle or None, "timeout",
        )  # fmt: skip


def _http(url: str) -> Limits:
    try:
        import httpx
    except ImportError:
        raise MissingExtra("querying an HTTP server needs httpx: pip install 'poolkit[httpx]'") from None
    response = httpx.head(url, timeout=_PATIENCE)
    found = re.search(r"timeout=(\d{1,9})", response.headers.get("keep-alive", ""))
    return Limits(
        shown(response.headers.get("server", "")) or "the HTTP server", response.http_version,
        idle_timeout=float(found[1]) if found else None, idle_timeout_setting="its Keep-Alive header",
    )  # fmt: skip
