"""Every argument of QueuePool and every setting of poolkit, from create_engine to the engine's pool."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import fields
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import QueuePool
from sqlalchemy.util import get_cls_kwargs

from poolkit import BreakerConfig, ConfigError, PoolConfig, PoolConfigWarning
from poolkit.testing.servers import PostgresServer
from poolkit_adapters.sqlalchemy import AsyncPoolkitPool, PoolkitPool

URL = "postgresql+psycopg://u:p@127.0.0.1:1/d"


def config_of(**settings: Any) -> PoolConfig:
    pool = create_engine(URL, poolclass=PoolkitPool, **settings).pool
    assert isinstance(pool, PoolkitPool)
    return pool.poolkit.config


@pytest.mark.parametrize("poolclass", [PoolkitPool, AsyncPoolkitPool])
def test_create_engine_finds_every_setting_and_every_argument_of_queuepool(poolclass: Any) -> None:
    names = get_cls_kwargs(poolclass)
    assert names >= {field.name for field in fields(PoolConfig)}
    assert names >= get_cls_kwargs(QueuePool)
    ours, theirs = (inspect.signature(c.__init__).parameters for c in (poolclass, QueuePool))
    for name, parameter in theirs.items():
        assert ours[name].default == parameter.default, name
    assert list(ours)[: len(theirs) - 1] == list(theirs)[:-1]


def test_without_poolkits_own_settings_it_is_queuepool() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", PoolConfigWarning)
        config = config_of()
        assert config_of(pool_timeout=0.5).acquire_timeout == 0.5
    assert (config.max_size, config.max_idle, config.min_size) == (15, 5, 0)
    assert (config.acquire_timeout, config.order) == (30.0, "fifo")
    assert config.max_lifetime is config.idle_timeout is config.keepalive is config.check_after_idle is None


@pytest.mark.parametrize(
    ("given", "max_size", "max_idle", "shown"),
    [
        ({"pool_size": 3, "max_overflow": 4}, 7, 3, (3, -3)),
        ({"pool_size": 3}, 13, 3, (3, -3)),
        ({"max_overflow": 0}, 5, 5, (5, -5)),
        ({"pool_size": 3, "max_overflow": -1}, None, 3, (3, -3)),
        ({"pool_size": 0}, None, None, (0, 0)),
        ({"max_size": 20}, 20, None, (20, -20)),
        ({"max_size": 20, "max_idle": 4}, 20, 4, (4, -4)),
        ({"max_size": 20, "pool_size": 4}, 20, 4, (4, -4)),
        ({"max_idle": 2}, 15, 2, (2, -2)),
        ({"config": PoolConfig(max_size=8, max_idle=2)}, 8, 2, (2, -2)),
        ({"config": PoolConfig(max_size=8), "pool_size": 3}, 8, 3, (3, -3)),
        ({"config": PoolConfig(max_size=8), "pool_size": 3, "max_overflow": 1}, 4, 3, (3, -3)),
    ],
)
def test_sizes(given: dict[str, Any], max_size: Any, max_idle: Any, shown: tuple[int, int]) -> None:
    pool: Any = create_engine(URL, poolclass=PoolkitPool, **given).pool
    for one in (pool, pool.recreate()):
        assert (one.poolkit.config.max_size, one.poolkit.config.max_idle) == (max_size, max_idle)
        assert (one.size(), one.overflow()) == shown


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"max_size": 20, "max_overflow": 3}, "max_overflow"),
        ({"max_idle": 3, "pool_size": 3}, "pool_size"),
        ({"pool_timeout": 3, "acquire_timeout": 3}, "acquire_timeout"),
        ({"pool_use_lifo": True, "order": "fifo"}, "use_lifo"),
        ({"config": PoolConfig(), "max_overflow": 3}, "pool_size="),
        ({"config": {"max_size": 3}}, "config"),
        ({"pool_size": -1}, "pool_size"),
        ({"pool_size": "5"}, "pool_size"),
        ({"max_overflow": -2}, "max_overflow"),
        ({"pool_timeout": -1}, "acquire_timeout"),
        ({"min_size": 6}, "min_size"),
        ({"idle_timeout": 0}, "idle_timeout"),
        ({"order": "random"}, "order"),
        ({"start": "eager"}, "warm_up"),
        ({"connect_timeout": 0}, "connect_timeout"),
    ],
)
def test_what_cannot_be_meant_is_said_at_once(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        create_engine(URL, poolclass=PoolkitPool, **given)


def test_an_unknown_name_is_create_engines_error() -> None:
    with pytest.raises(TypeError, match="max_sise"):
        create_engine(URL, poolclass=PoolkitPool, max_sise=3)


def test_a_misspelt_setting_of_a_pool_made_by_hand_is_named_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"max_sise: no such setting; did you mean 'max_size'\?"):
        PoolkitPool(lambda: None, max_sise=3)
    with pytest.raises(TypeError, match="no_such_thing"):
        PoolkitPool(lambda: None, no_such_thing=3)


def test_settings_in_effect_say_where_they_come_from() -> None:
    pool: Any = create_engine(URL, poolclass=PoolkitPool, idle_timeout=60.0, pool_size=7).pool
    described = pool.poolkit.describe()
    assert (described["idle_timeout"].value, described["idle_timeout"].source) == (60.0, "keyword")
    assert (described["order"].value, described["order"].source) == ("fifo", "QueuePool's default")
    assert described["max_idle"].value == 7
    assert described["min_size"].source == "default"


def test_recreate_keeps_everything() -> None:
    seen: list[Any] = []
    pool: Any = create_engine(
        URL, poolclass=PoolkitPool, pool_size=3, max_overflow=2, pool_timeout=7, pool_use_lifo=True, pool_recycle=99,
        pool_pre_ping=True, check_after_idle=2.0, min_size=1, max_lifetime=100.0, breaker=BreakerConfig(),
        name="orders", listeners=[seen.append], debug=True, pool_reset_on_return=None, leak_after=9.0,
    ).pool  # fmt: skip
    config = pool.poolkit.config
    pool.dispose()
    for other in (pool.recreate(), pool.recreate().recreate()):
        assert other.poolkit.config == config
        assert other.poolkit.name == "orders"
        assert (other._recycle, other._pre_ping, other._asked_pre_ping) == (99, False, True)
        assert other._reset_on_return is pool._reset_on_return
        assert (other._listeners, other._debug) == ((seen.append,), True)


def test_recreate_keeps_what_was_changed_while_it_ran() -> None:
    pool: Any = create_engine(URL, poolclass=PoolkitPool).pool
    pool.poolkit.reconfigure(max_size=30, idle_timeout=5.0)
    other = pool.recreate()
    assert other.poolkit.config == pool.poolkit.config
    assert (other.size(), other.poolkit.config.max_size) == (5, 30)


def test_a_subclass_with_a_signature_of_queuepools_own_can_be_recreated(fake: Any) -> None:
    class Mine(PoolkitPool):
        def __init__(self, creator: Any, pool_size: int = 2, **kw: Any) -> None:
            super().__init__(creator, pool_size=pool_size, **kw)

    pool = Mine(fake, max_overflow=1)
    assert isinstance(pool.recreate(), Mine)
    assert pool.recreate().poolkit.config == pool.poolkit.config


@pytest.mark.parametrize("seconds", [3.0, 2.5])
def test_connect_timeout_reaches_the_driver(postgres: PostgresServer, seconds: float) -> None:
    engine = create_engine(postgres.sqlalchemy_url("psycopg"), poolclass=PoolkitPool, connect_timeout=seconds)
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        assert driver.info.get_parameters()["connect_timeout"] == "3"
    engine.dispose()
    with engine.connect() as connection:  # the new pool does not listen twice
        assert connection.scalar(text("select 1")) == 1
    engine.dispose()


def test_connect_args_win_over_connect_timeout(postgres: PostgresServer) -> None:
    engine = create_engine(
        postgres.sqlalchemy_url("psycopg"), poolclass=PoolkitPool, connect_timeout=3.0,
        connect_args={"connect_timeout": 8},
    )  # fmt: skip
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        assert driver.info.get_parameters()["connect_timeout"] == "8"
    engine.dispose()


def test_connect_timeout_for_a_driver_that_cannot_be_given_it(fake: Any) -> None:
    with pytest.raises(ConfigError, match=r"connect_timeout.*pysqlite"):
        create_engine("sqlite://", poolclass=PoolkitPool, connect_timeout=3.0)
    with pytest.raises(ConfigError, match=r"connect_timeout.*creator"):
        create_engine(URL, poolclass=PoolkitPool, connect_timeout=3.0, creator=fake)
