"""How httpcore's arguments become poolkit's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from poolkit import ConfigError, PoolConfig

__all__ = ("pool_settings",)

_DEFAULTS: dict[str, tuple[object, ...]] = {
    "max_connections": (10, 100),
    "max_keepalive_connections": (None, 20),
    "keepalive_expiry": (None, 5.0),
}
"""httpcore's default and httpx's: whoever leaves it at that has said nothing."""

_MEANINGLESS = {
    "min_size": "connections belong to origins, and which ones will be asked for is not known beforehand",
    "start": "connections belong to origins, and which ones will be asked for is not known beforehand",
    "keepalive": "HTTP has no question that asks for a sign of life only; idle connections are watched by looks",
    "backoff": "each request makes its own attempts to connect (retries=); use breaker= to spare a dead server",
}


def pool_settings(driver: Mapping[str, Any], config: PoolConfig | None, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The settings to give to the pool beside ``config``.

    httpcore's arguments come first, what the user says in poolkit's words wins over them, and a contradiction
    between the two is a ConfigError, as is a setting that cannot mean anything for HTTP.
    """
    plain = PoolConfig()
    given = dict(keywords)
    if isinstance(config, PoolConfig):
        for field in fields(PoolConfig):
            if getattr(config, field.name) != getattr(plain, field.name):
                given.setdefault(field.name, getattr(config, field.name))
    for name, reason in _MEANINGLESS.items():
        if name in given and given[name] != getattr(plain, name):
            raise ConfigError(f"{name}={given[name]!r}: means nothing for HTTP: {reason}", name)
    settings: dict[str, Any] = {"acquire_timeout": None, "connect_timeout": None, "max_connecting": None}
    settings.update(_translated(driver))
    sources = {
        "max_size": "max_connections",
        "max_idle": "max_keepalive_connections",
        "idle_timeout": "keepalive_expiry",
    }
    for name, argument in sources.items():
        if name in given and driver[argument] not in _DEFAULTS[argument] and given[name] != settings.get(name):
            raise ConfigError(
                f"{argument}={driver[argument]!r} and {name}={given[name]!r}: two words for one setting; give one", name
            )
    if given.get("max_size") is not None and settings["max_idle"] is not None and "max_idle" not in given:
        settings["max_idle"] = min(settings["max_idle"], given["max_size"])
    for name in given:
        settings.pop(name, None)
    return {**settings, **keywords}


def _translated(driver: Mapping[str, Any]) -> dict[str, Any]:
    limit, kept, expiry = driver["max_connections"], driver["max_keepalive_connections"], driver["keepalive_expiry"]
    _whole("max_connections", limit, 1)
    _whole("max_keepalive_connections", kept, 0)
    if expiry is not None and (isinstance(expiry, bool) or not isinstance(expiry, (int, float)) or not expiry >= 0):
        raise ConfigError(
            f"keepalive_expiry={expiry!r}: must be a time in seconds, 0 or more (or None: never)", "keepalive_expiry"
        )
    if expiry == 0:  # an idle connection has expired at once: none is kept
        return {"max_size": limit, "max_idle": 0, "idle_timeout": None}
    if kept is not None and limit is not None:
        kept = min(kept, limit)
    return {"max_size": limit, "max_idle": kept, "idle_timeout": expiry}


def _whole(name: str, value: object, low: int) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < low):
        raise ConfigError(f"{name}={value!r}: must be a whole number, {low} or more (or None: no limit)", name)
