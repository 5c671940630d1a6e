"""Where a cluster's nodes come from: a list, a watched file, DNS, etcd, or a source of one's own.

A source has one method: :meth:`Discovery.find`. It is called in a worker thread, again and again, and answers with a
:class:`Found`: all nodes of now and when it wants to be asked again. It may block until something has changed. If it
raises, the cluster keeps the nodes that it has, says so in the log and to its listeners, and asks again.
"""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

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
    """A list that never changes by itself."""

    def __init__(self, nodes: Iterable[Node | str]) -> None:
        self._nodes = checked_nodes(nodes)

    def find(self, last: Found | None) -> Found:
        """The list."""
        return Found(self._nodes, again=None)


class FileDiscovery(Discovery):
    """A TOML, YAML or JSON file with a list ``nodes``, looked at every ``interval`` seconds.

    Each node is a table with the fields of :class:`~poolkit.cluster.Node`. A file that cannot be read or meant is
    refused as a whole (:class:`~poolkit.ConfigError`) and the cluster stays as it is. Replace the file by renaming
    another one over it: then nobody sees half of it. YAML, and TOML on Python 3.10, need ``poolkit[files]``.
    """

    def __init__(self, path: str | os.PathLike[str], *, interval: float = 1.0) -> None:
        self.path = Path(path)
        self.interval = interval

    def find(self, last: Found | None) -> Found:
        """Read the file if it has changed."""
        try:
            found = os.stat(self.path)
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot be read: {error.strerror}", "file") from error
        if not stat.S_ISREG(found.st_mode):  # opening a FIFO waits for a writer, without an end
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
    """Each address (A and AAAA) of ``host`` is a node ``address:port``, all of weight 1.

    Asked through the system's resolver (``getaddrinfo``), which tells no TTL: hence every ``interval`` seconds.
    ``family``: ``socket.AF_INET`` or ``AF_INET6`` for one kind alone. ``timeout``: seconds for an answer.
    """

    def __init__(
        self, host: str, port: int, *, interval: float = 30.0, family: int = socket.AF_UNSPEC, timeout: float = 5.0
    ) -> None:
        self.host = host
        self.port = port
        self.interval = interval
        self.family = family
        self.timeout = timeout

    def find(self, last: Found | None) -> Found:
        """Ask the resolver. Raises ``socket.gaierror`` if the name has no address, TimeoutError without an answer."""
        found = addresses(self.host, self.port, self.timeout, self.family)
        if found is None:  # no name, or no thread to ask in
            answers = socket.getaddrinfo(self.host, self.port, self.family, socket.SOCK_STREAM)
            found = [str(answer[4][0]) for answer in answers]
        return Found(
            tuple(Node(f"[{a}]:{self.port}" if ":" in a else f"{a}:{self.port}") for a in sorted(set(found))),
            again=self.interval,
        )


class SRVDiscovery(Discovery):
    """The SRV records of ``service`` ("_postgresql._tcp.example.com"): target and port, priority and weight (RFC 2782).

    Priorities are numbered anew from 0. A weight of 0 counts as a hundredth of the smallest other one. Asked again when
    the answer's TTL is over, but not sooner than ``min_interval`` and not later than ``max_interval`` seconds.
    ``resolver``: a ``dns.resolver.Resolver`` of one's own. Needs ``poolkit[dns]``.
    """

    def __init__(
        self, service: str, *, min_interval: float = 1.0, max_interval: float = 60.0, resolver: Any = None,
        timeout: float = 5.0,
    ) -> None:  # fmt: skip
        try:
            import dns.resolver
        except ImportError:
            raise MissingExtra("SRV records need dnspython: pip install 'poolkit[dns]'") from None
        self.service = service
        self.min_interval = min_interval
        self.max_interval = max_interval
        self.timeout = timeout
        self._resolver: Any = resolver or dns.resolver.Resolver()

    def find(self, last: Found | None) -> Found:
        """Ask the name server. Raises dnspython's error if there is no answer."""
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
