"""After the network has ended one connection, the idle ones are checked before use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import redis
import redis.asyncio
import redis.asyncio.retry
import redis.retry
from redis.backoff import NoBackoff

from poolkit.testing.servers import RedisServer
from tests.faults.proxy import FaultProxy

IDLE = 6
Fault = Literal["freeze", "forget"]


@pytest.fixture
def proxy(redis_server: RedisServer, fault_proxy: Callable[[str, int], FaultProxy]) -> FaultProxy:
    return fault_proxy(redis_server.host, redis_server.port)


def options(proxy: FaultProxy, retries: int, kind: Any) -> dict[str, Any]:
    return {
        "url": f"redis://{proxy.host}:{proxy.port}", "max_connections": IDLE, "socket_timeout": 1,
        "socket_connect_timeout": 10, "check_timeout": 1, "retry": kind(NoBackoff(), retries),
        "retry_on_error": [redis.ConnectionError, redis.TimeoutError],
    }  # fmt: skip


@pytest.mark.parametrize("retries", [0, 2])
@pytest.mark.parametrize("fault", ["freeze", "forget"])
def test_idle_connections_that_died_with_another_fail_no_command(
    make_pool: Callable[..., Any], proxy: FaultProxy, fault: Fault, retries: int
) -> None:
    pool = make_pool(**options(proxy, retries, redis.retry.Retry))
    client = redis.Redis(connection_pool=pool)
    for connection in [pool.get_connection() for _ in range(IDLE)]:
        pool.release(connection)
    getattr(proxy, fault)()
    failed = 0
    for turn in range(IDLE):
        try:
            assert client.echo(f"{turn}") == b"%d" % turn
        except redis.RedisError:
            failed += 1
    assert failed == (0 if retries else 1)
    # none of the dead ones is left, whether its user's command was sent again with success or not
    connections = [pool.get_connection() for _ in range(IDLE)]
    for connection in connections:
        connection.send_command("PING")
        assert connection.read_response() == b"PONG"
        pool.release(connection)


@pytest.mark.anyio
@pytest.mark.parametrize("retries", [0, 2])
@pytest.mark.parametrize("fault", ["freeze", "forget"])
async def test_idle_connections_that_died_with_another_fail_no_command_async(
    make_async_pool: Callable[..., Any], proxy: FaultProxy, fault: Fault, retries: int
) -> None:
    pool = make_async_pool(**options(proxy, retries, redis.asyncio.retry.Retry))
    client = redis.asyncio.Redis(connection_pool=pool)
    for connection in [await pool.get_connection() for _ in range(IDLE)]:
        await pool.release(connection)
    getattr(proxy, fault)()
    failed = 0
    for turn in range(IDLE):
        try:
            assert await client.echo(f"{turn}") == b"%d" % turn
        except redis.RedisError:
            failed += 1
    assert failed == (0 if retries else 1)
    connections = [await pool.get_connection() for _ in range(IDLE)]
    for connection in connections:
        await connection.send_command("PING")
        assert await connection.read_response() == b"PONG"
        await pool.release(connection)


def test_a_connection_closed_by_its_user_casts_no_doubt_on_others(
    make_pool: Callable[..., Any], redis_server: RedisServer
) -> None:
    pool = make_pool(max_connections=2, check_after_idle=60)
    first, second = pool.get_connection(), pool.get_connection()
    pool.release(first)
    try:
        raise ValueError("of the user's program")
    except ValueError:
        second.disconnect()
    pool.release(second)
    stats = pool.poolkit.stats()
    assert (stats.idle, stats.checks) == (1, 0)
    assert pool.get_connection() is first
    assert pool.poolkit.stats().checks == 0  # it needs no check
    pool.release(first)
