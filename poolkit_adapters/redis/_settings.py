"""Combines redis-py's arguments and poolkit's settings into one configuration of the engine."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

from poolkit import BackoffConfig, ConfigError, PoolConfig
from poolkit.config import Source
from poolkit.settings import Layer, combine, layer, layer_of, set_aside

from .._options import (
    SETTINGS,
    argument,
    by_argument,
    by_default,
    driver_default,
    is_default,
    refuse_contradiction,
)
from ._driver import DRIVER, Connection

__all__ = (
    "DEFAULT_LIMIT",
    "DEFAULT_TIMEOUT",
    "effective",
    "from_text",
    "plan",
    "settle_connect_timeout",
    "warn_arguments",
)

DEFAULT_LIMIT: int = driver_default(50)
DEFAULT_TIMEOUT: float = driver_default(20)
_OWN = Source("the adapter's default", written=False)


class _RedisConfig(PoolConfig):
    """A configuration without the warnings that do not apply here.

    A connect has the driver's own time limit besides ``timeout``, and a checkout sends the server nothing unless
    ``check_after_idle`` is set.
    """

    def doubts(self) -> list[str]:
        mute = ("connect_timeout=", "check_timeout=") if self.check_after_idle is None else ("connect_timeout=",)
        return [doubt for doubt in super().doubts() if not doubt.startswith(mute)]


def plan(
    config: PoolConfig | None,
    settings: Mapping[str, Any],
    connect_timeout: tuple[Any, Source] | None,
    *,
    limit: Any,
    timeout: Any,
    queue_class: Any,
    unused: Mapping[str, tuple[Any, str]],
) -> PoolConfig:
    """Return the settings of a pool from redis-py's arguments, ``config`` and single keywords.

    ``limit`` and ``timeout`` are redis-py's ``max_connections`` and ``timeout``. If they were not given, ``max_size``
    and ``acquire_timeout`` apply; if both were given for this pool, they must agree. ``connect_timeout`` is the result
    of :func:`settle_connect_timeout`. ``unused`` holds the settings that cannot apply to this class of pool.
    """
    given = {**layer_of(config), **layer(settings)}
    driver: dict[str, tuple[Any, Source]] = {
        "check_after_idle": (None, _OWN),  # looking at the socket is cheaper
        "backoff": (BackoffConfig(cap=1.0), _OWN),  # short: callers wait for its end, and redis-py has no backoff
    }
    for setting, word, value in (("max_size", "max_connections", limit), ("acquire_timeout", "timeout", timeout)):
        driver[setting] = argument(DRIVER, word, value)
        if not is_default(value):
            refuse_contradiction(word, value, setting, given)
            given.pop(setting, None)
    order = _order(queue_class)
    if order == "fifo":  # LifoQueue is redis-py's default, so possibly nobody chose it
        refuse_contradiction("queue_class", order, "order", given)
        driver["order"] = order, by_argument("queue_class")
        given.pop("order", None)
    wait, _ = given.get("acquire_timeout", driver["acquire_timeout"])
    if wait == 0:
        driver["max_connecting"] = None, _OWN  # a caller that never waits must not fail because others connect
        reason = "a caller that does not wait has to open its own connection"
        given = set_aside(given, {"connect_in_caller": (True, reason)}, "timeout=0", origin="required by", fixed=False)
    if connect_timeout is not None:
        given["connect_timeout"] = connect_timeout
    return combine({**driver, **set_aside(given, unused, DRIVER)}, base=_RedisConfig())


def effective(config: PoolConfig) -> PoolConfig:
    """Return the settings that a pool uses if only this config is given."""
    from queue import LifoQueue

    time = settle_connect_timeout(layer_of(config), {}, Connection)
    return plan(config, {}, time, limit=DEFAULT_LIMIT, timeout=DEFAULT_TIMEOUT, queue_class=LifoQueue, unused={})


def _order(queue_class: Any) -> str:
    """Return the order of idle connections that a queue class of redis-py stands for."""
    name = getattr(queue_class, "__name__", "")
    if name.endswith("LifoQueue"):
        return "lifo"
    if name in ("Queue", "SimpleQueue"):
        return "fifo"
    raise ConfigError(
        f"queue_class={queue_class!r} is not supported, because poolkit keeps the idle connections itself; use "
        "LifoQueue (order='lifo') or Queue (order='fifo')",
        "queue_class",
    )


def settle_connect_timeout(given: Layer, driver: dict[str, Any], connection_class: Any) -> tuple[Any, Source] | None:
    """Pass ``connect_timeout`` on as redis-py's ``socket_connect_timeout``, and return the value that applies.

    Returns None if redis-py has no limit, so that the engine's default applies to the connections that it opens itself.
    """
    theirs = driver.get("socket_connect_timeout")
    if theirs is not None:
        refuse_contradiction("socket_connect_timeout", theirs, "connect_timeout", given)
        return _time(theirs, by_argument("socket_connect_timeout"))
    if "connect_timeout" in given and given["connect_timeout"][1].written:
        driver["socket_connect_timeout"] = given["connect_timeout"][0]
        return given["connect_timeout"]
    return _time(_own_connect_timeout(connection_class), by_default(DRIVER, "socket_connect_timeout"))


def _time(value: Any, source: Source) -> tuple[Any, Source] | None:
    return (value, source) if isinstance(value, (int, float)) and value > 0 else None


def _own_connect_timeout(connection_class: Any) -> Any:
    for kind in getattr(connection_class, "__mro__", ()):
        if "__init__" in vars(kind):
            known = inspect.signature(kind.__init__).parameters
            if "socket_connect_timeout" in known:
                return known["socket_connect_timeout"].default
    return None


def from_text(options: Mapping[str, Any]) -> dict[str, Any]:
    """Convert poolkit's settings from a URL's query, where every value is a string, to numbers."""
    return {
        name: _number(value) if name in SETTINGS and isinstance(value, str) else value
        for name, value in options.items()
    }


def _number(text: str) -> Any:
    if text.strip().lower() == "none":
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def warn_arguments() -> None:
    """Warn about arguments of ``get_connection()``, which redis-py deprecated in 5.3."""
    warnings.warn(
        "arguments of get_connection() are deprecated since redis-py 5.3 and are ignored; call it without arguments",
        DeprecationWarning,
        stacklevel=3,
    )
