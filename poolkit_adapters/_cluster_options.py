"""Which keyword of a driver's cluster is for whom."""

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
"""The names of all settings of a cluster. ``acquire_timeout``, which a pool has too, is the cluster's here."""


def split_cluster_options(
    options: Mapping[str, Any], driver: Iterable[str], *, open_ended: bool = False
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """``(cluster, pool, rest)``: settings of the cluster, of each node's pool, and what is for the driver.

    ``driver``: the names that it knows. Any other is a ConfigError with the nearest right one; if the driver may know
    more (``open_ended``), only one that is nearly a setting of poolkit's.
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
    """The names of all arguments of these classes and of their bases, to which they hand ``**kwargs`` on."""
    found: set[str] = set()
    for kind in classes:
        for base in kind.__mro__[:-1]:
            if "__init__" in vars(base):
                found |= set(inspect.signature(vars(base)["__init__"]).parameters)
    return found - {"self", "args", "kwargs"}
