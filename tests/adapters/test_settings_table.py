"""Each setting, in each place where it can be written, under each adapter: what was written is in effect and is named,
or it is refused or set aside as documented. No server is needed: pools connect when they are used.
"""

from __future__ import annotations

import importlib.util
import itertools
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis.asyncio.sentinel
import redis.sentinel
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

import poolkit
from poolkit import AsyncPool, BackoffConfig, BreakerConfig, ConfigError, Pool, PoolConfig, Setting
from poolkit.testing import AsyncFakeConnector, FakeConnector
from poolkit_adapters import asyncpg as apg
from poolkit_adapters import httpcore, httpx
from poolkit_adapters import psycopg as pg
from poolkit_adapters import redis as rd
from poolkit_adapters import sqlalchemy as sa
from poolkit_adapters.dbapi import PooledDatabase

pytestmark = pytest.mark.filterwarnings("ignore::poolkit.PoolConfigWarning")

HOST = "host=127.0.0.1 port=1"
URL = "postgresql+psycopg://u:p@127.0.0.1:1/d"
SENTINEL = redis.sentinel.Sentinel([("127.0.0.1", 1)])
ASYNC_SENTINEL = redis.asyncio.sentinel.Sentinel([("127.0.0.1", 1)])

Make = Callable[..., Any]
"""The engine of an adapter's pool, made with ``config=`` or keywords."""


def of_cluster(kind: Any, *args: Any) -> Make:
    """Return the pool of a cluster's only node."""

    def make(config: PoolConfig | None = None, **keywords: Any) -> Any:
        given = {"config" if "httpx" in kind.__module__ else "pool": config} if config is not None else {}
        made = kind(*args, **given, **keywords, **({} if "httpx" in kind.__module__ else {"roles": False}))
        cluster = getattr(made, "cluster", made)
        return cluster.pool(cluster.stats().nodes[0].name).poolkit

    return make


ADAPTERS: dict[str, Make] = {
    "Pool": lambda **given: Pool(FakeConnector(), **given),
    "AsyncPool": lambda **given: AsyncPool(AsyncFakeConnector(), **given),
    "httpx": lambda **given: httpx.PoolkitTransport(verify=False, **given).poolkit,
    "httpx async": lambda **given: httpx.AsyncPoolkitTransport(verify=False, **given).poolkit,
    "httpx cluster": of_cluster(httpx.PoolkitClusterTransport, ["http://127.0.0.1:1"]),
    "httpcore": lambda **given: httpcore.PoolkitConnectionPool(**given).poolkit,
    "httpcore async": lambda **given: httpcore.AsyncPoolkitConnectionPool(**given).poolkit,
    "redis": lambda **given: rd.PoolkitConnectionPool(**given).poolkit,
    "redis async": lambda **given: rd.AsyncPoolkitConnectionPool(**given).poolkit,
    "sentinel": lambda **given: rd.PoolkitSentinelConnectionPool("main", SENTINEL, **given).poolkit,
    "sentinel async": lambda **given: rd.AsyncPoolkitSentinelConnectionPool("main", ASYNC_SENTINEL, **given).poolkit,
    "redis group": of_cluster(rd.PoolkitServerGroup, ["127.0.0.1:1"]),
    "psycopg": lambda **given: pg.PoolkitConnectionPool(HOST, open=False, **given).poolkit,
    "psycopg async": lambda **given: pg.AsyncPoolkitConnectionPool(HOST, open=False, **given).poolkit,
    "psycopg null": lambda **given: pg.PoolkitNullConnectionPool(HOST, open=False, **given).poolkit,
    "psycopg null async": lambda **given: pg.AsyncPoolkitNullConnectionPool(HOST, open=False, **given).poolkit,
    "psycopg cluster": of_cluster(pg.PoolkitCluster, ["127.0.0.1:1"]),
    "sqlalchemy": lambda **given: pool_of(create_engine(URL, poolclass=sa.PoolkitPool, **given)),
    "sqlalchemy async": lambda **given: pool_of(
        create_async_engine("postgresql+asyncpg://u@127.0.0.1:1/d", poolclass=sa.AsyncPoolkitPool, **given)
    ),
    "sqlalchemy cluster": of_cluster(sa.PoolkitCluster, URL, ["127.0.0.1:1"]),
    "sqlalchemy sqlite": lambda **given: pool_of(create_engine("sqlite:///x.db", poolclass=sa.PoolkitPool, **given)),
    "asyncpg": lambda **given: apg.create_pool("postgresql://127.0.0.1:1/d", **given).poolkit,
    "dbapi": lambda **given: PooledDatabase(psycopg, HOST, **given).poolkit,
    "dbapi sqlite": lambda **given: PooledDatabase(sqlite3, "x.db", **given).poolkit,
}
if importlib.util.find_spec("urllib3") and importlib.util.find_spec("requests"):
    from poolkit_adapters.requests import PoolkitAdapter
    from poolkit_adapters.urllib3 import PoolkitHTTPConnectionPool, PoolkitPoolManager

    def of_host(manager: Any) -> Any:
        return manager.connection_from_url("http://127.0.0.1:1").poolkit

    ADAPTERS["urllib3"] = lambda **given: PoolkitHTTPConnectionPool("127.0.0.1", 1, **given).poolkit
    ADAPTERS["urllib3 manager"] = lambda **given: of_host(PoolkitPoolManager(**given))
    ADAPTERS["requests"] = lambda **given: of_host(PoolkitAdapter(**given).poolmanager)


def pool_of(engine: Any) -> Any:
    return engine.pool.poolkit


VALUES: dict[str, tuple[Any, Any]] = {
    "min_size": (0, 1),
    "max_size": (10, 7),
    "max_idle": (None, 5),
    "max_waiting": (None, 3),
    "order": ("lifo", "fifo"),
    "start": ("lazy", "eager"),
    "acquire_timeout": (30.0, 12.0),
    "connect_timeout": (10.0, 4.0),
    "check_timeout": (2.0, 3.0),
    "max_lifetime": (1800.0, 900.0),
    "lifetime_jitter": (0.1, 0.2),
    "idle_timeout": (600.0, 300.0),
    "keepalive": (None, 60.0),
    "check_after_idle": (1.0, 2.0),
    "max_connecting": (16, 8),
    "connect_in_caller": (False, True),
    "leak_after": (None, 50.0),
    "on_leak": ("warn", "raise"),
    "use_histogram": (False, True),
    "barging_window": (None, 0.5),
    "backoff": (BackoffConfig(), BackoffConfig(cap=7.0)),
    "breaker": (None, BreakerConfig(failure_threshold=3)),
    "autoscale": (None, poolkit.AutoscaleConfig(target=0.5)),
    "overload": (poolkit.OverloadConfig(), poolkit.OverloadConfig(interval=0.5)),
    "budget": (None, None),
    "budget_weight": (1.0, 2.0),
    "classes": (None, None),
    "default_class": (None, "default"),
}
"""poolkit's default, and another value."""

_HTTP = {"min_size": 0, "start": "lazy", "keepalive": None}
_FIRST_REQUEST = {**_HTTP, "backoff": BackoffConfig(), "connect_in_caller": True}
_LATE = {"start": "lazy"}
_SENTINEL = {**_LATE, "connect_in_caller": True}
_NULL = {"min_size": 0, "max_idle": 0, "connect_in_caller": True}
UNUSED: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("httpx", "httpx async", "httpx cluster", "httpcore", "httpcore async"), _HTTP),
    **dict.fromkeys(("urllib3", "urllib3 manager", "requests"), _FIRST_REQUEST),
    **dict.fromkeys(("sqlalchemy", "sqlalchemy async", "sqlalchemy cluster"), _LATE),
    **dict.fromkeys(("sentinel", "sentinel async"), _SENTINEL),
    "sqlalchemy sqlite": {"start": "lazy", "connect_timeout": None},
    **dict.fromkeys(("psycopg null", "psycopg null async"), _NULL),
    "dbapi sqlite": {"connect_timeout": None},
}
"""Settings that cannot apply, with the value that applies instead."""
_ARGUMENTS = ("min_size", "max_size", "max_waiting", "max_lifetime")
"""psycopg_pool's own arguments; its ``max_idle`` is a time."""

SHARED = ("[default]", "POOLKIT_")
PLACES = ("keyword", "config", "[own]", "[default]", "POOLKIT_OWN_", "POOLKIT_")


@pytest.fixture(autouse=True)
def said(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return the lines that this test has logged; each is logged once in a process."""
    texts: set[str] = set()
    monkeypatch.setattr(poolkit.settings, "_said", texts)
    return texts


def written(place: str, name: str, value: Any, folder: Path) -> tuple[dict[str, Any], str]:
    """Return arguments for an adapter that hold the setting, and the source that must be reported."""
    if place == "keyword":
        return {name: value}, "keyword"
    if place == "config":
        return {"config": PoolConfig(**{name: value})}, "config"
    if place.startswith("POOLKIT_"):
        variable = place + name.upper()
        text = "none" if value is None else str(value)
        return {"config": poolkit.load("own", environ={variable: text})}, variable
    file = folder / "pools.toml"
    words = {True: "true", False: "false"}
    if isinstance(value, (BackoffConfig, BreakerConfig, poolkit.AutoscaleConfig, poolkit.OverloadConfig)):
        inner = ", ".join(
            f"{key} = {one!r}" if one is not None else f'{key} = "none"' for key, one in vars(value).items()
        )
        text = f"{{ {inner} }}"
    else:
        text = '"none"' if value is None else words[value] if isinstance(value, bool) else repr(value)
    file.write_text(f"{place}\n{name} = {text}\n")
    return {"config": poolkit.load("own", file=file, environ={})}, f"{file} {place}"


CASES = [
    pytest.param(adapter, name, id=f"{adapter}-{name}")
    for adapter in ADAPTERS
    for name in VALUES
    if name not in ("budget", "classes")  # objects, which a file cannot hold
]


@pytest.mark.parametrize(("adapter", "name"), CASES)
def test_what_is_written_is_in_effect_or_refused(
    adapter: str, name: str, tmp_path: Path, said: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    make, unused = ADAPTERS[adapter], UNUSED.get(adapter, {})
    for place in PLACES:
        for value in VALUES[name]:
            if (
                place.startswith("POOLKIT_")
                and name in ("backoff", "breaker", "autoscale", "overload")
                and value is not None
            ):
                continue  # a table goes in a file
            native = adapter.startswith("psycopg") and "cluster" not in adapter and place == "keyword"
            if native and name == "max_idle":
                continue  # psycopg_pool's own, a time
            given, source = written(place, name, value, tmp_path)
            if native and name in _ARGUMENTS:
                source = f"keyword {name}"
                given.setdefault("max_size", 10)
            if adapter == "asyncpg" and place == "keyword" and name in ("min_size", "max_size"):
                source = f"keyword {name}"
            clusters = ("redis group", "psycopg cluster", "sqlalchemy cluster")
            if place == "keyword" and name == "acquire_timeout" and adapter in clusters:
                continue  # it is the cluster's
            label = f"{adapter}: {name}={value!r} in {source}"
            applies = name not in unused or value == unused[name]
            portable = name == "connect_timeout" and place != "keyword"  # the others may be meant for other drivers
            if not applies and place not in SHARED and not portable:
                with pytest.raises(ConfigError, match=rf"^{name}=") as caught:
                    make(**given)
                assert caught.value.setting == name, label
                continue
            caplog.clear()
            said.clear()
            found = make(**given).describe()[name]
            if applies:
                tasks = (adapter, name, value) == ("sqlalchemy async", "barging_window", None)
                assert found.value == (0.0 if tasks else value), label  # tasks never overtake each other
                assert found.source.removesuffix(", without effect for sqlite3") == source, label
            else:
                assert found.value == unused[name], label
                assert found.source.startswith(("not used by ", "required by ")), label
                assert f"{name}={value!r} in {source}" in found.source, label
                make(**given)
                told = [record.getMessage() for record in caplog.records if name in record.getMessage()]
                assert len(told) == 1, label
                assert told[0].startswith(f"{name}={value!r} (from {source}) is set aside for "), label


ALSO_FIXED = {
    ("psycopg null", "min_size"),
    ("psycopg null async", "min_size"),
    ("sqlalchemy sqlite", "connect_timeout"),
    *itertools.product(["sqlalchemy", "sqlalchemy async", "sqlalchemy sqlite"], ["check_after_idle", "keepalive"]),
}
"""Settings with the driver's default, which is the only value that applies. QueuePool never checks, if nobody asks."""


@pytest.mark.parametrize(("adapter", "name"), CASES)
def test_a_setting_that_cannot_apply_is_not_accepted_later(adapter: str, name: str) -> None:
    """What a pool ignores when it is made, ``reconfigure()`` refuses. Every other setting takes its new value."""
    pool = ADAPTERS[adapter]()
    before = pool.describe()[name]
    other = {"max_idle": 2}.get(name, VALUES[name][1])  # psycopg's default of max_size is 4
    ignored = before.source.startswith("not used by ") or name == "start" or (adapter, name) in ALSO_FIXED
    if ignored and before.value != other:
        with pytest.raises(ConfigError, match=rf"^{name}=.*: .* \(from reconfigure\(\)\)"):
            pool.reconfigure(**{name: other})
        assert pool.describe()[name] == before
        pool.reconfigure(**{name: before.value})
    else:
        pool.reconfigure(**{name: other})
        assert pool.describe()[name].value == other


@pytest.mark.parametrize("adapter", ["httpx", "asyncpg", "sqlalchemy"])
def test_a_smaller_limit_lowers_the_defaults_of_other_sizes(adapter: str) -> None:
    """httpx keeps 20 connections, asyncpg's pool opens 10, and QueuePool keeps 5. Nobody has asked for that."""
    pool = ADAPTERS[adapter]()
    pool.reconfigure(max_size=3)
    found = pool.describe()
    assert found["max_size"] == Setting(3, "reconfigure()")
    assert all(found[name].value in (None, 0, 3) for name in ("min_size", "max_idle"))
    assert "default" in found["max_idle"].source
    pool = ADAPTERS[adapter](config=PoolConfig(min_size=0, max_size=9, max_idle=6))
    with pytest.raises(ConfigError, match="max_idle=6: must be at most max_size"):
        pool.reconfigure(max_size=3)


@pytest.mark.parametrize(
    ("adapter", "name"), [("httpx", "max_idle"), ("sqlalchemy", "max_idle"), ("psycopg", "min_size")]
)
def test_a_greater_limit_restores_the_defaults_of_other_sizes(adapter: str, name: str) -> None:
    """A resize to a few connections and back changes nothing else."""
    pool = ADAPTERS[adapter]()
    default, greater = pool.describe()[name], {"httpx": 100, "sqlalchemy": 15, "psycopg": 20}[adapter]
    for size in (2, 3, 2):
        pool.reconfigure(max_size=size)
        assert pool.describe()[name] == Setting(size, f"{default.source}, lowered to max_size")
    pool.reconfigure(max_size=greater)
    assert pool.describe()[name] == default
    pool.reconfigure(max_size=2, **{name: 1})
    pool.reconfigure(max_size=greater)
    assert pool.describe()[name] == Setting(1, "reconfigure()")


def test_a_default_is_lowered_to_the_smallest_limit_and_restored_step_by_step() -> None:
    pool = ADAPTERS["psycopg"]()
    default = pool.describe()["min_size"]
    for changes, size, limit in (
        ({"max_size": 3, "max_idle": 2}, 2, "max_idle"),
        ({"max_idle": None}, 3, "max_size"),
        ({"max_idle": 1}, 1, "max_idle"),
        ({"max_size": 20}, 1, "max_idle"),
    ):
        pool.reconfigure(**changes)
        assert pool.describe()["min_size"] == Setting(size, f"{default.source}, lowered to {limit}")
    pool.reconfigure(max_idle=None)
    assert pool.describe()["min_size"] == default
    with pytest.raises(ConfigError, match=r"^max_size=-1: "):
        pool.reconfigure(max_size=-1)


def test_a_recreated_pool_knows_the_default_that_was_lowered() -> None:
    engine = create_engine(URL, poolclass=sa.PoolkitPool)
    pool_of(engine).reconfigure(max_size=3)
    engine.dispose()
    assert pool_of(engine).describe()["max_idle"].value == 3
    pool_of(engine).reconfigure(max_size=15)
    assert pool_of(engine).describe()["max_idle"].value == 5


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_setting_that_was_not_given_has_a_default_as_its_source(adapter: str) -> None:
    for name, setting in ADAPTERS[adapter]().describe().items():
        assert isinstance(setting, Setting)
        assert re.search("default|^not used by |^required by ", setting.source), (name, setting)


DRIVERS_WORDS: list[tuple[str, dict[str, Any], str, Any, str]] = [
    ("httpcore", {"max_connections": 10}, "max_size", 10, "keyword max_connections"),
    ("httpcore", {"keepalive_expiry": 5.0}, "idle_timeout", 5.0, "keyword keepalive_expiry"),
    ("redis", {"max_connections": 50}, "max_size", 50, "keyword max_connections"),
    ("redis", {"timeout": 20}, "acquire_timeout", 20, "keyword timeout"),
    ("redis", {"timeout": None}, "acquire_timeout", None, "keyword timeout"),
    ("redis", {"socket_connect_timeout": 5}, "connect_timeout", 5, "keyword socket_connect_timeout"),
    ("redis async", {"max_connections": 50}, "max_size", 50, "keyword max_connections"),
    ("sentinel", {"timeout": 0}, "acquire_timeout", 0, "keyword timeout"),
    ("psycopg", {"min_size": 4}, "min_size", 4, "keyword min_size"),
    ("psycopg", {"timeout": 30.0}, "acquire_timeout", 30.0, "keyword timeout"),
    (
        "asyncpg",
        {"max_inactive_connection_lifetime": 300.0},
        "idle_timeout",
        300.0,
        "keyword max_inactive_connection_lifetime",
    ),
    ("asyncpg", {"timeout": 10}, "connect_timeout", 10, "keyword timeout"),
    ("asyncpg", {"max_size": 10}, "max_size", 10, "keyword max_size"),
    ("psycopg", {"max_idle": 600.0}, "idle_timeout", 600.0, "keyword max_idle"),
    ("psycopg", {"kwargs": {"connect_timeout": 10}}, "connect_timeout", 10, "connect_timeout in kwargs"),
    (
        "dbapi",
        {"connect_kwargs": {"connect_timeout": 10}},
        "connect_timeout",
        10,
        "connect_timeout of psycopg.connect()",
    ),
    (
        "sqlalchemy",
        {"connect_args": {"connect_timeout": "10"}},
        "connect_timeout",
        10,
        "connect_timeout in connect_args or the URL",
    ),
    (
        "sqlalchemy async",
        {"connect_args": {"timeout": 10}},
        "connect_timeout",
        10,
        "timeout in connect_args or the URL",
    ),
    ("sqlalchemy", {"pool_size": 5}, "max_idle", 5, "keyword pool_size"),
    ("sqlalchemy", {"max_overflow": 10}, "max_size", 15, "keyword pool_size + max_overflow"),
    ("sqlalchemy", {"pool_timeout": 30.0}, "acquire_timeout", 30.0, "keyword timeout"),
    ("sqlalchemy", {"pool_use_lifo": True}, "order", "lifo", "keyword use_lifo"),
]


@pytest.mark.parametrize(("adapter", "given", "name", "value", "source"), DRIVERS_WORDS)
def test_a_drivers_argument_counts_if_it_equals_its_default(
    adapter: str, given: dict[str, Any], name: str, value: Any, source: str, tmp_path: Path
) -> None:
    """Alone, and beside a setting for every pool."""
    other = {"max_size": 9, "max_idle": 2, "order": "fifo", "min_size": 3}.get(name, 7.0)
    assert ADAPTERS[adapter](**given).describe()[name] == Setting(value, source)
    shared = {} if (adapter, name) == ("psycopg", "min_size") else written("[default]", name, other, tmp_path)[0]
    if adapter == "sqlalchemy" and name == "max_size":
        given = {"pool_size": 5, **given}
    assert ADAPTERS[adapter](**given, **shared).describe()[name] == Setting(value, source)


def of_psycopg(text: str) -> Any:
    return pg.PoolkitConnectionPool(text, open=False).poolkit


def of_module(text: str) -> Any:
    return PooledDatabase(psycopg, text).poolkit


@pytest.mark.parametrize("make", [of_psycopg, of_module])
@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("host=a connect_timeout=3", 3.0),
        ("host=a,b connect_timeout=3", 6.0),  # libpq has it for each of them
        ("host=a,b target_session_attrs=prefer-standby connect_timeout=3", 12.0),  # and goes through them twice
        ("host=a connect_timeout=1", 2.0),  # its least
        ("host=a connect_timeout=0", None),
    ],
)
def test_a_limit_in_libpqs_connection_string_is_shown(
    make: Callable[[str], Any], text: str, seconds: float | None
) -> None:
    found = make(text).describe()["connect_timeout"]
    assert (found.value, found.source.startswith("connect_timeout in ")) == (seconds, True)


@pytest.mark.parametrize("adapter", ["psycopg", "dbapi"])
def test_a_limit_in_libpqs_environment_is_shown(adapter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "3")
    found = ADAPTERS[adapter]().describe()["connect_timeout"]
    assert (found.value, found.source.endswith("PGCONNECT_TIMEOUT")) == (3.0, True)
    assert ADAPTERS[adapter](connect_timeout=7.0).describe()["connect_timeout"] == Setting(7.0, "keyword")


CONTRADICTIONS: list[tuple[str, dict[str, Any], str, Any]] = [
    ("httpcore", {"max_connections": 10}, "max_size", 6),
    ("httpcore async", {"max_connections": 10}, "max_size", 6),
    ("httpcore", {"max_keepalive_connections": 3}, "max_idle", 4),
    ("httpcore", {"keepalive_expiry": 5.0}, "idle_timeout", 600.0),
    ("redis", {"max_connections": 50}, "max_size", 10),
    ("redis async", {"timeout": 20}, "acquire_timeout", 30.0),
    ("redis", {"socket_connect_timeout": 5}, "connect_timeout", 10.0),
    ("sentinel", {"timeout": 0}, "acquire_timeout", 30.0),
    ("asyncpg", {"max_inactive_connection_lifetime": 300.0}, "idle_timeout", 600.0),
    ("asyncpg", {"timeout": 4}, "connect_timeout", 10.0),
]


@pytest.mark.parametrize(("adapter", "given", "name", "value"), CONTRADICTIONS)
@pytest.mark.parametrize("place", ["keyword", "config", "[own]", "POOLKIT_OWN_"])
def test_two_words_for_one_setting_that_contradict_each_other(
    adapter: str, given: dict[str, Any], name: str, value: Any, place: str, tmp_path: Path
) -> None:
    mine, source = written(place, name, value, tmp_path)
    with pytest.raises(ConfigError) as caught:
        ADAPTERS[adapter](**given, **mine)
    (word,) = given
    assert caught.value.setting == name
    assert f"{word}={given[word]!r} and {name}={value!r} (from {source})" in str(caught.value)


@pytest.mark.parametrize(
    ("adapter", "given", "name", "value", "source"),
    [
        ("psycopg", {"timeout": 30.0}, "acquire_timeout", 30.0, "keyword timeout"),
        ("psycopg", {"max_size": 4}, "max_size", 4, "keyword max_size"),
        ("sqlalchemy", {"pool_size": 5}, "max_idle", 5, "keyword pool_size"),
        ("sqlalchemy", {"pool_timeout": 30.0}, "acquire_timeout", 30.0, "keyword timeout"),
    ],
)
def test_a_drivers_argument_overrides_config_as_documented(
    adapter: str, given: dict[str, Any], name: str, value: Any, source: str
) -> None:
    config = PoolConfig(max_size=8, max_idle=2, acquire_timeout=3.0)
    assert ADAPTERS[adapter](config=config, **given).describe()[name] == Setting(value, source)


def test_the_limits_of_httpx() -> None:
    import httpx as driver

    def size(**given: Any) -> Setting:
        found: Setting = ADAPTERS["httpx"](**given).describe()["max_size"]
        return found

    assert size(max_size=6) == Setting(6, "keyword")
    assert size() == Setting(100, "httpx's default (max_connections)")
    assert size(limits=driver.Limits(max_connections=100)) == Setting(100, "keyword max_connections")
    with pytest.raises(ConfigError, match="max_connections=100 and max_size=6"):
        size(limits=driver.Limits(max_connections=100), max_size=6)
    given = ADAPTERS["httpx"](limits=driver.Limits(max_connections=9), idle_timeout=600.0).describe()
    assert given["idle_timeout"] == Setting(600.0, "keyword")  # 5 s is what every Limits begins with


@pytest.mark.parametrize("adapter", ["sqlalchemy", "redis"])
def test_sources_outlive_a_reset(adapter: str) -> None:
    config = PoolConfig(min_size=1, max_size=10)
    if adapter == "redis":
        pool: Any = rd.PoolkitConnectionPool(config=config)
        pool.poolkit.reconfigure(max_waiting=4)
        pool.reset()
        after = pool.poolkit.describe()
        assert after["max_waiting"] == Setting(4, "reconfigure()")
    else:
        engine = create_engine(URL, poolclass=sa.PoolkitPool, config=config)
        engine.dispose()
        after = pool_of(engine).describe()
        plain = create_engine(URL, poolclass=sa.PoolkitPool)
        before = pool_of(plain).describe()
        plain.dispose()
        assert pool_of(plain).describe() == before
    assert (after["min_size"], after["max_size"]) == (Setting(1, "config"), Setting(10, "config"))


def test_redis_settings_in_the_url_are_keywords() -> None:
    found = rd.PoolkitConnectionPool.from_url("redis://127.0.0.1:1?max_size=10&connect_timeout=10").poolkit.describe()
    assert (found["max_size"], found["connect_timeout"]) == (Setting(10, "keyword"), Setting(10, "keyword"))


@pytest.mark.parametrize(
    "kind",
    [rd.PoolkitServerGroup, rd.AsyncPoolkitServerGroup, pg.PoolkitCluster, pg.AsyncPoolkitCluster, sa.PoolkitCluster,
     sa.AsyncPoolkitCluster, httpx.PoolkitClusterTransport, httpx.AsyncPoolkitClusterTransport],
)  # fmt: skip
def test_every_cluster_takes_its_settings_and_its_pools_as_keywords(kind: Any) -> None:
    sqlalchemy, quiet = "sqlalchemy" in kind.__module__, {} if "httpx" in kind.__module__ else {"roles": False}
    args = (URL, ["127.0.0.1:1"]) if sqlalchemy else (["127.0.0.1:1"],)
    made = kind(*args, wait_for_node=5, eject_after=4, max_size=10, **quiet)
    cluster = getattr(made, "cluster", made)
    assert (cluster.config.wait_for_node, cluster.config.eject_after) == (5, 4)
    node = cluster.stats().nodes[0].name
    assert cluster.pool(node).poolkit.describe()["max_size"] == Setting(10, "keyword")
    for wrong, right in (("wait_for_nod", "wait_for_node"), ("max_szie", "max_size"), ("eject_aftr", "eject_after")):
        with pytest.raises(ConfigError, match=f"{wrong}=3: no such setting; did you mean '{right}'"):
            kind(*args, **{wrong: 3}, **quiet)
    if kind.__name__.endswith("ServerGroup"):
        with pytest.raises(ConfigError, match="decode_response=True: no such setting; did you mean 'decode_responses'"):
            kind(*args, decode_response=True, **quiet)
