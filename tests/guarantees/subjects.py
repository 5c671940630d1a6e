"""The columns of the table: each adapter behind the same few words, in threads and in tasks.

The words are coroutines. Those of a synchronous adapter never suspend, so a scenario runs in a plain thread as well.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Coroutine
from typing import Any

import psycopg
from sqlalchemy import create_engine, event, make_url, text
from sqlalchemy import exc as sqlalchemy_exc
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.util import greenlet_spawn

from poolkit.testing.servers import HTTPServer, PostgresServer, RedisServer
from poolkit_adapters.dbapi import PooledDatabase
from poolkit_adapters.psycopg import AsyncPoolkitConnectionPool as AsyncPsycopgPool
from poolkit_adapters.psycopg import PoolkitConnectionPool as PsycopgPool
from poolkit_adapters.sqlalchemy import AsyncPoolkitPool, PoolkitPool
from tests.faults.proxy import FaultProxy
from tests.support.waiting import PATIENCE

__all__ = ("SUBJECTS", "Caller", "Servers", "Subject", "run")

_NUMBERS = itertools.count(1)


class Servers:
    """The servers behind the proxies."""

    def __init__(
        self, postgres: PostgresServer, redis_server: RedisServer, valkey_server: RedisServer, http: HTTPServer,
        https: HTTPServer,
    ) -> None:  # fmt: skip
        self.postgres = postgres
        self.redis = redis_server
        self.valkey = valkey_server
        self.http = http
        self.https = https


class Caller:
    """A caller of its own, in a thread or a task."""

    def __init__(self) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self.task: asyncio.Task[None] | None = None
        self._over = False

    @property
    def done(self) -> bool:
        """Whether it has ended; a task may be cancelled before it begins."""
        return self._over if self.task is None else self.task.done()

    async def run(self, work: Coroutine[Any, Any, Any]) -> None:
        try:
            self.result = await work
        except BaseException as error:
            self.error = error
        finally:
            self._over = True


class Subject:
    """An adapter on its driver, with a pool to a server behind a proxy.

    ``wait`` is the time to wait for a connection in the driver's own word; ``new`` is called with each new connection,
    through the driver's own hook.
    """

    name = ""
    module = ""
    """The driver, where it is not installed on every Python."""
    adapter = ""
    """As the page names it."""
    world = "threads"
    timeout_error: type[Exception]
    """What the driver's users catch when no connection becomes free in time."""
    connect_error: type[Exception]
    """What they catch when the server cannot be reached."""
    unavailable_error: type[Exception] | None = None
    """What they catch when no connect is tried; None: the same."""

    def __init__(self, servers: Servers) -> None:
        self.servers = servers
        self.label = f"guarantee-{next(_NUMBERS)}-{threading.get_native_id()}"
        self.proxy = FaultProxy("127.0.0.1", self._port()).start()
        self._threads: list[threading.Thread] = []

    @property
    def asynchronous(self) -> bool:
        return self.world == "asyncio"

    def _port(self) -> int:
        return self.servers.postgres.port

    def need_handshake(self) -> None:
        """A connect must need answers of the server. Called before :meth:`open`."""

    # -- what each adapter defines ------------------------------------------------------------------------------------

    @property
    def engine(self) -> Any:
        """The engine's pool."""
        raise NotImplementedError

    async def open(
        self, size: int, *, wait: float = PATIENCE, new: Callable[[], None] | None = None, **settings: Any
    ) -> None:
        raise NotImplementedError

    async def take(self) -> Any:
        """A connection on which a first request was made."""
        raise NotImplementedError

    async def use(self, lease: Any) -> None:
        """Another request on it."""
        raise NotImplementedError

    async def work(self, lease: Any) -> None:
        """A request that takes until it is cancelled."""
        raise NotImplementedError

    async def give(self, lease: Any) -> None:
        raise NotImplementedError

    async def session(self, lease: Any) -> Any:
        """Which session of the server it is."""
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError

    def set_wait(self, seconds: float) -> None:
        """From now on callers wait so long. A short time at :meth:`open` would fail connects on a busy machine."""
        self.engine.reconfigure(acquire_timeout=seconds)

    async def close_engine(self) -> None:
        """Close the engine's pool."""
        closing = self.engine.close()
        if closing is not None:
            await closing

    def sessions(self) -> int:
        """Sessions of this pool that the server has now."""
        return len(self.servers.postgres.backends(self.label))

    # -- callers ------------------------------------------------------------------------------------------------------

    async def request(self) -> Any:
        """Take a connection, use it and give it back; its session."""
        lease = await self.take()
        try:
            return await self.session(lease)
        finally:
            await self.give(lease)

    def start(self, work: Coroutine[Any, Any, Any]) -> Caller:
        """Run ``work`` as a caller of its own."""
        caller = Caller()
        if self.asynchronous:
            caller.task = asyncio.ensure_future(caller.run(work))
            caller.task.add_done_callback(lambda _: work.close())  # a task may be cancelled before it begins
        else:
            thread = threading.Thread(target=_through, args=(caller.run(work),), daemon=True)
            self._threads.append(thread)
            thread.start()
        return caller

    async def busy(self) -> None:
        """Take a connection and use it until cancelled."""
        lease = await self.take()
        try:
            await self.work(lease)
        finally:
            await self.give(lease)

    async def pause(self) -> None:
        """Let other tasks run for a moment."""
        if self.asynchronous:
            await asyncio.sleep(0.005)
        else:
            threading.Event().wait(0.005)

    async def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for something that must happen."""
        for _ in range(int(PATIENCE / 0.005)):
            if condition():
                return
            await self.pause()
        raise AssertionError(f"waited in vain until {what}: {self.engine.explain()}")

    async def ended(self, *callers: Caller) -> None:
        """Wait for the callers."""
        await self.until(lambda: all(caller.done for caller in callers), "the callers have ended")

    async def waiting(self, number: int) -> None:
        await self.until(lambda: self.engine.stats().waiting == number, f"{number} callers wait")

    async def cold_start(self, number: int) -> None:
        """Open ``number`` connections, and leave them idle."""
        leases = [await self.take() for _ in range(number)]
        for lease in leases:
            await self.give(lease)

    def stop(self) -> None:
        self.proxy.stop()
        for thread in self._threads:
            thread.join(PATIENCE)


def _through(work: Coroutine[Any, Any, Any]) -> None:
    """Run a coroutine that never suspends."""
    try:
        work.send(None)
    except StopIteration:
        return
    raise AssertionError("a synchronous adapter has suspended")


def run(subject: Subject, scenario: Coroutine[Any, Any, Any]) -> None:
    """Run a scenario in the world of its subject, in a thread of its own. AssertionError if it does not end."""
    failure: list[BaseException] = []

    def work() -> None:
        try:
            if subject.asynchronous:
                asyncio.run(scenario)
            else:
                _through(scenario)
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(3 * PATIENCE)
    if thread.is_alive():
        where = traceback.format_stack(sys._current_frames()[thread.ident or 0])
        raise AssertionError("it does not end:\n" + "".join(where))
    if failure:
        raise failure[0]


# -- SQLAlchemy --------------------------------------------------------------------------------------------------------


class SQLAlchemy(Subject):
    name = "sqlalchemy"
    adapter = "SQLAlchemy"
    timeout_error = sqlalchemy_exc.TimeoutError
    connect_error = sqlalchemy_exc.OperationalError

    @property
    def engine(self) -> Any:
        return self._engine.pool.poolkit

    def _arguments(self, driver: str, size: int, wait: float) -> dict[str, Any]:
        server = self.servers.postgres
        url = make_url(server.sqlalchemy_url(driver)).set(host=self.proxy.host, port=self.proxy.port)
        named = {"server_settings": {"application_name": self.label}}
        arguments = named if driver == "asyncpg" else {"application_name": self.label}
        return {
            "url": url, "connect_args": arguments, "pool_size": size, "max_overflow": 0, "pool_timeout": wait,
        }  # fmt: skip

    async def open(
        self, size: int, *, wait: float = PATIENCE, new: Callable[[], None] | None = None, **settings: Any
    ) -> None:
        self._engine: Any = create_engine(poolclass=PoolkitPool, **self._arguments("psycopg", size, wait), **settings)
        self._listen(self._engine, new)

    def _listen(self, engine: Any, new: Callable[[], None] | None) -> None:
        if new is not None:
            event.listen(engine, "connect", lambda *_: new())

    async def take(self) -> Any:
        connection = self._engine.connect()
        try:
            await self.use(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    async def use(self, lease: Any) -> None:
        lease.execute(text("select 1")).close()

    async def session(self, lease: Any) -> Any:
        return lease.execute(text("select pg_backend_pid()")).scalar()

    async def give(self, lease: Any) -> None:
        lease.close()

    async def close(self) -> None:
        self._engine.dispose()


class AsyncSQLAlchemy(SQLAlchemy):
    name = "sqlalchemy-asyncio"
    adapter = "SQLAlchemy, asyncio"
    world = "asyncio"
    connect_error = OSError  # asyncpg's own, which SQLAlchemy does not wrap
    unavailable_error = sqlalchemy_exc.OperationalError

    driver = "asyncpg"

    async def open(
        self, size: int, *, wait: float = PATIENCE, new: Callable[[], None] | None = None, **settings: Any
    ) -> None:
        arguments = self._arguments(self.driver, size, wait)
        self._engine = create_async_engine(poolclass=AsyncPoolkitPool, **arguments, **settings)
        self._listen(self._engine.sync_engine, new)

    async def take(self) -> Any:
        connection = await self._engine.connect()
        try:
            await self.use(connection)
        except BaseException:
            await connection.close()
            raise
        return connection

    async def use(self, lease: Any) -> None:
        await lease.execute(text("select 1"))

    async def work(self, lease: Any) -> None:
        await lease.execute(text("select pg_sleep(600)"))

    async def close_engine(self) -> None:
        await greenlet_spawn(self.engine.close)

    async def session(self, lease: Any) -> Any:
        return await lease.scalar(text("select pg_backend_pid()"))

    async def give(self, lease: Any) -> None:
        await lease.close()

    async def close(self) -> None:
        await self._engine.dispose()


# -- redis -------------------------------------------------------------------------------------------------------------


class Redis(Subject):
    name = "redis"
    adapter = "redis-py"
    module = "redis"

    def __init__(self, servers: Servers) -> None:
        self._driver: Any = importlib.import_module(self.module)
        self._ours: Any = importlib.import_module(f"poolkit_adapters.{self.module}")
        self.timeout_error = self.connect_error = self._driver.ConnectionError
        super().__init__(servers)

    @property
    def _server(self) -> RedisServer:
        server: RedisServer = getattr(self.servers, self.module)
        return server

    def _port(self) -> int:
        return self._server.port

    @property
    def engine(self) -> Any:
        return self._pool.poolkit

    def _arguments(self, size: int, wait: float, new: Callable[[Any], Any] | None) -> dict[str, Any]:
        never = importlib.import_module(f"{self.module}{'.asyncio' if self.asynchronous else ''}.retry").Retry
        retry = never(importlib.import_module(f"{self.module}.backoff").NoBackoff(), 0)
        arguments = {
            "host": self.proxy.host, "port": self.proxy.port, "client_name": self.label, "max_connections": size,
            "timeout": wait, "retry": retry, "socket_timeout": None, "socket_connect_timeout": PATIENCE,
        }  # fmt: skip
        return arguments if new is None else {**arguments, f"{self.module}_connect_func": new}

    async def open(
        self, size: int, *, wait: float = PATIENCE, new: Callable[[], None] | None = None, **settings: Any
    ) -> None:
        def prepare(connection: Any) -> None:
            connection.on_connect()
            assert new is not None
            new()

        arguments = self._arguments(size, wait, None if new is None else prepare)
        self._pool: Any = self._ours.PoolkitConnectionPool(**arguments, **settings)

    async def take(self) -> Any:
        connection = self._pool.get_connection()
        try:
            await self.use(connection)
        except BaseException:
            self._pool.release(connection)
            raise
        return connection

    async def use(self, lease: Any) -> None:
        lease.send_command("PING", check_health=False)
        lease.read_response()

    async def session(self, lease: Any) -> Any:
        lease.send_command("CLIENT", "ID", check_health=False)
        return lease.read_response()

    async def give(self, lease: Any) -> None:
        self._pool.release(lease)

    async def close(self) -> None:
        self._pool.close()

    def sessions(self) -> int:
        return len(self._server.client_list(self.label))


class AsyncRedis(Redis):
    name = "redis-asyncio"
    adapter = "redis-py, asyncio"
    world = "asyncio"

    async def open(
        self, size: int, *, wait: float = PATIENCE, new: Callable[[], None] | None = None, **settings: Any
    ) -> None:
        async def prepare(connection: Any) -> None:
            await connection.on_connect()
            assert new is not None
            new()

        arguments = self._arguments(size, wait, None if new is None else prepare)
        self._pool = self._ours.AsyncPoolkitConnectionPool(**arguments, **settings)

    async def take(self) -> Any:
        connection = await self._pool.get_connection()
        try:
            await self.use(connection)
        except BaseException:
            await self._pool.release(connection)
            raise
        return connection

    async def use(self, lease: Any) -> None:
        await lease.send_command("PING", check_health=False)
        await lease.read_response()

    async def work(self, lease: Any) -> None:
        await lease.send_command("BLPOP", "nothing", 600, check_health=False)
        await lease.read_response(disable_decoding=False)

    async def session(self, lease: Any) -> Any:
        await lease.send_command("CLIENT", "ID", check_health=False)
        return await lease.read_response()

    async def give(self, lease: Any) -> None:
        await self._pool.release(lease)

    async def close(self) -> None:
        await self._pool.aclose()


class Valkey(Redis):
    name = "valkey"
    adapter = "valkey-py"
    module = "valkey"


class AsyncValkey(AsyncRedis):
    name = "valkey-asyncio"
    adapter = "valkey-py, asyncio"
    module = "valkey"


# -- httpx -------------------------------------------------------------------------------------------------------------


class HTTP(Subject):
    name = "httpx"
    adapter = "httpx"
    module = "httpx"

    def __init__(self, servers: Servers) -> None:
        self._httpx: Any = importlib.import_module(self.module)
        self._ours: Any = importlib.import_module(f"poolkit_adapters.{self.module}")
        self.timeout_error = self._httpx.PoolTimeout
        self.connect_error = self._httpx.ConnectError
        self._scheme = "http"
        self._with_settings = False
        super().__init__(servers)

    def _port(self) -> int:
        return self.servers.http.port

    def need_handshake(self) -> None:
        """A connection of HTTP without TLS is open before the server has said anything."""
        self._scheme, self.proxy.target = "https", ("127.0.0.1", self.servers.https.port)

    @property
    def engine(self) -> Any:
        return self._transport.poolkit

    def _arguments(
        self, size: int, wait: float, new: Callable[[], None] | None, settings: dict[str, Any]
    ) -> dict[str, Any]:
        self._new, self._with_settings = new, bool(settings)
        if settings:  # the time to wait in poolkit's word
            settings = {"acquire_timeout": wait, **settings}
        return {"limits": self._httpx.Limits(max_connections=size), "verify": False, **settings}

    def _timeout(self, wait: float) -> Any:
        return self._httpx.Timeout(PATIENCE) if self._with_settings else self._httpx.Timeout(PATIENCE, pool=wait)

    async def open(
        self, size: int, *, wait: float = PATIENCE, new: Callable[[], None] | None = None, **settings: Any
    ) -> None:
        self._transport: Any = self._ours.PoolkitTransport(**self._arguments(size, wait, new, settings))
        self._client: Any = self._httpx.Client(transport=self._transport, timeout=self._timeout(wait))

    def set_wait(self, seconds: float) -> None:
        self._client.timeout = self._timeout(seconds)
        if self._with_settings:
            super().set_wait(seconds)

    def _request(self, path: str = "/") -> Any:
        url = f"{self._scheme}://{self.proxy.host}:{self.proxy.port}{path}"
        return self._client.build_request("GET", url, extensions={} if self._new is None else {"trace": self._trace})

    def _trace(self, event: str, info: dict[str, Any]) -> Any:
        if event == "connection.connect_tcp.complete":
            self._new()  # type: ignore[misc]

    async def take(self) -> Any:
        return self._client.send(self._request(), stream=True)

    async def use(self, lease: Any) -> None:
        lease.read()

    async def session(self, lease: Any) -> Any:
        lease.read()
        return lease.headers["x-client-port"]

    async def give(self, lease: Any) -> None:
        lease.read()
        lease.close()

    async def close(self) -> None:
        self._client.close()

    def sessions(self) -> int:
        return self.proxy.open


class AsyncHTTP(HTTP):
    name = "httpx-asyncio"
    adapter = "httpx, asyncio"
    world = "asyncio"

    async def open(
        self, size: int, *, wait: float = PATIENCE, new: Callable[[], None] | None = None, **settings: Any
    ) -> None:
        self._transport = self._ours.AsyncPoolkitTransport(**self._arguments(size, wait, new, settings))
        self._client = self._httpx.AsyncClient(transport=self._transport, timeout=self._timeout(wait))

    async def take(self) -> Any:
        return await self._client.send(self._request(), stream=True)

    async def use(self, lease: Any) -> None:
        await lease.aread()

    async def _trace(self, event: str, info: dict[str, Any]) -> None:
        super()._trace(event, info)

    async def busy(self) -> None:
        response = await self._client.send(self._request("/stream?chunks=100000&ms=20"), stream=True)
        try:
            await response.aread()
        finally:
            await response.aclose()

    async def session(self, lease: Any) -> Any:
        await lease.aread()
        return lease.headers["x-client-port"]

    async def give(self, lease: Any) -> None:
        await lease.aread()
        await lease.aclose()

    async def close(self) -> None:
        await self._client.aclose()


class HTTP2nd(HTTP):
    name = "httpx2"
    adapter = "httpx2"
    module = "httpx2"


class AsyncHTTP2nd(AsyncHTTP):
    name = "httpx2-asyncio"
    adapter = "httpx2, asyncio"
    module = "httpx2"


# -- requests and urllib3 ----------------------------------------------------------------------------------------------


class Urllib3(Subject):
    name = "urllib3"
    adapter = "urllib3"
    module = "urllib3"

    def __init__(self, servers: Servers) -> None:
        import urllib3

        self.timeout_error = urllib3.exceptions.EmptyPoolError
        self.connect_error = urllib3.exceptions.NewConnectionError
        self._scheme = "http"
        self._with_settings = False
        super().__init__(servers)

    def _port(self) -> int:
        return self.servers.http.port

    def need_handshake(self) -> None:
        """A connection of HTTP without TLS is open before the server has said anything."""
        from urllib3.exceptions import InsecureRequestWarning

        warnings.simplefilter("ignore", InsecureRequestWarning)
        self._scheme, self.proxy.target = "https", ("127.0.0.1", self.servers.https.port)

    @property
    def _url(self) -> str:
        return f"{self._scheme}://{self.proxy.host}:{self.proxy.port}/"

    @property
    def engine(self) -> Any:
        return self._manager.connection_from_url(self._url).poolkit

    async def open(
        self, size: int, *, wait: float = PATIENCE, new: Callable[[], None] | None = None, **settings: Any
    ) -> None:
        from poolkit_adapters.urllib3 import PoolkitPoolManager

        assert new is None
        self._manager: Any = PoolkitPoolManager(
            maxsize=size, block=True, retries=False, timeout=PATIENCE, cert_reqs="CERT_NONE",
            **self._settings(wait, settings),
        )  # fmt: skip

    def _settings(self, wait: float, settings: dict[str, Any]) -> dict[str, Any]:
        self._wait, self._with_settings = wait, bool(settings)
        return {"acquire_timeout": wait, **settings} if settings else {}  # the time to wait in poolkit's word

    def set_wait(self, seconds: float) -> None:
        self._wait = seconds
        if self._with_settings:
            super().set_wait(seconds)

    async def take(self) -> Any:
        limit = {} if self._with_settings else {"pool_timeout": self._wait}
        return self._manager.request("GET", self._url, preload_content=False, **limit)

    async def use(self, lease: Any) -> None:
        lease.read()

    async def session(self, lease: Any) -> Any:
        lease.read()
        return lease.headers["x-client-port"]

    async def give(self, lease: Any) -> None:
        lease.read()
        lease.close()

    async def close(self) -> None:
        self._manager.clear()

    def sessions(self) -> int:
        return self.proxy.open


class Requests(Urllib3):
    name = "requests"
    adapter = "requests"
    module = "requests"

    def __init__(self, servers: Servers) -> None:
        import requests

        super().__init__(servers)
        self.timeout_error = requests.exceptions.Timeout
        self.connect_error = requests.exceptions.ConnectionError

    async def open(
        self, size: int, *, wait: float = PATIENCE, new: Callable[[], None] | None = None, **settings: Any
    ) -> None:
        import requests

        from poolkit_adapters.requests import PoolkitAdapter

        assert new is None
        adapter = PoolkitAdapter(pool_maxsize=size, pool_block=True, **self._settings(wait, settings))
        self._manager = adapter.poolmanager
        self._session = requests.Session()
        self._session.trust_env = self._session.verify = False
        self._session.mount(f"{self._scheme}://", adapter)

    @property
    def engine(self) -> Any:
        """The engine that a request of the session uses."""
        request = self._session.prepare_request(importlib.import_module("requests").Request("GET", self._url))
        return self._session.get_adapter(self._url).get_connection_with_tls_context(request, verify=False).poolkit

    async def take(self) -> Any:
        from poolkit_adapters.urllib3 import Timeout

        limit = {} if self._with_settings else {"pool": self._wait}
        return self._session.get(self._url, stream=True, timeout=Timeout(PATIENCE, **limit))

    async def use(self, lease: Any) -> None:
        assert lease.content

    async def session(self, lease: Any) -> Any:
        assert lease.content
        return lease.headers["x-client-port"]

    async def give(self, lease: Any) -> None:
        assert lease.content
        lease.close()

    async def close(self) -> None:
        self._session.close()


# -- psycopg -----------------------------------------------------------------------------------------------------------


class Psycopg(Subject):
    name = "psycopg"
    adapter = "psycopg"

    def __init__(self, servers: Servers) -> None:
        import psycopg_pool

        self.timeout_error = psycopg_pool.PoolTimeout
        self.connect_error = psycopg.OperationalError
        super().__init__(servers)

    @property
    def engine(self) -> Any:
        return self._pool.poolkit

    def _arguments(self, size: int, wait: float) -> dict[str, Any]:
        dsn = {**self.servers.postgres.dsn, "port": self.proxy.port, "application_name": self.label}
        return {
            "conninfo": psycopg.conninfo.make_conninfo(**dsn), "min_size": 0, "max_size": size, "timeout": wait,
            "open": False,
        }  # fmt: skip

    async def open(
        self, size: int, *, wait: float = PATIENCE, new: Callable[[], None] | None = None, **settings: Any
    ) -> None:
        hook: dict[str, Any] = {} if new is None else {"configure": lambda _: new()}
        self._pool: Any = PsycopgPool(**{**self._arguments(size, wait), **hook, **settings})
        self._pool.open()

    async def take(self) -> Any:
        connection = self._pool.getconn()
        try:
            await self.use(connection)
        except BaseException:
            self._pool.putconn(connection)
            raise
        return connection

    async def use(self, lease: Any) -> None:
        lease.execute("select 1")

    async def session(self, lease: Any) -> Any:
        return lease.info.backend_pid

    async def give(self, lease: Any) -> None:
        self._pool.putconn(lease)

    async def close(self) -> None:
        self._pool.close()


class AsyncPsycopg(Psycopg):
    name = "psycopg-asyncio"
    adapter = "psycopg, asyncio"
    world = "asyncio"

    async def open(
        self, size: int, *, wait: float = PATIENCE, new: Callable[[], None] | None = None, **settings: Any
    ) -> None:
        async def configure(_: Any) -> None:
            assert new is not None
            new()

        hook: dict[str, Any] = {} if new is None else {"configure": configure}
        self._pool = AsyncPsycopgPool(**{**self._arguments(size, wait), **hook, **settings})
        await self._pool.open()

    async def take(self) -> Any:
        connection = await self._pool.getconn()
        try:
            await self.use(connection)
        except BaseException:
            await self._pool.putconn(connection)
            raise
        return connection

    async def use(self, lease: Any) -> None:
        await lease.execute("select 1")

    async def work(self, lease: Any) -> None:
        await lease.execute("select pg_sleep(600)")

    async def give(self, lease: Any) -> None:
        await self._pool.putconn(lease)

    async def close(self) -> None:
        await self._pool.close()


# -- DB-API ------------------------------------------------------------------------------------------------------------


class DBAPI(Subject):
    name = "dbapi"
    adapter = "DB-API"
    timeout_error = psycopg.OperationalError
    connect_error = psycopg.OperationalError

    @property
    def engine(self) -> Any:
        return self._database.poolkit

    async def open(
        self, size: int, *, wait: float = PATIENCE, new: Callable[[], None] | None = None, **settings: Any
    ) -> None:
        dsn = {**self.servers.postgres.dsn, "port": self.proxy.port, "application_name": self.label}
        hook: dict[str, Any] = {} if new is None else {"setup": lambda _: new()}
        self._database: Any = PooledDatabase(
            psycopg, connect_kwargs=dsn, max_size=size, acquire_timeout=wait, **hook, **settings
        )

    async def take(self) -> Any:
        connection = self._database.connect()
        try:
            await self.use(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    async def use(self, lease: Any) -> None:
        lease.cursor().execute("select 1")

    async def session(self, lease: Any) -> Any:
        cursor = lease.cursor()
        cursor.execute("select pg_backend_pid()")
        return cursor.fetchone()[0]

    async def give(self, lease: Any) -> None:
        lease.close()

    async def close(self) -> None:
        self._database.close()


# -- asyncpg -----------------------------------------------------------------------------------------------------------


class Asyncpg(Subject):
    name = "asyncpg"
    adapter = "asyncpg"
    module = "asyncpg"
    world = "asyncio"
    timeout_error = TimeoutError
    connect_error = OSError

    @property
    def engine(self) -> Any:
        return self._pool.poolkit

    async def open(
        self, size: int, *, wait: float = PATIENCE, new: Callable[[], None] | None = None, **settings: Any
    ) -> None:
        from poolkit_adapters.asyncpg import create_pool

        async def init(_: Any) -> None:
            assert new is not None
            new()

        server = self.servers.postgres
        arguments: dict[str, Any] = {
            "host": self.proxy.host, "port": self.proxy.port, "user": server.dsn["user"],
            "database": server.dsn["dbname"], "password": server.dsn.get("password"),
            "server_settings": {"application_name": self.label}, "min_size": 0, "max_size": size,
            "timeout": PATIENCE, "init": None if new is None else init,
        }  # fmt: skip
        self.set_wait(wait)
        self._pool: Any = await create_pool(**{**arguments, **settings})

    def set_wait(self, seconds: float) -> None:
        self._wait = seconds

    async def take(self) -> Any:
        connection = await self._pool.acquire(timeout=self._wait)
        try:
            await self.use(connection)
        except BaseException:
            await self._pool.release(connection)
            raise
        return connection

    async def use(self, lease: Any) -> None:
        await lease.execute("select 1")

    async def work(self, lease: Any) -> None:
        await lease.execute("select pg_sleep(600)")

    async def session(self, lease: Any) -> Any:
        return lease.get_server_pid()

    async def give(self, lease: Any) -> None:
        await self._pool.release(lease)

    async def close(self) -> None:
        await self._pool.close()


SUBJECTS: tuple[type[Subject], ...] = (
    SQLAlchemy, AsyncSQLAlchemy, Redis, AsyncRedis, Valkey, AsyncValkey, HTTP, AsyncHTTP, HTTP2nd,
    AsyncHTTP2nd, Urllib3, Requests, Psycopg, AsyncPsycopg,
    Asyncpg, DBAPI,
)  # fmt: skip
