"""Tokens, retries, events and metrics: the calls between redis-py and its pools."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
import redis.asyncio

from poolkit.testing.servers import RedisServer
from poolkit_adapters.redis import AsyncPoolkitConnectionPool, PoolkitConnectionPool
from tests.support.waiting import until

from .support import in_threads

event = pytest.importorskip("redis.event")


class Token:
    """A token for the user ``name`` as redis-py's credential providers hand it on."""

    def __init__(self, name: str, secret: str) -> None:
        self.name, self.secret = name, secret

    def try_get(self, key: str) -> str:
        return self.name

    def get_value(self) -> str:
        return self.secret


@pytest.fixture
def user(redis_server: RedisServer) -> Iterator[str]:
    with redis_server.connect() as admin:
        admin.execute_command("ACL", "SETUSER", "rotated", "on", ">secret", "~*", "&*", "+@all")
        yield "rotated"
        admin.execute_command("ACL", "DELUSER", "rotated")


def test_a_new_token_reaches_idle_and_used_connections(make_pool: Callable[..., Any], user: str) -> None:
    """redis-py's blocking pool raises AttributeError here; a callback that does nothing passes its own tests."""
    pool = make_pool(max_connections=2)
    client = redis.Redis(connection_pool=pool)
    idle, used = pool.get_connection(), pool.get_connection()
    pool.release(idle)
    pool.re_auth_callback(Token(user, "secret"))
    used.send_command("ACL WHOAMI")
    assert used.read_response() in (b"default", "default")  # not while the connection is in use
    assert client.acl_whoami() in (b"rotated", "rotated")
    pool.release(used)
    assert pool.get_connection() is used
    used.send_command("ACL WHOAMI")
    assert used.read_response() in (b"rotated", "rotated")
    pool.release(used)
    assert pool.poolkit.stats().connects == 2


@pytest.mark.anyio
async def test_a_new_token_reaches_idle_and_used_connections_async(
    make_async_pool: Callable[..., Any], user: str
) -> None:
    pool = make_async_pool(max_connections=2)
    client = redis.asyncio.Redis(connection_pool=pool)
    idle, used = await pool.get_connection(), await pool.get_connection()
    await pool.release(idle)
    await pool.re_auth_callback(Token(user, "secret"))
    assert await client.acl_whoami() in (b"rotated", "rotated")
    await pool.release(used)
    assert await pool.get_connection() is used
    await used.send_command("ACL WHOAMI")
    assert await used.read_response() in (b"rotated", "rotated")
    await pool.release(used)
    assert pool.poolkit.stats().connects == 2


def test_a_token_the_server_refuses_makes_a_new_connection(make_pool: Callable[..., Any], user: str) -> None:
    pool = make_pool(max_connections=1)
    client = redis.Redis(connection_pool=pool)
    first = client.client_id()
    pool.re_auth_callback(Token(user, "wrong"))
    assert client.client_id() != first  # with the pool's own credentials


def test_set_retry_reaches_all_connections(make_pool: Callable[..., Any]) -> None:
    pool = make_pool(max_connections=3)
    idle, used = pool.get_connection(), pool.get_connection()
    pool.release(idle)
    retry = redis.retry.Retry(redis.backoff.NoBackoff(), 7)
    pool.set_retry(retry)
    assert idle.retry is used.retry is retry
    again, new = pool.get_connection(), pool.get_connection()
    assert new.retry.get_retries() == 7
    for connection in (used, again, new):
        pool.release(connection)


class Listener:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def listen(self, happened: Any) -> None:
        self.seen.append(happened.connection)


def test_listeners_are_notified_of_each_release(make_pool: Callable[..., Any]) -> None:
    listener = Listener()
    dispatcher = event.EventDispatcher({event.AfterConnectionReleasedEvent: [listener]})
    pool = make_pool(max_connections=1, event_dispatcher=dispatcher)
    connection = pool.get_connection()
    pool.release(connection)
    pool.release(connection)  # no longer in use: nothing happens
    assert listener.seen == [connection]


def test_a_listener_that_fails_costs_no_place(make_pool: Callable[..., Any]) -> None:
    class Failing:
        def listen(self, happened: Any) -> None:
            raise RuntimeError("listener")

    dispatcher = event.EventDispatcher({event.AfterConnectionReleasedEvent: [Failing()]})
    pool = make_pool(max_connections=1, timeout=0, event_dispatcher=dispatcher)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="listener"):
            pool.release(pool.get_connection())


@pytest.mark.anyio
async def test_listeners_are_notified_of_each_release_async(make_async_pool: Callable[..., Any]) -> None:
    class AsyncListener(Listener):
        async def listen(self, happened: Any) -> None:  # type: ignore[override]
            self.seen.append(happened.connection)

    listener = AsyncListener()
    dispatcher = event.EventDispatcher({event.AsyncAfterConnectionReleasedEvent: [listener]})
    pool = make_async_pool(max_connections=1, event_dispatcher=dispatcher)
    connection = await pool.get_connection()
    await pool.release(connection)
    with pytest.raises(KeyError):
        await pool.release(connection)
    assert listener.seen == [connection]


@pytest.mark.parametrize("waiting", [False, True])
def test_14_release_by_a_finalizer_in_the_middle_of_the_pool(make_pool: Callable[..., Any], waiting: bool) -> None:
    """Stock BlockingConnectionPool hangs: the queue's lock is not reentrant.

    A finalizer may run between any two lines. Here it runs before line 1, 2, 3 ... of a checkout and a return.
    """
    pool = make_pool(max_connections=2, timeout=5)
    place = 0
    reached = True
    while reached:
        place += 1
        dropped = pool.get_connection()
        if waiting:
            other = pool.get_connection()
        reached = False
        lines = 0

        def trace(frame: Any, kind: str, argument: Any) -> Any:
            nonlocal lines, reached
            if "poolkit" not in frame.f_code.co_filename or "tests" in frame.f_code.co_filename:
                return None
            lines += kind == "line"
            if lines == place and not reached:  # noqa: B023
                reached = True
                sys.settrace(None)
                pool.release(dropped)  # noqa: B023  as PubSub.__del__ does
            return trace

        old = sys.gettrace()
        sys.settrace(trace)
        try:
            if waiting:
                pool.release(other)
            connection = pool.get_connection()
            pool.release(connection)
        finally:
            sys.settrace(old)
        if not reached:
            pool.release(dropped)
        pool.poolkit.check_books()
        assert pool.poolkit.stats().in_use == 0
    assert place > 30


# the collector's order of finalization is undefined: the socket may come before redis-py's
# connection, which would have closed it
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.filterwarnings("ignore:.*unclosed <socket:pytest.PytestUnraisableExceptionWarning")
def test_a_pool_that_is_dropped_closes_its_connections(redis_server: RedisServer) -> None:

    from .support import ports, unique

    name = unique()
    pool = PoolkitConnectionPool.from_url(redis_server.url, client_name=name, protocol=2)
    redis.Redis(connection_pool=pool).ping()
    gone = weakref.ref(pool)
    del pool
    gc.collect()
    assert gone() is None
    until(lambda: not ports(redis_server, name))


def test_the_metrics_of_redis_py_balance(make_pool: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = pytest.importorskip("redis.observability.recorder")
    attributes = pytest.importorskip("redis.observability.attributes")
    if not hasattr(recorder, "record_connection_count"):
        pytest.skip("redis-py is too old")

    class Collector:
        def __init__(self) -> None:
            self.counts: dict[str, int] = {}
            self.waits = self.created = 0
            self.lock = threading.Lock()

        def record_connection_count(self, pool_name: str, connection_state: Any, counter: int) -> None:
            if pool_name == name:
                with self.lock:
                    self.counts[connection_state.value] = self.counts.get(connection_state.value, 0) + counter

        def record_connection_wait_time(self, **kwargs: Any) -> None:
            self.waits += 1

        def record_connection_create_time(self, **kwargs: Any) -> None:
            self.created += 1

        def __getattr__(self, name: str) -> Any:
            return lambda *args, **kwargs: None

    collector = Collector()
    monkeypatch.setattr(recorder, "_metrics_collector", collector)
    pool = make_pool(max_connections=3, timeout=5)
    name = attributes.get_pool_name(pool)
    client = redis.Redis(connection_pool=pool)
    assert in_threads(3, lambda index: client.ping()) == []
    until(lambda: pool.poolkit.stats().connecting == 0)
    held = pool.get_connection()
    size = pool.poolkit.stats().size
    assert collector.counts == {"idle": size - 1, "used": 1}
    assert (collector.waits, collector.created) == (4, size)
    held.disconnect()
    pool.release(held)
    assert collector.counts == {"idle": size - 1, "used": 0}
    pool.disconnect()
    assert collector.counts == {"idle": 0, "used": 0}


def test_release_is_ignored_for_foreign_connections(make_pool: Callable[..., Any]) -> None:
    one, other = make_pool(max_connections=1, timeout=0), make_pool(max_connections=1, timeout=0)
    connection = one.get_connection()
    other.release(connection)
    assert connection._sock is not None
    with pytest.raises(redis.exceptions.MaxConnectionsError):
        one.get_connection()
    one.release(connection)
    assert in_threads(8, lambda index: one.release(connection)) == []
    assert one.get_connection() is connection
    with pytest.raises(redis.exceptions.MaxConnectionsError):
        one.get_connection()
    one.release(connection)


@pytest.mark.anyio
async def test_the_async_pool_refuses_foreign_connections(make_async_pool: Callable[..., Any]) -> None:
    one, other = make_async_pool(max_connections=1), make_async_pool(max_connections=1)
    connection = await one.get_connection()
    with pytest.raises(KeyError):
        await other.release(connection)
    await one.release(connection)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_pool_made_outside_of_a_loop_serves_one_loop_after_the_other(redis_server: RedisServer) -> None:
    import asyncio

    pool = AsyncPoolkitConnectionPool.from_url(redis_server.url, max_connections=1, timeout=1)

    async def use() -> int:
        client = redis.asyncio.Redis(connection_pool=pool)
        return int(await client.client_id())

    async def use_and_close() -> int:
        number = await use()
        await pool.aclose()
        return number

    assert asyncio.run(use()) != asyncio.run(use_and_close())
    gc.collect()  # asyncio warns that the first loop ended with an open connection


def test_threads_share_one_pool(make_pool: Callable[..., Any]) -> None:
    pool = make_pool(max_connections=3, timeout=20)
    client = redis.Redis(connection_pool=pool)
    client.delete("shared")
    lock = threading.Lock()
    done = [0]

    def work(index: int) -> None:
        for _ in range(50):
            client.incr("shared")
        with lock:
            done[0] += 50

    assert in_threads(10, work) == []
    assert int(client.get("shared")) == done[0] == 500
    assert pool.poolkit.stats().connects <= 3
