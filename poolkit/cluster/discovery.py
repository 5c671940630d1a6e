"""The sources of a cluster's nodes: a list, a watched file, DNS, etcd, or your own.

A discovery has one method, :meth:`Discovery.find`. The cluster calls it repeatedly in a worker thread. It returns a
:class:`Found`: all current nodes, and when to call again. It may block until something changes. If it raises, the
cluster keeps its nodes, logs the error, notifies its listeners and calls again.
"""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .._numbers import seconds
from ..errors import ConfigError, MissingExtra
from ..runtimes.names import addresses
from ..settings import read_file, read_tables
from ._etcd import EtcdDiscovery
from ._node import Node, checked_nodes, parse_node, parse_nodes
from ._source import Discovery, Found

__all__ = (
    "DNSDiscovery",
    "Discovery",
    "EtcdDiscovery",
    "FileDiscovery",
    "Found",
    "SRVDiscovery",
    "StaticDiscovery",
    "parse_node",
    "parse_nodes",
)


class StaticDiscovery(Discovery):
    """A fixed list of nodes."""

    def __init__(self, nodes: Iterable[Node | str]) -> None:
        self._nodes = checked_nodes(nodes)

    def find(self, last: Found | None) -> Found:
        """Return the list."""
        return Found(self._nodes, again=None)


class FileDiscovery(Discovery):
    """A TOML, YAML or JSON file with a list ``nodes``, checked every ``interval`` seconds.

    Each node is a table with the fields of :class:`~poolkit.cluster.Node`. A file that is unreadable or invalid is
    refused as a whole (:class:`~poolkit.ConfigError`), and the cluster keeps its nodes. To change the file, write a
    new one and rename it over the old one, so that no half-written file is read. YAML, and TOML on Python 3.10, need
    ``poolkit[files]``. Raises ConfigError for an invalid ``interval``.
    """

    def __init__(self, path: str | os.PathLike[str], *, interval: float = 1.0) -> None:
        seconds("interval", interval, above=True)
        self.path = Path(path)
        self.interval = interval

    def find(self, last: Found | None) -> Found:
        """Read the file if it has changed. Raises ConfigError if it is unreadable or invalid."""
        try:
            found = os.stat(self.path)
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot be read: {error.strerror}", "file") from error
        if not stat.S_ISREG(found.st_mode):  # opening a FIFO would wait for a writer for ever
            raise ConfigError(f"{self.path}: cannot be read: it is not a regular file", "file")
        mark = (found.st_mtime_ns, found.st_size, found.st_ino)
        if last is not None and last.mark == mark:
            return last
        return Found(parse_nodes(self._read(), str(self.path)), again=self.interval, mark=mark)

    def _read(self) -> object:
        if self.path.suffix != ".json":
            return read_tables(self.path)
        try:
            return json.loads(read_file(self.path))
        except ValueError as error:
            raise ConfigError(f"{self.path}: not valid JSON: {error}", "file") from error


class DNSDiscovery(Discovery):
    """A node ``address:port`` of weight 1 for each address (A and AAAA record) of ``host``.

    Uses the system's resolver (``getaddrinfo``), which reports no TTL: the name is looked up every ``interval``
    seconds. ``family``: ``socket.AF_INET`` or ``AF_INET6`` for one kind of address only. ``timeout``: seconds for an
    answer. Raises ConfigError for an invalid time.
    """

    def __init__(
        self, host: str, port: int, *, interval: float = 30.0, family: int = socket.AF_UNSPEC, timeout: float = 5.0
    ) -> None:
        seconds("interval", interval, above=True)
        seconds("timeout", timeout, above=True)
        self.host = host
        self.port = port
        self.interval = interval
        self.family = family
        self.timeout = timeout

    def find(self, last: Found | None) -> Found:
        """Look the name up. Raises ``socket.gaierror`` if it has no address, TimeoutError after ``timeout`` seconds."""
        found = addresses(self.host, self.port, self.timeout, self.family)
        if found is None:  # host is an IP address, or no thread could be started
            answers = socket.getaddrinfo(self.host, self.port, self.family, socket.SOCK_STREAM)
            found = [str(answer[4][0]) for answer in answers]
        return Found(
            tuple(Node(f"[{a}]:{self.port}" if ":" in a else f"{a}:{self.port}") for a in sorted(set(found))),
            again=self.interval,
        )


class SRVDiscovery(Discovery):
    """A node for each SRV record of ``service`` ("_postgresql._tcp.example.com"), by RFC 2782.

    Target and port become the address; priorities are renumbered from 0. A weight of 0 counts as a hundredth of the
    smallest other weight. The name is looked up again when the TTL of the answer ends, but not before
    ``min_interval`` and not after ``max_interval`` seconds. ``timeout``: seconds for an answer. ``resolver``: your own
    ``dns.resolver.Resolver``. Needs ``poolkit[dns]``. Raises ConfigError for an invalid time.
    """

    def __init__(
        self, service: str, *, min_interval: float = 1.0, max_interval: float = 60.0, resolver: Any = None,
        timeout: float = 5.0,
    ) -> None:  # fmt: skip
        try:
            import dns.resolver
        except ImportError:
            raise MissingExtra("SRV records need dnspython: pip install 'poolkit[dns]'") from None
        seconds("min_interval", min_interval, above=True)
        seconds("max_interval", max_interval, least=min_interval)
        seconds("timeout", timeout, above=True)
        self.service = service
        self.min_interval = min_interval
        self.max_interval = max_interval
        self.timeout = timeout
        self._resolver: Any = resolver or dns.resolver.Resolver()

    def find(self, last: Found | None) -> Found:
        """Query the name server. Raises dnspython's error if there is no answer."""
        answer = self._resolver.resolve(self.service, "SRV", lifetime=self.timeout, search=False)
        records = [(r.priority, r.weight, str(r.target).rstrip("."), r.port) for r in answer]
        ranks = {priority: rank for rank, priority in enumerate(sorted({record[0] for record in records}))}
        least = min((weight for _, weight, _, _ in records if weight), default=100) / 100
        nodes = [
            Node(f"{target}:{port}", weight=weight or least, priority=ranks[priority])
            for priority, weight, target, port in sorted(records)
        ]
        again = min(self.max_interval, max(self.min_interval, float(answer.rrset.ttl)))
        return Found(checked_nodes(nodes, self.service), again=again)
