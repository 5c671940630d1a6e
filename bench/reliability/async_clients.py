"""The same programs for the tasks of one event loop."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from bench.reliability.clients import ACQUIRE, ANSWER, CONNECT, INSERT, database_url

__all__ = ("AsyncClient", "AsyncHTTP2", "AsyncHTTPX", "AsyncPsycopg", "AsyncRedis", "AsyncSQLAlchemy")


class AsyncClient:
    """A client that tasks share. Made by ``await Kind.make(...)`` in the loop that uses it."""

    kind = "postgres"
    engine: Any = None
    deadline: float | None = None
    """Seconds for one request, if the driver has no timeout for an answer."""

    async def open(self, *, ours: bool, host: str, port: int, name: str, size: int, **settings: Any) -> None:
        """Create the pool."""
        raise NotImplementedError

    async def ask(self, key: str) -> str:
        """Send one request and return the reply, which must be ``key``."""
        raise NotImplementedError

    def hold(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Hold one connection, which has just answered, during the block."""
        raise NotImplementedError

    async def close(self) -> None:
        """Close the pool."""
        raise NotImplementedError


class AsyncSQLAlchemy(AsyncClient):
    """SQLAlchemy on asyncpg."""

    async def open(self, *, ours: bool, host: str, port: int, name: str, size: int, **settings: Any) -> None:
        import sqlalchemy
        from sqlalchemy.ext.asyncio import create_async_engine

        from poolkit_adapters.sqlalchemy import AsyncPoolkitPool

        self._text = sqlalchemy.text(INSERT.format(":key"))
        self._engine = create_async_engine(
            database_url("postgresql+asyncpg", host, port),
            poolclass=AsyncPoolkitPool if ours else sqlalchemy.AsyncAdaptedQueuePool,
            pool_size=size,
            max_overflow=0,
            pool_timeout=ACQUIRE,
            connect_args={
                "timeout": CONNECT,
                "command_timeout": ANSWER,
                "server_settings": {"application_name": name},
            },
            **settings,
        )
        self.engine = self._engine.pool.poolkit if ours else None  # type: ignore[attr-defined]

    async def ask(self, key: str) -> str:
        async with self._engine.begin() as connection:
            return str((await connection.execute(self._text, {"key": key})).scalar_one())

    @contextlib.asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        async with self._engine.connect() as connection:
            (await connection.exec_driver_sql("select 1")).scalar_one()
            yield

    async def close(self) -> None:
        await self._engine.dispose()


class AsyncPsycopg(AsyncClient):
    """psycopg with its pool."""

    deadline = ANSWER

    async def open(self, *, ours: bool, host: str, port: int, name: str, size: int, **settings: Any) -> None:
        from psycopg_pool import AsyncConnectionPool

        from poolkit_adapters.psycopg import AsyncPoolkitConnectionPool

        self._pool = (AsyncPoolkitConnectionPool if ours else AsyncConnectionPool)(
            database_url("postgresql", host, port),
            min_size=size,
            max_size=size,
            timeout=settings.pop("timeout", ACQUIRE),
            open=False,
            kwargs={"connect_timeout": 2, "application_name": name},
            **settings,
        )
        self._insert = INSERT.format("%s").encode()
        await self._pool.open()
        self.engine = self._pool.poolkit if ours else None  # type: ignore[attr-defined]

    async def ask(self, key: str) -> str:
        async with self._pool.connection() as connection:
            row = await (await connection.execute(self._insert, (key,))).fetchone()
        return str(row[0] if row else None)

    @contextlib.asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        async with self._pool.connection() as connection:
            await (await connection.execute("select 1")).fetchone()
            yield

    async def close(self) -> None:
        await self._pool.close()


class AsyncRedis(AsyncClient):
    """redis.asyncio."""

    kind = "redis"

    async def open(self, *, ours: bool, host: str, port: int, name: str, size: int, **settings: Any) -> None:
        import redis.asyncio

        from poolkit_adapters.redis import AsyncPoolkitConnectionPool

        kind: Any = AsyncPoolkitConnectionPool if ours else redis.asyncio.BlockingConnectionPool
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
        self._client = redis.asyncio.Redis(connection_pool=self._pool)
        self.engine = self._pool.poolkit if ours else None

    async def ask(self, key: str) -> str:
        return str(await self._client.echo(key))

    @contextlib.asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        connection = await self._pool.get_connection()
        try:
            await connection.send_command("PING")
            await connection.read_response()
            yield
        except Exception:
            await connection.disconnect()
            raise
        finally:
            await self._pool.release(connection)

    async def close(self) -> None:
        await (self._pool.aclose if self.engine else self._pool.disconnect)()


class AsyncHTTPX(AsyncClient):
    """httpx over HTTP/1.1."""

    kind = "http"

    async def open(self, *, ours: bool, host: str, port: int, name: str, size: int, **settings: Any) -> None:
        import httpx

        from poolkit_adapters.httpx import AsyncPoolkitTransport

        limits = httpx.Limits(max_connections=size, max_keepalive_connections=size)
        transport: Any = (AsyncPoolkitTransport if ours else httpx.AsyncHTTPTransport)(limits=limits, **settings)
        self._client = httpx.AsyncClient(
            transport=transport,
            base_url=f"http://{host}:{port}",
            timeout=httpx.Timeout(ANSWER, connect=CONNECT, pool=ACQUIRE),
        )
        self.engine = transport.poolkit if ours else None

    async def ask(self, key: str) -> str:
        answer = await self._client.get("/echo", params={"key": key})
        return str(answer.raise_for_status().json()["key"])

    @contextlib.asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        async with self._client.stream("GET", "/bytes?n=100000"):
            yield

    async def close(self) -> None:
        await self._client.aclose()


class AsyncHTTP2(AsyncClient):
    """httpx over HTTP/2; the server says on which connection and stream it answers."""

    kind = "http2"

    async def open(self, *, ours: bool, server: Any, context: Any, size: int, **settings: Any) -> None:  # type: ignore[override]
        import httpx

        from poolkit_adapters.httpx import AsyncPoolkitTransport

        limits = httpx.Limits(max_connections=size, max_keepalive_connections=size)
        kind: Any = AsyncPoolkitTransport if ours else httpx.AsyncHTTPTransport
        transport: Any = kind(verify=context, http2=True, limits=limits, **settings)
        self._client = httpx.AsyncClient(
            transport=transport,
            base_url=server.url,
            timeout=httpx.Timeout(ANSWER, connect=CONNECT, pool=ACQUIRE),
        )
        self.engine = transport.poolkit if ours else None

    async def ask(self, key: str) -> str:
        answer = await self._client.get("/wait")
        right = int(answer.text.partition(":")[2]) == answer.extensions["stream_id"]
        return key if right else answer.text

    @contextlib.asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        await self.ask("")
        yield

    async def close(self) -> None:
        await self._client.aclose()
