"""A forked child opens its own connections and does not touch those of the parent."""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable
from typing import Any

import pytest
import redis

from poolkit.testing.servers import RedisServer

from .support import ports, unique

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")


def in_child(work: Callable[[], object]) -> None:
    """Run ``work()`` in a forked child, and fail if it fails."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os.write(writing, b"well")
        except BaseException:
            os.write(writing, traceback.format_exc().encode()[-4000:])
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read().decode()
    os.waitpid(pid, 0)
    assert answer == "well", answer


@pytest.mark.parametrize("scheme", ["tcp", "unix"])
def test_11_r16_the_child_opens_its_own_and_the_parent_keeps_its(
    make_pool: Callable[..., Any], redis_server: RedisServer, scheme: str
) -> None:
    name = unique()
    pool = make_pool(
        redis_server.unix_url if scheme == "unix" else None, max_connections=3, timeout=5, client_name=name
    )
    client = redis.Redis(connection_pool=pool)
    held = [pool.get_connection() for _ in range(3)]
    leased = held.pop()
    for connection in held:
        pool.release(connection)
    ids = {record["id"] for record in redis_server.client_list(name)}
    assert len(ids) == 3

    def child() -> None:
        assert pool._available_connections == []
        mine = {str(client.client_id()) for _ in range(3)}
        assert not mine & ids
        three = [pool.get_connection() for _ in range(3)]
        for connection in three:
            pool.release(connection)
        pool.release(leased)  # the parent's: closed here, not shut down, and not kept
        assert pool.poolkit.stats().idle == 3
        pool.disconnect()
        pool.close()

    in_child(child)
    assert {record["id"] for record in redis_server.client_list(name)} == ids
    leased.send_command("PING")
    assert leased.read_response() in (b"PONG", True)
    pool.release(leased)
    for _ in range(3):
        assert client.ping()
    assert {record["id"] for record in redis_server.client_list(name)} == ids


def test_12_fork_while_other_threads_use_the_pool(make_pool: Callable[..., Any]) -> None:
    pool = make_pool(max_connections=2, timeout=5)
    client = redis.Redis(connection_pool=pool)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            client.ping()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            in_child(lambda: client.ping())
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_the_client_side_cache_of_a_child_begins_empty(
    make_pool: Callable[..., Any], redis_server: RedisServer
) -> None:
    caching = pytest.importorskip("redis.cache")
    pool = make_pool(max_connections=1, protocol=3, cache_config=caching.CacheConfig())
    flushed: list[bool] = []
    pool.cache.flush = lambda: flushed.append(True)

    def child() -> None:
        assert flushed == [True]

    in_child(child)
    assert ports(redis_server, "nobody") == set()
    assert flushed == []
