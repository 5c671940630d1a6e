"""Applies poolkit's settings to a PEP 249 module."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from poolkit import ConfigError, PoolConfig
from poolkit.config import Source
from poolkit.settings import combine, layer, layer_of, set_aside, without_effect

from .._options import SETTINGS
from ._connector import TIMEOUT_ARGUMENTS, timeout_argument

__all__ = ("effective", "plan", "refuse_misspelt")


def plan(module: ModuleType, config: PoolConfig | None, settings: Mapping[str, Any], *, asks: bool) -> PoolConfig:
    """Return the settings of a pool. ``asks``: whether the user gave a ``check``."""
    found: Mapping[str, tuple[Any, Any]] = {**layer_of(config), **layer(settings)}
    name = module.__name__
    if timeout_argument(module) is None:
        reason = f"poolkit knows of no connect timeout of {name}.connect(); if there is one, pass it in connect_kwargs="
        found = set_aside(found, {"connect_timeout": (None, reason)}, name, portable=("connect_timeout",))
    if name == "sqlite3":  # it opens a file, for which no thread is worth waiting
        found = {"connect_in_caller": (True, Source("default for sqlite3", written=False)), **found}
    if name == "sqlite3" and not asks:
        found = without_effect(
            found, ("check_timeout", "check_after_idle", "keepalive"), "it has no server to check", name
        )
    return combine(found, base=config)


def effective(config: PoolConfig) -> PoolConfig:
    """Return the settings that a pool uses with this config, for a module that has a connect timeout."""
    return combine(layer_of(config), base=config)


_NEARLY = 0.85
"""Similarity from which a keyword counts as a misspelt setting: ``max_sise`` does, ``socket_timeout`` does not."""
_RESEMBLING = frozenset({*TIMEOUT_ARGUMENTS.values(), "keepalives"})
"""Keywords of known modules that resemble a setting."""


def refuse_misspelt(module: ModuleType, keywords: Mapping[str, Any]) -> None:
    """Raise ConfigError for a keyword of ``module.connect`` that is probably a misspelt setting.

    Without this, the module would refuse it in the first connect. A module may know more names than its signature has.
    """
    from difflib import get_close_matches  # imported only when a pool is created

    try:
        known = frozenset(inspect.signature(module.connect).parameters) | _RESEMBLING
    except (TypeError, ValueError):
        known = _RESEMBLING
    for name in keywords.keys() - known:
        close = get_close_matches(name, SETTINGS, 1, _NEARLY)
        if close:
            raise ConfigError(
                f"{name}: no such setting; did you mean {close[0]!r}? If it is an argument of "
                f"{module.__name__}.connect(), pass it in connect_kwargs=",
                name,
            )
