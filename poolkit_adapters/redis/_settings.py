"""From redis-py's arguments and poolkit's settings to one configuration of the engine."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

from poolkit import ConfigError, PoolConfig
from poolkit_adapters._options import SETTINGS

__all__ = ("DEFAULT_LIMIT", "DEFAULT_TIMEOUT", "from_text", "plan", "settle_connect_timeout", "warn_arguments")

DEFAULT_LIMIT = 50
DEFAULT_TIMEOUT = 20
_DEFAULTS = PoolConfig()


class _RedisConfig(PoolConfig):
    """Without the doubts that do not apply here: a connect has the driver's own time beside ``timeout``, and a
    checkout asks the server nothing unless ``check_after_idle`` is set.
    """

    def doubts(self) -> list[str]:
        mute = ("connect_timeout=", "check_timeout=") if self.check_after_idle is None else ("connect_timeout=",)
        return [doubt for doubt in super().doubts() if not doubt.startswith(mute)]


def plan(
    config: PoolConfig | None, settings: Mapping[str, Any], *, limit: Any, timeout: Any, queue_class: Any
) -> tuple[PoolConfig, dict[str, Any]]:
    """``(config, keywords)`` for the engine.

    ``limit`` and ``timeout`` are ``max_connections`` and ``timeout`` as the caller gave them: where they stand at
    redis-py's defaults, ``max_size`` and ``acquire_timeout`` count; where both are given they must agree.
    """
    base = _as_redis_config(config)
    keywords = dict(settings)
    _merge(base, keywords, "max_size", "max_connections", limit, DEFAULT_LIMIT)
    _merge(base, keywords, "acquire_timeout", "timeout", timeout, DEFAULT_TIMEOUT)
    order = _order(queue_class)
    if order == "fifo":
        keywords.setdefault("order", order)
    given = {name for name in SETTINGS if getattr(base, name) != getattr(_DEFAULTS, name)}
    if "check_after_idle" not in given:
        keywords.setdefault("check_after_idle", None)  # each checkout looks at the socket, which is cheaper
    if keywords["acquire_timeout"] == 0 and "max_connecting" not in given:
        keywords.setdefault("max_connecting", None)  # who never waits must not fail for want of a turn to connect
    return base, keywords


def _as_redis_config(config: PoolConfig | None) -> PoolConfig:
    base = copy.copy(config or _DEFAULTS)
    object.__setattr__(base, "__class__", _RedisConfig)
    return base


def _merge(base: PoolConfig, keywords: dict[str, Any], setting: str, argument: str, value: Any, default: Any) -> None:
    """``keywords[setting]`` from the driver's argument and poolkit's setting for one and the same thing."""
    other = keywords.get(setting, getattr(base, setting))
    theirs = setting in keywords or other != getattr(_DEFAULTS, setting)
    if not theirs or other == value:
        keywords[setting] = value
    elif value == default:
        keywords[setting] = other
    else:
        raise ConfigError(
            f"{setting}={other!r}: contradicts {argument}={value!r}, which means the same; give one of them", setting
        )


def _order(queue_class: Any) -> str:
    """What the class of redis-py's queue says about the order of idle connections."""
    name = getattr(queue_class, "__name__", "")
    if name.endswith("LifoQueue"):
        return "lifo"
    if name in ("Queue", "SimpleQueue"):
        return "fifo"
    raise ConfigError(
        f"queue_class={queue_class!r}: poolkit keeps the idle connections itself; give LifoQueue (order='lifo') or "
        "Queue (order='fifo')",
        "queue_class",
    )


def settle_connect_timeout(config: PoolConfig | None, settings: Mapping[str, Any], driver: dict[str, Any]) -> None:
    """The engine's ``connect_timeout`` is redis-py's ``socket_connect_timeout``."""
    if config is not None and not isinstance(config, PoolConfig):
        raise ConfigError(f"config={config!r}: must be a PoolConfig", "config")
    if "connect_timeout" in settings:
        value = settings["connect_timeout"]
    elif config is not None and config.connect_timeout != _DEFAULTS.connect_timeout:
        value = config.connect_timeout
    else:
        return
    if driver.setdefault("socket_connect_timeout", value) != value:
        raise ConfigError(
            f"connect_timeout={value!r}: contradicts socket_connect_timeout={driver['socket_connect_timeout']!r}, "
            "which means the same; give one of them",
            "connect_timeout",
        )


def from_text(options: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of poolkit in a URL's query, where every value is a text, as numbers."""
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
    """``get_connection()`` was called as before redis-py 5.3."""
    warnings.warn("get_connection() needs no arguments since redis-py 5.3", DeprecationWarning, stacklevel=3)
