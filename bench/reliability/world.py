"""The servers of one run, behind proxies that cause faults."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from bench.reliability.names import Resolver, resolver
from poolkit.testing.servers import Certificates, HTTPServer, PostgresServer, RedisServer
from tests.adapters.httpx.h2server import H2Server
from tests.faults.proxy import FaultProxy

__all__ = ("DATABASE", "PASSWORD", "ROLE", "World", "world")

ROLE, PASSWORD, DATABASE = "app", "app-test", "reliability"
"""An ordinary role, because PostgreSQL reserves connections for superusers."""


class World:
    """The servers, each started at its first use. Not thread-safe."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack

    @cached_property
    def postgres(self) -> PostgresServer:
        return self._database()

    @cached_property
    def second(self) -> PostgresServer:
        """A second PostgreSQL server, read-only until it is promoted."""
        return self._database()

    @cached_property
    def resolver(self) -> Resolver:
        """The resolver that answers for ``NAME`` until it is made to hang."""
        return self._stack.enter_context(resolver())

    def _database(self) -> PostgresServer:
        server = self._stack.enter_context(PostgresServer(dbname=DATABASE, max_connections=60))
        with server.connect() as admin:
            admin.execute(f"create role {ROLE} login password '{PASSWORD}'".encode())
            admin.execute(b"create unlogged table hits (key text not null)")
            admin.execute(f"grant select, insert on hits to {ROLE}".encode())
        return server

    @cached_property
    def redis(self) -> RedisServer:
        return self._stack.enter_context(RedisServer())

    @cached_property
    def redis_tls(self) -> RedisServer:
        return self._stack.enter_context(RedisServer(tls=self.certificates))

    @cached_property
    def http(self) -> HTTPServer:
        return self._stack.enter_context(HTTPServer(fast=True))

    @cached_property
    def http2(self) -> H2Server:
        server = self._stack.enter_context(H2Server(self.certificates, streams=10))

        def answer_soon() -> None:
            for one in server.connections:
                for stream in list(one.waiting):
                    one.answer(stream)
            asyncio.get_running_loop().call_later(0.005, answer_soon)

        server.call(answer_soon)
        return server

    @cached_property
    def certificates(self) -> Certificates:
        return Certificates()

    def address(self, kind: str) -> tuple[str, int]:
        """Where the server of this kind ("postgres", "redis", "http") listens."""
        server = getattr(self, kind)
        return server.host, server.port

    # What its keepers do to a server.

    def sql(self, *statements: str) -> None:
        """Run statements as the superuser."""
        self._sql(self.postgres, *statements)

    def _sql(self, server: PostgresServer, *statements: str) -> None:
        with server.connect() as admin:
            for statement in ("set default_transaction_read_only = off", *statements):
                admin.execute(statement.encode())

    def end_sessions(self) -> None:
        """End every session of PostgreSQL except the superuser's own, and wait until they are gone."""
        self.postgres.kill_backends()

    def fail_over(self) -> None:
        """Make old sessions read-only; new sessions reach a server that accepts writes.

        A role's setting is read at log-in, the server's also by sessions that exist.
        """
        self.sql(
            f"alter role {ROLE} set default_transaction_read_only = off",
            "alter system set default_transaction_read_only = on",
            "select pg_reload_conf()",
        )

    def step_down(self) -> None:
        """Make ``postgres`` read-only, also for existing sessions."""
        self._sql(self.postgres, "alter system set default_transaction_read_only = on", "select pg_reload_conf()")

    def promote(self) -> None:
        """Let ``second`` accept writes."""
        self._sql(self.second, "alter system reset default_transaction_read_only", "select pg_reload_conf()")

    def redis_command(self, *words: str) -> None:
        with contextlib.closing(self.redis.connect()) as admin:
            admin.execute_command(*words)  # type: ignore[no-untyped-call]

    def say_goodbye(self) -> None:
        """GOAWAY on every HTTP/2 connection: the older half of its requests is served, the rest is not."""

        def goodbye() -> None:
            for one in self.http2.connections:
                if not one.transport.is_closing():
                    served = one.waiting[: (len(one.waiting) + 1) // 2]
                    one.waiting[:] = served
                    one.goaway(served[-1] if served else one.h2.highest_inbound_stream_id, 0)

        self.http2.call(goodbye)

    def set_right(self) -> None:
        """Undo what a fault may have left: all servers run with their initial settings."""
        if "postgres" in self.__dict__:
            self.postgres.start()
            self.sql(
                "alter system reset default_transaction_read_only",
                "select pg_reload_conf()",
                f"alter role {ROLE} reset default_transaction_read_only",
                f"alter role {ROLE} connection limit -1",
                f"alter role {ROLE} password '{PASSWORD}'",
            )
        if "second" in self.__dict__:
            self._sql(self.second, "alter system set default_transaction_read_only = on", "select pg_reload_conf()")
        if "redis" in self.__dict__:
            self.redis.start()


@contextlib.contextmanager
def world() -> Iterator[World]:
    """The servers; all are ended with the block."""
    with contextlib.ExitStack() as stack:
        yield World(stack)


@contextlib.contextmanager
def proxy(address: tuple[str, int]) -> Iterator[FaultProxy]:
    """A proxy in front of this address."""
    made = FaultProxy(*address).start()
    try:
        yield made
    finally:
        made.stop()


def wait_until(condition: Any, seconds: float = 5.0) -> bool:
    """Whether the condition became true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True
