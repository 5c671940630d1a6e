"""The settings in effect with an adapter, computed by the adapter itself without connecting anywhere."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from importlib import import_module

from poolkit import ConfigError, PoolConfig
from poolkit.config import sources_of

from ._checks import Finding

__all__ = ("ADAPTERS", "assumed", "under")

ADAPTERS: dict[str, str] = {
    "sqlalchemy": "poolkit_adapters.sqlalchemy._settings",
    "redis": "poolkit_adapters.redis._settings",
    "valkey": "poolkit_adapters.valkey._settings",
    "httpx": "poolkit_adapters.httpx._transport",
    "httpcore": "poolkit_adapters.httpcore._settings",
    "httpx2": "poolkit_adapters.httpx2._transport",
    "httpcore2": "poolkit_adapters.httpcore2._settings",
    "psycopg": "poolkit_adapters.psycopg._config",
    "asyncpg": "poolkit_adapters.asyncpg._settings",
    "urllib3": "poolkit_adapters.urllib3._settings",
    "requests": "poolkit_adapters.requests._adapter",
    "dbapi": "poolkit_adapters.dbapi._settings",
}
"""By adapter, the module that has ``effective(config)``."""

_OF_SCHEMES = {
    "redis": "redis", "rediss": "redis", "valkey": "valkey", "valkeys": "valkey", "http": "httpx", "https": "httpx",
}  # fmt: skip


def assumed(adapter: str | None, url: str | None) -> tuple[str | None, str]:
    """The adapter, from ``--adapter`` or the URL, and a sentence that says which one it is."""
    if adapter is not None:
        return adapter, f"for pools of poolkit_adapters.{adapter}"
    scheme = (url or "").partition("://")[0].lower()
    guess = "sqlalchemy" if "+" in scheme else _OF_SCHEMES.get(scheme)
    if guess is not None:
        return guess, f"for pools of poolkit_adapters.{guess}, chosen by the URL (--adapter selects another one)"
    names = ", ".join(ADAPTERS)
    return None, f"for pools of the engine itself; --adapter NAME shows the settings with an adapter ({names})"


def under(adapter: str | None, title: str, config: PoolConfig) -> tuple[PoolConfig, list[Finding]]:
    """The settings in effect, and findings for those that the adapter refuses or ignores.

    Raises MissingExtra without the driver.
    """
    if adapter is None:
        return config, []
    effective = import_module(ADAPTERS[adapter]).effective
    log = logging.getLogger("poolkit")
    silent, log.disabled = log.disabled, True  # the findings contain the ignored settings, so do not log them too
    try:
        found: PoolConfig = effective(config)
    except ConfigError as error:
        return config, [Finding("error", title, str(error))]
    finally:
        log.disabled = silent
    return found, [Finding("warning", title, text) for text in _set_aside(config, found)]


def _set_aside(config: PoolConfig, found: PoolConfig) -> Iterator[str]:
    """A sentence for each setting that was set for all pools but is not used by this adapter."""
    before, after = sources_of(config), sources_of(found)
    for name, source in before.items():
        if source.written and not after[name].written:
            asked = f"{name}={getattr(config, name)!r} (from {source.text})"
            yield f"{asked} is ignored: this adapter does not use {name}; {getattr(found, name)!r} is in effect"
