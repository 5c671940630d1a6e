"""Each adapter with a secret in all the places where it takes one; and a net that catches everything said."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import logging
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

__all__ = ("CANARY", "KINDS", "Net", "Place")

CANARY = "c4n4ry!s3cret/0f:th3@test"
"""Needs quoting in a URL, so that a raw and a quoted leak are both found."""


class Place:
    """Where the server is (or seems to be), and how long to wait for it."""

    def __init__(self, host: str, port: int, user: str = "postgres", dbname: str = "postgres") -> None:
        self.host, self.port, self.user, self.dbname = host, port, user, dbname

    def url(self, scheme: str) -> str:
        return f"{scheme}://{self.user}:{quote(CANARY, safe='')}@{self.host}:{self.port}/{self.dbname}"


class Net(logging.Handler):
    """Everything that is logged, warned about, printed, raised or can be asked for."""

    def __init__(self) -> None:
        super().__init__(level=1)
        self.caught: list[tuple[str, str]] = []
        self.events: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = logging.Formatter("%(name)s %(levelname)s %(message)s").format(record)
        self.caught.append((f"log {record.name}", text))

    def error(self, error: BaseException) -> None:
        """An error with its whole chain, as it would end up in a log or an error tracker."""
        self.caught.append(("traceback", "".join(traceback.format_exception(error))))
        self.caught.append(("repr of the error", repr(error)))
        self.caught.append(("arguments of the error", repr(error.args)))
        for each in getattr(error, "errors", ()):
            self.caught.append(("repr of an error inside", repr(each)))

    def pool(self, *things: Any) -> None:
        """The pool and what it tells of itself."""
        for thing in things:
            self.caught += [("repr", repr(thing)), ("str", str(thing))]
            for name in ("stats", "explain", "describe", "status", "get_stats"):
                method = getattr(thing, name, None)
                if callable(method):
                    self.caught.append((name, repr(method())))

    @contextlib.contextmanager
    def spread(self) -> Iterator[Net]:
        """Catch what is said inside; errors are caught too and end the block."""
        root = logging.getLogger()
        loggers = [root, *(logging.getLogger(name) for name in list(root.manager.loggerDict))]
        levels = [(logger, logger.level) for logger in loggers]
        for logger in loggers:
            logger.setLevel(1)
        root.addHandler(self)
        said = io.StringIO()
        try:
            with warnings.catch_warnings(record=True) as warned, contextlib.redirect_stderr(said):
                warnings.simplefilter("always")
                try:
                    yield self
                except Exception as error:
                    self.error(error)
                    del error
                gc.collect()
            self.caught += [("warning", str(each.message)) for each in warned]
            self.caught += [("event", repr(event)) for event in self.events]
            self.caught.append(("stderr", said.getvalue()))
        finally:
            root.removeHandler(self)
            for logger, level in levels:
                logger.setLevel(level)

    def leaks(self, *but_for: str) -> list[str]:
        """Where the secret was found; ``but_for``: words of places that are a driver's own."""
        secrets = (CANARY, quote(CANARY, safe=""), quote(CANARY))
        return [
            f"{where}: {text[-400:]}"
            for where, text in self.caught
            if any(secret in text for secret in secrets) and not any(word in where for word in but_for)
        ]


def _use(net: Net, connect: Callable[[], Any], end: Callable[[Any], Any], misuse: bool) -> None:
    connection = connect()
    net.pool(connection)
    try:
        if misuse:
            connect()  # the second of one: exhaustion
    finally:
        end(connection)


def sqlalchemy_url(net: Net, place: Place, misuse: bool = False, **settings: Any) -> None:
    from sqlalchemy import create_engine

    from poolkit_adapters.sqlalchemy import PoolkitPool

    engine = create_engine(
        place.url("postgresql+psycopg"), poolclass=PoolkitPool, echo="debug", echo_pool="debug",
        connect_args={"connect_timeout": 2}, **_limits(settings, size="pool_size", wait="pool_timeout"),
        max_overflow=0, listeners=[net.events.append],
    )  # fmt: skip
    try:
        net.pool(engine, engine.pool)
        _use(net, engine.connect, lambda connection: connection.close(), misuse)
    finally:
        net.pool(engine.pool, engine.pool.poolkit)
        engine.dispose()


def sqlalchemy_async(net: Net, place: Place, misuse: bool = False, **settings: Any) -> None:
    from sqlalchemy.ext.asyncio import create_async_engine

    from poolkit_adapters.sqlalchemy import AsyncPoolkitPool

    async def main() -> None:
        engine = create_async_engine(
            f"postgresql+asyncpg://{place.user}@{place.host}:{place.port}/{place.dbname}",
            poolclass=AsyncPoolkitPool, connect_args={"password": CANARY, "timeout": 2}, max_overflow=0,
            listeners=[net.events.append], **_limits(settings, size="pool_size", wait="pool_timeout"),
        )  # fmt: skip
        try:
            net.pool(engine, engine.pool)
            async with engine.connect() as connection:
                net.pool(connection)
                if misuse:
                    await engine.connect()
        finally:
            net.pool(engine.pool, engine.pool.poolkit)
            await engine.dispose()

    asyncio.run(main())


def redis_url(net: Net, place: Place, misuse: bool = False, **settings: Any) -> None:
    import redis

    from poolkit_adapters.redis import PoolkitConnectionPool

    pool = PoolkitConnectionPool.from_url(
        f"redis://:{quote(CANARY, safe='')}@{place.host}:{place.port}/0", socket_connect_timeout=1, socket_timeout=1,
        listeners=[net.events.append], **_limits(settings, size="max_connections", wait="timeout"),
    )  # fmt: skip
    client = redis.Redis(connection_pool=pool)
    try:
        net.pool(pool, client)
        client.ping()
        _use(net, pool.get_connection, pool.release, misuse)
    finally:
        net.pool(pool, pool.poolkit)
        pool.disconnect()
        pool.close()


def redis_credentials(net: Net, place: Place, misuse: bool = False, **settings: Any) -> None:
    import redis.asyncio

    from poolkit_adapters.redis import AsyncPoolkitConnectionPool

    class Token(redis.CredentialProvider):
        def get_credentials(self) -> tuple[str, str]:
            return "default", CANARY

    async def main() -> None:
        pool = AsyncPoolkitConnectionPool(
            host=place.host, port=place.port, credential_provider=Token(), socket_connect_timeout=1, socket_timeout=1,
            listeners=[net.events.append], **_limits(settings, size="max_connections", wait="timeout"),
        )  # fmt: skip
        try:
            net.pool(pool)
            connection = await pool.get_connection()
            net.pool(connection)
            try:
                if misuse:
                    await pool.get_connection()
            finally:
                await pool.release(connection)
        finally:
            net.pool(pool, pool.poolkit)
            await pool.aclose()

    asyncio.run(main())


def httpx_everywhere(net: Net, place: Place, misuse: bool = False, **settings: Any) -> None:
    import httpx

    from poolkit_adapters.httpx import PoolkitTransport

    timeout = httpx.Timeout(2, pool=0.05, connect=1)
    transport = PoolkitTransport(listeners=[net.events.append], **_limits(settings, size="max_size", wait=""))
    client = httpx.Client(transport=transport, timeout=timeout, trust_env=False, cookies={"session": CANARY})
    client.headers["Authorization"] = f"Bearer {CANARY}"
    url = f"http://user:{quote(CANARY, safe='')}@{place.host}:{place.port}/bytes?n=300000"
    try:
        net.pool(client, transport, transport.poolkit)
        with client.stream("GET", url) as response:
            net.pool(response)
            if misuse:
                client.get(url)
            response.read()
    finally:
        net.pool(transport, transport.poolkit)
        client.close()


def httpx_proxy(net: Net, place: Place, misuse: bool = False, **settings: Any) -> None:
    import httpx

    from poolkit_adapters.httpx import AsyncPoolkitTransport

    async def main() -> None:
        transport = AsyncPoolkitTransport(
            proxy=f"http://user:{quote(CANARY, safe='')}@{place.host}:{place.port}", listeners=[net.events.append],
            **_limits(settings, size="max_size", wait=""),
        )  # fmt: skip
        timeout = httpx.Timeout(2, pool=0.05, connect=1)
        async with httpx.AsyncClient(transport=transport, timeout=timeout, trust_env=False) as client:
            try:
                net.pool(client, transport, transport.poolkit)
                async with client.stream("GET", "http://nobody.invalid/bytes?n=300000"):
                    if misuse:
                        await client.get("http://nobody.invalid/")
            finally:
                net.pool(transport, transport._pool, transport.poolkit)

    asyncio.run(main())


def psycopg_conninfo(net: Net, place: Place, misuse: bool = False, **settings: Any) -> None:
    from poolkit_adapters.psycopg import PoolkitConnectionPool

    pool: Any = PoolkitConnectionPool(
        place.url("postgresql"), kwargs={"connect_timeout": 2}, min_size=1, open=False,
        reconnect_timeout=0.2, **_limits(settings, size="max_size", wait="timeout"),
    )  # fmt: skip
    try:
        net.pool(pool)
        pool.open()
        _use(net, pool.getconn, pool.putconn, misuse)
        pool.wait(1)
    finally:
        net.pool(pool)
        pool.close()


def psycopg_kwargs(net: Net, place: Place, misuse: bool = False, **settings: Any) -> None:
    from poolkit_adapters.psycopg import AsyncPoolkitConnectionPool

    async def main() -> None:
        pool: Any = AsyncPoolkitConnectionPool(
            f"host={place.host} port={place.port} dbname={place.dbname}",
            kwargs={"user": place.user, "password": CANARY, "connect_timeout": 2},
            min_size=1, open=False, **_limits(settings, size="max_size", wait="timeout"),
        )  # fmt: skip
        try:
            net.pool(pool)
            await pool.open()
            connection = await pool.getconn()
            net.pool(connection)
            try:
                if misuse:
                    await pool.getconn()
            finally:
                await pool.putconn(connection)
        finally:
            net.pool(pool)
            await pool.close()

    asyncio.run(main())


def dbapi_kwargs(net: Net, place: Place, misuse: bool = False, **settings: Any) -> None:
    import psycopg

    from poolkit_adapters.dbapi import PooledDatabase

    database = PooledDatabase(
        psycopg, host=place.host, port=place.port, user=place.user, dbname=place.dbname, password=CANARY,
        connect_timeout=2, debug=True, **_limits(settings, size="max_size", wait="acquire_timeout"),
    )  # fmt: skip
    database.poolkit.add_listener(net.events.append)
    try:
        net.pool(database, database.poolkit)
        _use(net, database.connect, lambda connection: connection.close(), misuse)
    finally:
        net.pool(database, database.poolkit)
        database.close()


def _limits(settings: dict[str, Any], *, size: str, wait: str) -> dict[str, Any]:
    return {size: 1, **({wait: 2.5} if wait else {}), **settings}


KINDS: dict[str, tuple[Callable[..., None], str]] = {
    "sqlalchemy-url": (sqlalchemy_url, "postgres"),
    "sqlalchemy-async": (sqlalchemy_async, "postgres"),
    "redis-url": (redis_url, "redis"),
    "redis-credentials": (redis_credentials, "redis"),
    "httpx": (httpx_everywhere, "http"),
    "httpx-proxy": (httpx_proxy, "http"),
    "psycopg-conninfo": (psycopg_conninfo, "postgres"),
    "psycopg-kwargs": (psycopg_kwargs, "postgres"),
    "dbapi": (dbapi_kwargs, "postgres"),
}
