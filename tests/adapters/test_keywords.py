"""Settings as keywords: a misspelt one fails when the pool is created, with the nearest name, and all are typed."""

from __future__ import annotations

import sqlite3
import typing
from collections.abc import Callable
from dataclasses import fields
from types import ModuleType
from typing import Any

import psycopg
import pytest
import redis
import redis.asyncio
from sqlalchemy import create_engine, pool

from poolkit import AsyncPool, ConfigError, Pool, PoolConfig, PoolSettings, UsageError, load
from poolkit.cluster import Cluster, ClusterConfig, ClusterSettings
from poolkit.testing import AsyncFakeConnector, FakeConnector
from poolkit_adapters import asyncpg as pg_async
from poolkit_adapters import httpcore, httpx
from poolkit_adapters import psycopg as pg
from poolkit_adapters import redis as rd
from poolkit_adapters import requests as rq
from poolkit_adapters import sqlalchemy as sa
from poolkit_adapters import urllib3 as ul
from poolkit_adapters.dbapi import PooledDatabase

MADE: dict[str, Callable[..., Any]] = {
    "Pool": lambda **k: Pool(FakeConnector(), **k),
    "AsyncPool": lambda **k: AsyncPool(AsyncFakeConnector(), **k),
    "Cluster": lambda **k: Cluster(lambda node: FakeConnector(), ["a:1"], pool=load(**k)),
    "load": lambda **k: load("orders-db", **k),
    "httpx.Client": httpx.Client,
    "httpx.AsyncClient": httpx.AsyncClient,
    "httpx.PoolkitTransport": httpx.PoolkitTransport,
    "httpx.PoolkitClusterTransport": lambda **k: httpx.PoolkitClusterTransport(["127.0.0.1:1"], **k),
    "httpcore": httpcore.PoolkitConnectionPool,
    "httpcore, asyncio": httpcore.AsyncPoolkitConnectionPool,
    "psycopg": lambda **k: pg.PoolkitConnectionPool("", open=False, **k),
    "psycopg, null": lambda **k: pg.PoolkitNullConnectionPool("", open=False, **k),
    "psycopg, asyncio": lambda **k: pg.AsyncPoolkitConnectionPool("", open=False, **k),
    "psycopg, cluster": lambda **k: pg.PoolkitCluster(["127.0.0.1:1"], **k),
    "asyncpg": pg_async.create_pool,
    "redis": rd.PoolkitConnectionPool,
    "redis, URL": lambda **k: rd.PoolkitConnectionPool.from_url("redis://127.0.0.1:1", **k),
    "redis, asyncio": rd.AsyncPoolkitConnectionPool,
    "redis, cluster": lambda **k: rd.PoolkitServerGroup(["127.0.0.1:1"], **k),
    "urllib3": ul.PoolkitPoolManager,
    "urllib3, proxy": lambda **k: ul.proxy_from_url("http://127.0.0.1:1", **k),
    "urllib3, pool": lambda **k: ul.connection_from_url("http://127.0.0.1:1", **k),
    "requests": rq.PoolkitAdapter,
    "dbapi": lambda **k: PooledDatabase(sqlite3, "shop.db", **k),
    "sqlalchemy, cluster": lambda **k: sa.PoolkitCluster("sqlite://", ["127.0.0.1:1"], **k),
}


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize(("misspelt", "meant"), [("max_wating", "max_waiting"), ("leek_after", "leak_after")])
def test_a_misspelt_setting_fails_at_once_with_the_nearest_name(name: str, misspelt: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"{misspelt}.*did you mean '{meant}'"):
        MADE[name](**{misspelt: 3})


def test_a_misspelt_setting_of_create_engine_is_named_by_sqlalchemy() -> None:
    """create_engine() passes on only the names that the pool's class has, so the adapter never gets this one."""
    with pytest.raises(TypeError, match=r"Invalid argument.*'max_wating' sent to create_engine"):
        create_engine("sqlite://", poolclass=sa.PoolkitPool, max_wating=3)


def module_with(**known: Any) -> ModuleType:
    """A DB-API module whose ``connect`` takes these keywords."""
    made = ModuleType("madeup")
    for name in ("Error", "InterfaceError", "OperationalError", "ProgrammingError"):
        setattr(made, name, getattr(sqlite3, name))
    made.threadsafety, made.paramstyle = 1, "qmark"  # type: ignore[attr-defined]
    exec(f"def connect({', '.join(known)}): ...", made.__dict__)
    return made


@pytest.mark.parametrize("keyword", ["max_sizes", "idle_timeouts"])
def test_a_keyword_of_the_module_may_resemble_a_setting(keyword: str) -> None:
    PooledDatabase(module_with(**{keyword: 1}), **{keyword: 1}).close()
    PooledDatabase(sqlite3, "shop.db", connect_kwargs={keyword: 1}).close()


def test_keywords_of_known_modules_are_not_taken_for_settings() -> None:
    PooledDatabase(psycopg, "", keepalives=1, keepalives_idle=30, tcp_user_timeout=1000).close()


@pytest.mark.parametrize(("typed", "config"), [(PoolSettings, PoolConfig), (ClusterSettings, ClusterConfig)])
def test_the_typed_settings_are_all_settings(typed: Any, config: Any) -> None:
    of_config = {field.name: field.type for field in fields(config)}
    of_keywords: dict[str, str] = {}
    for kind in (typed, *getattr(typed, "__orig_bases__", ())):
        for name, annotation in getattr(kind, "__annotations__", {}).items():
            of_keywords[name] = annotation.__forward_arg__ if isinstance(annotation, typing.ForwardRef) else annotation
    assert of_keywords == of_config


@pytest.mark.parametrize("module", ["poolkit_adapters.dbapi", "poolkit_adapters.sqlalchemy"])
def test_the_settings_that_are_written_out_are_all_settings(module: str) -> None:
    import inspect

    kind: Any = PooledDatabase if module.endswith("dbapi") else sa.PoolkitPool
    written_out = {name: one.annotation for name, one in inspect.signature(kind).parameters.items()}
    for setting in fields(PoolConfig):
        assert written_out.get(setting.name) == setting.type, setting.name


def test_every_argument_of_asyncpg_connect_is_typed() -> None:
    import inspect

    import asyncpg

    from poolkit_adapters.asyncpg._settings import ConnectKeywords

    typed = set(ConnectKeywords.__annotations__)
    of_pool = set(inspect.signature(pg_async.create_pool).parameters)
    assert set(inspect.signature(asyncpg.connect).parameters) <= typed | of_pool


@pytest.mark.parametrize("module", ["redis.connection", "redis.asyncio.connection"])
def test_every_argument_of_redis_connections_is_typed(module: str) -> None:
    import importlib

    from poolkit_adapters._cluster_options import parameters_of
    from poolkit_adapters.redis._keywords import ConnectionKeywords

    library = importlib.import_module(module)
    kinds = (library.Connection, library.SSLConnection, library.UnixDomainSocketConnection)
    internal = {"parser"}  # of a mixin, to which the connections pass it themselves
    assert parameters_of(*kinds) - internal <= set(ConnectionKeywords.__annotations__)


def test_pool_of_returns_the_engine_of_an_engine() -> None:
    engine = create_engine("sqlite://", poolclass=sa.PoolkitPool)
    assert sa.pool_of(engine) is engine.pool.poolkit  # type: ignore[attr-defined]
    engine.dispose()
    with pytest.raises(UsageError, match="has a QueuePool: create it with poolclass=PoolkitPool"):
        sa.pool_of(create_engine("sqlite:///:memory:", poolclass=pool.QueuePool))


# -- the way back ---------------------------------------------------------------------------------------------------


def on_redis(kind: Any) -> Any:
    return kind(host="127.0.0.1", port=1, leak_after=30).make_connection()


def test_a_setting_that_is_left_behind_is_named_by_the_driver() -> None:
    """A forgotten ``leak_after=30`` after the return to the driver's own pool."""
    import asyncpg
    import httpx as driver
    import psycopg_pool
    import requests as driver_rq
    import urllib3 as driver_ul

    left: dict[str, Callable[[], Any]] = {
        "sqlalchemy": lambda: create_engine("sqlite://", poolclass=pool.QueuePool, leak_after=30),
        "httpx": lambda: driver.Client(leak_after=30),  # type: ignore[call-arg]
        "psycopg": lambda: psycopg_pool.ConnectionPool("", open=False, leak_after=30),  # type: ignore[call-arg]
        "redis": lambda: on_redis(redis.BlockingConnectionPool),
        "redis, asyncio": lambda: on_redis(redis.asyncio.BlockingConnectionPool),
        "requests": lambda: driver_rq.adapters.HTTPAdapter(leak_after=30),
        "urllib3": lambda: driver_ul.PoolManager(leak_after=30).connection_from_host("a.invalid"),
        "sqlite3": lambda: sqlite3.connect(":memory:", leak_after=30),  # type: ignore[call-overload]
    }
    for name, make in left.items():
        with pytest.raises(TypeError) as raised:
            make()
        assert "leak_after" in str(raised.value), name

    import asyncio

    async def with_asyncpg() -> None:
        async with asyncpg.create_pool("postgresql://127.0.0.1:1/x", leak_after=30):
            pass

    with pytest.raises(TypeError, match="leak_after"):
        asyncio.run(with_asyncpg())
