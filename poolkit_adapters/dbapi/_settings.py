"""What poolkit's settings mean for a PEP 249 module."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from poolkit import PoolConfig
from poolkit.settings import combine, layer, layer_of, set_aside, without_effect

from ._connector import timeout_argument

__all__ = ("effective", "plan")


def plan(module: ModuleType, config: PoolConfig | None, settings: Mapping[str, Any], *, asks: bool) -> PoolConfig:
    """The settings of a pool. ``asks``: whether the user has given a ``check``."""
    found: Mapping[str, tuple[Any, Any]] = {**layer_of(config), **layer(settings)}
    name = module.__name__
    if timeout_argument(module) is None:
        reason = (
            f"{name}.connect() has no time limit for connecting that poolkit knows of; use connect_kwargs= if there is "
            "one"
        )
        found = set_aside(found, {"connect_timeout": (None, reason)}, name, portable=("connect_timeout",))
    if name == "sqlite3" and not asks:
        found = without_effect(found, ("check_timeout", "check_after_idle", "keepalive"), "no server to ask", name)
    return combine(found, base=config)


def effective(config: PoolConfig) -> PoolConfig:
    """What a pool makes of a config, under a module that has a time limit for connecting."""
    return combine(layer_of(config), base=config)
