"""Applies poolkit's settings to a PEP 249 module."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from poolkit import PoolConfig
from poolkit.config import Source
from poolkit.settings import combine, layer, layer_of, set_aside, without_effect

from .._options import refuse_misspelt
from ._connector import TIMEOUT_ARGUMENTS, timeout_argument

__all__ = ("check_keywords", "effective", "plan")


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


_RESEMBLING = frozenset({*TIMEOUT_ARGUMENTS.values(), "keepalives"})
"""Keywords of known modules that resemble a setting."""


def check_keywords(module: ModuleType, keywords: Mapping[str, Any]) -> None:
    """Raise ConfigError for a keyword of ``module.connect`` that is probably a misspelt setting."""
    try:
        known = frozenset(inspect.signature(module.connect).parameters) | _RESEMBLING
    except (TypeError, ValueError):
        known = _RESEMBLING
    instead = f" If it is an argument of {module.__name__}.connect(), pass it in connect_kwargs="
    refuse_misspelt(keywords, known, instead)
