"""Parameter types for rates and times with units: 500/s, 20ms."""

from __future__ import annotations

import math
import re
from typing import Any

import click

from poolkit._numbers import LONGEST

__all__ = ("DURATION", "RATE")

_SECONDS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_NUMBER = r"\s*([0-9.]+(?:e[+-]?\d+)?)\s*"


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < math.inf else None


class _Rate(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the rate per second."""
        if isinstance(value, float):
            return value
        found = re.fullmatch(_NUMBER + r"(?:/\s*(\w+)\s*)?", str(value), re.IGNORECASE)
        number = _number(found[1]) if found else None
        unit = (found[2] or "s").lower() if found else ""
        if number is None or unit not in ("s", "sec", "m", "min", "h"):
            self.fail(f"{value!r}: must be a rate above 0, such as 500/s, 30000/min or 20/h", param, ctx)
        return number / _SECONDS[unit]


class _Duration(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the time in seconds."""
        if isinstance(value, float):
            return value
        found = re.fullmatch(_NUMBER + r"([a-zµ]+)\s*", str(value), re.IGNORECASE)
        number = _number(found[1]) if found else None
        unit = found[2].lower() if found else ""
        if number is None or unit not in _SECONDS or number * _SECONDS[unit] > LONGEST:
            right = "a time above 0 with its unit, such as 20ms, 0.5s or 150us, at most 720h"
            self.fail(f"{value!r}: must be {right}", param, ctx)
        return number * _SECONDS[unit]


RATE = _Rate()
DURATION = _Duration()
