"""A mistake raises one clear error at once, and the pool is unchanged."""

from __future__ import annotations

import builtins
import queue
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import redis

import poolkit
from poolkit_adapters.redis import AsyncPoolkitConnectionPool, PoolkitConnectionPool


@pytest.mark.parametrize("pool_class", [PoolkitConnectionPool, AsyncPoolkitConnectionPool])
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"timeout": -1}, "acquire_timeout"),
        ({"timeout": "soon"}, "acquire_timeout"),
        ({"idle_timeout": -5}, "idle_timeout"),
        ({"min_size": 60}, "min_size"),
        ({"config": {"max_size": 3}}, "config"),
        ({"max_size": 3, "max_connections": 4}, "max_size"),
        ({"acquire_timeout": 3, "timeout": 4}, "acquire_timeout"),
        ({"connect_timeout": 3, "socket_connect_timeout": 4}, "connect_timeout"),
        ({"queue_class": dict}, "queue_class"),
    ],
)
def test_impossible_settings(pool_class: Any, arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(poolkit.ConfigError, match=named) as caught:
        pool_class(**arguments)
    assert caught.value.setting == named


@pytest.mark.parametrize("pool_class", [PoolkitConnectionPool, AsyncPoolkitConnectionPool])
def test_redis_pys_own_errors_stay(pool_class: Any) -> None:
    with pytest.raises(ValueError, match="max_connections"):
        pool_class(max_connections=-1)
    with pytest.raises(ValueError, match="scheme"):
        pool_class.from_url("http://localhost")


def test_an_unknown_argument_is_named_by_the_connection(make_pool: Callable[..., Any]) -> None:
    pool = make_pool(max_connection=5)
    with pytest.raises(TypeError, match="max_connection"):
        pool.get_connection()
    assert pool.poolkit.stats().size == 0


def test_poolkits_settings_beside_redis_pys() -> None:
    config = poolkit.PoolConfig(max_size=7, acquire_timeout=3, idle_timeout=60, connect_timeout=2)
    with PoolkitConnectionPool(config=config, max_lifetime=None, queue_class=queue.Queue) as pool:
        effect = pool.poolkit.config
        assert (effect.max_size, effect.acquire_timeout, effect.idle_timeout) == (7, 3, 60)
        assert (effect.max_lifetime, effect.order) == (None, "fifo")
        assert pool.connection_kwargs["socket_connect_timeout"] == 2
    with PoolkitConnectionPool(max_size=7, acquire_timeout=3, order="fifo") as pool:
        assert (pool.max_connections, pool.timeout) == (7, 3)


def test_short_timeouts_are_no_reason_to_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PoolkitConnectionPool(timeout=0.5).close()
        PoolkitConnectionPool(timeout=0).close()
        PoolkitConnectionPool(timeout=None).close()


@pytest.mark.parametrize("attribute", ["timeout", "max_connections"])
def test_a_bad_value_set_later_changes_nothing(make_pool: Callable[..., Any], attribute: str) -> None:
    pool = make_pool(max_connections=1, timeout=2)
    with pytest.raises(poolkit.ConfigError):
        setattr(pool, attribute, -1)
    assert (pool.max_connections, pool.timeout) == (1, 2)
    assert redis.Redis(connection_pool=pool).ping()


def test_get_connection_with_arguments_warns_as_redis_py_does(make_pool: Callable[..., Any]) -> None:
    from poolkit_adapters.redis._driver import GET_CONNECTION_ARGS_DEPRECATED

    if not GET_CONNECTION_ARGS_DEPRECATED:
        pytest.skip("this redis-py calls it so itself")
    pool = make_pool()
    with pytest.warns(DeprecationWarning, match="get_connection"):
        pool.release(pool.get_connection("GET"))


@pytest.mark.anyio
async def test_the_async_pool_has_no_unconnected_connections(make_async_pool: Callable[..., Any]) -> None:
    with pytest.raises(poolkit.UsageError, match="get_connection"):
        make_async_pool().get_available_connection()


def test_without_redis_py_the_error_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['redis'] = None\n"
        "import poolkit\n"
        "try:\n    import poolkit_adapters.redis\n"
        "except poolkit.MissingExtra as error:\n    print(error)\n"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'poolkit[redis]'" in answer.stdout


def test_errors_can_be_pickled() -> None:
    import pickle

    from poolkit_adapters.redis import AcquireTimeout

    error = pickle.loads(pickle.dumps(AcquireTimeout("a text")))
    assert str(error) == "a text"
    assert isinstance(error, (poolkit.AcquireTimeout, redis.exceptions.MaxConnectionsError))
    assert isinstance(error, builtins.TimeoutError)
