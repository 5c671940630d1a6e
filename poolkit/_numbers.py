"""Numbers and times that are given as arguments or settings: one rule for all."""

from __future__ import annotations

import math
import sys
from typing import TypeGuard

from .errors import ConfigError

__all__ = ("LONGEST", "bad", "given", "is_number", "is_seconds", "is_whole", "seconds", "whole")

LONGEST = 30 * 86400.0
"""Seconds: the longest time for waits that repeat. The waits of some systems end after 49 days at the latest."""


def is_number(value: object) -> TypeGuard[float]:
    """Whether ``value`` is an int or a float (also NaN or infinity). An integer beyond all floats is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, float) or abs(value) <= sys.float_info.max


def given(value: object) -> str:
    """The text of an invalid value. Python refuses to write an integer with thousands of digits."""
    return "(an integer beyond all floats)" if isinstance(value, int) and not is_number(int(value)) else repr(value)


def bad(setting: str, value: object, right: str) -> ConfigError:
    """The error for an invalid value. ``right``: what would be right."""
    return ConfigError(f"{setting}={given(value)}: must be {right}", setting.rpartition(".")[2])


def is_seconds(value: object) -> TypeGuard[float]:
    """Whether ``value`` is a time: a number, 0 or more, or infinity."""
    return is_number(value) and value >= 0


def is_whole(value: object, least: int = 0) -> TypeGuard[int]:
    """Whether ``value`` is an int (no bool), ``least`` or more."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def whole(name: str, value: object, least: int, *, none: str | None = None) -> None:
    """Raise ConfigError unless ``value`` is a whole number, ``least`` or more. ``none``: as for :func:`seconds`."""
    if is_whole(value, least) or (value is None and none is not None):
        return
    raise bad(name, value, f"a whole number, {least} or more" + (f" (or None: {none})" if none else ""))


def seconds(
    name: str, value: object, *, least: float = 0.0, above: bool = False, most: float = LONGEST, none: str | None = None
) -> None:
    """Raise ConfigError unless ``value`` is a time in seconds within these limits. ``above``: more than ``least``.

    ``none``: what None means; None: it is not allowed.
    """
    if value is None and none is not None:
        return
    if is_seconds(value) and least <= value <= most and not (above and value == least):
        return
    right = f"a time in seconds, {f'above {least:g}' if above else f'{least:g} or more'}"
    right += f", at most {most / 86400:g} days" if most < math.inf else ""
    raise bad(name, value, right + (f" (or None: {none})" if none else ""))
