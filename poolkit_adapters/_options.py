"""Where a driver's arguments and poolkit's settings meet.

Precedence, for all adapters: a keyword, then ``config=`` (in which the environment has won over a file's table, and
that over ``[default]``), then the driver's own default, then poolkit's. Only what somebody wrote counts as given,
whatever its value: an argument of the driver that was left alone holds a :func:`driver_default`, and a setting knows
its :class:`~poolkit.config.Source`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar, cast

from poolkit import ConfigError, PoolConfig
from poolkit.config import Source
from poolkit.settings import Layer

__all__ = (
    "SETTINGS",
    "argument",
    "by_argument",
    "by_default",
    "driver_default",
    "is_default",
    "refuse_contradiction",
    "split_options",
)

SETTINGS: frozenset[str] = frozenset(field.name for field in fields(PoolConfig))
"""The names of all settings of :class:`~poolkit.PoolConfig`."""

N = TypeVar("N", bound=float)


def split_options(
    options: Mapping[str, Any], *, driver: frozenset[str] | set[str] = frozenset()
) -> tuple[dict[str, Any], dict[str, Any]]:
    """``(settings, rest)``: poolkit's settings among ``options``, and what is for the driver.

    ``driver``: names that both know and that mean the driver's argument here.
    """
    settings = {name: value for name, value in options.items() if name in SETTINGS and name not in driver}
    return settings, {name: value for name, value in options.items() if name not in settings}


# -- defaults of a driver's arguments ---------------------------------------------------------------------------------


class _Int(int):
    """A default that can be told from the same number given by the caller."""


class _Float(float):
    """As :class:`_Int`."""


def driver_default(value: N) -> N:
    """The number as the default of a parameter: equal to any other such number, but :func:`is_default`."""
    kind: Any = _Float if type(value) is float else _Int
    return cast("N", kind(value))


def is_default(value: object) -> bool:
    """Whether the caller left an argument alone, whose default is a :func:`driver_default`."""
    return isinstance(value, (_Int, _Float))


def by_default(driver: str, argument: str = "") -> Source:
    """The source of a value that is a driver's default."""
    return Source(f"{driver}'s default" + (f" ({argument})" if argument else ""), written=False)


def by_argument(name: str) -> Source:
    """The source of a value that the caller gave as an argument of the driver."""
    return Source(f"keyword {name}", driver=True)


def argument(driver: str, name: str, value: Any) -> tuple[Any, Source]:
    """The value of a driver's argument as a setting: a plain number, and the argument or the driver's default."""
    if isinstance(value, _Int):
        return int(value), by_default(driver, name)
    if isinstance(value, _Float):
        return float(value), by_default(driver, name)
    return value, by_argument(name)


# -- both at once -----------------------------------------------------------------------------------------------------


def refuse_contradiction(argument: str, value: object, setting: str, given: Layer) -> None:
    """ConfigError if a driver's argument and a setting that was written for the same pool mean one thing and differ.

    A setting that was written for every pool (``[default]``, ``POOLKIT_MAX_SIZE``) gives way to the argument.
    """
    if setting not in given:
        return
    other, source = given[setting]
    if source.written and not source.shared and other != value:
        raise ConfigError(
            f"{argument}={value!r} and {setting}={other!r} (from {source.text}): two words for one setting that "
            "contradict each other; give one",
            setting,
        )
