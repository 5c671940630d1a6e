"""Converts psycopg_pool's arguments to poolkit's settings."""

from __future__ import annotations

import inspect
import os
from typing import Any, get_origin

import psycopg
from psycopg.conninfo import conninfo_to_dict

from poolkit import ConfigError, PoolConfig
from poolkit.config import SettingsBesideSizes, Source, bad, is_seconds, nearest
from poolkit.errors import without_quotes
from poolkit.settings import combine, layer, layer_of, set_aside

from .._libpq import for_all_attempts
from .._options import (
    SETTINGS,
    argument,
    by_argument,
    by_default,
    driver_default,
    is_default,
    replaces_limit_of_driver,
    with_limit_of_driver,
)
from ._errors import InvalidConninfo

__all__ = (
    "PoolKeywords",
    "check_callback",
    "check_class",
    "check_conninfo",
    "effective",
    "numbered",
    "pool_config",
    "sizes",
)


class PoolKeywords(SettingsBesideSizes, total=False):
    """The settings that psycopg_pool has no argument for, as keywords."""

    acquire_timeout: float | None


# A default can be distinguished from an equal value that the caller gave: with config= only the latter counts.
MIN_SIZE: int = driver_default(4)
NULL_MIN_SIZE: int = driver_default(0)
TIMEOUT = driver_default(30.0)
MAX_WAITING: int = driver_default(0)
MAX_LIFETIME = driver_default(3600.0)
MAX_IDLE = driver_default(600.0)
NUM_WORKERS: int = driver_default(3)

_DRIVER = "psycopg_pool"
_OWN = Source("the adapter's default", written=False)
_TWO_NAMES = {"acquire_timeout": "timeout", "idle_timeout": "max_idle", "max_connecting": "num_workers"}
_SETTING_OF = {
    "timeout": "acquire_timeout",
    "max_waiting": "max_waiting",
    "max_lifetime": "max_lifetime",
    "max_idle": "idle_timeout",
    "num_workers": "max_connecting",
}
_ARGUMENTS = (
    "conninfo", "connection_class", "kwargs", "min_size", "max_size", "open", "configure", "check", "reset", "name",
    "close_returns", "timeout", "max_waiting", "max_lifetime", "max_idle", "reconnect_timeout", "reconnect_failed",
    "num_workers",
)  # fmt: skip
_NULL_UNUSED: dict[str, tuple[Any, str]] = {
    "min_size": (0, "must be 0 in a null pool, which keeps no connection"),
    "max_idle": (0, "must be 0 in a null pool, which keeps no connection"),
}


def _is_given(value: object) -> bool:
    return value is not None and not is_default(value)


def sizes(min_size: int, max_size: int | None, *, null: bool) -> tuple[int, int | None]:
    """Return ``(min_size, max_size)`` for the engine, by the rules of psycopg_pool."""
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
    """Return the engine's settings: psycopg_pool's defaults or ``config``, overridden by the arguments given."""
    for name, value in settings.items():
        if name not in SETTINGS:
            hint = nearest(name, (*_ARGUMENTS, *sorted(SETTINGS)))
            # without its value, which may be a password meant for kwargs=
            raise ConfigError(f"{name}: unknown argument or setting; {hint}", name)
        other = _TWO_NAMES.get(name)
        if other and _is_given(arguments[other]):
            raise ConfigError(
                f"{name}={value!r}: means the same as {other}={arguments[other]!r}; give only one of them", name
            )
    if _is_given(arguments["num_workers"]) and arguments["num_workers"] < 1:
        raise ConfigError(f"num_workers={arguments['num_workers']!r}: must be 1 or more", "num_workers")
    written = layer_of(config)
    driver = _given_arguments(arguments, null=null, beside_config=config is not None)
    if check is not None:  # psycopg_pool calls it at every getconn
        written.setdefault("check_after_idle", (0.0, by_argument("check")))
    found = {**written, **driver}
    if null:
        found = {"barging_window": (0.0, _OWN), **set_aside(found, _NULL_UNUSED, "null pools")}
    return combine(found, layer(settings), base=config)


def effective(config: PoolConfig) -> PoolConfig:
    """Return the settings that a pool uses if only this config is given."""
    arguments = {
        "min_size": MIN_SIZE, "max_size": None, "timeout": TIMEOUT, "max_waiting": MAX_WAITING,
        "max_lifetime": MAX_LIFETIME, "max_idle": MAX_IDLE, "num_workers": NUM_WORKERS,
    }  # fmt: skip
    return pool_config(config, {}, null=False, check=None, **arguments)


def _given_arguments(arguments: dict[str, Any], *, null: bool, beside_config: bool) -> dict[str, tuple[Any, Source]]:
    """Return psycopg_pool's arguments as settings. Without a config this includes its defaults."""
    found: dict[str, tuple[Any, Source]] = {}
    if not beside_config:
        low, high = sizes(arguments["min_size"], arguments["max_size"], null=null)
        _, source = argument(_DRIVER, "min_size", arguments["min_size"])
        found = {
            "order": ("fifo", by_default(_DRIVER)),
            "start": ("eager", by_default(_DRIVER)),
            "min_size": (int(low), source),
            "max_size": (high if high is None else int(high), source),
        }
        if arguments["max_size"] is not None:
            found["max_size"] = high, by_argument("max_size")
    else:
        for name in ("min_size", "max_size"):
            if _is_given(arguments[name]):
                unlimited = null and name == "max_size" and arguments[name] == 0
                found[name] = None if unlimited else arguments[name], by_argument(name)
    for name, setting in _SETTING_OF.items():
        value, source = argument(_DRIVER, name, arguments[name])
        if name == "num_workers" and not _is_given(arguments[name]):
            continue  # poolkit has no permanent threads, so its own limit applies
        if not beside_config or source.written:
            found[setting] = (value or None) if name == "max_waiting" else value, source
    return found


def check_conninfo(conninfo: object, kwargs: object, config: PoolConfig) -> PoolConfig:
    """Check the connection arguments, and use their ``connect_timeout`` as the engine's limit."""
    if callable(conninfo) or callable(kwargs):
        if not callable(conninfo):
            parse(conninfo)
        return config
    if kwargs is not None and not isinstance(kwargs, dict):
        kind = type(kwargs).__name__
        raise ConfigError(f"kwargs must be a dict of arguments of connect(), or a callable, not a {kind}", "kwargs")
    places = {"kwargs": kwargs or {}, "conninfo": parse(conninfo)}
    place = next((place for place, found in places.items() if "connect_timeout" in found), "PGCONNECT_TIMEOUT")
    own = places.get(place, {}).get("connect_timeout", os.environ.get("PGCONNECT_TIMEOUT"))
    if own is None or replaces_limit_of_driver(config):
        return config
    try:
        seconds = float(own)
    except (TypeError, ValueError):
        raise InvalidConninfo(f"connect_timeout={own!r}: must be a number of seconds", "connect_timeout") from None
    limit = for_all_attempts({**places["conninfo"], **places["kwargs"]}, seconds)
    return with_limit_of_driver(config, limit, f"connect_timeout in {place}")


def parse(conninfo: object) -> dict[str, Any]:
    """Return the parameters of a connection string. Errors omit its text, which may hold a password."""
    if not isinstance(conninfo, str):
        kind = type(conninfo).__name__
        raise InvalidConninfo(f"conninfo must be a string or a callable that returns one, not {kind}", "conninfo")
    try:
        return dict(conninfo_to_dict(conninfo))
    except psycopg.ProgrammingError as error:
        raise InvalidConninfo(f"conninfo cannot be parsed: {without_quotes(error)}", "conninfo") from None


def check_class(connection_class: Any, right: type, wrong: type, pool: str, other: str) -> None:
    """Refuse an asynchronous connection class in a synchronous pool, and vice versa."""
    kind = get_origin(connection_class) or connection_class
    if not isinstance(kind, type) or issubclass(kind, wrong) or not callable(getattr(kind, "connect", None)):
        raise ConfigError(
            f"connection_class={connection_class!r}: {pool} needs a subclass of psycopg.{right.__name__}; "
            f"for psycopg.{wrong.__name__} use {other}",
            "connection_class",
        )


def check_callback(name: str, callback: object, *, synchronous: bool) -> None:
    """Refuse an object that cannot be called, and a coroutine function that would not be awaited."""
    if callback is None:
        return
    if not callable(callback):
        raise ConfigError(f"{name}={callback!r}: must be callable", name)
    if synchronous and inspect.iscoroutinefunction(callback):
        raise ConfigError(
            f"{name}={callback!r}: must not be a coroutine function here; use AsyncPoolkitConnectionPool for that", name
        )


def numbered(name: str, value: object) -> float:
    """Return a time in seconds, 0 or more, as a float. Raises ConfigError for anything else."""
    if not is_seconds(value):
        raise bad(name, value, "a time in seconds, 0 or more")
    return float(value)
