"""Converts httpcore's arguments to poolkit's settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from poolkit import BackoffConfig, ConfigError, PoolConfig
from poolkit.config import Source, seconds, whole
from poolkit.settings import combine, layer, layer_of, set_aside

from .._options import argument, by_default, driver_default, is_default, refuse_contradiction
from ._driver import DRIVER, httpcore

__all__ = ("MAX_CONNECTIONS", "check_proxy_arguments", "effective", "pool_settings")

MAX_CONNECTIONS: int = driver_default(10)
"""httpcore's default. Its other limits default to None."""

_TWINS = {"max_size": "max_connections", "max_idle": "max_keepalive_connections", "idle_timeout": "keepalive_expiry"}

_BY_ORIGIN = "has no effect for HTTP: connections belong to origins, which are unknown before the first request"
_ALIVE = "has no effect for HTTP, which has no ping; poolkit checks the sockets of idle connections instead"
_BACKOFF = BackoffConfig(base=0.01, cap=0.1)
"""Seconds between failed connects, by default. Requests are told of a failed connect at once, and users of httpcore
expect the same of the next request."""
_UNUSED: dict[str, tuple[Any, str]] = {
    "min_size": (0, _BY_ORIGIN),
    "start": ("lazy", _BY_ORIGIN),
    "keepalive": (None, _ALIVE),
}


def check_proxy_arguments(
    proxy: httpcore.Proxy | None, *, retries: int, local_address: str | None, uds: str | None, socket_options: Any
) -> None:
    """Refuse arguments that cannot be combined with a proxy. httpcore ignores them silently."""
    if proxy is None:
        return
    given: dict[str, Any] = {"uds": uds}
    if proxy.url.scheme.startswith(b"socks"):
        given.update(retries=retries or None, local_address=local_address, socket_options=socket_options)
    for name, value in given.items():
        if value is not None:
            kind = "a proxy" if name == "uds" else "a SOCKS proxy"
            raise ConfigError(f"{name}={value!r}: has no effect with {kind}; remove it or the proxy", name)


def pool_settings(
    driver: Mapping[str, Any], config: PoolConfig | None, keywords: Mapping[str, Any], name: str = DRIVER
) -> PoolConfig:
    """Return the settings of a pool from httpcore's arguments, ``config`` and single keywords.

    ``driver`` holds the three arguments. A setting of poolkit overrides an argument that was not given or is None.
    Raises ConfigError for an argument that contradicts a setting, and for a setting that has no effect for HTTP.
    ``name`` is the driver whose defaults these are.
    """
    given = {**layer_of(config), **layer(keywords)}
    translated = _translated(driver, name)
    for setting, word in _TWINS.items():
        if driver[word] is not None and not is_default(driver[word]):
            refuse_contradiction(word, driver[word], setting, given)
            given.pop(setting, None)
    most = given["max_size"][0] if "max_size" in given else translated["max_size"][0]
    kept, source = translated["max_idle"]
    if kept is not None and isinstance(most, int) and kept > most and "max_idle" not in given:
        translated["max_idle"] = most, source  # so that a smaller max_size needs no max_idle
    own: dict[str, Any] = dict.fromkeys(
        ("acquire_timeout", "connect_timeout", "max_connecting"), (None, by_default(name))
    )
    own["backoff"] = _BACKOFF, by_default(name)
    return combine({**own, **translated, **set_aside(given, _UNUSED, name)}, base=config)


def effective(config: PoolConfig) -> PoolConfig:
    """Return the settings that a pool uses if only this config is given."""
    return pool_settings({**dict.fromkeys(_TWINS.values()), "max_connections": MAX_CONNECTIONS}, config, {})


def _translated(driver: Mapping[str, Any], name: str) -> dict[str, tuple[Any, Source]]:
    limit, kept, expiry = driver["max_connections"], driver["max_keepalive_connections"], driver["keepalive_expiry"]
    whole("max_connections", limit, 1, none="no limit")
    whole("max_keepalive_connections", kept, 0, none="no limit")
    seconds("keepalive_expiry", expiry, most=math.inf, none="never")
    found = {
        setting: (None, by_default(name, word)) if driver[word] is None else argument(name, word, driver[word])
        for setting, word in _TWINS.items()
    }
    if expiry == 0:  # idle connections expire at once, so keep none
        source = found["idle_timeout"][1]
        return {**found, "max_idle": (0, source), "idle_timeout": (None, source)}
    return found
