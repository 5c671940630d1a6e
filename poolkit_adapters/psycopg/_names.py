"""The arguments of a connect: addresses in place of host names, and a time limit for all of them together.

psycopg calls the system's resolver in the connecting thread, where nothing can interrupt it, or in one of the few
threads of the event loop's default executor. So names are resolved here, in a separate thread; see
:mod:`poolkit.runtimes.names`. And psycopg applies ``connect_timeout`` to each address.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import psycopg

from poolkit import PoolConfig
from poolkit.runtimes.names import addresses

from .._libpq import Hosts, hosts_of, longest, share
from .._options import replaces_limit_of_driver
from ._config import parse

__all__ = ("longest_connect", "with_addresses", "with_addresses_async")

_PLACE = ("host", "hostaddr", "port")


def with_addresses(conninfo: str, kwargs: dict[str, Any], timeout: float | None, config: PoolConfig) -> dict[str, Any]:
    """Return ``kwargs`` with addresses in place of names, for a connect whose attempts share ``timeout`` seconds.

    A ``connect_timeout`` of libpq, for each attempt, counts instead, unless the ``config`` of the pool replaces it.
    Raises psycopg's ``ConnectionTimeout``, or its ``OperationalError`` if no host has an address.
    """
    hosts = hosts_of(_places(conninfo, kwargs))
    if hosts is not None:
        hosts.resolve(addresses, timeout)
        kwargs = _joined(hosts, kwargs)
    return _limited(conninfo, kwargs, timeout, config)


async def with_addresses_async(
    conninfo: str, kwargs: dict[str, Any], timeout: float | None, config: PoolConfig
) -> dict[str, Any]:
    """Do the same as :func:`with_addresses` for asyncio."""
    hosts = hosts_of(_places(conninfo, kwargs))
    if hosts is not None:
        await hosts.resolve_async(timeout)
        kwargs = _joined(hosts, kwargs)
    return _limited(conninfo, kwargs, timeout, config)


def longest_connect(conninfo: str, kwargs: Mapping[str, Any]) -> float:
    """Return the longest time of a connect in seconds (math.inf: no limit), from what :func:`with_addresses` gave."""
    return longest({**(parse(conninfo) if conninfo else {}), **kwargs})


def _limited(conninfo: str, kwargs: dict[str, Any], timeout: float | None, config: PoolConfig) -> dict[str, Any]:
    """Return ``kwargs`` with the ``connect_timeout`` of one attempt, unless libpq's own counts."""
    given = {**(parse(conninfo) if conninfo else {}), **kwargs}
    own = "connect_timeout" in given or "PGCONNECT_TIMEOUT" in os.environ
    if own and not replaces_limit_of_driver(config):
        return kwargs
    if timeout is None or timeout == math.inf:
        return {**kwargs, "connect_timeout": 0} if own else kwargs  # 0: no limit
    return {**kwargs, "connect_timeout": share(given, timeout)}


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
