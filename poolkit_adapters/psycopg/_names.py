"""Connecting by name: the name is looked up beside the caller, within the time that there is to connect.

psycopg asks the system's resolver in the connecting thread, which nothing can interrupt, or in the few threads of the
event loop's default executor. See :mod:`poolkit.runtimes.names`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg

from poolkit.runtimes.names import addresses, addresses_async

from .._libpq import Hosts, hosts_of
from ._config import parse

__all__ = ("with_addresses", "with_addresses_async")

_PLACE = ("host", "hostaddr", "port")


def with_addresses(conninfo: str, kwargs: dict[str, Any], timeout: float | None) -> dict[str, Any]:
    """``kwargs`` for a connect that has nothing to look up. ``timeout``: seconds for each name.

    Raises psycopg's ``ConnectionTimeout``, or its ``OperationalError`` if no host has an address.
    """
    hosts = hosts_of(_places(conninfo, kwargs))
    if hosts is None:
        return kwargs
    for place in hosts.names:
        try:
            hosts.found(place, addresses(*place, timeout))
        except OSError as error:
            hosts.failed(place, error)
    return _joined(hosts, kwargs)


async def with_addresses_async(conninfo: str, kwargs: dict[str, Any], timeout: float | None) -> dict[str, Any]:
    """As :func:`with_addresses`."""
    hosts = hosts_of(_places(conninfo, kwargs))
    if hosts is None:
        return kwargs
    for place in hosts.names:
        try:
            hosts.found(place, await addresses_async(*place, timeout))
        except OSError as error:
            hosts.failed(place, error)
    return _joined(hosts, kwargs)


def _places(conninfo: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    written = parse(conninfo) if conninfo else {}
    return {name: kwargs.get(name) if kwargs.get(name) is not None else written.get(name) for name in _PLACE}


def _joined(hosts: Hosts, kwargs: dict[str, Any]) -> dict[str, Any]:
    found = hosts.parameters()
    if found:
        return {**kwargs, **found}
    if isinstance(hosts.error, TimeoutError):
        raise psycopg.errors.ConnectionTimeout(str(hosts.error)) from hosts.error
    raise psycopg.OperationalError(f"failed to resolve host {hosts.failing!r}: {hosts.error}") from hosts.error
