"""One small program for each driver: send a key to the server and get it back. For threads.

Each is made with the driver's own pool or with poolkit's class in its place, with the same arguments.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from bench.reliability.world import DATABASE, PASSWORD, ROLE

__all__ = (
    "ACQUIRE",
    "ANSWER",
    "CONNECT",
    "SyncClient",
    "HTTP2",
    "HTTPX",
    "Psycopg",
    "Redis",
    "SQLAlchemy",
    "WrongReply",
)

ACQUIRE = 1.0
"""Seconds that a caller waits for a connection, in every pool."""
ANSWER = 0.5
"""Seconds for one answer, if the driver has such a timeout."""
CONNECT = 1.0
"""Seconds to connect, if the driver has such a timeout (libpq: 2, its minimum)."""
INSERT = "insert into hits (key) values ({}) returning key"


class WrongReply(BaseException):
    """A reply to another request: the run must stop."""


class SyncClient:
    """A client that threads share."""

    kind = "postgres"
    """The kind of server."""
    engine: Any = None
    """poolkit's pool; None for a driver's own pool."""

    def __init__(self, *, ours: bool, host: str, port: int, name: str, size: int, **settings: Any) -> None:
        raise NotImplementedError

    def ask(self, key: str) -> str:
        """Send one request and return the reply, which must be ``key``."""
        raise NotImplementedError

    def hold(self) -> contextlib.AbstractContextManager[None]:
        """Hold one connection, which has just answered, during the block."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the pool."""
        raise NotImplementedError


def database_url(driver: str, host: str, port: int) -> str:
    return f"{driver}://{ROLE}:{quote(PASSWORD)}@{host}:{port}/{DATABASE}"


class SQLAlchemy(SyncClient):
    """SQLAlchemy on psycopg."""

    def __init__(self, *, ours: bool, host: str, port: int, name: str, size: int, **settings: Any) -> None:
        import sqlalchemy

        from poolkit_adapters.sqlalchemy import PoolkitPool

        self._text = sqlalchemy.text(INSERT.format(":key"))
        self._engine = sqlalchemy.create_engine(
            database_url("postgresql+psycopg", host, port),
            poolclass=PoolkitPool if ours else sqlalchemy.QueuePool,
            pool_size=size,
            max_overflow=0,
            pool_timeout=ACQUIRE,
            connect_args={"connect_timeout": 2, "application_name": name},
            **settings,
        )
        self.engine = self._engine.pool.poolkit if ours else None  # type: ignore[attr-defined]

    def ask(self, key: str) -> str:
        with self._engine.begin() as connection:
            return str(connection.execute(self._text, {"key": key}).scalar_one())

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        with self._engine.connect() as connection:
            connection.exec_driver_sql("select 1").scalar_one()
            yield

    def close(self) -> None:
        self._engine.dispose()


class Psycopg(SyncClient):
    """psycopg with its pool."""

    def __init__(self, *, ours: bool, host: str, port: int, name: str, size: int, **settings: Any) -> None:
        from psycopg_pool import ConnectionPool

        from poolkit_adapters.psycopg import PoolkitConnectionPool

        self._pool = (PoolkitConnectionPool if ours else ConnectionPool)(
            database_url("postgresql", host, port),
            min_size=size,
            max_size=size,
            timeout=settings.pop("timeout", ACQUIRE),
            open=True,
            kwargs={"connect_timeout": 2, "application_name": name},
            **settings,
        )
        self._insert = INSERT.format("%s").encode()
        self.engine = self._pool.poolkit if ours else None  # type: ignore[attr-defined]

    def ask(self, key: str) -> str:
        with self._pool.connection() as connection:
            row = connection.execute(self._insert, (key,)).fetchone()
        return str(row[0] if row else None)

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        with self._pool.connection() as connection:
            connection.execute("select 1").fetchone()
            yield

    def close(self) -> None:
        self._pool.close()


class Redis(SyncClient):
    """redis-py."""

    kind = "redis"

    def __init__(self, *, ours: bool, host: str, port: int, name: str, size: int, **settings: Any) -> None:
        import redis

        from poolkit_adapters.redis import PoolkitConnectionPool

        kind: Any = PoolkitConnectionPool if ours else redis.BlockingConnectionPool
        self._pool = kind(
            host=host,
            port=port,
            max_connections=size,
            timeout=ACQUIRE,
            socket_timeout=ANSWER,
            socket_connect_timeout=CONNECT,
            client_name=name,
            decode_responses=True,
            **settings,
        )
        self._client = redis.Redis(connection_pool=self._pool)
        self.engine = self._pool.poolkit if ours else None

    def ask(self, key: str) -> str:
        return str(self._client.echo(key))

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        connection = self._pool.get_connection()
        try:
            connection.send_command("PING")
            connection.read_response()
            yield
        except Exception:
            connection.disconnect()
            raise
        finally:
            self._pool.release(connection)

    def close(self) -> None:
        (self._pool.close if self.engine else self._pool.disconnect)()


class HTTPX(SyncClient):
    """httpx over HTTP/1.1."""

    kind = "http"

    def __init__(self, *, ours: bool, host: str, port: int, name: str, size: int, **settings: Any) -> None:
        import httpx

        from poolkit_adapters.httpx import PoolkitTransport

        limits = httpx.Limits(max_connections=size, max_keepalive_connections=size)
        transport: Any = (PoolkitTransport if ours else httpx.HTTPTransport)(limits=limits, **settings)
        self._client = httpx.Client(
            transport=transport,
            base_url=f"http://{host}:{port}",
            timeout=httpx.Timeout(ANSWER, connect=CONNECT, pool=ACQUIRE),
        )
        self.engine = transport.poolkit if ours else None

    def ask(self, key: str) -> str:
        answer = self._client.get("/echo", params={"key": key})
        return str(answer.raise_for_status().json()["key"])

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        with self._client.stream("GET", "/bytes?n=100000"):
            yield

    def close(self) -> None:
        self._client.close()


class HTTP2(SyncClient):
    """httpx over HTTP/2; the server says on which connection and stream it answers."""

    kind = "http2"

    def __init__(self, *, ours: bool, server: Any, context: Any, size: int, **settings: Any) -> None:
        import httpx

        from poolkit_adapters.httpx import PoolkitTransport

        limits = httpx.Limits(max_connections=size, max_keepalive_connections=size)
        kind: Any = PoolkitTransport if ours else httpx.HTTPTransport
        transport: Any = kind(verify=context, http2=True, limits=limits, **settings)
        self._client = httpx.Client(
            transport=transport,
            base_url=server.url,
            timeout=httpx.Timeout(ANSWER, connect=CONNECT, pool=ACQUIRE),
        )
        self.engine = transport.poolkit if ours else None

    def ask(self, key: str) -> str:
        answer = self._client.get("/wait")
        # the server cannot repeat the key: the stream stands for it
        right = int(answer.text.partition(":")[2]) == answer.extensions["stream_id"]
        return key if right else answer.text

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        self.ask("")
        yield

    def close(self) -> None:
        self._client.close()
