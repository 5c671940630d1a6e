"""Passwords and tokens appear in nothing that a pool says, shows, logs or raises."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from poolkit import Connector, Pool, PoolConfig, load
from poolkit.errors import PoolError
from poolkit.testing.servers import HTTPServer, PostgresServer, RedisServer
from tests.security.kinds import CANARY, KINDS, Net, Place

KIND = pytest.mark.parametrize("kind", KINDS)
SHORT = {"sqlalchemy": "pool_timeout", "redis": "timeout", "psycopg": "timeout", "dbapi": "acquire_timeout"}


@pytest.fixture(scope="session")
def guarded_redis() -> Iterator[RedisServer]:
    with RedisServer(password=CANARY) as server:
        yield server


@pytest.fixture
def role(postgres: PostgresServer) -> str:
    with postgres.connect() as admin:
        if not admin.execute("select 1 from pg_roles where rolname = 'canary'").fetchone():
            admin.execute(psycopg.sql.SQL("create role canary login password {}").format(CANARY))
    return "canary"


@pytest.fixture
def places(postgres: PostgresServer, guarded_redis: RedisServer, http_server: HTTPServer, role: str) -> dict[str, Any]:
    return {
        "postgres": Place(postgres.host, postgres.port, role, postgres.dbname),
        "redis": Place(guarded_redis.host, guarded_redis.port),
        "http": Place(http_server.host, http_server.port),
    }


def assert_silent(net: Net, *but_for: str) -> None:
    assert len(net.caught) > 3  # the net was spread at all
    # httpx's own client logs each URL as it was given, with any pool: that is for its users to know (SECURITY.md)
    assert net.leaks("log httpx", *but_for) == []


def short(kind: str) -> dict[str, Any]:
    name = SHORT.get(kind.partition("-")[0])
    return {name: 0.05} if name else {}


@KIND
def test_when_all_is_well(kind: str, places: dict[str, Any]) -> None:
    run, server = KINDS[kind]
    with Net().spread() as net:
        run(net, places[server])
    assert_silent(net)


@KIND
def test_when_the_password_is_wrong(
    kind: str, postgres: PostgresServer, redis_server: RedisServer, http_server: HTTPServer
) -> None:
    run, name = KINDS[kind]
    servers = {"postgres": postgres, "redis": redis_server, "http": http_server}
    place = Place(servers[name].host, servers[name].port, "postgres", postgres.dbname)
    with Net().spread() as net:
        run(net, place)
    assert_silent(net)


@KIND
def test_when_the_server_is_down(kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = Place("127.0.0.1", taken.getsockname()[1])
    with Net().spread() as net:
        KINDS[kind][0](net, place, **short(kind))
    assert any(where == "traceback" for where, _ in net.caught)
    assert_silent(net)


@KIND
def test_when_the_server_never_answers(kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with Net().spread() as net:
            KINDS[kind][0](net, Place(*silent.getsockname()), **short(kind))
    assert any(where == "traceback" for where, _ in net.caught)
    assert_silent(net)


@KIND
def test_when_the_pool_is_exhausted(kind: str, places: dict[str, Any]) -> None:
    run, server = KINDS[kind]
    with Net().spread() as net:
        run(net, places[server], misuse=True, **short(kind))
    assert any(where == "traceback" for where, _ in net.caught)
    assert_silent(net)


@KIND
@pytest.mark.parametrize("setting", [{"max_lifetime": -1}, {"idle_timeout": "soon"}, {"keepalive": 0}])
def test_when_a_setting_is_wrong(kind: str, setting: dict[str, Any]) -> None:
    with Net().spread() as net:
        KINDS[kind][0](net, Place("127.0.0.1", 1), **setting)
    assert any("ConfigError" in text for where, text in net.caught if where == "traceback")
    assert net.leaks() == []


class Nothing(Connector[object]):
    def connect(self, timeout: float | None) -> object:
        return object()


URL = f"postgresql://me:{CANARY.replace('@', '%40')}@db/orders"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Pool(Nothing(), password=CANARY),
        lambda: Pool(Nothing(), URL),  # type: ignore[arg-type]
        lambda: Pool(Nothing(), max_size=URL),
        lambda: PoolConfig(acquire_timeout=URL),  # type: ignore[arg-type]
        lambda: Pool(Nothing()).reconfigure(password=CANARY),
        lambda: load("orders", environ={"POOLKIT_ORDERS_PASSWORD": CANARY}),
        lambda: load("orders", environ={"POOLKIT_ORDERS_MAX_SIZE": URL}),
    ],
)
def test_when_the_secret_was_given_in_the_wrong_place(make: Any) -> None:
    with Net().spread() as net:
        make()
    assert any(where == "traceback" for where, _ in net.caught), "no error"
    assert net.leaks() == []


def _wrong_places() -> dict[str, Any]:
    import httpx
    import redis
    import sqlalchemy

    from poolkit_adapters.dbapi import PooledDatabase
    from poolkit_adapters.httpx import PoolkitTransport
    from poolkit_adapters.psycopg import PoolkitConnectionPool
    from poolkit_adapters.redis import PoolkitConnectionPool as RedisPool
    from poolkit_adapters.sqlalchemy import PoolkitPool

    return {
        "psycopg: password for the pool": lambda: PoolkitConnectionPool("", password=CANARY),
        "psycopg: kwargs is a list": lambda: PoolkitConnectionPool("", kwargs=[("password", CANARY)]),  # type: ignore[arg-type]
        "psycopg: no conninfo": lambda: PoolkitConnectionPool(f"host=x password {CANARY}"),
        "psycopg: config": lambda: PoolkitConnectionPool("", config=URL),
        "dbapi: config": lambda: PooledDatabase(psycopg, config=URL),  # type: ignore[arg-type]
        "dbapi: connect_kwargs": lambda: PooledDatabase(psycopg, connect_kwargs=[("password", CANARY)]),  # type: ignore[arg-type]
        "dbapi: the module": lambda: PooledDatabase(URL),  # type: ignore[arg-type]
        "redis: URL as limit": lambda: RedisPool(f"redis://:{CANARY}@h"),  # type: ignore[arg-type]
        "redis: scheme": lambda: RedisPool.from_url(f"postgresql://:{CANARY}@h/0"),
        "redis: config": lambda: RedisPool(config=URL),  # type: ignore[arg-type]
        "redis: port": lambda: RedisPool.from_url(f"redis://:{CANARY.replace('@', '%40')}@h:port/0"),
        "sqlalchemy: unknown": lambda: sqlalchemy.create_engine(
            "postgresql+psycopg://", poolclass=PoolkitPool, password=CANARY
        ),
        "sqlalchemy: config": lambda: sqlalchemy.create_engine(
            "postgresql+psycopg://", poolclass=PoolkitPool, config=URL
        ),
        "httpx: unknown": lambda: PoolkitTransport(password=CANARY),
        "httpx: config": lambda: PoolkitTransport(config=URL),  # type: ignore[arg-type]
        "httpx: scheme of the proxy": lambda: PoolkitTransport(proxy=f"gopher://me:{CANARY.replace('@', '%40')}@h"),
        "httpx: a Proxy": lambda: PoolkitTransport(proxy=httpx.Proxy(f"http://me:{CANARY.replace('@', '%40')}@h:x")),
        "redis: unknown": lambda: redis.Redis(connection_pool=RedisPool(passwort=CANARY)).ping(),
    }


@pytest.mark.parametrize("case", _wrong_places())
def test_when_a_driver_was_given_the_secret_in_the_wrong_place(case: str) -> None:
    with Net().spread() as net:
        _wrong_places()[case]()
    assert any(where == "traceback" for where, _ in net.caught), "no error"
    assert net.leaks() == []


def test_errors_of_a_pool_hold_no_more_than_the_drivers_own_words() -> None:
    """What a driver says is passed on; a password inside a URL is blotted out in our own text all the same."""

    class Talkative(Connector[object]):
        def connect(self, timeout: float | None) -> object:
            raise OSError("cannot reach postgresql://me:s3cret@db/orders")

    with Pool(Talkative()) as pool, pytest.raises(PoolError) as caught:
        pool.acquire(timeout=0.05)
    assert "s3cret" not in str(caught.value)
    assert "s3cret" in str(caught.value.__cause__)
