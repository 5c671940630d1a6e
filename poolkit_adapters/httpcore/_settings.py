"""How httpcore's arguments become poolkit's settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpcore

from poolkit import BackoffConfig, ConfigError, PoolConfig
from poolkit.config import Source
from poolkit.settings import combine, layer, layer_of, set_aside

from .._options import argument, by_default, driver_default, is_default, refuse_contradiction

__all__ = ("MAX_CONNECTIONS", "check_ways", "effective", "pool_settings")

MAX_CONNECTIONS: int = driver_default(10)
"""httpcore's default; its other limits are None."""

_TWINS = {"max_size": "max_connections", "max_idle": "max_keepalive_connections", "idle_timeout": "keepalive_expiry"}

_ORIGINS = "means nothing for HTTP: connections belong to origins, and which will be asked for is not known beforehand"
_ALIVE = "means nothing for HTTP: it has no question that asks for a sign of life only; idle ones are watched by looks"
_ATTEMPTS = (
    "means nothing for HTTP: each request makes its own attempts to connect (retries=); use breaker= to spare a dead "
    "server"
)
_UNUSED: dict[str, tuple[Any, str]] = {
    "min_size": (0, _ORIGINS),
    "start": ("lazy", _ORIGINS),
    "keepalive": (None, _ALIVE),
    "backoff": (BackoffConfig(), _ATTEMPTS),
}


def check_ways(
    proxy: httpcore.Proxy | None, *, retries: int, local_address: str | None, uds: str | None, socket_options: Any
) -> None:
    """Refuse what does not go together with a proxy; httpcore ignores it silently."""
    if proxy is None:
        return
    given: dict[str, Any] = {"uds": uds}
    if proxy.url.scheme.startswith(b"socks"):
        given.update(retries=retries or None, local_address=local_address, socket_options=socket_options)
    for name, value in given.items():
        if value is not None:
            kind = "a proxy" if name == "uds" else "a SOCKS proxy"
            raise ConfigError(f"{name}={value!r}: has no effect with {kind}; leave it out, or the proxy", name)


def pool_settings(
    driver: Mapping[str, Any], config: PoolConfig | None, keywords: Mapping[str, Any], name: str = "httpcore"
) -> PoolConfig:
    """The settings of a pool out of httpcore's arguments, ``config`` and single keywords.

    ``driver``: the three arguments. One that was left alone, or is None, gives way to a setting in poolkit's words;
    one that was given and contradicts such a setting is a ConfigError, as is a setting that means nothing for HTTP.
    ``name``: of the driver whose defaults these are.
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
        translated["max_idle"] = most, source  # or no smaller max_size could be given without a max_idle
    own = dict.fromkeys(("acquire_timeout", "connect_timeout", "max_connecting"), (None, by_default(name)))
    return combine({**own, **translated, **set_aside(given, _UNUSED, name)}, base=config)


def effective(config: PoolConfig) -> PoolConfig:
    """What a pool makes of a config, with nothing else given."""
    return pool_settings({**dict.fromkeys(_TWINS.values()), "max_connections": MAX_CONNECTIONS}, config, {})


def _translated(driver: Mapping[str, Any], name: str) -> dict[str, tuple[Any, Source]]:
    limit, kept, expiry = driver["max_connections"], driver["max_keepalive_connections"], driver["keepalive_expiry"]
    _whole("max_connections", limit, 1)
    _whole("max_keepalive_connections", kept, 0)
    if expiry is not None and (isinstance(expiry, bool) or not isinstance(expiry, (int, float)) or not expiry >= 0):
        raise ConfigError(
            f"keepalive_expiry={expiry!r}: must be a time in seconds, 0 or more (or None: never)", "keepalive_expiry"
        )
    found = {
        setting: (None, by_default(name, word)) if driver[word] is None else argument(name, word, driver[word])
        for setting, word in _TWINS.items()
    }
    if expiry == 0:  # an idle connection has expired at once: none is kept
        source = found["idle_timeout"][1]
        return {**found, "max_idle": (0, source), "idle_timeout": (None, source)}
    return found


def _whole(name: str, value: object, low: int) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < low):
        raise ConfigError(f"{name}={value!r}: must be a whole number, {low} or more (or None: no limit)", name)
