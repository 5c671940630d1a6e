"""Splits the keywords of a driver's cluster into settings of the cluster, of its pools and of the driver."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from poolkit.cluster import ClusterConfig
from poolkit.config import unknown

from ._options import SETTINGS

__all__ = ("parameters_of", "split_cluster_options")

CLUSTER_SETTINGS: frozenset[str] = frozenset(field.name for field in fields(ClusterConfig))
"""The names of all settings of a cluster. ``acquire_timeout``, which pools have too, means the cluster's here."""


def split_cluster_options(
    options: Mapping[str, Any], driver: Iterable[str], *, open_ended: bool = False
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return ``(cluster, pool, rest)``: settings of the cluster, settings of each node's pool, and driver arguments.

    ``driver`` holds the names that the driver knows. For any other name raise ConfigError with the nearest known name.
    If the driver may know more names (``open_ended``), raise it only for a name that resembles a setting of poolkit.
    """
    known = frozenset(driver)
    cluster: dict[str, Any] = {}
    pool: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for name, value in options.items():
        if name in CLUSTER_SETTINGS:
            cluster[name] = value
        elif name in SETTINGS:
            pool[name] = value
        elif name in known or (open_ended and not get_close_matches(name, CLUSTER_SETTINGS | SETTINGS, 1, 0.7)):
            rest[name] = value
        else:
            raise unknown(name, value, "", name, (*sorted(CLUSTER_SETTINGS), *sorted(SETTINGS), *sorted(known)))
    return cluster, pool, rest


def parameters_of(*classes: type) -> set[str]:
    """Return the names of all arguments of these classes and of their bases, which get their ``**kwargs``."""
    found: set[str] = set()
    for kind in classes:
        for base in kind.__mro__[:-1]:
            if "__init__" in vars(base):
                found |= set(inspect.signature(vars(base)["__init__"]).parameters)
    return found - {"self", "args", "kwargs"}
