"""Tell poolkit's own settings from the driver's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from poolkit import PoolConfig

__all__ = ("SETTINGS", "quiet", "split_options")

SETTINGS: frozenset[str] = frozenset(field.name for field in fields(PoolConfig))
"""The names of all settings of :class:`~poolkit.PoolConfig`."""


def split_options(
    options: Mapping[str, Any], *, driver: frozenset[str] | set[str] = frozenset()
) -> tuple[dict[str, Any], dict[str, Any]]:
    """``(settings, rest)``: poolkit's settings among ``options``, and what is for the driver.

    ``driver``: names that both know and that mean the driver's argument here.
    """
    settings = {name: value for name, value in options.items() if name in SETTINGS and name not in driver}
    return settings, {name: value for name, value in options.items() if name not in settings}


class _QuietConfig(PoolConfig):
    """Doubts nothing that nobody has chosen: a default overtaken by a short timeout simply has no effect."""

    def doubts(self) -> list[str]:
        default = PoolConfig()
        chosen = {name for name in SETTINGS if getattr(self, name) != getattr(default, name)}
        return [doubt for doubt in super().doubts() if doubt.partition("=")[0] in chosen]


class _DriverConnectConfig(_QuietConfig):
    """The time for connecting was chosen in the driver's own words."""

    def doubts(self) -> list[str]:
        return [doubt for doubt in super().doubts() if not doubt.startswith("connect_timeout=")]


def quiet(config: PoolConfig | None, *, connect_timeout: bool = True) -> PoolConfig:
    """The same settings, of which only those that differ from their defaults are ever warned about.

    ``connect_timeout=False``: not about that one either.
    """
    kind = _QuietConfig if connect_timeout else _DriverConnectConfig
    if config is None:
        return kind()
    copy = kind(**{name: getattr(config, name) for name in SETTINGS})
    sources = getattr(config, "_sources", None)  # where poolkit.load() found them
    if sources is not None:
        object.__setattr__(copy, "_sources", sources)
    return copy
