"""Combines QueuePool's arguments and poolkit's settings into one PoolConfig."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy.util import get_cls_kwargs

from poolkit import BackoffConfig, ConfigError, PoolConfig
from poolkit.config import Source, is_whole, sources_of
from poolkit.settings import DEFAULT, combine, layer, layer_of, set_aside

from .._options import argument, by_argument, by_default, driver_default, is_default, refuse_misspelt

__all__ = (
    "MAX_OVERFLOW",
    "POOL_SIZE",
    "TIMEOUT",
    "EngineConfig",
    "effective",
    "fixed",
    "queue_sizes",
    "settle",
    "well_spelt",
)


POOL_SIZE: int = driver_default(5)
MAX_OVERFLOW: int = driver_default(10)
TIMEOUT: float = driver_default(30.0)
"""QueuePool's defaults (SQLAlchemy 2.1, ``sqlalchemy.pool.QueuePool``)."""

_DRIVER = "QueuePool"
_DEFAULT = by_default(_DRIVER)
_QUEUEPOOLS: dict[str, tuple[Any, Source]] = {
    "order": ("fifo", _DEFAULT),  # with pool_use_lifo=True or order="lifo" surplus connections stay unused
    "max_lifetime": (None, _DEFAULT),  # QueuePool has pool_recycle, tested at checkout
    "idle_timeout": (None, _DEFAULT),  # QueuePool keeps pool_size connections forever
    "check_after_idle": (None, _DEFAULT),  # QueuePool never checks without pool_pre_ping
    "max_connecting": (None, _DEFAULT),  # in QueuePool only the size is a limit
    "backoff": (BackoffConfig(cap=1.0), _DEFAULT),  # short: callers wait for its end, and QueuePool has no backoff
}
_UNUSED: dict[str, tuple[Any, str]] = {
    "start": (
        "lazy",
        "create_engine() completes its setup after the pool is created; call engine.pool.poolkit.warm_up() instead",
    ),
}


class EngineConfig(PoolConfig):
    """A configuration without the warning about a check that is not enabled."""

    def doubts(self) -> list[str]:
        checks = self.check_after_idle is not None or self.keepalive is not None
        return [doubt for doubt in super().doubts() if checks or not doubt.startswith("check_timeout=")]


_CHECKS = ("check_after_idle", "keepalive")
_UNCHECKED = "the pool was made without checks; pass check_after_idle= or keepalive= to create_engine()"


def settle(
    pool_size: int,
    max_overflow: int,
    timeout: float | None,
    use_lifo: bool,
    config: PoolConfig | None,
    settings: Mapping[str, Any],
    *,
    barging_window: float | None = None,
    bound_to_thread: str = "",
    no_time_limit: str = "",
) -> PoolConfig:
    """Return the settings of a pool: QueuePool's defaults or ``config``, overridden by arguments and single settings.

    ``barging_window`` is the default of this class. ``bound_to_thread`` is the driver whose connections belong to the
    thread that opens them, if so. ``no_time_limit`` is the reason why the driver cannot be given a
    ``connect_timeout``, if so. Raises ConfigError for a wrong setting, or one that is given twice.
    """
    written = layer_of(config)
    _once("timeout", not is_default(timeout), timeout, "acquire_timeout", settings)
    _once("use_lifo", use_lifo, use_lifo, "order", settings)
    found: dict[str, tuple[Any, Source]] = {"barging_window": (barging_window, DEFAULT)}
    if config is None:
        found |= {**_QUEUEPOOLS, "acquire_timeout": argument(_DRIVER, "timeout", timeout)}
    found["connect_timeout"] = None, by_default("the driver")
    found |= written
    found |= _sizes(pool_size, max_overflow, config, settings)
    if not is_default(timeout):
        found["acquire_timeout"] = timeout, by_argument("timeout")
    if use_lifo:
        found["order"] = "lifo", by_argument("use_lifo")
    unused = {**_UNUSED, "connect_timeout": (None, no_time_limit)} if no_time_limit else _UNUSED
    found |= layer(settings)
    if bound_to_thread:
        found.setdefault("connect_in_caller", (True, by_default(bound_to_thread)))
    elif found.get("acquire_timeout", (None,))[0] == 0:  # as in QueuePool: callers do not wait, but each may connect
        found.setdefault("connect_in_caller", (True, by_default(_DRIVER, "pool_timeout=0")))
    if found["barging_window"][0] is None:  # None means the default of this class
        found["barging_window"] = barging_window, found["barging_window"][1]
    settled = combine(set_aside(found, unused, "SQLAlchemy", portable=("connect_timeout",)), base=EngineConfig())
    if settled.check_after_idle is None and settled.keepalive is None:  # then the pool has no checks, also later
        known = sources_of(settled)
        never = {name: (None, replace(known.get(name, DEFAULT), fixed=_UNCHECKED)) for name in _CHECKS}
        settled = combine(never, base=settled)
    return settled


def well_spelt(kind: type, keywords: dict[str, Any]) -> dict[str, Any]:
    """Return the keywords of a pool made by hand. Raises ConfigError if one is a misspelt setting."""
    refuse_misspelt(keywords, get_cls_kwargs(kind))
    return keywords


def effective(config: PoolConfig) -> PoolConfig:
    """Return the settings that a pool uses if only this config is given."""
    return settle(POOL_SIZE, MAX_OVERFLOW, TIMEOUT, False, config, {})


def _once(argument: str, given: bool, value: object, setting: str, settings: Mapping[str, Any]) -> None:
    if given and setting in settings:
        raise ConfigError(
            f"{argument}={value!r} and {setting}={settings[setting]!r} are the same setting; give only one of them",
            setting,
        )


def _sizes(
    pool_size: int, max_overflow: int, config: PoolConfig | None, settings: Mapping[str, Any]
) -> dict[str, tuple[Any, Source]]:
    """Return QueuePool's two numbers as ``max_size`` and ``max_idle``."""
    size_given, overflow_given = not is_default(pool_size), not is_default(max_overflow)
    _whole("pool_size", pool_size, 0, "0 or more (0: no limit)")
    if pool_size != 0:  # QueuePool ignores max_overflow otherwise
        _whole("max_overflow", max_overflow, -1, "0 or more, or -1 (no limit)")
    _once("max_overflow", overflow_given, max_overflow, "max_size", settings)
    _once("pool_size", size_given, pool_size, "max_idle", settings)
    if config is not None and overflow_given and not size_given:
        raise ConfigError(
            f"max_overflow={max_overflow!r} with config= needs pool_size= too, because it is the number of connections "
            "above pool_size",
            "max_overflow",
        )
    if (config is not None or "max_size" in settings) and not size_given:
        return {}
    unlimited = pool_size == 0
    sizes: dict[str, tuple[Any, Source]] = {}
    if "max_idle" not in settings:
        kept, source = argument(_DRIVER, "pool_size", pool_size)
        sizes["max_idle"] = None if unlimited else kept, source
    if "max_size" not in settings and (config is None or overflow_given):
        most = None if unlimited or max_overflow == -1 else int(pool_size) + int(max_overflow)
        words = "pool_size + max_overflow"
        sizes["max_size"] = most, by_argument(words) if size_given or overflow_given else by_default(_DRIVER, words)
    return sizes


def _whole(name: str, value: object, low: int, right: str) -> None:
    if not is_whole(value, low):
        raise ConfigError(f"{name}={value!r}: must be a whole number, {right}", name)


def fixed(dialect: Any, barging_window: float | None, *, asynchronous: bool) -> dict[str, Any]:
    """Return the arguments of :func:`settle` that the class of the pool and its dialect determine."""
    bound = "sqlite3" if getattr(dialect, "name", "") == "sqlite" and not asynchronous else ""
    return {"barging_window": barging_window, "bound_to_thread": bound}


def queue_sizes(config: PoolConfig) -> tuple[int, int]:
    """Return ``pool_size`` and ``max_overflow`` of a configuration, in QueuePool's terms (0, -1: no limit)."""
    size = config.max_idle if config.max_idle is not None else config.max_size or 0
    return size, -1 if config.max_size is None else config.max_size - size
