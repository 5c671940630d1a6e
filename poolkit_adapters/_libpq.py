"""The hosts of libpq's connection parameters, looked up before libpq does it.

libpq looks names up inside its connect, without a time limit (its ``connect_timeout`` begins after it). With
``hostaddr`` beside ``host`` it looks nothing up, and TLS and ``.pgpass`` go on using the name. PostgreSQL
documentation, 34.1.1.3 ("Specifying Multiple Hosts").
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from poolkit.runtimes.names import is_name

__all__ = ("Hosts", "hosts_of")


class Hosts:
    """The hosts of one connect, in order. For each in ``names`` tell :meth:`found` or :meth:`failed`."""

    def __init__(self, hosts: list[str], ports: list[str]) -> None:
        self._places = list(zip(hosts, ports, strict=True))
        self.names = [(host, port) for host, port in dict.fromkeys(self._places) if is_name(host)]
        self._addresses: dict[tuple[str, str], list[str]] = {}
        self.error: OSError | None = None
        """Why the last one that failed did."""
        self.failing = ""
        """Its name."""

    def found(self, place: tuple[str, str], addresses: list[str] | None) -> None:
        """These are the addresses of a name; None: libpq has to look it up."""
        self._addresses[place] = [""] if addresses is None else addresses

    def failed(self, place: tuple[str, str], error: OSError) -> None:
        """A name has no address, or the resolver does not answer: libpq goes on to the next, and so does this."""
        self._addresses[place] = []
        self.failing, self.error = place[0], error

    def parameters(self) -> dict[str, str]:
        """``host``, ``hostaddr`` and ``port`` in libpq's way; empty if no host is left."""
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
    """Whether libpq takes it for a path, the default, or a name of this machine: it has no ``hostaddr``."""
    return not host or host == "localhost" or host[0] in "/@" or host[1:2] == ":"


def hosts_of(parameters: Mapping[str, Any]) -> Hosts | None:
    """The hosts of these parameters and libpq's environment variables; None: there is no name to look up."""

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
        return None  # libpq has an error for that
    return Hosts(hosts, [port or "5432" for port in ports])
