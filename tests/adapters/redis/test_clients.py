"""Uses of a connection by redis-py's clients: pub/sub, locks, monitors, caches, maintenance."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
import redis
import redis.asyncio

from poolkit.testing.servers import RedisServer

from .support import ports, unique


def test_pubsub_gives_its_place_back(make_pool: Callable[..., Any], redis_server: RedisServer) -> None:
    name = unique()
    pool = make_pool(max_connections=2, timeout=1, client_name=name)
    client = redis.Redis(connection_pool=pool)
    for number in range(5):
        with client.pubsub(ignore_subscribe_messages=True) as pubsub:
            pubsub.subscribe("a-channel")
            pubsub.get_message(timeout=1)
            assert client.publish("a-channel", number) == 1
            message = pubsub.get_message(timeout=1)
            assert message is not None
            assert message["data"] == b"%d" % number
    assert pool.poolkit.stats().in_use == 0
    assert len(ports(redis_server, name)) <= 2


@pytest.mark.anyio
async def test_async_pubsub_gives_its_place_back(make_async_pool: Callable[..., Any]) -> None:
    pool = make_async_pool(max_connections=2, timeout=1)
    client = redis.asyncio.Redis(connection_pool=pool)
    for number in range(5):
        async with client.pubsub(ignore_subscribe_messages=True) as pubsub:
            await pubsub.subscribe("an-async-channel")
            await pubsub.get_message(timeout=1)
            assert await client.publish("an-async-channel", number) == 1
            message = await pubsub.get_message(timeout=1)
            assert message is not None
            assert message["data"] == b"%d" % number
    assert pool.poolkit.stats().in_use == 0


def test_locks_exclude_each_other(make_pool: Callable[..., Any]) -> None:
    pool = make_pool(max_connections=2, timeout=10)
    client = redis.Redis(connection_pool=pool)
    inside = [0]
    most = [0]

    def work() -> None:
        for _ in range(5):
            with client.lock("a-lock", timeout=10, sleep=0.001):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_a_single_connection_client_keeps_its_connection(make_pool: Callable[..., Any]) -> None:
    pool = make_pool(max_connections=2, timeout=0)
    with redis.Redis(connection_pool=pool, single_connection_client=True) as one:
        first = one.client_id()
        assert redis.Redis(connection_pool=pool).client_id() != first
        assert one.client_id() == first
    assert pool.poolkit.stats().in_use == 0


def test_a_failed_command_leaves_the_connection(make_pool: Callable[..., Any]) -> None:
    pool = make_pool(max_connections=1)
    client = redis.Redis(connection_pool=pool)
    first = client.client_id()
    client.set("text", "abc")
    with pytest.raises(redis.ResponseError):
        client.incr("text")
    with client.pipeline(transaction=False) as pipe:
        pipe.incr("text").get("text")
        assert pipe.execute(raise_on_error=False)[1] == b"abc"
    assert client.client_id() == first


@pytest.mark.anyio
async def test_blocking_commands_run_side_by_side(make_async_pool: Callable[..., Any]) -> None:
    pool = make_async_pool(max_connections=5, timeout=10)
    client = redis.asyncio.Redis(connection_pool=pool)
    await client.delete("queue")
    waiting = [asyncio.create_task(client.blpop(["queue"], timeout=5)) for _ in range(4)]
    while pool.poolkit.stats().in_use < 4:
        await asyncio.sleep(0)
    for number in range(4):
        await client.rpush("queue", number)
    assert sorted(item for _, item in await asyncio.gather(*waiting)) == [b"0", b"1", b"2", b"3"]


def test_maintenance_notifications_reach_every_connection(make_pool: Callable[..., Any]) -> None:
    maintenance = pytest.importorskip("redis.maint_notifications")
    pool = make_pool(
        max_connections=3,
        protocol=3,
        maint_notifications_config=maintenance.MaintNotificationsConfig(enabled="auto", relaxed_timeout=77),
    )
    client = redis.Redis(connection_pool=pool)
    idle, used = pool.get_connection(), pool.get_connection()
    pool.release(idle)
    pool.update_connections_settings(
        state=maintenance.MaintenanceState.MOVING, relaxed_timeout=77, include_free_connections=True
    )
    assert {idle.maintenance_state, used.maintenance_state} == {maintenance.MaintenanceState.MOVING}
    assert {idle.socket_timeout, used.socket_timeout} == {77}
    pool.update_active_connections_for_reconnect()
    pool.disconnect_free_connections()
    assert pool.poolkit.stats().idle == 0
    pool.release(used)
    assert pool.poolkit.stats().size == 0  # replaced, not handed out again
    assert client.ping()


def test_a_moving_node_takes_the_pool_along(
    make_pool: Callable[..., Any], redis_server: RedisServer, fault_proxy: Callable[..., Any]
) -> None:
    maintenance = pytest.importorskip("redis.maint_notifications")
    proxy = fault_proxy(redis_server.host, redis_server.port)
    pool = make_pool(
        f"redis://{proxy.host}:{proxy.port}",
        max_connections=2,
        protocol=3,
        maint_notifications_config=maintenance.MaintNotificationsConfig(enabled="auto"),
    )
    client = redis.Redis(connection_pool=pool)
    connection = pool.get_connection()
    handler = pool._maint_notifications_pool_handler.get_handler_for_connection()
    handler.set_connection(connection)
    pool.update_connection_kwargs(port=redis_server.port)  # the proxy has the server's address: the port tells
    handler.handle_node_moving_notification(
        maintenance.NodeMovingNotification(
            id=1, new_node_host=redis_server.host, new_node_port=redis_server.port, ttl=0.2
        )
    )
    connection.send_command("PING")
    assert connection.read_response() in (b"PONG", "PONG", True)  # ends its work
    pool.release(connection)
    accepted = proxy.accepted
    assert client.ping()
    assert proxy.accepted == accepted
