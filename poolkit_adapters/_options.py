"""Combines a driver's arguments and poolkit's settings.

Precedence, for all adapters: a keyword, then ``config=`` (in which the environment overrides a file's table, and that
overrides ``[default]``), then the driver's own default, then poolkit's. Only a value that somebody wrote counts as
given, whatever it is. An argument of the driver that was not given holds a :func:`driver_default`, and a setting has a
:class:`~poolkit.config.Source`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from typing import Any, TypeVar, cast

from poolkit import ConfigError, PoolConfig
from poolkit.config import Source, sources_of
from poolkit.settings import Layer, combine

__all__ = (
    "SETTINGS",
    "UNSET",
    "argument",
    "by_argument",
    "by_default",
    "driver_default",
    "given_settings",
    "is_default",
    "refuse_contradiction",
    "refuse_misspelt",
    "replaces_limit_of_driver",
    "split_options",
    "with_limit_of_driver",
)

SETTINGS: frozenset[str] = frozenset(field.name for field in fields(PoolConfig))
"""The names of all settings of :class:`~poolkit.PoolConfig`."""


class _Unset:
    def __repr__(self) -> str:
        return "<not given>"


UNSET: Any = _Unset()
"""The default of a keyword that is a setting, where the keywords are written out."""

N = TypeVar("N", bound=float)


def split_options(
    options: Mapping[str, Any], *, driver: frozenset[str] | set[str] = frozenset()
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return ``(settings, rest)``: poolkit's settings among ``options``, and the driver's arguments.

    ``driver`` holds the names that both know and that mean the driver's argument here.
    """
    settings = {name: value for name, value in options.items() if name in SETTINGS and name not in driver}
    return settings, {name: value for name, value in options.items() if name not in settings}


def given_settings(written_out: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that were given to a function that has each of them as a keyword, from its ``locals()``."""
    return {name: value for name, value in written_out.items() if name in SETTINGS and value is not UNSET}


# -- defaults of a driver's arguments ---------------------------------------------------------------------------------


class _Int(int):
    """A default that can be distinguished from the same number given by the caller."""


class _Float(float):
    """The same as :class:`_Int` for a float."""


def driver_default(value: N) -> N:
    """Return the number as the default of a parameter. It equals the plain number, but :func:`is_default` is true."""
    kind: Any = _Float if type(value) is float else _Int
    return cast("N", kind(value))


def is_default(value: object) -> bool:
    """Return whether the value is a :func:`driver_default`, so that the caller did not give the argument."""
    return isinstance(value, (_Int, _Float))


def by_default(driver: str, argument: str = "") -> Source:
    """Return the source of a value that is a driver's default."""
    return Source(f"{driver}'s default" + (f" ({argument})" if argument else ""), written=False)


def by_argument(name: str) -> Source:
    """Return the source of a value that the caller gave as an argument of the driver."""
    return Source(f"keyword {name}", driver=True)


def argument(driver: str, name: str, value: Any) -> tuple[Any, Source]:
    """Return a driver's argument as a setting: the plain value and its source."""
    if isinstance(value, _Int):
        return int(value), by_default(driver, name)
    if isinstance(value, _Float):
        return float(value), by_default(driver, name)
    return value, by_argument(name)


def replaces_limit_of_driver(config: PoolConfig) -> bool:
    """Return whether ``connect_timeout`` was given for this pool, also later, and not as an argument of the driver.

    It then replaces a limit among the driver's arguments. A limit for every pool does not.
    """
    source = sources_of(config).get("connect_timeout")
    return source is not None and source.written and not source.shared and not source.driver


def with_limit_of_driver(config: PoolConfig, seconds: float | None, place: str) -> PoolConfig:
    """Return the settings with a connect timeout that the driver was given in ``place``, so that they show it."""
    return combine({"connect_timeout": (seconds, Source(place, driver=True))}, base=config)


_NEARLY = 0.85
"""Similarity from which a keyword counts as a misspelt setting: ``max_sise`` does, ``socket_timeout`` does not."""


def refuse_misspelt(keywords: Iterable[str], known: Collection[str], instead: str = "") -> None:
    """Raise ConfigError for a keyword that is probably a misspelt setting. ``known``: the driver's own names.

    Without this, the driver would refuse it in the first connect. It may know more names than are known here, so other
    names pass. ``instead`` is the end of the message.
    """
    from difflib import get_close_matches  # imported only when a pool is created

    for name in keywords:
        close = [] if name in known else get_close_matches(name, SETTINGS.union(known), 1, _NEARLY)
        if close and close[0] in SETTINGS:  # otherwise it is the driver's name that is misspelt
            raise ConfigError(f"{name}: no such setting; did you mean {close[0]!r}?{instead}", name)


# -- both at once -----------------------------------------------------------------------------------------------------


def refuse_contradiction(argument: str, value: object, setting: str, given: Layer) -> None:
    """Raise ConfigError if a driver's argument and a setting for the same pool mean the same but differ.

    The argument overrides a setting for every pool (``[default]``, ``POOLKIT_MAX_SIZE``).
    """
    if setting not in given:
        return
    other, source = given[setting]
    if source.written and not source.shared and other != value:
        raise ConfigError(
            f"{argument}={value!r} and {setting}={other!r} (from {source.text}) are two names of one setting and "
            "contradict each other; give only one",
            setting,
        )
