"""The columns of the table: each driver behind the same few words, whatever its world (threads, asyncio, trio).

The words are coroutines. A synchronous driver's do not wait, so that they can be run to their end in a plain thread.
"""

from __future__ import annotations

import asyncio
import importlib
import ssl
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, ClassVar

import httpx
import pytest

from poolkit.testing.servers import Certificates, HTTPServer, PostgresServer, RedisServer
from tests.faults.proxy import FaultProxy
from tests.support.mariadb import MISSING, MariaDBServer
from tests.support.resolver import SILENT, Resolver
from tests.support.waiting import PATIENCE

SIZE = 2
CONNECT = 1  # psycopg counts in whole seconds
CHECK = 0.3
LIMITS: dict[str, Any] = {
    "max_size": SIZE, "connect_timeout": CONNECT, "check_timeout": CHECK, "check_after_idle": 0.0,
}  # fmt: skip


class Servers:
    """The servers behind the proxies, each started at its first use."""

    def __init__(
        self, postgres: PostgresServer, redis: RedisServer, http: HTTPServer, https: HTTPServer, tls: Certificates
    ) -> None:
        self._made: dict[str, Any] = {
            "postgres": postgres, "redis": redis, "http": http, "https": https,
        }  # fmt: skip
        self.tls = tls

    def __getitem__(self, kind: str) -> Any:
        if kind == "mysql" and kind not in self._made:
            if MISSING:
                pytest.skip(MISSING)
            self._made[kind] = MariaDBServer().start()
        return self._made[kind]

    def stop(self) -> None:
        if "mysql" in self._made:
            self._made["mysql"].stop()


class Column:
    """One driver under its adapter, with a pool of two connections."""

    name = ""
    module = ""
    server = "postgres"
    world = "threads"
    absent: ClassVar[dict[str, str]] = {}
    """Cells that cannot exist, with the reason."""
    drips: ClassVar[dict[str, str]] = {}
    """Cells that cannot exist against a peer whose answers come byte by byte, with the reason."""
    unclosed = False
    """Whether the driver leaves the socket of a connect that failed to the reference count, of which Python warns."""
    collected = False
    """Whether a socket whose goodbye could not be sent is left to the garbage collector."""

    def __init__(self, servers: Servers) -> None:
        self.servers = servers
        self.server_ = servers[self.server]
        self.proxy = FaultProxy("127.0.0.1", self._port()).start()
        self.dripping = False
        """Whether the peer answers byte by byte where it would fall silent."""
        self.silent_when_new = False
        """Whether the peer falls silent in what the application does with each new connection."""
        self.host = "127.0.0.1"
        self.resolver: Resolver | None = None
        self.encrypted = False
        """Whether the connections have TLS where the driver asks the server for it (PostgreSQL)."""

    @classmethod
    def lacks(cls, row: str) -> str | None:
        """Return why there is no such cell, or None if there is one."""
        if row == "tls" and cls.server != "postgres":
            return "TLS begins with the client's first message: the row connect is the same"
        return cls.absent.get(row)

    def encrypt(self) -> None:
        """Connect with TLS from now on."""
        self.encrypted = True
        self.proxy.target = (self.server_.host, self.server_.tls_port)

    def look_up(self, resolver: Resolver) -> None:
        """Connect by a name without an answer from now on."""
        self.host, self.resolver = SILENT, resolver

    def _port(self) -> int:
        """Return the port of the server behind the proxy."""
        port: int = self.server_.port
        return port

    def prepare(self, connection: Any, *_: Any) -> None:
        """The application's work on each new connection (an event, ``setup=``, ``configure=``): a statement."""
        if self.silent_when_new:
            self.fall_silent()
        cursor = connection.cursor()
        cursor.execute("select 1")
        cursor.fetchall()
        cursor.close()
        connection.rollback()

    def fall_silent(self) -> None:
        """Let the peer take everything from now on and send nothing, or one byte now and then."""
        if self.dripping:
            self.proxy.trickle = 0.1
        else:
            self.proxy.mode = "hold"

    def speak(self) -> None:
        """Let the peer answer everything that it has taken."""
        self.proxy.trickle = None
        self.proxy.reply_limit = None
        self.proxy.mode = "pass"
        if self.resolver is not None:
            self.resolver.answer()

    @property
    def engine(self) -> Any:
        """The engine's pool."""
        raise NotImplementedError

    async def open(self) -> None:
        """Create the pool, in its runtime."""
        raise NotImplementedError

    async def take(self) -> Any:
        """Return a working connection, in a transaction if the driver has them. Fails at once if none is available."""
        raise NotImplementedError

    async def give(self, lease: Any) -> None:
        """Return the lease."""
        raise NotImplementedError

    async def work(self, lease: Any) -> None:
        """Run something that takes long and is cancelled."""
        raise NotImplementedError

    async def close(self) -> None:
        """Close the pool."""
        raise NotImplementedError

    async def pause(self) -> None:
        """Let other tasks run for a moment."""
        if self.world == "asyncio":
            await asyncio.sleep(0.01)
        elif self.world == "trio":
            await importlib.import_module("trio").sleep(0.01)
        else:
            threading.Event().wait(0.01)


def tls_of(driver: str) -> dict[str, Any]:
    """Return the arguments with which a driver of PostgreSQL uses TLS and accepts every certificate."""
    if driver not in ("pg8000", "asyncpg"):
        return {"sslmode": "require"}
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return {"ssl" if driver == "asyncpg" else "ssl_context": context}


def tried(lease: Any, work: Callable[[Any], object], give_back: Callable[[Any], object]) -> Any:
    """Return the lease after some work with it, or give it back if that fails."""
    try:
        work(lease)
    except BaseException:
        give_back(lease)
        raise
    return lease


def run(world: str, scenario: Coroutine[Any, Any, Any]) -> None:
    """Run a scenario in its runtime, in a thread of its own. Raises AssertionError if it does not end."""
    failure: list[BaseException] = []

    def work() -> None:
        try:
            if world == "asyncio":
                asyncio.run(_itself(scenario))
            elif world == "trio":
                importlib.import_module("trio").run(lambda: scenario)
            else:
                with pytest.raises(StopIteration):
                    scenario.send(None)
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(2 * PATIENCE)
    if thread.is_alive():
        where = traceback.format_stack(sys._current_frames()[thread.ident or 0])
        raise AssertionError("it does not end:\n" + "".join(where))
    if failure:
        raise failure[0]


async def _itself(scenario: Coroutine[Any, Any, Any]) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)  # asyncpg leaves futures unread
    await scenario


# -- SQLAlchemy --------------------------------------------------------------------------------------------------------


class SQLAlchemy(Column):
    driver = ""

    @property
    def engine(self) -> Any:
        return self._engine.pool.poolkit

    async def open(self) -> None:
        from sqlalchemy import create_engine, event, make_url

        from poolkit_adapters.sqlalchemy import PoolkitPool

        limits = {name: value for name, value in LIMITS.items() if name != "max_size"}
        self._engine: Any = create_engine(
            make_url(self._url()),
            poolclass=PoolkitPool,
            pool_size=SIZE,
            max_overflow=0,
            pool_timeout=PATIENCE,
            connect_args=self._connect_args(),
            **limits,
        )
        event.listen(self._engine, "connect", self.prepare)

    def _connect_args(self) -> dict[str, Any]:
        return tls_of(self.driver) if self.encrypted else {}

    def _url(self) -> str:
        port = self.proxy.port
        if self.server == "mysql":
            options = "?use_pure=True" if self.driver == "mysqlconnector" else ""
            return f"mysql+{self.driver}://root@{self.host}:{port}/app{options}"
        url: str = self.server_.sqlalchemy_url(self.driver)
        return url.replace(f"{self.server_.host}:{self.server_.port}/", f"{self.host}:{port}/")

    async def take(self) -> Any:
        from sqlalchemy import text

        connection = self._engine.connect()
        try:
            connection.execute(text("select 1")).close()
        except BaseException:
            connection.close()
            raise
        return connection

    async def give(self, lease: Any) -> None:
        lease.close()

    async def close(self) -> None:
        self._engine.dispose()


class AsyncSQLAlchemy(SQLAlchemy):
    world = "asyncio"

    @property
    def engine(self) -> Any:
        return self._engine.pool.poolkit

    async def open(self) -> None:
        from sqlalchemy import event, make_url
        from sqlalchemy.ext.asyncio import create_async_engine

        from poolkit_adapters.sqlalchemy import AsyncPoolkitPool

        limits = {name: value for name, value in LIMITS.items() if name != "max_size"}
        self._engine = create_async_engine(
            make_url(self._url()),
            poolclass=AsyncPoolkitPool, pool_size=SIZE, max_overflow=0, pool_timeout=PATIENCE,
            connect_args=self._connect_args(), **limits,
        )  # fmt: skip
        event.listen(self._engine.sync_engine, "connect", self.prepare)

    async def take(self) -> Any:
        from sqlalchemy import text

        connection = await self._engine.connect()
        try:
            await connection.execute(text("select 1"))
        except BaseException:
            await connection.close()
            raise
        return connection

    async def give(self, lease: Any) -> None:
        await lease.close()

    async def work(self, lease: Any) -> None:
        from sqlalchemy import text

        await lease.execute(text("select sleep(600)" if self.server == "mysql" else "select pg_sleep(600)"))

    async def close(self) -> None:
        await self._engine.dispose()


_NO_CANCEL = {"cancel": "a thread cannot be cancelled"}


def _sqlalchemy(driver: str, module: str, server: str, *, tasks: bool = False) -> type[Column]:
    base = AsyncSQLAlchemy if tasks else SQLAlchemy
    return type(base)(
        f"SQLAlchemy_{driver}",
        (base,),
        {
            "name": f"sqlalchemy-{driver}", "module": module, "driver": driver, "server": server,
            "absent": {} if tasks else _NO_CANCEL, "unclosed": driver == "pg8000",
            "collected": driver == "pg8000",
        },
    )  # fmt: skip


# -- DB-API ------------------------------------------------------------------------------------------------------------


class DBAPI(Column):
    absent = _NO_CANCEL

    @property
    def engine(self) -> Any:
        return self._database.poolkit

    def _arguments(self) -> dict[str, Any]:
        if self.server == "mysql":
            pure = {"use_pure": True} if self.module == "mysql.connector" else {}
            return {**self.server_.arguments(), "host": self.host, "port": self.proxy.port, **pure}
        dsn = {**self.server_.dsn, "host": self.host, "port": self.proxy.port}
        if self.encrypted:
            dsn |= tls_of(self.module.partition(".")[0])
        if self.module == "pg8000.dbapi":
            dsn["database"] = dsn.pop("dbname")
        return dsn

    async def open(self) -> None:
        from poolkit_adapters.dbapi import PooledDatabase

        self._database: Any = PooledDatabase(
            importlib.import_module(self.module), connect_kwargs=self._arguments(), setup=self.prepare, **LIMITS
        )

    async def take(self) -> Any:
        connection = self._database.connect(timeout=2 * CONNECT)
        try:
            cursor = connection.cursor()
            cursor.execute("select 1")
            cursor.fetchall()
        except BaseException:
            connection.close()
            raise
        return connection

    async def give(self, lease: Any) -> None:
        lease.close()

    async def close(self) -> None:
        self._database.close()


def _dbapi(module: str, server: str) -> type[Column]:
    own = {"name": f"dbapi-{module}", "module": module, "server": server, "unclosed": module == "pg8000.dbapi"}
    return type(DBAPI)(f"DBAPI_{module}", (DBAPI,), own)


# -- redis -------------------------------------------------------------------------------------------------------------


class Redis(Column):
    name = "redis"
    module = "redis"
    server = "redis"
    absent = _NO_CANCEL | {
        "reset": "nothing is asked when a connection comes back: a changed session is closed",
        "prepare": "redis_connect_func is a part of redis-py's handshake, of the row connect",
    }
    tls = False

    @property
    def engine(self) -> Any:
        return self._pool.poolkit

    def _port(self) -> int:
        port: int = self.server_.tls_port if self.tls else self.server_.port
        return port

    def _arguments(self) -> dict[str, Any]:
        import redis.backoff

        kind = importlib.import_module("redis" if self.world == "threads" else "redis.asyncio")
        once = importlib.import_module(f"{kind.__name__}.retry").Retry(redis.backoff.NoBackoff(), 0)
        # socket_timeout=None, as for callers that block in BLPOP, and as the default of redis-py before 8
        arguments: dict[str, Any] = {
            "host": self.host, "port": self.proxy.port, "socket_timeout": None, "socket_connect_timeout": CONNECT,
            "retry": once,
        }  # fmt: skip
        if self.tls:
            arguments |= {"connection_class": kind.SSLConnection, "ssl_cert_reqs": "none"}
        return arguments

    def _limits(self) -> dict[str, Any]:
        return {name: value for name, value in LIMITS.items() if name != "connect_timeout"}

    async def open(self) -> None:
        from poolkit_adapters.redis import PoolkitConnectionPool

        self._pool: Any = PoolkitConnectionPool(**self._arguments(), **self._limits())

    async def take(self) -> Any:
        def work(connection: Any) -> None:
            connection.send_command("PING", check_health=False)
            connection.read_response()

        return tried(self._pool.get_connection(), work, self._pool.release)

    async def give(self, lease: Any) -> None:
        self._pool.release(lease)

    async def close(self) -> None:
        self._pool.close()


class AsyncRedis(Redis):
    name = "redis-async"
    world = "asyncio"
    absent: ClassVar[dict[str, str]] = {name: Redis.absent[name] for name in ("reset", "prepare")}

    async def open(self) -> None:
        from poolkit_adapters.redis import AsyncPoolkitConnectionPool

        self._pool = AsyncPoolkitConnectionPool(**self._arguments(), **self._limits())

    async def take(self) -> Any:
        connection = await self._pool.get_connection()
        try:
            await connection.send_command("PING", check_health=False)
            await connection.read_response()
        except BaseException:
            await self._pool.release(connection)
            raise
        return connection

    async def give(self, lease: Any) -> None:
        await self._pool.release(lease)

    async def work(self, lease: Any) -> None:
        await lease.send_command("BLPOP", "nothing", 600, check_health=False)
        await lease.read_response(disable_decoding=False)

    async def close(self) -> None:
        await self._pool.aclose()


class RedisTLS(Redis):
    name = "redis-tls"
    tls = True


class AsyncRedisTLS(AsyncRedis):
    name = "redis-tls-async"
    tls = True


# -- httpx -------------------------------------------------------------------------------------------------------------


class HTTP(Column):
    name = "httpx"
    module = "httpx"
    server = "http"
    http2 = False
    absent = _NO_CANCEL | {
        "check": "HTTP has no question that asks for a sign of life; a look asks the peer nothing",
        "reset": "a response that is given back unread costs its connection: nothing is waited for",
        "prepare": "there is no hook for a new connection",
    }
    drips: ClassVar[dict[str, str]] = {"connect": "without TLS nothing is read before the answer to the request"}

    @property
    def engine(self) -> Any:
        return self._transport.poolkit

    def _transport_of(self, kind: Any) -> Any:
        limits = {name: value for name, value in LIMITS.items() if not name.startswith("check")}
        verify: Any = self.servers.tls.client_context() if self.server == "https" else True
        if self.resolver is not None and verify is not True:
            verify.check_hostname = False
        return kind(verify=verify, http2=self.http2, **limits)

    def _url(self, path: str = "/") -> str:
        return f"{self.server}://{self.host}:{self.proxy.port}{path}"

    async def open(self) -> None:
        from poolkit_adapters.httpx import PoolkitTransport

        self._transport: Any = self._transport_of(PoolkitTransport)
        self._client: Any = httpx.Client(transport=self._transport, timeout=httpx.Timeout(None, read=CONNECT))

    async def take(self) -> Any:
        response = self._client.send(self._client.build_request("GET", self._url("/bytes?n=10")), stream=True)
        response.read()
        return response

    async def give(self, lease: Any) -> None:
        lease.close()

    async def close(self) -> None:
        self._client.close()


class _Endless(httpx.AsyncByteStream):
    """A body that fills every buffer. Not a generator, because trio would report one that is not closed."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        return bytes(1 << 16)


class AsyncHTTP(HTTP):
    name = "httpx-asyncio"
    world = "asyncio"
    absent: ClassVar[dict[str, str]] = {name: HTTP.absent[name] for name in ("check", "reset", "prepare")}

    async def open(self) -> None:
        from poolkit_adapters.httpx import AsyncPoolkitTransport

        self._transport = self._transport_of(AsyncPoolkitTransport)
        self._client = httpx.AsyncClient(transport=self._transport, timeout=httpx.Timeout(None, read=CONNECT))

    async def take(self) -> Any:
        request = self._client.build_request("GET", self._url("/bytes?n=10"))
        response = await self._client.send(request, stream=True)
        await response.aread()
        return response

    async def give(self, lease: Any) -> None:
        await lease.aclose()

    async def work(self, lease: Any) -> None:
        request = self._client.build_request("POST", self._url("/upload"), timeout=httpx.Timeout(None))
        request.stream = _Endless()
        del request.headers["Content-Length"]
        length = ("Content-Length", str(1 << 40)) if self.http2 else ("Transfer-Encoding", "chunked")
        request.headers[length[0]] = length[1]
        await self._client.send(request)

    async def close(self) -> None:
        await self._client.aclose()


def _http(world: str, server: str, *, http2: bool = False) -> type[Column]:
    base = HTTP if world == "threads" else AsyncHTTP
    name = "-".join(["httpx", world, "h2" if http2 else server])
    drips = {} if server == "https" else HTTP.drips
    own = {"name": name, "world": world, "server": server, "http2": http2, "drips": drips}
    return type(base)(name.replace("-", "_"), (base,), own)


# -- psycopg -----------------------------------------------------------------------------------------------------------


class Psycopg(Column):
    name = "psycopg"
    module = "psycopg"
    absent = _NO_CANCEL

    @property
    def engine(self) -> Any:
        return self._pool.poolkit

    def _conninfo(self) -> str:
        made = importlib.import_module("psycopg.conninfo").make_conninfo
        tls = tls_of(self.module) if self.encrypted else {}
        return str(made(**{**self.server_.dsn, "host": self.host, "port": self.proxy.port, **tls}))

    @property
    def _configure(self) -> Any:
        return self.prepare

    def _made(self, kind: Any) -> Any:
        limits = {name: value for name, value in LIMITS.items() if name != "max_size"}
        return kind(
            self._conninfo(), configure=self._configure, min_size=0, max_size=SIZE, timeout=2 * CONNECT, open=False,
            check_after_idle=0.0,
            **{name: value for name, value in limits.items() if name != "check_after_idle"},
        )  # fmt: skip

    async def open(self) -> None:
        from poolkit_adapters.psycopg import PoolkitConnectionPool

        self._pool: Any = self._made(PoolkitConnectionPool)
        self._pool.open()

    async def take(self) -> Any:
        return tried(self._pool.getconn(), lambda connection: connection.execute("select 1"), self._pool.putconn)

    async def give(self, lease: Any) -> None:
        self._pool.putconn(lease)

    async def close(self) -> None:
        self._pool.close()


class AsyncPsycopg(Psycopg):
    name = "psycopg-async"
    world = "asyncio"
    absent: ClassVar[dict[str, str]] = {}

    @property
    def _configure(self) -> Any:
        return self._prepare

    async def _prepare(self, connection: Any) -> None:
        if self.silent_when_new:
            self.fall_silent()
        await connection.execute("select 1")
        await connection.rollback()

    async def open(self) -> None:
        from poolkit_adapters.psycopg import AsyncPoolkitConnectionPool

        self._pool = self._made(AsyncPoolkitConnectionPool)
        await self._pool.open()

    async def take(self) -> Any:
        connection = await self._pool.getconn()
        try:
            await connection.execute("select 1")
        except BaseException:
            await self._pool.putconn(connection)
            raise
        return connection

    async def give(self, lease: Any) -> None:
        await self._pool.putconn(lease)

    async def work(self, lease: Any) -> None:
        await lease.execute("select pg_sleep(600)")

    async def close(self) -> None:
        await self._pool.close()


# -- asyncpg -----------------------------------------------------------------------------------------------------------


class Asyncpg(Column):
    name = "asyncpg"
    module = "asyncpg"
    world = "asyncio"

    @property
    def engine(self) -> Any:
        return self._pool.poolkit

    async def _init(self, connection: Any) -> None:
        if self.silent_when_new:
            self.fall_silent()
        await connection.execute("select 1")

    async def open(self) -> None:
        from poolkit_adapters.asyncpg import create_pool

        dsn = {**self.server_.dsn, "host": self.host, "port": self.proxy.port}
        dsn["database"] = dsn.pop("dbname")
        dsn |= tls_of(self.module) if self.encrypted else {}
        self._pool: Any = create_pool(min_size=0, init=self._init, **dsn, **LIMITS)
        await self._pool

    async def take(self) -> Any:
        connection = await self._pool.acquire(timeout=2 * CONNECT)
        try:
            await connection.transaction().start()
            await connection.fetchval("select 1")
        except BaseException:
            await self._pool.release(connection)
            raise
        return connection

    async def give(self, lease: Any) -> None:
        await self._pool.release(lease)

    async def work(self, lease: Any) -> None:
        await lease.fetchval("select pg_sleep(600)")

    async def close(self) -> None:
        await asyncio.wait_for(self._pool.close(), PATIENCE)


COLUMNS: tuple[type[Column], ...] = (
    _sqlalchemy("psycopg", "psycopg", "postgres"),
    _sqlalchemy("psycopg2", "psycopg2", "postgres"),
    _sqlalchemy("pg8000", "pg8000", "postgres"),
    _sqlalchemy("pymysql", "pymysql", "mysql"),
    _sqlalchemy("mysqlconnector", "mysql.connector", "mysql"),
    _sqlalchemy("psycopg_async", "psycopg", "postgres", tasks=True),
    _sqlalchemy("asyncpg", "asyncpg", "postgres", tasks=True),
    _sqlalchemy("aiomysql", "aiomysql", "mysql", tasks=True),
    _sqlalchemy("asyncmy", "asyncmy", "mysql", tasks=True),
    _dbapi("psycopg", "postgres"),
    _dbapi("psycopg2", "postgres"),
    _dbapi("pg8000.dbapi", "postgres"),
    _dbapi("pymysql", "mysql"),
    _dbapi("mysql.connector", "mysql"),
    Redis,
    AsyncRedis,
    RedisTLS,
    AsyncRedisTLS,
    *(_http(world, server) for world in ("threads", "asyncio", "trio") for server in ("http", "https")),
    *(_http(world, "https", http2=True) for world in ("threads", "asyncio", "trio")),
    Psycopg,
    AsyncPsycopg,
    Asyncpg,
)

NO_COLUMN = {
    "sqlalchemy-pysqlite": "SQLite is a file: there is no peer that could be silent",
    "sqlalchemy-aiosqlite": "as pysqlite; its thread ends with each call",
    "dbapi-sqlite3": "as pysqlite",
    "sqlalchemy-mysqldb": "mysqlclient is built from source, which not every machine can do; its C library bounds the "
    "connect by connect_timeout, and its socket is reached through fileno()",
}
"""Drivers that are not in the table, with the reason."""
