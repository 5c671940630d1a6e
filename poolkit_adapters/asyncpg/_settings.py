"""Converts the arguments of ``asyncpg.create_pool`` to poolkit's settings."""

from __future__ import annotations

import inspect
import ssl as tls
from collections.abc import Mapping
from typing import Any, TypedDict

import asyncpg

from poolkit import ConfigError, PoolConfig
from poolkit.config import SettingsBesideSizes, Source, nearest
from poolkit.settings import combine, layer, layer_of

from .._options import SETTINGS, argument, by_argument, by_default, driver_default, is_default, refuse_contradiction

__all__ = (
    "ConnectKeywords",
    "MAX_INACTIVE",
    "MAX_QUERIES",
    "MAX_SIZE",
    "MIN_SIZE",
    "check_arguments",
    "check_sizes",
    "effective",
    "pool_config",
)


class _Connect(TypedDict, total=False):
    """The arguments of ``asyncpg.connect()`` that are no arguments of the pool."""

    host: str | list[str] | tuple[str, ...] | None
    port: int | list[int] | tuple[int, ...] | None
    user: str | None
    password: Any
    passfile: str | None
    service: str | None
    servicefile: str | None
    database: str | None
    timeout: float
    statement_cache_size: int
    max_cached_statement_lifetime: int
    max_cacheable_statement_size: int
    command_timeout: float | None
    ssl: tls.SSLContext | bool | str | None
    direct_tls: bool | None
    server_settings: dict[str, str] | None
    target_session_attrs: str | None
    krbsrvname: str | None
    gsslib: str | None


class ConnectKeywords(SettingsBesideSizes, _Connect, total=False):
    """The further keywords of a pool: poolkit's settings, and what ``asyncpg.connect()`` takes."""

    acquire_timeout: float | None
    max_idle: int | None
    max_waiting: int | None
    max_lifetime: float | None


MIN_SIZE: int = driver_default(10)
MAX_SIZE: int = driver_default(10)
MAX_QUERIES: int = driver_default(50000)
MAX_INACTIVE: float = driver_default(300.0)

_DRIVER = "asyncpg"
_IDLE = "max_inactive_connection_lifetime"
_OWN_ARGUMENTS = (
    "dsn", "init_size", "min_size", "max_size", "max_queries", _IDLE, "connect", "setup", "init", "reset", "loop",
    "connection_class", "record_class", "config", "name", "listeners", "debug",
)  # fmt: skip
_CONNECT = frozenset(inspect.signature(asyncpg.connect).parameters)


def pool_config(
    config: PoolConfig | None,
    settings: Mapping[str, Any],
    *,
    min_size: int,
    max_size: int,
    max_inactive: float,
    timeout: Any,
) -> PoolConfig:
    """Return the engine's settings: asyncpg's defaults or ``config``, overridden by the arguments given.

    ``timeout``: the argument of ``asyncpg.connect()`` of that name, None if it was not given.
    """
    written = layer_of(config)
    given = {**written, **layer(dict(settings))}
    found: dict[str, tuple[Any, Source]] = {}
    if config is None:
        low, high = min_size, max_size
        if is_default(min_size):  # a smaller limit that was given lowers the default
            limits: list[Any] = [max_size, given["max_idle"][0] if "max_idle" in given else None]
            low = min([low, *(limit for limit in limits if _is_count(limit))])
        found = {
            "order": ("lifo", by_default(_DRIVER)),
            "start": ("eager", by_default(_DRIVER)),
            "acquire_timeout": (None, by_default(_DRIVER)),
            "min_size": (low, argument(_DRIVER, "min_size", min_size)[1]),
            "max_size": (high, argument(_DRIVER, "max_size", max_size)[1]),
        }
        found = {name: (int(v), s) if name.endswith("_size") and is_default(v) else (v, s)
                 for name, (v, s) in found.items()}  # fmt: skip
    else:
        for name, value in (("min_size", min_size), ("max_size", max_size)):
            if not is_default(value):
                found[name] = value, by_argument(name)
    arguments: tuple[tuple[str, str, Any], ...] = (
        (_IDLE, "idle_timeout", max_inactive),
        ("timeout", "connect_timeout", timeout),
    )
    for name, setting, value in arguments:
        if value is None or (is_default(value) and config is not None):
            continue
        plain, source = argument(_DRIVER, name, value)
        if name == _IDLE and not plain:
            plain = None  # never
        if source.written:
            refuse_contradiction(name, plain, setting, given)
        found[setting] = plain, source
    return combine({**written, **found}, layer(dict(settings)), base=config)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def effective(config: PoolConfig) -> PoolConfig:
    """Return the settings that a pool uses if only this config is given."""
    return pool_config(config, {}, min_size=MIN_SIZE, max_size=MAX_SIZE, max_inactive=MAX_INACTIVE, timeout=None)


def check_sizes(config: PoolConfig | None, init_size: Any, min_size: Any, max_size: Any) -> None:
    """Raise ConfigError for sizes that contradict each other, with asyncpg's words. With a config, its sizes count."""
    for name, value in (("init_size", init_size), ("min_size", min_size), ("max_size", max_size)):
        if value is not None and not _is_count(value):
            raise ConfigError(f"{name}={value!r}: must be a whole number", name)
    if config is not None:
        return
    low = min(min_size, max_size) if is_default(min_size) and max_size is not None else min_size
    for name, value, wrong, words in (
        ("max_size", max_size, max_size is not None and max_size <= 0, "is expected to be greater than zero"),
        ("min_size", min_size, min_size < 0, "is expected to be greater or equal to zero"),
        ("min_size", min_size, max_size is not None and low > max_size, "is greater than max_size"),
        ("init_size", init_size, init_size is not None and init_size < 0, "is expected to be greater or equal to zero"),
        (
            "init_size",
            init_size,
            None not in (init_size, max_size) and init_size > max_size,
            "is greater than max_size",
        ),
        ("init_size", init_size, init_size is not None and init_size < low, "is smaller than min_size"),
    ):
        if wrong:
            raise ConfigError(f"{name}={value!r}: {name} {words} (min_size={low!r}, max_size={max_size!r})", name)


def check_arguments(
    init_size: Any, max_queries: Any, config: PoolConfig, keywords: Mapping[str, Any], *, own_connect: bool
) -> int:
    """Check what asyncpg checks late or without its value, and return how many connections are opened first.

    ``own_connect``: the application has a ``connect=`` of its own, which may take any keyword.
    """
    for name, value in (("max_queries", max_queries), ("init_size", init_size)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise ConfigError(f"{name}={value!r}: must be a number", name)
    if max_queries <= 0:
        raise ConfigError(f"max_queries={max_queries!r}: must be greater than zero", "max_queries")
    if not own_connect:
        for name in keywords:
            if name not in _CONNECT:
                hint = nearest(name, (*_OWN_ARGUMENTS, *sorted(_CONNECT), *sorted(SETTINGS)))
                # without its value, which may be a password
                raise ConfigError(f"{name}: unknown argument or setting; {hint}", name)
    if init_size is None:
        return config.min_size if config.start == "eager" else 0
    check_sizes(None, init_size, config.min_size, config.max_size)
    return int(init_size)
