"""redis-py's own tests, and those of its fork valkey-py, on a real Redis server."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import ClassVar

from poolkit.testing.servers import RedisServer
from poolkit.testing.servers._binaries import find_valkey
from tests.conformance.fetch import installed
from tests.conformance.sessions import Session
from tests.conformance.suite import Suite
from tests.support.valkey_server import ValkeyServer

# Everything that goes through a pool, or through the clients that take one. Not here: servers' modules,
# clusters and sentinels of the driver's own docker set-up, parsers and formats.
SYNC = (
    "test_connection_pool.py",
    "test_max_connections_error.py",
    "test_connection.py",
    "test_connect.py",
    "test_client.py",
    "test_pipeline.py",
    "test_pubsub.py",
    "test_lock.py",
    "test_multiprocessing.py",
    "test_monitor.py",
    "test_scripting.py",
    "test_retry.py",
    "test_encoding.py",
    "test_credentials.py",
    "test_event.py",
    "test_sentinel.py",
    "test_background.py",
    "test_cache.py",
    "test_commands.py",
)
ASYNC = (
    "test_connection_pool.py",
    "test_connection.py",
    "test_connect.py",
    "test_client.py",
    "test_pipeline.py",
    "test_pubsub.py",
    "test_lock.py",
    "test_monitor.py",
    "test_scripting.py",
    "test_retry.py",
    "test_encoding.py",
    "test_credentials.py",
    "test_cwe_404.py",
    "test_sentinel.py",
    "test_usage_counter.py",
    "test_sentinel_managed_connection.py",
    "test_cache.py",
    "test_commands.py",
)
MORE = (
    "maint_notifications/test_maint_notifications.py",
    "maint_notifications/test_maint_notifications_handling.py",
    "maint_notifications/test_async_maint_notifications_handling.py",
    "test_observability",
    "test_asyncio/test_observability",
    "test_multidb",
)
QUICK = 10  # so many of each: the pool's own tests and the small ones
HIREDIS = ("test_connection_pool.py", "test_connection.py", "test_pipeline.py", "test_pubsub.py")
# What needs servers of other kinds than one plain Redis.
MARKS = " and ".join(
    f"not {mark}"
    for mark in ("onlycluster", "redismod", "valkeymod", "ssl", "cp_integration", "multidb_integration", "replica")
)
PORT = 6379  # some tests write it down


class Redis(Suite):
    """Pools of redis-py."""

    name = "redis"
    distribution = "redis"
    classes: ClassVar[Mapping[str, str]] = {
        "sync": "poolkit_adapters.redis:PoolkitConnectionPool",
        "async": "poolkit_adapters.redis:AsyncPoolkitConnectionPool",
    }
    needs = ("pytest-asyncio",)
    elsewhere: tuple[str, ...] = ("--redis-mod-url",)
    """Options with the addresses of further servers."""
    server: ClassVar[Callable[[], RedisServer]] = RedisServer
    native = "hiredis"
    """The distribution of the parser that is written in C."""

    def sessions(self, root: Path, quick: bool, stack: contextlib.ExitStack) -> list[Session]:
        sync = [f"tests/{name}" for name in (SYNC[:QUICK] if quick else SYNC)]
        sync += [] if quick else [f"tests/{name}" for name in MORE]
        twins = [f"tests/test_asyncio/{name}" for name in (ASYNC[:QUICK] if quick else ASYNC)]
        self._well_known(stack)
        sessions = [self._session("async", root, twins, stack), self._session("sync", root, sync, stack)]
        if not quick and installed(self.native):
            both = [f"tests/{folder}{name}" for folder in ("", "test_asyncio/") for name in HIREDIS]
            sessions.append(self._session(self.native, root, both, stack))
        return sessions

    def _well_known(self, stack: contextlib.ExitStack) -> None:
        """Have something answer at Redis' own port, unless something does; a few tests connect nothing else."""
        server = self.server()
        server.port = PORT
        if stack.enter_context(server).port != PORT:
            print(f"  port {PORT} is taken: the tests that connect it run against what is there")

    def _session(self, name: str, root: Path, files: list[str], stack: contextlib.ExitStack) -> Session:
        # A server for each session: tests flush it, count its clients and change its settings.
        server = stack.enter_context(self.server())
        nowhere = "localhost:1"  # what the suite would look for elsewhere is not there
        return Session(
            name=name,
            root=root,
            files=tuple(file for file in files if (root / file).exists()),
            plugins=("pytest_asyncio.plugin",),
            swap="conf_redis",
            arguments=(
                f"--{self.name}-url={server.url.replace('127.0.0.1', 'localhost')}",
                *(f"{option}=redis://{nowhere}" for option in self.elsewhere),
                f"--{self.name}-ssl-url=rediss://{nowhere}",
                "-m",
                MARKS,
                "-o",
                "addopts=",
            ),
            environment={
                "CONF_LIBRARY": self.distribution,
                "CONF_PARSER": name if name == self.native else "python",
            },
        )

    def same_id(self, test: str, roles: Mapping[str, str]) -> str:
        """Some parameters are the pool's class, which pytest shows by its name."""
        head, bracket, parameters = test.partition("[")
        for spec in roles.values():
            own = re.escape(spec.partition(":")[2])
            parameters = re.sub(rf"\b{own}\b", "BlockingConnectionPool", parameters)
        return head + bracket + parameters


class Valkey(Redis):
    """Pools of valkey-py."""

    name = "valkey"
    distribution = "valkey"
    classes: ClassVar[Mapping[str, str]] = {
        role: spec.replace("redis", "valkey") for role, spec in Redis.classes.items()
    }
    elsewhere = ()
    # some tests make the server fail on command
    server = partial(ValkeyServer, settings={"enable-debug-command": "yes"} if find_valkey() else None)
    native = "libvalkey"
