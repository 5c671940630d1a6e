"""Five servers of one kind, the cluster in front of them, and what one request is."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from poolkit import PoolConfig
from poolkit.cli.demo.cluster.plan import ADDED, NODES, Plan
from poolkit.cluster import Cluster, ClusterConfig, ClusterEvent, Node
from poolkit.testing.servers import HTTPServer, PostgresServer, RedisServer, ServerProcess

__all__ = ("HTTPSite", "PostgresSite", "RedisSite", "Site", "make_site")

_STANDS, _RUNS = 0.25, 0.02
"""Seconds for which a slowed server is stopped, and then runs, alternately."""


class Site:
    """The servers of one kind. ``open`` when they run, ``close`` before they end."""

    title: str
    cluster: Cluster[Any]

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.servers: dict[str, Any] = {name: self._server() for name in NODES}
        self._drags: list[_Drag] = []

    def _server(self) -> ServerProcess:
        raise NotImplementedError

    def open(self, listener: Callable[[ClusterEvent], object]) -> None:
        """Make the cluster of all but the spare node."""
        raise NotImplementedError

    def ask(self) -> None:
        """One request of one caller."""
        raise NotImplementedError

    def nodes(self, *, spare: bool) -> list[Node]:
        """The nodes, with the spare one or without."""
        return [
            Node(name, f"{server.host}:{server.port}")
            for name, server in self.servers.items()
            if spare or name != ADDED
        ]

    def settings(self) -> ClusterConfig:
        """Short times, so that there is something to see."""
        return ClusterConfig(acquire_timeout=self.plan.timeout, eject_for=0.5, eject_max=2.0, slow_start=1.0)

    def pool(self) -> PoolConfig:
        """The settings of each node's pool."""
        return PoolConfig(max_size=self.plan.size, connect_timeout=2.0)

    def slow(self, name: str) -> None:
        """From now on this server takes longer: it stands still for most of the time, as on an overloaded machine."""
        self._drags.append(_Drag(self.servers[name].pid))

    def close(self) -> None:
        """Let the dragged server go, close the cluster."""
        for drag in self._drags:
            drag.end()
        if hasattr(self, "cluster"):
            self.cluster.close()


class PostgresSite(Site):
    """PostgreSQL through psycopg."""

    title = "PostgreSQL"

    def _server(self) -> PostgresServer:
        return PostgresServer(max_connections=20)

    def open(self, listener: Callable[[ClusterEvent], object]) -> None:
        """A table on each server says how long it takes."""
        from poolkit_adapters.psycopg import PoolkitCluster

        # psycopg_pool's logger, to which each refused connect is a warning; without a handler it would print them
        logging.getLogger("psycopg.pool").addHandler(logging.NullHandler())
        for server in self.servers.values():
            with server.connect() as connection:
                connection.execute("create table pace (seconds float8)")
                connection.execute("insert into pace values (%s)", (self.plan.work,))
        first: PostgresServer = self.servers[NODES[0]]
        self.cluster = PoolkitCluster(
            self.nodes(spare=False),
            f"dbname={first.dbname} user={first.user} password={first.password}",
            pool=self.pool(),
            config=self.settings(),
            roles=False,
            name="postgres",
            listeners=[listener],
        )

    def ask(self) -> None:
        """A query."""
        cluster: Any = self.cluster
        with cluster.connection() as connection:
            connection.execute("select pg_sleep(seconds) from pace").fetchone()

    def slow(self, name: str) -> None:
        """From now on this server takes longer for each query."""
        with self.servers[name].connect() as connection:
            connection.execute("update pace set seconds = %s", (self.plan.slow,))


class RedisSite(Site):
    """Redis through redis-py."""

    title = "Redis"

    def _server(self) -> RedisServer:
        return RedisServer()

    def open(self, listener: Callable[[ClusterEvent], object]) -> None:
        """Create a client whose commands each go to a node that the cluster chooses."""
        from poolkit_adapters.redis import PoolkitServerGroup

        self.cluster = group = PoolkitServerGroup(
            self.nodes(spare=False), pool=self.pool(), cluster=self.settings(), roles=False, name="redis",
            listeners=[listener], socket_timeout=self.plan.timeout,
        )  # fmt: skip
        self._client = group.client()

    def ask(self) -> None:
        """A command that the server answers after a while."""
        self._client.blpop("nothing", timeout=self.plan.work)


class HTTPSite(Site):
    """A logical host of httpx."""

    title = "HTTP"

    def _server(self) -> HTTPServer:
        return HTTPServer(fast=True)

    def open(self, listener: Callable[[ClusterEvent], object]) -> None:
        """Create a client with one logical host for all servers."""
        import httpx

        from poolkit_adapters.httpx import PoolkitClusterTransport

        transport = PoolkitClusterTransport(
            self.nodes(spare=False), cluster=self.settings(), name="service", listeners=[listener],
            limits=httpx.Limits(max_connections=self.plan.size),
        )  # fmt: skip
        self.cluster = transport.cluster
        self._client = httpx.Client(mounts={"all://service": transport}, timeout=self.plan.timeout)

    def ask(self) -> None:
        """A request that may be repeated on another node."""
        self._client.get(f"http://service/sleep?ms={self.plan.work * 1000:.0f}").raise_for_status()

    def close(self) -> None:
        """Close the client, too."""
        super().close()
        if hasattr(self, "_client"):
            self._client.close()


def make_site(kind: str, plan: Plan) -> Site:
    """The servers of a kind, not yet started."""
    return {"postgres": PostgresSite, "redis": RedisSite, "http": HTTPSite}[kind](plan)


class _Drag:
    """Stops and continues a process alternately until it is ended. The process is left running."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="poolkit-demo-drag", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                os.kill(self._pid, signal.SIGSTOP)
                self._over.wait(_STANDS)
                os.kill(self._pid, signal.SIGCONT)
                self._over.wait(_RUNS)
        except ProcessLookupError:
            pass  # the process has ended by itself

    def end(self) -> None:
        self._over.set()
        self._thread.join()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGCONT)
