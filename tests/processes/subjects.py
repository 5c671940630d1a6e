"""One pool of each kind, with the same few words: use it, hold a connection, ask which one it is."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

__all__ = ("NAMES", "SYNC", "Subject", "make")


class Subject:
    """``use()`` borrows a connection for one exchange and says which it was; ``hold()`` gives a :class:`Held`.

    Each exchange asks for something of its own and looks whether that is what came back.
    """

    def __init__(self, url: str, size: int) -> None:
        raise NotImplementedError

    def use(self) -> str:
        held = self.hold()
        try:
            return held.ask()
        finally:
            held.end()

    def hold(self) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    number = 0

    def token(self) -> int:
        Subject.number += 1
        return Subject.number


class Held:
    """A connection on lease: ``ask()`` is one exchange, ``end()`` gives it back, ``put_away()`` without a word."""

    def __init__(
        self, ask: Callable[[], str], end: Callable[[], object], put_away: Callable[[], object] | None = None
    ) -> None:
        self.ask = ask
        self.end = end
        self.put_away = put_away or end


def address(url: str) -> tuple[str, int]:
    host, port = url.partition("//")[2].partition("/")[0].rpartition("@")[2].split(":")
    return host, int(port)


class Engine(Subject):
    """The engine alone: sockets that speak to a Redis."""

    def __init__(self, url: str, size: int) -> None:
        from poolkit import Connector, Pool

        class Sockets(Connector[socket.socket]):
            def connect(self, timeout: float | None) -> socket.socket:
                connection = socket.create_connection(address(url), timeout=timeout)
                _exchange(connection, "PING")  # a proxy accepts what it has not yet opened
                return connection

            def close(self, connection: socket.socket) -> None:
                connection.sendall(b"QUIT\r\n")
                connection.close()

            def abort(self, connection: socket.socket) -> None:
                connection.shutdown(socket.SHUT_RDWR)
                connection.close()

        self.pool: Any = Pool(Sockets(), max_size=size, min_size=1)

    def hold(self) -> Held:
        lease = self.pool.lease()

        def ask() -> str:
            token = self.token()
            assert _exchange(lease.connection, f"PING t{token}") == f"t{token}"
            return _exchange(lease.connection, "CLIENT ID")

        return Held(ask, lease.close)

    def close(self) -> None:
        self.pool.close()


def _exchange(connection: socket.socket, line: str) -> str:
    connection.sendall(line.encode() + b"\r\n")
    reply = b""
    while reply.count(b"\r\n") < (2 if reply.startswith(b"$") else 1):
        more = connection.recv(1000)
        assert more, "the server has hung up"
        reply += more
    return reply.split(b"\r\n")[-2].lstrip(b":+").decode()


class SQLAlchemy(Subject):
    def __init__(self, url: str, size: int) -> None:
        from sqlalchemy import create_engine

        from poolkit_adapters.sqlalchemy import PoolkitPool

        self.engine = create_engine(
            url.replace("postgresql:", "postgresql+psycopg:"), poolclass=PoolkitPool, pool_size=size, max_overflow=0,
        )  # fmt: skip

    def hold(self) -> Held:
        from sqlalchemy import text

        connection = self.engine.connect()

        def ask() -> str:
            token = self.token()
            row = connection.execute(text("select pg_backend_pid(), cast(:t as int)"), {"t": token}).one()
            assert row[1] == token
            return str(row[0])

        return Held(ask, connection.close)

    def close(self) -> None:
        self.engine.dispose()


class Redis(Subject):
    def __init__(self, url: str, size: int) -> None:
        from poolkit_adapters.redis import PoolkitConnectionPool

        self.pool = PoolkitConnectionPool.from_url(url, max_connections=size, protocol=2)

    def hold(self) -> Held:
        connection = self.pool.get_connection()

        def ask() -> str:
            token = self.token()
            connection.send_command("PING", f"t{token}")
            assert connection.read_response() == f"t{token}".encode()
            connection.send_command("CLIENT", "ID")
            return str(connection.read_response())

        return Held(ask, lambda: self.pool.release(connection))

    def close(self) -> None:
        self.pool.close()


class HTTPX(Subject):
    def __init__(self, url: str, size: int) -> None:
        import httpx

        from poolkit_adapters.httpx import PoolkitTransport

        limits = httpx.Limits(max_connections=size, keepalive_expiry=60)  # a busy machine takes its time
        self.client = httpx.Client(transport=PoolkitTransport(limits=limits), base_url=url, timeout=20, trust_env=False)

    def use(self) -> str:
        token = str(self.token())
        answer = self.client.get("/echo", params={"key": token}).json()
        assert answer["key"] == token
        return str(answer["client_port"])

    def hold(self) -> Held:
        """In the middle of a response: a first piece has come, the rest has not been read."""
        token = self.token() % 10
        stream = self.client.stream("GET", "/bytes", params={"n": 200_000 + token})
        response = stream.__enter__()
        pieces = response.iter_raw(1000)
        got = [len(next(pieces))]

        def ask() -> str:
            if len(got) == 1:
                got.append(len(next(pieces)))
            return str(response.headers["x-client-port"])

        def end() -> None:
            total = sum(got) + sum(len(piece) for piece in pieces)
            stream.__exit__(None, None, None)
            assert total == 200_000 + token, f"{total} bytes of another answer"

        return Held(ask, end, response.close)

    def close(self) -> None:
        self.client.close()


class Psycopg(Subject):
    def __init__(self, url: str, size: int) -> None:
        from poolkit_adapters.psycopg import PoolkitConnectionPool

        self.pool: Any = PoolkitConnectionPool(url, min_size=1, max_size=size, open=True)

    def hold(self) -> Held:
        connection = self.pool.getconn()

        def end() -> None:
            connection.commit()
            self.pool.putconn(connection)

        return Held(lambda: _ask_sql(self.token(), connection), end, lambda: self.pool.putconn(connection))

    def close(self) -> None:
        self.pool.close()


class DBAPI(Subject):
    def __init__(self, url: str, size: int) -> None:
        import psycopg

        from poolkit_adapters.dbapi import PooledDatabase

        self.database = PooledDatabase(psycopg, url, max_size=size)

    def hold(self) -> Held:
        connection = self.database.connect()
        return Held(lambda: _ask_sql(self.token(), connection), connection.close)

    def close(self) -> None:
        self.database.close()


def _ask_sql(token: int, connection: Any) -> str:
    cursor = connection.cursor()
    cursor.execute("select pg_backend_pid(), %s::int", (token,))
    pid, echoed = cursor.fetchone()
    assert echoed == token
    return str(pid)


SYNC: dict[str, tuple[type[Subject], str]] = {
    "engine": (Engine, "redis"),
    "sqlalchemy": (SQLAlchemy, "postgres"),
    "redis": (Redis, "redis"),
    "httpx": (HTTPX, "http"),
    "psycopg": (Psycopg, "postgres"),
    "dbapi": (DBAPI, "postgres"),
}
"""Each kind and the server it needs."""

NAMES = tuple(SYNC)


def make(name: str, url: str, size: int = 4) -> Subject:
    """A pool of that kind, nothing connected yet."""
    return SYNC[name][0](url, size)
