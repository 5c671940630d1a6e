"""Tell poolkit's own settings from the driver's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from poolkit import PoolConfig

__all__ = ("SETTINGS", "split_options")

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
