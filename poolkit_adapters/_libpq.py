"""Resolves the hosts of libpq's connection parameters before libpq does.

libpq resolves names during its connect without a time limit (its ``connect_timeout`` starts after that). If
``hostaddr`` is given besides ``host``, libpq resolves nothing, and TLS and ``.pgpass`` still use the name. See the
PostgreSQL documentation, 34.1.1.3 ("Specifying Multiple Hosts").
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from poolkit.runtimes.names import is_name

__all__ = ("Hosts", "hosts_of")


class Hosts:
    """The hosts of one connect, in order. Call :meth:`found` or :meth:`failed` for each one in ``names``."""

    def __init__(self, hosts: list[str], ports: list[str]) -> None:
        self._places = list(zip(hosts, ports, strict=True))
        self.names = [(host, port) for host, port in dict.fromkeys(self._places) if is_name(host)]
        self._addresses: dict[tuple[str, str], list[str]] = {}
        self.error: OSError | None = None
        """The error of the last host that could not be resolved."""
        self.failing = ""
        """The name of that host."""

    def found(self, place: tuple[str, str], addresses: list[str] | None) -> None:
        """Store the addresses of a name. None leaves it to libpq to resolve the name."""
        self._addresses[place] = [""] if addresses is None else addresses

    def failed(self, place: tuple[str, str], error: OSError) -> None:
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

    def value(name: str, variable: str) -> str:
        given = parameters.get(name)
        return str(os.environ.get(variable, "") if given is None else given)

    hosts = value("host", "PGHOST").split(",")
    if not any(is_name(host) for host in hosts) or value("hostaddr", "PGHOSTADDR"):
        return None
    ports = (value("port", "PGPORT") or "5432").split(",")
    if len(ports) == 1:
        ports *= len(hosts)
    if len(ports) != len(hosts):
        return None  # libpq raises an error for that
    return Hosts(hosts, [port or "5432" for port in ports])
