"""The three servers of the demo: start them, fill them, cause faults, and count their connections."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from poolkit.cli.demo.plan import ROWS
from poolkit.cli.demo.record import Fault, Round
from poolkit.cli.demo.stacks import Sites
from poolkit.testing.servers import HTTPServer, PostgresServer, RedisServer, ServerProcess

__all__ = ("Servers", "break_things", "running")

Server = TypeVar("Server", bound=ServerProcess)

_DATABASE = "shop"
# PostgreSQL writes this line for each session; the demo's own questions come from poolkit-admin.
_SESSION = re.compile(r"connection authorized: .*database=shop(?! application_name=poolkit-admin)")


class Servers:
    """The running servers, and the connections that each has accepted from the demo's clients."""

    def __init__(self, postgres: PostgresServer, redis: RedisServer, http: HTTPServer) -> None:
        self.postgres = postgres
        self.redis = redis
        self.http = http
        self._redis_before_restarts = 0
        self._redis_own = 1  # the readiness check at its start

    @property
    def sites(self) -> Sites:
        """Where clients find them."""
        return Sites(self.postgres.sqlalchemy_url("psycopg"), self.redis.host, self.redis.port, self.http.url)

    def fill(self) -> None:
        """Make the shop's table."""
        with self.postgres.connect() as connection:
            connection.execute("create table product (id int primary key, name text not null, stock int not null)")
            connection.execute(
                "insert into product select n, 'product ' || n, mod(n, 7) from generate_series(0, %s) n", (ROWS - 1,)
            )

    def opened(self) -> dict[str, int]:
        """Connections accepted so far by each server, without those of the demo's own questions."""
        log = (self.postgres.directory / "server.log").read_text(errors="replace")
        return {
            "PostgreSQL": len(_SESSION.findall(log)),
            "Redis": self._redis_before_restarts + self._redis_seen(),
            "HTTP": self.http.stats().accepted,
        }

    def restart_redis(self, down: float) -> None:
        """Restart Redis, which resets its count."""
        self._redis_before_restarts += self._redis_seen()
        self.redis.restart(down=down)
        self._redis_own = 1

    def _redis_seen(self) -> int:
        with contextlib.closing(self.redis.connect()) as admin:
            self._redis_own += 1
            info: dict[str, int] = admin.info("stats")
        return int(info["total_connections_received"]) - self._redis_own


@contextlib.contextmanager
def running(note: Callable[[str], None]) -> Iterator[Servers]:
    """Start the three servers and end them, whatever happens in between.

    Raises:
        MissingExtra: a server program or client library is not installed.
        ServerError: a server does not start.
    """
    with contextlib.ExitStack() as stack:

        def start(server: Server) -> Server:
            note(f"starting {server.name} ...")
            stack.enter_context(server)
            note(f"{server.name} listens on {server.host}:{server.port}, process {server.pid}")
            return server

        # log_connections: the server's own count of all sessions
        postgres = start(PostgresServer(dbname=_DATABASE, max_connections=40, settings={"log_connections": "on"}))
        servers = Servers(postgres, start(RedisServer()), start(HTTPServer(fast=True)))
        servers.fill()
        yield servers


def break_things(servers: Servers, book: Round, note: Callable[[str], None], stop: threading.Event) -> None:
    """Kill all backends and restart Redis at the plan's moments of this round; return early when ``stop`` is set."""
    plan = book.plan
    if stop.wait(max(0.0, plan.kill_at - book.now())):
        return
    fault = Fault("all PostgreSQL backends killed", book.now())
    book.faults.append(fault)
    number = servers.postgres.kill_backends()
    note(f"{fault.begin:.1f} s: {number} PostgreSQL backends killed, all there were")
    if stop.wait(max(0.0, plan.restart_at - book.now())):
        return
    fault = Fault(f"Redis restarted, {plan.down:g} s down", book.now())
    book.faults.append(fault)
    note(f"{fault.begin:.1f} s: Redis stopped")
    servers.restart_redis(plan.down)
    note(f"{book.now():.1f} s: Redis is back")
