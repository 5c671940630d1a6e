"""Resolves host names in a separate thread, within the time limit of the connect.

psycopg calls the system's resolver in the connecting thread, where nothing can interrupt it, or in one of the few
threads of the event loop's default executor. See :mod:`poolkit.runtimes.names`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg

from poolkit.runtimes.names import addresses

from .._libpq import Hosts, hosts_of
from ._config import parse

__all__ = ("with_addresses", "with_addresses_async")

_PLACE = ("host", "hostaddr", "port")


def with_addresses(conninfo: str, kwargs: dict[str, Any], timeout: float | None) -> dict[str, Any]:
    """Return ``kwargs`` for a connect that has no name to resolve. ``timeout``: seconds for all names.

    Raises psycopg's ``ConnectionTimeout``, or its ``OperationalError`` if no host has an address.
    """
    hosts = hosts_of(_places(conninfo, kwargs))
    if hosts is None:
        return kwargs
    hosts.resolve(addresses, timeout)
    return _joined(hosts, kwargs)


async def with_addresses_async(conninfo: str, kwargs: dict[str, Any], timeout: float | None) -> dict[str, Any]:
    """Do the same as :func:`with_addresses` for asyncio."""
    hosts = hosts_of(_places(conninfo, kwargs))
    if hosts is None:
        return kwargs
    await hosts.resolve_async(timeout)
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
