"""From QueuePool's arguments and poolkit's settings to one PoolConfig, and what each of them means here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

from sqlalchemy import event

from poolkit import ConfigError, PoolConfig

__all__ = ("MAX_OVERFLOW", "POOL_SIZE", "TIMEOUT", "UNSET", "EngineConfig", "limit_connects", "queue_sizes", "settle")


class _Unset:
    def __repr__(self) -> str:
        return "<not given>"


UNSET: Any = _Unset()


class _Size(int):
    """A default that is known from the same number given by the caller."""


class _Seconds(float):
    """As :class:`_Size`."""


POOL_SIZE = _Size(5)
MAX_OVERFLOW = _Size(10)
TIMEOUT = _Seconds(30.0)
"""QueuePool's defaults (SQLAlchemy 2.1, ``sqlalchemy.pool.QueuePool``)."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig(PoolConfig):
    """A PoolConfig whose defaults are QueuePool's ways; what is poolkit's own is off until asked for."""

    order: Any = "fifo"
    """QueuePool's default; ``pool_use_lifo=True`` or ``order="lifo"`` lets the surplus age."""
    max_lifetime: float | None = None
    """``pool_recycle`` is QueuePool's way, tested at checkout; this one works in the background, with jitter."""
    idle_timeout: float | None = None
    """QueuePool keeps ``pool_size`` connections for ever."""
    check_after_idle: float | None = None
    """QueuePool never checks without ``pool_pre_ping``."""
    connect_timeout: float | None = None
    """The driver's own, as set in ``connect_args``."""
    max_connecting: int | None = None
    """Each caller connects for himself, as under QueuePool: no further limit than the size."""

    def doubts(self) -> list[str]:
        """As of every PoolConfig, but for times that are the driver's here or not in use."""
        skip = []
        if self.connect_timeout is None:
            skip.append("connect_timeout=")
        if self.check_after_idle is None and self.keepalive is None:
            skip.append("check_timeout=")
        return [doubt for doubt in super().doubts() if not doubt.startswith(tuple(skip))] if skip else super().doubts()


_OWN_DEFAULT = PoolConfig()
_OFF = ("max_lifetime", "idle_timeout", "check_after_idle", "connect_timeout", "max_connecting")


def settle(
    pool_size: int,
    max_overflow: int,
    timeout: float | None,
    use_lifo: bool,
    config: PoolConfig | None,
    given: Mapping[str, Any],
) -> tuple[PoolConfig, dict[str, Any]]:
    """The configuration to start from and the settings that were given singly.

    Raises ConfigError where one thing is said twice or cannot be meant.
    """
    settings = {name: value for name, value in given.items() if value is not UNSET}
    if config is not None and not isinstance(config, PoolConfig):
        raise ConfigError(f"config={config!r}: must be a PoolConfig", "config")
    if settings.get("start") == "eager" or (config is not None and config.start == "eager"):
        raise ConfigError(
            "start='eager': create_engine() finishes its set-up only after the pool is made; "
            "call engine.pool.poolkit.warm_up() instead",
            "start",
        )
    _once("timeout", timeout is not TIMEOUT, timeout, "acquire_timeout", settings)
    _once("use_lifo", use_lifo, use_lifo, "order", settings)
    sizes = _sizes(pool_size, max_overflow, config, settings)
    if timeout is not TIMEOUT:
        settings["acquire_timeout"] = timeout
    if use_lifo:
        settings["order"] = "lifo"
    if config is not None:
        return _as_engine_config(config), {**settings, **sizes}
    defaults = {} if pool_size is not POOL_SIZE or max_overflow is not MAX_OVERFLOW else sizes
    base = EngineConfig(**defaults)
    sources = dict.fromkeys(("order", *_OFF, *defaults), "QueuePool's default")
    object.__setattr__(base, "_sources", sources)
    return base, settings if defaults else {**settings, **sizes}


def _once(argument: str, given: bool, value: object, setting: str, settings: Mapping[str, Any]) -> None:
    if given and setting in settings:
        raise ConfigError(
            f"{argument}={value!r} and {setting}={settings[setting]!r} are the same setting: give one of them", setting
        )


def _sizes(pool_size: int, max_overflow: int, config: PoolConfig | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """QueuePool's two numbers as ``max_size`` and ``max_idle``."""
    size_given, overflow_given = pool_size is not POOL_SIZE, max_overflow is not MAX_OVERFLOW
    _whole("pool_size", pool_size, 0, "0 or more (0: no limit)")
    if pool_size != 0:  # QueuePool does not look at it otherwise
        _whole("max_overflow", max_overflow, -1, "0 or more, or -1 (no limit)")
    _once("max_overflow", overflow_given, max_overflow, "max_size", settings)
    _once("pool_size", size_given, pool_size, "max_idle", settings)
    if config is not None and overflow_given and not size_given:
        raise ConfigError(
            f"max_overflow={max_overflow!r} beside config= needs pool_size= too: overflow over what?", "max_overflow"
        )
    if (config is not None or "max_size" in settings) and not size_given:
        return {}
    unlimited = pool_size == 0
    sizes: dict[str, Any] = {}
    if "max_idle" not in settings:
        sizes["max_idle"] = None if unlimited else int(pool_size)
    if "max_size" not in settings and (config is None or overflow_given):
        sizes["max_size"] = None if unlimited or max_overflow == -1 else int(pool_size) + int(max_overflow)
    return sizes


def _whole(name: str, value: object, low: int, right: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(f"{name}={value!r}: must be a whole number, {right}", name)


def _as_engine_config(config: PoolConfig) -> PoolConfig:
    if isinstance(config, EngineConfig):
        return config
    values = {f.name: getattr(config, f.name) for f in fields(PoolConfig)}
    if values["connect_timeout"] == _OWN_DEFAULT.connect_timeout:
        values["connect_timeout"] = None  # untouched: the driver's own stays in force
    made = EngineConfig(**values)
    sources = getattr(config, "_sources", None)  # where poolkit.load() found each value
    if sources is not None:
        object.__setattr__(made, "_sources", sources)
    return made


def queue_sizes(config: PoolConfig) -> tuple[int, int]:
    """``pool_size`` and ``max_overflow`` of a configuration, in QueuePool's terms (0, -1: no limit)."""
    size = config.max_idle if config.max_idle is not None else config.max_size or 0
    return size, -1 if config.max_size is None else config.max_size - size


_CONNECT_ARGUMENT: dict[str, tuple[str, Callable[[float], float]]] = {
    # libpq counts in whole seconds
    "psycopg": ("connect_timeout", math.ceil),
    "psycopg_async": ("connect_timeout", math.ceil),
    "psycopg2": ("connect_timeout", math.ceil),
    "asyncpg": ("timeout", float),
    "pymysql": ("connect_timeout", float),
    "mysqldb": ("connect_timeout", math.ceil),
}
"""The drivers whose own argument for the time to connect is known, and its unit."""


def limit_connects(dialect: Any, creator: Any, seconds: float) -> None:
    """Let ``connect_timeout`` bound each connect, through the driver's own argument.

    What stands in ``connect_args`` wins. ConfigError where there is no way to tell the driver.
    """
    known = _CONNECT_ARGUMENT.get(getattr(dialect, "driver", ""))
    if known is None or getattr(creator, "__module__", "") != "sqlalchemy.engine.create":
        who = f"the driver {getattr(dialect, 'driver', '?')!r}" if known is None else "your own creator="
        raise ConfigError(
            f"connect_timeout={seconds!r}: {who} opens the connections; set the time there (connect_args=...)",
            "connect_timeout",
        )
    argument, unit = known
    event.listen(dialect, "do_connect", _listener(argument, unit(seconds)))


@lru_cache
def _listener(argument: str, value: float) -> Callable[..., None]:
    """The same function for the same limit, so that a recreated pool does not listen twice."""

    def set_limit(dialect: Any, record: Any, arguments: Any, keywords: dict[str, Any]) -> None:
        keywords.setdefault(argument, value)

    return set_limit
