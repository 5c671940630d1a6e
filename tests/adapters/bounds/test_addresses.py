"""A connect over several addresses: libpq tries them in turn, each within ``connect_timeout``. So poolkit gives each of
them an equal part of the time, and gives the connect up only when the last one has had it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import redis
import redis.asyncio
from sqlalchemy import URL, create_engine
from sqlalchemy.event import listen
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import create_async_engine

from poolkit import PoolConfig
from poolkit.testing.servers import PostgresServer, RedisServer
from poolkit_adapters import _attempts, _time_limits
from poolkit_adapters import redis as rd
from poolkit_adapters import sqlalchemy as sa
from poolkit_adapters._libpq import longest, share
from poolkit_adapters._time_limits import rest_of
from poolkit_adapters.dbapi import PooledDatabase, _connector
from poolkit_adapters.dbapi._connector import DbapiConnector
from poolkit_adapters.dbapi._names import look_up
from poolkit_adapters.psycopg import PoolkitConnectionPool
from poolkit_adapters.psycopg import _connector as _psycopg_connector
from poolkit_adapters.psycopg._connector import PsycopgConnector
from poolkit_adapters.sqlalchemy._connect_time import Attempt, _listener
from tests.support.resolver import ANSWERS, Resolver
from tests.support.waiting import PATIENCE

LIMIT = 2.0
"""The limit of a whole connect in seconds."""
ONE = 2 * LIMIT + 1.0
"""Seconds after which a connect to one address is given up."""
FOUR = 4 * LIMIT + 1.0
NEVER = math.inf


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    resolver = Resolver(monkeypatch)
    monkeypatch.setattr(_attempts, "time", types.SimpleNamespace(monotonic=float))  # the lookup takes no time
    resolver.addresses = ["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4"]
    yield resolver
    resolver.over.set()


Bounds = dict[str, float | None]
"""When the connect is given up, as the pool hears during the driver's connect and after it."""


def dbapi(conninfo: str, arguments: dict[str, Any]) -> Bounds:
    found: Bounds = {}

    def ask(when: str) -> None:
        found[when] = connector.connect_bound(threading.get_ident(), LIMIT)

    def connect(*args: Any, **keywords: Any) -> Any:
        ask("opening")
        return psycopg.connect(*args, **keywords)

    module: Any = types.ModuleType("psycopg")
    vars(module).update({name: value for name, value in vars(psycopg).items() if not name.startswith("__")})
    module.connect = connect
    connector = DbapiConnector(module, (conninfo,), arguments, PoolConfig(), setup=lambda _: ask("opened"), checks=None)
    connector.connect(LIMIT).close()
    return found


def pool(conninfo: str, arguments: dict[str, Any]) -> Bounds:
    found: Bounds = {}

    def ask(when: str) -> None:
        found[when] = connector.connect_bound(threading.get_ident(), LIMIT)

    class Asking(psycopg.Connection[Any]):
        @classmethod
        def connect(cls, *args: Any, **keywords: Any) -> Any:
            ask("opening")
            return super().connect(*args, **keywords)

    owner: Any = PoolkitConnectionPool(
        conninfo, kwargs=arguments, connection_class=Asking, configure=lambda _: ask("opened"), min_size=0, max_size=1,
        open=False, **({} if arguments else {"connect_timeout": LIMIT}),
    )  # fmt: skip
    connector = PsycopgConnector(owner)
    connector.abort(connector.connect(LIMIT))
    owner.close()
    return found


@pytest.mark.parametrize("of", [dbapi, pool], ids=lambda of: of.__name__)
@pytest.mark.parametrize(
    ("host", "own", "bound"),
    [
        ("127.0.0.1", {}, ONE),
        ("127.0.0.1,127.0.0.1,127.0.0.1,127.0.0.1", {}, FOUR),
        (ANSWERS, {}, FOUR),
        (ANSWERS, {"connect_timeout": 3}, 4 * 3 + 1.0),
        ("127.0.0.1", {"connect_timeout": 0}, NEVER),
        (ANSWERS, {"connect_timeout": "0"}, NEVER),
    ],
)
def test_each_address_has_its_time(
    postgres: PostgresServer, resolver: Resolver, of: Any, host: str, own: dict[str, Any], bound: float
) -> None:
    dsn = {**postgres.dsn, "host": host}
    found = of(" ".join(f"{name}={value}" for name, value in dsn.items()), own)
    assert found["opening"] == bound


@pytest.mark.parametrize("of", [dbapi, pool], ids=lambda of: of.__name__)
def test_what_follows_the_connect_has_no_time_for_addresses(
    postgres: PostgresServer, resolver: Resolver, of: Any
) -> None:
    dsn = {**postgres.dsn, "host": ANSWERS}
    found = of(" ".join(f"{name}={value}" for name, value in dsn.items()), {})
    assert found["opened"] <= ONE


@pytest.mark.parametrize(
    ("parameters", "seconds"),
    [
        ({"host": "/run", "connect_timeout": 5}, 5),
        ({"host": "localhost", "connect_timeout": 5}, 10),  # IPv6 and IPv4
        ({"connect_timeout": "5"}, 10),
        ({"host": "a,a,localhost", "hostaddr": "127.0.0.1,127.0.0.2,", "connect_timeout": 5}, 20),
        ({"hostaddr": "127.0.0.1,127.0.0.2", "connect_timeout": 5}, 10),
        ({"hostaddr": "127.0.0.1", "connect_timeout": 1}, 2),
        ({"hostaddr": "127.0.0.1", "connect_timeout": 2.5}, 3),
        ({"hostaddr": "127.0.0.1", "connect_timeout": 5, "target_session_attrs": "prefer-standby"}, 10),
        ({"hostaddr": "127.0.0.1"}, NEVER),
        ({"hostaddr": "127.0.0.1", "connect_timeout": 0}, NEVER),
    ],
)
def test_the_longest_connect_of_libpq(
    parameters: dict[str, Any], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PGHOST", "PGHOSTADDR", "PGCONNECT_TIMEOUT", "PGTARGETSESSIONATTRS"):
        monkeypatch.delenv(name, raising=False)
    assert longest(parameters) == seconds


# -- each address has its part of the time ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "seconds", "each"),
    [
        ({"host": "127.0.0.1"}, 4.2, 5),
        ({"host": "127.0.0.1"}, 0.5, 2),
        ({"host": "a", "hostaddr": "127.0.0.1,127.0.0.2"}, 7.0, 3),
        ({"host": "a,b", "hostaddr": ","}, 8.0, 4),
        ({"host": "a,b,c,d"}, 5.0, 2),
        ({"host": "a,b", "target_session_attrs": "prefer-standby"}, 16.0, 4),
    ],
)
def test_the_attempts_of_libpq_share_the_time(
    parameters: dict[str, Any], seconds: float, each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PGHOST", "PGHOSTADDR", "PGTARGETSESSIONATTRS"):
        monkeypatch.delenv(name, raising=False)
    assert share(parameters, seconds) == each


FOUR_ADDRESSES = {"host": "a,a,a,a", "hostaddr": "127.0.0.1,127.0.0.2,127.0.0.3,127.0.0.4"}


@pytest.mark.parametrize("driver", ["psycopg", "psycopg_async", "psycopg2"])
@pytest.mark.parametrize(
    ("settings", "most", "own", "given", "whole"),
    [
        ({"connect_timeout": 20.0}, None, None, 5, 20.0),
        ({"connect_timeout": 1.0}, None, None, 2, 8.0),  # libpq: at least 2 s
        ({"connect_timeout": 20.0}, None, 3, 3, 12.0),  # the application's own, for each of them
        ({"connect_timeout": 20.0}, 12.0, None, 3, 12.0),  # a caller that connects itself has less time
        ({"connect_timeout": 20.0}, 12.0, 60, 3, 12.0),
        ({}, None, None, 32, 130.0),
        ({"connect_timeout": None}, None, None, None, None),
    ],
)
def test_addresses_share_the_time_in_sqlalchemy(
    driver: str, settings: dict[str, Any], most: float | None, own: int | None, given: int | None, whole: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv("PGCONNECT_TIMEOUT", raising=False)
    config = PoolConfig(**settings) if settings else _unsaid()
    attempt = Attempt(config, most)
    record = types.SimpleNamespace(attempt=attempt, begun=lambda attempt: None)
    keywords: dict[str, Any] = dict(FOUR_ADDRESSES)
    if own is not None:
        keywords["connect_timeout"] = own
    _listener(driver, False)(None, record, (), keywords)
    assert keywords.get("connect_timeout") == given
    assert attempt.seconds == whole


def _unsaid() -> PoolConfig:
    """Return the settings of an engine whose user has set no limit."""
    engine = create_engine("postgresql+psycopg://", poolclass=sa.PoolkitPool)
    try:
        pool: Any = engine.pool
        config: PoolConfig = pool.poolkit.config
        return config
    finally:
        engine.dispose()


@pytest.mark.parametrize("name", ["psycopg", "psycopg2"])
@pytest.mark.parametrize(
    ("shared", "own", "given"), [(20.0, None, 5), (1.0, None, 2), (20.0, 3, 3), (20.0, 30, 5), (None, 30, 30)]
)
def test_addresses_share_the_time_in_the_dbapi_pool(
    name: str, shared: float | None, own: int | None, given: int, resolver: Resolver
) -> None:
    keywords: dict[str, Any] = {"host": ANSWERS, "port": 5432}
    if own is not None:
        keywords["connect_timeout"] = own
    assert look_up(types.ModuleType(name), {}, keywords, LIMIT, shared) == 4 * given
    assert keywords["connect_timeout"] == given


def test_a_name_in_a_connection_string_given_by_keyword_is_resolved_within_the_limit(
    postgres: PostgresServer, resolver: Resolver
) -> None:
    resolver.addresses = [postgres.host]
    text = psycopg.conninfo.make_conninfo(**{**postgres.dsn, "host": ANSWERS})
    with PooledDatabase(psycopg, conninfo=text) as database, database.connect() as connection:
        assert _reached(connection)[1] == postgres.host


@pytest.fixture
def silent(postgres: PostgresServer, resolver: Resolver) -> Iterator[None]:
    """The name has two addresses; at the first one nobody answers."""
    resolver.addresses = ["127.0.0.2", postgres.host]
    with socket.create_server(("127.0.0.2", postgres.port)):
        yield


def through_dbapi(postgres: PostgresServer, **limits: Any) -> Any:
    dsn = {name: value for name, value in postgres.dsn.items() if name != "host"}
    with PooledDatabase(psycopg, host=ANSWERS, **dsn, acquire_timeout=PATIENCE, **limits) as database:
        with database.connect() as connection:
            return _reached(connection)


def _reached(connection: Any) -> tuple[str, str]:
    """Return the limit of each attempt, and the address that has answered."""
    return connection.info.get_parameters()["connect_timeout"], connection.info.hostaddr


def _url(postgres: PostgresServer) -> URL:
    return URL.create("postgresql+psycopg", postgres.user, postgres.password, ANSWERS, postgres.port, postgres.dbname)


def through_sqlalchemy(postgres: PostgresServer, connect_kwargs: Any = None, **limits: Any) -> Any:
    engine = create_engine(
        _url(postgres), poolclass=sa.PoolkitPool, pool_timeout=PATIENCE, connect_args=connect_kwargs or {}, **limits
    )
    try:
        with engine.connect() as connection:
            return _reached(connection.connection.driver_connection)
    finally:
        engine.dispose()


def through_async_sqlalchemy(postgres: PostgresServer, connect_kwargs: Any = None, **limits: Any) -> Any:
    async def main() -> Any:
        engine = create_async_engine(
            _url(postgres), poolclass=sa.AsyncPoolkitPool, pool_timeout=PATIENCE, connect_args=connect_kwargs or {},
            **limits,
        )  # fmt: skip
        try:
            async with engine.connect() as connection:
                return _reached((await connection.get_raw_connection()).driver_connection)
        finally:
            await engine.dispose()

    return asyncio.run(main())


THROUGH: list[Callable[..., Any]] = [through_dbapi, through_sqlalchemy, through_async_sqlalchemy]


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("through", THROUGH, ids=lambda through: through.__name__)
@pytest.mark.parametrize(
    "limits", [{"connect_timeout": 4.0}, {"connect_kwargs": {"connect_timeout": 2}}], ids=("of-the-pool", "of-libpq")
)
def test_an_address_that_does_not_answer_leaves_time_for_the_next_one(
    through: Callable[..., Any], limits: dict[str, Any], postgres: PostgresServer
) -> None:
    """Statements of "connect" events included."""
    assert through(postgres, **limits) == ("2", postgres.host)


def through_psycopg(postgres: PostgresServer, **limits: Any) -> Any:
    dsn = {**postgres.dsn, "host": ANSWERS}
    with PoolkitConnectionPool("", kwargs=dsn, min_size=0, max_size=1, timeout=PATIENCE, **limits) as pool:
        with pool.connection() as connection:
            return _reached(connection)


@pytest.mark.parametrize("through", [*THROUGH, through_psycopg], ids=lambda through: through.__name__)
@pytest.mark.parametrize(("seconds", "given"), [(3.2, "4"), (0.3, "2")])
def test_a_limit_is_rounded_up_to_the_whole_seconds_of_libpq(
    through: Callable[..., Any], seconds: float, given: str, postgres: PostgresServer, resolver: Resolver
) -> None:
    resolver.addresses = [postgres.host]
    assert through(postgres, connect_timeout=seconds) == (given, postgres.host)


@pytest.fixture
def full(redis_server: RedisServer, resolver: Resolver) -> Iterator[None]:
    """The name has four addresses. The first three take no connection, because their queues are full."""
    resolver.addresses = ["127.0.0.2", "127.0.0.3", "127.0.0.4", redis_server.host]
    with contextlib.ExitStack() as stack:
        for address in resolver.addresses[:3]:
            stack.enter_context(socket.create_server((address, redis_server.port), backlog=0))
            for _ in range(4):
                filling = stack.enter_context(socket.socket())
                filling.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    filling.connect((address, redis_server.port))
        yield


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize("asynchronous", [False, True], ids=["threads", "asyncio"])
def test_redis_reaches_the_fourth_address_within_the_time_of_a_connect(
    redis_server: RedisServer, asynchronous: bool
) -> None:
    """The addresses share the time. In threads the pool would give the connect up before; a task would try the first
    address only.
    """
    settings: dict[str, Any] = {
        "host": ANSWERS, "port": redis_server.port, "socket_connect_timeout": LIMIT, "connect_timeout": LIMIT,
        "timeout": 3 * LIMIT, "retry": redis.retry.Retry(redis.backoff.NoBackoff(), 0),
    }  # fmt: skip

    async def main() -> None:
        retry = redis.asyncio.retry.Retry(redis.backoff.NoBackoff(), 0)
        pool = rd.AsyncPoolkitConnectionPool(**{**settings, "retry": retry})
        assert await redis.asyncio.Redis(connection_pool=pool).ping()
        await pool.aclose()

    if asynchronous:
        asyncio.run(main())
        return
    with rd.PoolkitConnectionPool(**settings) as pool:
        assert redis.Redis(connection_pool=pool).ping()


# -- what follows the connect -----------------------------------------------------------------------------------------


def _hanging(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("select pg_sleep(3600)")


def fails_in_threads(url: URL, arguments: dict[str, Any]) -> str:
    engine = create_engine(
        url, poolclass=sa.PoolkitPool, pool_timeout=3600, connect_timeout=1800, connect_args=arguments
    )
    listen(engine, "connect", _hanging)
    with pytest.raises(OperationalError) as caught:
        engine.connect()
    engine.dispose()
    return str(caught.value)


def fails_in_tasks(url: URL, arguments: dict[str, Any]) -> str:
    async def main() -> str:
        engine = create_async_engine(
            url, poolclass=sa.AsyncPoolkitPool, pool_timeout=3600, connect_timeout=1800, connect_args=arguments
        )
        listen(engine.sync_engine, "connect", _hanging)
        with pytest.raises(OperationalError) as caught:
            await engine.connect()
        await engine.dispose()
        return str(caught.value)

    return asyncio.run(main())


@pytest.mark.parametrize("addresses", [1, 3])
@pytest.mark.parametrize(
    ("fails", "driver", "argument"),
    [
        (fails_in_threads, "psycopg", "connect_timeout"),
        (fails_in_tasks, "psycopg", "connect_timeout"),
        (fails_in_tasks, "asyncpg", "timeout"),
    ],
)
def test_a_connect_event_that_hangs_ends_at_the_limit_in_the_drivers_arguments(
    fails: Any, driver: str, argument: str, addresses: int, postgres: PostgresServer, resolver: Resolver
) -> None:
    """Not at the limit of the pool, and addresses that are not tried add no time. The limit is known only after
    the name has been looked up.
    """
    resolver.addresses = [postgres.host] * addresses
    url = _url(postgres).set(drivername=f"postgresql+{driver}")
    assert "no connection in 2" in fails(url, {argument: 2})


@pytest.mark.usefixtures("silent")
def test_setup_has_the_time_of_the_address_that_answers(postgres: PostgresServer) -> None:
    """The first address has used up all of ``connect_timeout``: libpq has at least 2 s for each."""
    done: list[Any] = []

    def setup(connection: Any) -> None:
        done.append(connection.execute("select 1 from pg_sleep(0.2)").fetchone())

    through_dbapi(postgres, connect_timeout=LIMIT, setup=setup)
    assert done == [(1,)]


@pytest.mark.parametrize(
    ("longest", "spent", "left"), [(2.0, 0.5, 1.5), (8.0, 1.0, 2.0), (8.0, 7.0, 1.0), (math.inf, 50.0, 2.0)]
)
def test_the_rest_of_a_connect(longest: float, spent: float, left: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_time_limits, "time", types.SimpleNamespace(monotonic=lambda: spent))
    assert rest_of(2.0, longest, 0.0, "setup") == left
    assert rest_of(None, longest, 0.0, "setup") is None


@pytest.mark.parametrize(("of", "module"), [(dbapi, _connector), (pool, _psycopg_connector)])
def test_a_connect_that_took_all_of_its_time_is_blamed_for_it(
    of: Any, module: Any, postgres: PostgresServer, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not the server, which would have answered the setup."""
    monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: time.monotonic() - 100.0))
    with pytest.raises(TimeoutError, match=r"the connect took 1\d\d s, all of its time: none is left for the"):
        of(" ".join(f"{name}={value}" for name, value in postgres.dsn.items()), {})
