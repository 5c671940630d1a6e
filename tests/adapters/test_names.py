"""Connects by name under each adapter: a resolver that does not answer delays no caller beyond its time, nor threads
that others need; a name that is answered is looked up once and serves as before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import redis
import redis.asyncio
from sqlalchemy import URL, create_engine, exc, text
from sqlalchemy.ext.asyncio import create_async_engine

import poolkit
from poolkit import PoolConfig
from poolkit.cluster import DNSDiscovery, EtcdDiscovery, Found, Node
from poolkit.fleet import Ask, PostgresStore, RedisStore, StoreError
from poolkit.runtimes import names
from poolkit.runtimes.names import MOST_THREADS
from poolkit.testing.servers import Certificates, HTTPServer, PostgresServer, RedisServer
from poolkit_adapters import httpx as hx
from poolkit_adapters import psycopg as pg
from poolkit_adapters import redis as rd
from poolkit_adapters import sqlalchemy as sa
from poolkit_adapters._libpq import hosts_of
from poolkit_adapters.dbapi import PooledDatabase
from tests.support.resolver import ANSWERS, SILENT, Resolver
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.filterwarnings("ignore::poolkit.PoolConfigWarning")

CALLERS = 10
LIMIT = 0.5
SHORT = PoolConfig(acquire_timeout=LIMIT, connect_timeout=LIMIT, max_size=CALLERS, max_connecting=None)

Login = tuple[str, str, str]
"""User, password and database."""
NOBODY = ("u", "p", "d")

Call = Callable[[], Any]
AsyncCall = Callable[[], Awaitable[Any]]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    made = Resolver(monkeypatch)
    yield made
    made.over.set()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def conninfo(host: str, port: int, login: Login) -> str:
    return "host={} port={} user={} password={} dbname={}".format(host, port, *login)


# each makes (call, end): one exchange with the server at this name, over a pool; and what ends the pool


def httpx_sync(host: str, port: int, login: Login = NOBODY) -> tuple[Call, Call]:
    client = httpx.Client(transport=hx.PoolkitTransport(config=SHORT), timeout=LIMIT)
    return lambda: client.get(f"http://{host}:{port}/").status_code, client.close


def redis_sync(host: str, port: int, login: Login = NOBODY) -> tuple[Call, Call]:
    client = redis.Redis(connection_pool=rd.PoolkitConnectionPool(host=host, port=port, config=SHORT))
    return client.ping, client.connection_pool.close


def psycopg_sync(host: str, port: int, login: Login = NOBODY) -> tuple[Call, Call]:
    pool: Any = pg.PoolkitConnectionPool(conninfo(host, port, login), min_size=0, config=SHORT, open=True)

    def call() -> Any:
        with pool.connection() as connection:
            return connection.execute("select 1").fetchone()[0]

    return call, pool.close


def dbapi(host: str, port: int, login: Login = NOBODY) -> tuple[Call, Call]:
    pool = PooledDatabase(psycopg, conninfo(host, port, login), config=SHORT)

    def call() -> Any:
        with pool.connect() as connection:
            return connection.execute("select 1").fetchone()[0]

    return call, pool.close


def sqlalchemy(driver: str) -> Callable[..., tuple[Call, Call]]:
    def make(host: str, port: int, login: Login = NOBODY) -> tuple[Call, Call]:
        engine = create_engine(
            URL.create(f"{DIALECTS[driver]}+{driver}", login[0], login[1], host, port, login[2]),
            poolclass=sa.PoolkitPool,
            pool_timeout=LIMIT,
        )

        def call() -> Any:
            with engine.connect() as connection:
                return connection.execute(text("select 1")).scalar()

        return call, engine.dispose

    return make


DIALECTS = {"psycopg": "postgresql", "pymysql": "mysql"}
SYNC: dict[str, Callable[..., tuple[Call, Call]]] = {
    "httpx": httpx_sync,
    "redis": redis_sync,
    "psycopg": psycopg_sync,
    "dbapi": dbapi,
    "sqlalchemy-psycopg": sqlalchemy("psycopg"),
    "sqlalchemy-pymysql": sqlalchemy("pymysql"),
}
ERRORS = (
    httpx.ConnectTimeout,
    redis.TimeoutError,
    psycopg.Error,
    poolkit.PoolError,
    exc.OperationalError,
    TimeoutError,
)


@pytest.mark.parametrize("name", SYNC)
def test_callers_in_threads_get_an_error_in_time_if_the_resolver_hangs(name: str, resolver: Resolver) -> None:
    call, end = SYNC[name](SILENT, 1)

    def one() -> BaseException:
        with pytest.raises(ERRORS) as caught:
            call()
        assert not resolver.over.is_set()
        return caught.value

    with ThreadPoolExecutor(CALLERS) as executor:
        list(executor.map(lambda _: one(), range(CALLERS)))
    assert len(resolver.asked) <= MOST_THREADS
    resolver.over.set()
    end()


async def httpx_async(host: str, port: int, login: Login = NOBODY) -> tuple[AsyncCall, AsyncCall]:
    client = httpx.AsyncClient(transport=hx.AsyncPoolkitTransport(config=SHORT), timeout=LIMIT)

    async def call() -> Any:
        return (await client.get(f"http://{host}:{port}/")).status_code

    return call, client.aclose


async def redis_async(host: str, port: int, login: Login = NOBODY) -> tuple[AsyncCall, AsyncCall]:
    pool = rd.AsyncPoolkitConnectionPool(host=host, port=port, config=SHORT)
    client: Any = redis.asyncio.Redis(connection_pool=pool)
    return client.ping, pool.aclose


async def psycopg_async(host: str, port: int, login: Login = NOBODY) -> tuple[AsyncCall, AsyncCall]:
    pool: Any = pg.AsyncPoolkitConnectionPool(conninfo(host, port, login), min_size=0, config=SHORT, open=False)
    await pool.open()

    async def call() -> Any:
        async with pool.connection() as connection:
            return (await (await connection.execute("select 1")).fetchone())[0]

    return call, pool.close


def sqlalchemy_async(driver: str) -> Callable[..., Awaitable[tuple[AsyncCall, AsyncCall]]]:
    async def make(host: str, port: int, login: Login = NOBODY) -> tuple[AsyncCall, AsyncCall]:
        engine = create_async_engine(
            URL.create(f"postgresql+{driver}", login[0], login[1], host, port, login[2]),
            poolclass=sa.AsyncPoolkitPool,
            pool_timeout=LIMIT,
        )

        async def call() -> Any:
            async with engine.connect() as connection:
                return (await connection.execute(text("select 1"))).scalar()

        return call, engine.dispose

    return make


ASYNC: dict[str, Callable[..., Awaitable[tuple[AsyncCall, AsyncCall]]]] = {
    "httpx": httpx_async,
    "redis": redis_async,
    "psycopg": psycopg_async,
    "sqlalchemy-psycopg": sqlalchemy_async("psycopg_async"),
    "sqlalchemy-asyncpg": sqlalchemy_async("asyncpg"),
}


@pytest.mark.anyio
@pytest.mark.parametrize("name", ASYNC)
async def test_callers_in_tasks_get_an_error_in_time_and_the_threads_of_the_loop_stay_free(
    name: str, resolver: Resolver
) -> None:
    call, end = await ASYNC[name](SILENT, 1)

    async def one() -> None:
        with pytest.raises(ERRORS):
            await call()
        assert not resolver.over.is_set()

    await asyncio.gather(*(one() for _ in range(CALLERS)))
    assert len(resolver.asked) <= MOST_THREADS
    assert await asyncio.to_thread(resolver.over.is_set) is False  # a thread of the executor is free
    resolver.over.set()
    await end()


# -- names that are answered ------------------------------------------------------------------------------------------

ONCE = ("httpx", "redis", "psycopg", "dbapi", "sqlalchemy-psycopg")
"""These drivers get the addresses; the others resolve the name again."""


@pytest.fixture
def served(
    postgres: PostgresServer, redis_server: RedisServer, http_server: HTTPServer
) -> dict[str, tuple[int, Login]]:
    dsn = postgres.dsn
    sql = (postgres.port, (dsn["user"], dsn["password"], dsn["dbname"]))
    return {"httpx": (http_server.port, NOBODY), "redis": (redis_server.port, NOBODY), "sql": sql}


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Return limits that only a hang reaches, for callers that must be served on a busy machine too."""
    monkeypatch.setitem(globals(), "LIMIT", PATIENCE)
    monkeypatch.setitem(globals(), "SHORT", SHORT.replace(acquire_timeout=PATIENCE, connect_timeout=PATIENCE))


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["127.0.0.2", "127.0.0.1"]], ids=("one", "the-second-serves"))
@pytest.mark.parametrize("name", [name for name in SYNC if name != "sqlalchemy-pymysql"])
def test_a_name_is_looked_up_once_for_a_connect_in_a_thread(
    name: str, addresses: list[str], resolver: Resolver, served: dict[str, tuple[int, Login]]
) -> None:
    resolver.addresses = addresses
    port, login = served.get(name, served["sql"])
    call, end = SYNC[name](ANSWERS, port, login)
    assert call() in (1, 200, True)
    assert resolver.asked == [ANSWERS]
    end()


@pytest.mark.usefixtures("patient")
@pytest.mark.anyio
@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["127.0.0.2", "127.0.0.1"]], ids=("one", "the-second-serves"))
@pytest.mark.parametrize("name", ASYNC)
async def test_a_name_is_looked_up_once_for_a_connect_in_a_task(
    name: str, addresses: list[str], resolver: Resolver, served: dict[str, tuple[int, Login]]
) -> None:
    resolver.addresses = addresses
    port, login = served.get(name, served["sql"])
    call, end = await ASYNC[name](ANSWERS, port, login)
    assert await call() in (1, 200, True)
    assert resolver.asked == [ANSWERS] * (1 if name in ONCE else 2)
    await end()


def test_a_reconnect_of_redis_looks_the_name_up_again(resolver: Resolver, redis_server: RedisServer) -> None:
    pool = rd.PoolkitConnectionPool(host=ANSWERS, port=redis_server.port, config=SHORT)
    connection = pool.get_connection()
    connection.disconnect()
    connection.connect()
    assert (connection.host, resolver.asked) == (ANSWERS, [ANSWERS] * 2)
    pool.release(connection)
    pool.close()


def test_tls_verifies_the_name_and_not_the_address(
    resolver: Resolver, https_server: HTTPServer, redis_server: RedisServer, certificates: Certificates
) -> None:
    """The certificates of the servers are for 127.0.0.1, so a check of the address would pass."""
    client = httpx.Client(transport=hx.PoolkitTransport(verify=certificates.client_context()))
    with client, pytest.raises(httpx.ConnectError, match=ANSWERS):
        client.get(f"https://{ANSWERS}:{https_server.port}/")
    pool = rd.PoolkitConnectionPool(
        host=ANSWERS, port=redis_server.tls_port, connection_class=redis.SSLConnection,
        ssl_ca_data=certificates.authority.cert_pem.bytes().decode(), ssl_check_hostname=True,
    )  # fmt: skip
    with pool, pytest.raises(redis.ConnectionError, match=ANSWERS):
        pool.get_connection()


@pytest.mark.anyio
async def test_tls_in_tasks_verifies_the_name_and_not_the_address(
    resolver: Resolver, https_server: HTTPServer, redis_server: RedisServer, certificates: Certificates
) -> None:
    client = httpx.AsyncClient(transport=hx.AsyncPoolkitTransport(verify=certificates.client_context()))
    async with client:
        with pytest.raises(httpx.ConnectError, match=ANSWERS):
            await client.get(f"https://{ANSWERS}:{https_server.port}/")
    pool = rd.AsyncPoolkitConnectionPool(
        host=ANSWERS, port=redis_server.tls_port, connection_class=redis.asyncio.SSLConnection,
        ssl_ca_data=certificates.authority.cert_pem.bytes().decode(), ssl_check_hostname=True,
    )  # fmt: skip
    with pytest.raises(redis.ConnectionError, match=ANSWERS):
        await pool.get_connection()
    await pool.aclose()


def test_psycopg_verifies_the_name_and_not_the_address(
    resolver: Resolver, postgres: PostgresServer, certificates: Certificates, tmp_path: Path
) -> None:
    authority, _, _ = certificates.write(tmp_path)
    login = postgres.dsn["user"], postgres.dsn["password"], postgres.dsn["dbname"]
    text = f"{conninfo(ANSWERS, postgres.tls_port, login)} sslmode=verify-full sslrootcert={authority}"
    pool: Any = pg.PoolkitConnectionPool(text, min_size=0, max_size=1, open=True, timeout=20)
    with pool, pytest.raises(psycopg.Error, match=ANSWERS):
        pool.getconn()


def test_psycopg_goes_on_to_the_next_host_when_a_name_does_not_exist(
    resolver: Resolver, postgres: PostgresServer
) -> None:
    resolver.addresses = []
    login = postgres.dsn["user"], postgres.dsn["password"], postgres.dsn["dbname"]
    with pg.PoolkitConnectionPool(
        conninfo(f"{ANSWERS},127.0.0.1", postgres.port, login), min_size=0, max_size=1, open=True
    ) as pool:
        with pool.connection() as connection:
            assert connection.info.hostaddr == "127.0.0.1"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_addresses_and_localhost_take_no_thread(host: str) -> None:
    assert names.addresses(host, 1, 1.0) is None


# -- clusters ---------------------------------------------------------------------------------------------------------


def test_a_silent_resolver_ends_a_discovery_by_dns_in_its_time(resolver: Resolver) -> None:
    found = Found((Node("127.0.0.1:1"),))
    with pytest.raises(TimeoutError, match=SILENT):
        DNSDiscovery(SILENT, 1, timeout=0.1).find(found)
    assert [node.address for node in DNSDiscovery(ANSWERS, 5432).find(None).nodes] == ["127.0.0.1:5432"]


def test_a_silent_resolver_ends_a_question_to_etcd_in_its_time(resolver: Resolver) -> None:
    with pytest.raises(TimeoutError, match=SILENT):
        EtcdDiscovery("/nodes/", endpoint=f"http://{SILENT}:2379", timeout=0.1).find(None)


@pytest.mark.parametrize("kind", [RedisStore, PostgresStore])
def test_a_silent_resolver_keeps_no_exchange_of_a_fleet_beyond_its_time(kind: Any, resolver: Resolver) -> None:
    """The end of the process, which returns its permits, would wait for it too."""
    store = kind(f"{'redis' if kind is RedisStore else 'postgresql'}://{SILENT}:1/0", timeout=0.1)
    for _ in range(2):
        with pytest.raises(StoreError, match="the resolver has not answered"):
            store.exchange(Ask("f", "a", 0, 1, 4, 2.0))
    with pytest.raises(StoreError, match="the resolver has not answered"):
        store.leave("f", "a")
    assert not resolver.over.is_set()
    store.close()


def test_the_names_of_one_connect_share_its_time() -> None:
    """The first name that the resolver does not answer leaves time for the next one."""
    hosts = hosts_of({"host": "one.invalid,two.invalid", "port": "1"})
    assert hosts is not None
    asked: list[tuple[str, float]] = []

    def silent(host: str, port: str, seconds: float | None) -> None:
        assert seconds is not None
        asked.append((host, round(seconds)))
        raise TimeoutError

    hosts.resolve(silent, 4.0)
    assert asked == [("one.invalid", 2), ("two.invalid", 4)]
    assert hosts.parameters() == {}
    assert hosts.failing == "two.invalid"
