"""Resolves the hosts of libpq's connection parameters before libpq does.

libpq resolves names during its connect without a time limit (its ``connect_timeout`` starts after that). If
``hostaddr`` is given besides ``host``, libpq resolves nothing, and TLS and ``.pgpass`` still use the name. See the
PostgreSQL documentation, 34.1.1.3 ("Specifying Multiple Hosts").
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from itertools import zip_longest
from typing import Any

from poolkit.runtimes.names import addresses_async, is_name

from ._time_limits import parts, seconds_of

__all__ = ("Hosts", "attempts_of", "for_all_attempts", "hosts_of", "longest", "share", "whole_seconds")

_LEAST = 2
"""The shortest ``connect_timeout`` of libpq, in seconds."""


class Hosts:
    """The hosts of one connect, in order. Call :meth:`resolve` first."""

    def __init__(self, hosts: list[str], ports: list[str]) -> None:
        self._places = list(zip(hosts, ports, strict=True))
        self.names = [(host, port) for host, port in dict.fromkeys(self._places) if is_name(host)]
        self._addresses: dict[tuple[str, str], list[str]] = {}
        self.error: OSError | None = None
        """The error of the last host that could not be resolved."""
        self.failing = ""
        """The name of that host."""

    def resolve(self, look_up: Callable[[str, str, float | None], list[str] | None], timeout: float | None) -> None:
        """Call ``look_up(host, port, seconds)`` for each name. All names together have ``timeout`` seconds."""
        for place, seconds in self._shares(timeout):
            try:
                self._addresses[place] = self._or_driver(look_up(*place, seconds))
            except OSError as error:
                self._failed(place, error)

    async def resolve_async(self, timeout: float | None) -> None:
        """Look up each name in the running event loop, as :meth:`resolve`."""
        for place, seconds in self._shares(timeout):
            try:
                self._addresses[place] = self._or_driver(await addresses_async(*place, seconds))
            except OSError as error:
                self._failed(place, error)

    def _shares(self, timeout: float | None) -> Iterator[tuple[tuple[str, str], float | None]]:
        """Return the names, each with an equal part of the time that is left."""
        return parts(self.names, timeout)

    @staticmethod
    def _or_driver(addresses: list[str] | None) -> list[str]:
        """None leaves it to libpq to resolve the name."""
        return [""] if addresses is None else addresses

    def _failed(self, place: tuple[str, str], error: OSError) -> None:
        """Record that a name has no address or the resolver does not answer. Like libpq, try the next host."""
        self._addresses[place] = []
        self.failing, self.error = place[0], error

    def parameters(self) -> dict[str, str]:
        """Return ``host``, ``hostaddr`` and ``port`` in libpq's format, or an empty dict if no host is left."""
        places = [
            (host, address, port)
            for host, port in self._places
            for address in self._addresses.get((host, port), ["" if is_local(host) else host])
        ]
        if not places:
            return {}
        columns = (",".join(column) for column in zip(*places, strict=True))
        return dict(zip(("host", "hostaddr", "port"), columns, strict=True))


def is_local(host: str) -> bool:
    """Return whether libpq takes the host for a path, the default or this machine, which need no ``hostaddr``."""
    return not host or host == "localhost" or host[0] in "/@" or host[1:2] == ":"


def hosts_of(parameters: Mapping[str, Any]) -> Hosts | None:
    """Return the hosts of these parameters and libpq's environment variables, or None if no name must be resolved."""
    hosts = _given(parameters, "host", "PGHOST").split(",")
    if not any(is_name(host) for host in hosts) or _given(parameters, "hostaddr", "PGHOSTADDR"):
        return None
    ports = (_given(parameters, "port", "PGPORT") or "5432").split(",")
    if len(ports) == 1:
        ports *= len(hosts)
    if len(ports) != len(hosts):
        return None  # libpq raises an error for that
    return Hosts(hosts, [port or "5432" for port in ports])


def longest(parameters: Mapping[str, Any]) -> float:
    """Return the most seconds of a connect (math.inf: no limit). libpq has ``connect_timeout`` for each address.

    Call it with the parameters that libpq gets: names have become addresses.
    """
    limit = seconds_of(_given(parameters, "connect_timeout", "PGCONNECT_TIMEOUT"))
    hosts, addresses = (_given(parameters, name, f"PG{name.upper()}").split(",") for name in ("host", "hostaddr"))
    attempts = sum(
        1 if address or not (host in ("", "localhost") or is_name(host)) else 2  # libpq resolves it: IPv6 and IPv4
        for host, address in zip_longest(hosts, addresses, fillvalue="")
    )
    return math.inf if limit is None else attempts * _rounds(parameters) * whole_seconds(limit)


def attempts_of(parameters: Mapping[str, Any]) -> int:
    """Return how many times libpq tries to connect at most: once for each address, or for each name without one."""
    places = (_given(parameters, name, f"PG{name.upper()}") for name in ("host", "hostaddr"))
    return (max(given.count(",") for given in places) + 1) * _rounds(parameters)


def whole_seconds(seconds: float) -> int:
    """Return the ``connect_timeout`` for one attempt of ``seconds``: libpq has whole seconds, and waits at least 2."""
    return max(_LEAST, math.ceil(seconds))


def for_all_attempts(parameters: Mapping[str, Any], seconds: float) -> float | None:
    """Return the seconds of a connect with this ``connect_timeout`` (None: no limit): libpq has it for each attempt."""
    return float(whole_seconds(seconds) * attempts_of(parameters)) if 0 < seconds < math.inf else None


def share(parameters: Mapping[str, Any], seconds: float) -> int:
    """Return the ``connect_timeout`` with which all attempts together take ``seconds``: libpq has it for each of them.

    Without this, one address that does not answer takes all of the time.
    """
    attempts = attempts_of(parameters)
    if attempts == 1:
        return whole_seconds(seconds)
    return max(_LEAST, int(seconds / attempts))  # rounded down, because the errors of all attempts would add up


def _rounds(parameters: Mapping[str, Any]) -> int:
    """Return how many times libpq goes through the hosts."""
    return 2 if _given(parameters, "target_session_attrs", "PGTARGETSESSIONATTRS") == "prefer-standby" else 1


def _given(parameters: Mapping[str, Any], name: str, variable: str) -> str:
    given = parameters.get(name)
    return str(os.environ.get(variable, "") if given is None else given)
