"""From the arguments of psycopg_pool to the settings of poolkit."""

from __future__ import annotations

import inspect
import os
from typing import Any, get_origin

import psycopg
from psycopg.conninfo import conninfo_to_dict

from poolkit import ConfigError, PoolConfig
from poolkit.config import nearest
from poolkit.errors import without_quotes

from .._options import SETTINGS, quiet
from ._errors import InvalidConninfo

__all__ = ("DEFAULTS", "check_callback", "check_class", "check_conninfo", "numbered", "pool_config", "sizes")


class _Int(int):
    """A whole number that can be told from the same one given by the caller."""


# Defaults are told from equal values by identity: beside config= only what the caller wrote himself counts.
MIN_SIZE: int = _Int(4)
NULL_MIN_SIZE: int = _Int(0)
TIMEOUT = float("30")
MAX_WAITING: int = _Int(0)
MAX_LIFETIME = float("3600")
MAX_IDLE = float("600")
NUM_WORKERS: int = _Int(3)

DEFAULTS = (MIN_SIZE, NULL_MIN_SIZE, TIMEOUT, MAX_WAITING, MAX_LIFETIME, MAX_IDLE, NUM_WORKERS)

_TWO_NAMES = {"acquire_timeout": "timeout", "idle_timeout": "max_idle", "max_connecting": "num_workers"}
_TIMES = {"timeout": "acquire_timeout", "max_lifetime": "max_lifetime", "max_idle": "idle_timeout"}
_ARGUMENTS = (
    "conninfo", "connection_class", "kwargs", "min_size", "max_size", "open", "configure", "check", "reset", "name",
    "close_returns", "timeout", "max_waiting", "max_lifetime", "max_idle", "reconnect_timeout", "reconnect_failed",
    "num_workers",
)  # fmt: skip


def _is_given(value: object) -> bool:
    return value is not None and not any(value is default for default in DEFAULTS)


def sizes(min_size: int, max_size: int | None, *, null: bool) -> tuple[int, int | None]:
    """``(min_size, max_size)`` for the engine, by the rules of psycopg_pool."""
    if max_size is None:
        max_size = min_size
    if null:
        if min_size != 0:
            raise ConfigError(f"min_size={min_size!r}: must be 0 in a null pool, which keeps no connection", "min_size")
        return 0, None if max_size == 0 else max_size
    if max_size == 0:
        raise ConfigError(f"min_size={min_size!r}, max_size=0: one of them must be above 0", "max_size")
    return min_size, max_size


def pool_config(
    config: PoolConfig | None, settings: dict[str, Any], *, null: bool, check: object, **arguments: Any
) -> PoolConfig:
    """The engine's settings: psycopg_pool's defaults or ``config``, then the arguments that were really given."""
    for name, value in settings.items():
        if name not in SETTINGS:
            hint = nearest(name, (*_ARGUMENTS, *sorted(SETTINGS)))
            # without its value, which may be a password meant for kwargs=
            raise ConfigError(f"{name}: no such argument or setting; {hint}", name)
        other = _TWO_NAMES.get(name)
        if other and _is_given(arguments[other]):
            raise ConfigError(f"{name}={value!r}: the same as {other}={arguments[other]!r}; give one of them", name)
    if config is not None and not isinstance(config, PoolConfig):
        raise ConfigError(f"config={config!r}: must be a PoolConfig", "config")
    given = arguments if config is None else {name: v for name, v in arguments.items() if _is_given(v)}
    changes: dict[str, Any] = {"order": "fifo", "start": "eager"} if config is None else {}
    if config is None:
        changes["min_size"], changes["max_size"] = sizes(given["min_size"], given["max_size"], null=null)
    else:
        changes |= {name: given[name] for name in ("min_size", "max_size") if name in given}
        if null and changes.get("max_size") == 0:
            changes["max_size"] = None
    for name, setting in (
        ("timeout", "acquire_timeout"),
        ("max_lifetime", "max_lifetime"),
        ("max_idle", "idle_timeout"),
    ):
        if name in given:
            changes[setting] = given[name]
    if "max_waiting" in given:
        changes["max_waiting"] = given["max_waiting"] or None  # 0: no limit
    if _is_given(arguments["num_workers"]):
        if arguments["num_workers"] < 1:
            raise ConfigError(f"num_workers={arguments['num_workers']!r}: must be 1 or more", "num_workers")
        changes["max_connecting"] = arguments["num_workers"]
    if check is not None and (config is None or config.check_after_idle == PoolConfig().check_after_idle):
        changes["check_after_idle"] = 0.0  # psycopg_pool calls it at every getconn
    if null:
        changes |= {"max_idle": 0, "barging_window": 0.0}
    result = quiet(config).replace(**{**changes, **settings})
    if null and result.min_size:
        sizes(result.min_size, 0, null=True)
    return result


def check_conninfo(conninfo: object, kwargs: object, config: PoolConfig, explicit: bool) -> PoolConfig:
    """Refuse what cannot connect; take over a ``connect_timeout`` of the connection string as the engine's bound."""
    if callable(conninfo) or callable(kwargs):
        if not callable(conninfo):
            parse(conninfo)
        return config
    if kwargs is not None and not isinstance(kwargs, dict):
        kind = type(kwargs).__name__
        raise ConfigError(f"kwargs must be a dict of arguments of connect(), or a callable, not a {kind}", "kwargs")
    parameters = {**parse(conninfo), **(kwargs or {})}
    own = parameters.get("connect_timeout", os.environ.get("PGCONNECT_TIMEOUT"))
    if own is None or explicit:
        return config
    try:
        seconds = float(own)
    except (TypeError, ValueError):
        raise InvalidConninfo(f"connect_timeout={own!r}: must be a number of seconds", "connect_timeout") from None
    # it counts for each host; 0 means no limit
    hosts = str(parameters.get("host") or parameters.get("hostaddr") or "").count(",") + 1
    limit = max(2.0, seconds) * hosts if seconds > 0 else None
    return quiet(config, connect_timeout=False).replace(connect_timeout=limit)


def parse(conninfo: object) -> dict[str, Any]:
    """The parameters of a connection string; its text, which may hold a password, stays out of the error."""
    if not isinstance(conninfo, str):
        kind = type(conninfo).__name__
        raise InvalidConninfo(f"conninfo must be a string or a callable that returns one, not {kind}", "conninfo")
    try:
        return dict(conninfo_to_dict(conninfo))
    except psycopg.ProgrammingError as error:
        raise InvalidConninfo(f"conninfo does not parse: {without_quotes(error)}", "conninfo") from None


def check_class(connection_class: Any, right: type, wrong: type, pool: str, other: str) -> None:
    """Refuse an asynchronous connection class in a synchronous pool, and the reverse."""
    kind = get_origin(connection_class) or connection_class
    if not isinstance(kind, type) or issubclass(kind, wrong) or not callable(getattr(kind, "connect", None)):
        raise ConfigError(
            f"connection_class={connection_class!r}: {pool} needs a subclass of psycopg.{right.__name__}; "
            f"for psycopg.{wrong.__name__} use {other}",
            "connection_class",
        )


def check_callback(name: str, callback: object, *, synchronous: bool) -> None:
    """Refuse what cannot be called, and a coroutine function where nobody would await it."""
    if callback is None:
        return
    if not callable(callback):
        raise ConfigError(f"{name}={callback!r}: must be callable", name)
    if synchronous and inspect.iscoroutinefunction(callback):
        raise ConfigError(f"{name}={callback!r}: a coroutine function; use AsyncPoolkitConnectionPool", name)


def numbered(name: str, value: object) -> float:
    """A time in seconds, 0 or more."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise ConfigError(f"{name}={value!r}: must be a time in seconds, 0 or more", name)
    return float(value)
