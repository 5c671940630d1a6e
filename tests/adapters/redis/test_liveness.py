"""The pool hands out no connection that is dead, has unread data, or has a changed session."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable
from typing import Any

import pytest
import redis
import redis.asyncio

from poolkit.testing.servers import RedisServer
from tests.support.waiting import until

from .support import in_threads, ports, unique

TRACKING: dict[str, Any] = {}
if redis.__name__ == "valkey":
    # without its cache its parser fails at an invalidation, and the connection is replaced; with it the asyncio
    # handshake fails at a server that does not know CLIENT SETINFO
    TRACKING = {"cache_enabled": True, "lib_name": None, "lib_version": None}
pytestmark = pytest.mark.filterwarnings("ignore:.*hiredis.*")


def parser_class(parser: str, protocol: int, *, is_async: bool = False) -> Any:
    from redis import _parsers

    prefix = "_Async" if is_async else "_"
    return getattr(_parsers, prefix + ("HiredisParser" if parser == "hiredis" else f"RESP{protocol}Parser"))


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("parser", ["python", "hiredis"])
def test_an_unread_reply_never_reaches_the_next_user(make_pool: Callable[..., Any], protocol: int, parser: str) -> None:
    """redis-py's own pools hand such a connection out under RESP3 with its default settings (CWE-404)."""
    if parser == "hiredis":
        pytest.importorskip("hiredis")
    pool = make_pool(max_connections=1, protocol=protocol, parser_class=parser_class(parser, protocol))
    client = redis.Redis(connection_pool=pool)
    client.set("secret", "of another user")
    client.set("mine", "my own")
    connection = pool.get_connection()
    connection.send_command("GET", "secret")
    assert connection.can_read(timeout=2)  # now the Python parser has the reply in its buffer
    pool.release(connection)
    assert client.get("mine") == b"my own"
    connection = pool.get_connection()
    connection.send_packed_command(connection.pack_commands([("GET", "mine"), ("GET", "secret")]))
    assert connection.read_response() == b"my own"  # one of two
    pool.release(connection)
    assert client.get("mine") == b"my own"


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("parser", ["python", "hiredis"])
@pytest.mark.anyio
async def test_an_unread_reply_never_reaches_the_next_user_async(
    make_async_pool: Callable[..., Any], redis_server: RedisServer, protocol: int, parser: str
) -> None:
    if parser == "hiredis":
        pytest.importorskip("hiredis")
    pool = make_async_pool(
        max_connections=1, protocol=protocol, parser_class=parser_class(parser, protocol, is_async=True)
    )
    client = redis.asyncio.Redis(connection_pool=pool)
    await client.set("secret", "of another user")
    await client.set("mine", "my own")
    for turns in (0, 1, 2, 3):  # the reply is still in the kernel, in the stream, ...
        connection = await pool.get_connection()
        await connection.send_command("GET", "secret")
        redis.Redis(port=redis_server.port).ping()  # blocks the loop until the server has answered both
        for _ in range(turns):
            await asyncio.sleep(0)
        await pool.release(connection)
        assert await client.get("mine") == b"my own"
    connection = await pool.get_connection()
    await connection.send_packed_command(connection.pack_commands([("GET", "mine"), ("GET", "secret")]))
    assert await connection.read_response() == b"my own"
    await pool.release(connection)
    assert await client.get("mine") == b"my own"


@pytest.mark.parametrize("parser", ["python", "hiredis"])
def test_a_push_message_costs_no_connection(
    make_pool: Callable[..., Any], redis_server: RedisServer, parser: str
) -> None:
    if parser == "hiredis":
        hiredis = pytest.importorskip("hiredis")
        if not hasattr(hiredis, "PushNotification") or not hasattr(parser_class(parser, 3), "handle_push_response"):
            pytest.skip("hiredis, or redis-py's parser for it, does not tell pushes from replies")
    pool = make_pool(max_connections=1, protocol=3, parser_class=parser_class(parser, 3), **TRACKING)
    client = redis.Redis(connection_pool=pool)
    client.set("inspectable", "old")
    first = client.client_id()
    client.execute_command("CLIENT TRACKING", "ON")
    assert client.get("inspectable") == b"old"
    with redis.Redis(port=redis_server.port) as other:
        other.set("inspectable", "new")  # makes the server push an invalidation to the idle connection
        other.ping()
    assert client.get("inspectable") == b"new"
    assert client.client_id() == first


@pytest.mark.parametrize("parser", ["python", "hiredis"])
@pytest.mark.anyio
async def test_a_push_message_costs_no_connection_async(
    make_async_pool: Callable[..., Any], redis_server: RedisServer, parser: str
) -> None:
    if parser == "hiredis":
        hiredis = pytest.importorskip("hiredis")
        if not hasattr(hiredis, "PushNotification") or not hasattr(parser_class(parser, 3), "handle_push_response"):
            pytest.skip("hiredis, or redis-py's parser for it, does not tell pushes from replies")
    kind = parser_class(parser, 3, is_async=True)
    pool = make_async_pool(max_connections=1, protocol=3, parser_class=kind, **TRACKING)
    client = redis.asyncio.Redis(connection_pool=pool)
    await client.set("watched-async", "old")
    first = await client.client_id()
    await client.execute_command("CLIENT TRACKING", "ON")
    assert await client.get("watched-async") == b"old"
    with redis.Redis(port=redis_server.port) as other:
        other.set("watched-async", "new")
        other.ping()
    assert await client.get("watched-async") == b"new"
    assert await client.client_id() == first


@pytest.mark.parametrize("protocol", [2, 3])
def test_16_idle_connections_killed_by_the_server_cost_no_error(
    make_pool: Callable[..., Any], redis_server: RedisServer, protocol: int
) -> None:
    name = unique()
    pool = make_pool(max_connections=5, client_name=name, protocol=protocol)
    held = [pool.get_connection() for _ in range(5)]
    for connection in held:
        pool.release(connection)
    old = ports(redis_server, name)
    assert len(old) == 5
    assert redis_server.kill_clients(name) == 5
    client = redis.Redis(connection_pool=pool, retry=None)
    assert in_threads(5, lambda index: client.ping()) == []
    assert not old & ports(redis_server, name)


@pytest.mark.anyio
async def test_16_idle_connections_killed_by_the_server_cost_no_error_async(
    make_async_pool: Callable[..., Any], redis_server: RedisServer
) -> None:
    name = unique()
    pool = make_async_pool(max_connections=5, client_name=name)
    held = [await pool.get_connection() for _ in range(5)]
    for connection in held:
        await pool.release(connection)
    old = ports(redis_server, name)
    assert redis_server.kill_clients(name) == 5
    client = redis.asyncio.Redis(connection_pool=pool)
    await asyncio.gather(*(client.ping() for _ in range(5)))
    assert not old & ports(redis_server, name)


def test_16_a_restarted_server_costs_no_error(make_pool: Callable[..., Any], redis_server: RedisServer) -> None:
    pool = make_pool(max_connections=4)
    client = redis.Redis(connection_pool=pool)
    in_threads(4, lambda index: client.ping())
    redis_server.restart()
    assert in_threads(4, lambda index: client.ping()) == []


def test_26_idle_connections_leave_without_traffic(make_pool: Callable[..., Any], redis_server: RedisServer) -> None:
    name = unique()
    pool = make_pool(max_connections=3, client_name=name, idle_timeout=0.05)
    held = [pool.get_connection() for _ in range(3)]
    for connection in held:
        pool.release(connection)
    until(lambda: not ports(redis_server, name) and pool.poolkit.stats().size == 0)


@pytest.mark.slow
def test_26_a_connection_the_server_closed_leaves_without_traffic(
    make_pool: Callable[..., Any], redis_server: RedisServer
) -> None:
    name = unique()
    pool = make_pool(max_connections=3, client_name=name)
    pool.release(pool.get_connection())
    redis_server.kill_clients(name)
    until(lambda: pool.poolkit.stats().size == 0)  # the engine checks every five seconds


SELECTS = pytest.mark.parametrize(
    "command",
    [("SELECT", 3), ("select", "3"), (b"SELECT", 3), ("sELECT", 3), ("SELECT 3",), (" select  3",), (b"SELECT 3",)],
    ids=str,
)
BEGINS = pytest.mark.parametrize(
    "command",
    [
        ("WATCH", "a-key"), ("MULTI",), ("SUBSCRIBE", "a-channel"), ("mULTI",), ("WATCH a-key",),
        ("Watch a-key", "b-key"), ("SUBSCRIBE a-channel",), (b"pSubscribe a*",),
    ],
    ids=str,
)  # fmt: skip
"""Also in one string and in mixed case: redis-py splits the first argument, and the server ignores the case."""


@SELECTS
def test_another_database_does_not_stay_selected(make_pool: Callable[..., Any], command: tuple[Any, ...]) -> None:
    pool = make_pool(max_connections=1)
    client = redis.Redis(connection_pool=pool)
    client.set("where", "database 0")
    client.execute_command(*command)
    assert client.get("where") == b"database 0"
    with client.pipeline(transaction=False) as pipe:
        pipe.execute_command(*command)
        pipe.get("where")
        assert pipe.execute()[1] is None
    assert client.get("where") == b"database 0"


@SELECTS
@pytest.mark.anyio
async def test_another_database_does_not_stay_selected_async(
    make_async_pool: Callable[..., Any], command: tuple[Any, ...]
) -> None:
    pool = make_async_pool(max_connections=1)
    client = redis.asyncio.Redis(connection_pool=pool)
    await client.set("where", "database 0")
    await client.execute_command(*command)
    assert await client.get("where") == b"database 0"
    async with client.pipeline(transaction=False) as pipe:
        pipe.execute_command(*command)
        pipe.get("where")
        assert (await pipe.execute())[1] is None
    assert await client.get("where") == b"database 0"


BINARY = pytest.mark.parametrize(
    "kind", [bytearray, memoryview, lambda name: memoryview(bytearray(name))], ids=["bytearray", "view", "writable"]
)


@BINARY
def test_a_database_selected_by_binary_words_does_not_stay_selected(
    make_pool: Callable[..., Any], kind: Callable[[bytes], Any]
) -> None:
    """Connections send any bytes."""
    pool = make_pool(max_connections=1)
    client = redis.Redis(connection_pool=pool)
    client.set("where", "database 0")
    for words in ((kind(b"PING"),), (kind(b"select"), 3)):
        connection = pool.get_connection()
        try:
            connection.send_command(*words)
        except redis.DataError:
            pytest.skip("this client refuses such a name")
        connection.read_response()
        pool.release(connection)
    assert client.get("where") == b"database 0"


@BINARY
@pytest.mark.anyio
async def test_a_database_selected_by_binary_words_does_not_stay_selected_async(
    make_async_pool: Callable[..., Any], kind: Callable[[bytes], Any]
) -> None:
    pool = make_async_pool(max_connections=1)
    client = redis.asyncio.Redis(connection_pool=pool)
    await client.set("where", "database 0")
    for words in ((kind(b"PING"),), (kind(b"select"), 3)):
        connection = await pool.get_connection()
        try:
            await connection.send_command(*words)
        except redis.DataError:
            pytest.skip("this client refuses such a name")
        await connection.read_response()
        await pool.release(connection)
    assert await client.get("where") == b"database 0"


def test_the_pools_own_database_is_no_change(make_pool: Callable[..., Any], redis_server: RedisServer) -> None:
    pool = make_pool(f"redis://127.0.0.1:{redis_server.port}/2", max_connections=1)
    client = redis.Redis(connection_pool=pool)
    first = client.client_id()
    client.execute_command("SELECT", 5)
    client.execute_command("SELECT", 2)
    second = client.client_id()
    client.execute_command("SELECT", "2")
    assert client.client_id() == second != first


def test_the_names_of_commands_are_remembered_up_to_a_limit(make_pool: Callable[..., Any]) -> None:
    """A program may give each command in one string."""
    client = redis.Redis(connection_pool=make_pool(max_connections=1))
    names = importlib.import_module(f"{type(client.connection_pool).__module__.rpartition('.')[0]}._footprint").NOTED
    first = client.client_id()
    for number in range(1100):
        client.execute_command(f"GET key-{number}")
    assert client.client_id() == first
    assert len(names) <= 1000
    client.execute_command("sElEcT   7")
    assert client.client_id() != first


@BEGINS
def test_an_open_transaction_or_subscription_is_not_passed_on(
    make_pool: Callable[..., Any], command: tuple[Any, ...]
) -> None:
    pool = make_pool(max_connections=1, protocol=2)
    client = redis.Redis(connection_pool=pool)
    client.execute_command(*command)
    assert client.ping() is True
    assert client.set("a-key", "a value") is True


@BEGINS
@pytest.mark.anyio
async def test_an_open_transaction_or_subscription_is_not_passed_on_async(
    make_async_pool: Callable[..., Any], command: tuple[Any, ...]
) -> None:
    client = redis.asyncio.Redis(connection_pool=make_async_pool(max_connections=1, protocol=2))
    await client.execute_command(*command)
    assert await client.ping() is True
    assert await client.set("a-key", "a value") is True


def test_transactions_keep_their_connection(make_pool: Callable[..., Any]) -> None:
    pool = make_pool(max_connections=1)
    client = redis.Redis(connection_pool=pool)
    first = client.client_id()
    client.set("counter", 1)
    with client.pipeline() as pipe:
        pipe.watch("counter")
        value = int(pipe.get("counter"))
        pipe.multi()
        pipe.set("counter", value + 1)
        assert pipe.execute() == [True]
        pipe.watch("counter")

    def increment(pipe: Any) -> None:
        pipe.multi()
        pipe.incr("counter")

    client.transaction(increment, "counter")
    assert client.get("counter") == b"3"
    assert client.client_id() == first


def test_a_connection_marked_for_reconnect_is_replaced_when_it_comes_back(make_pool: Callable[..., Any]) -> None:
    pool = make_pool(max_connections=1)
    client = redis.Redis(connection_pool=pool)
    first = client.client_id()
    connection = pool.get_connection()
    if not hasattr(connection, "mark_for_reconnect"):
        pool.release(connection)
        pytest.skip("redis-py is too old")
    connection.mark_for_reconnect()
    pool.release(connection)
    assert client.client_id() != first


@pytest.mark.anyio
async def test_a_connection_marked_for_reconnect_is_replaced_when_it_comes_back_async(
    make_async_pool: Callable[..., Any],
) -> None:
    pool = make_async_pool(max_connections=1)
    client = redis.asyncio.Redis(connection_pool=pool)
    first = await client.client_id()
    connection = await pool.get_connection()
    if not hasattr(connection, "mark_for_reconnect"):
        await pool.release(connection)
        pytest.skip("redis-py is too old")
    connection.mark_for_reconnect()
    await pool.release(connection)
    assert await client.client_id() != first


def test_looking_at_a_connection_opens_no_descriptor_and_asks_nothing(
    make_pool: Callable[..., Any], redis_server: RedisServer
) -> None:
    import os

    pool = make_pool(max_connections=1)
    pool.release(pool.get_connection())
    descriptors = len(os.listdir("/proc/self/fd"))
    with redis_server.connect() as admin:
        before = admin.info("stats")["total_commands_processed"]
        for _ in range(200):
            pool.release(pool.get_connection())
        assert admin.info("stats")["total_commands_processed"] - before < 20
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_connection_that_is_never_ready_ends_with_redis_pys_words(make_pool: Callable[..., Any]) -> None:
    """Programs search for these words."""

    class Talkative(redis.Connection):
        def can_read(self, timeout: float | None = 0) -> bool:
            return True

    with pytest.raises(redis.ConnectionError, match=r"^Connection not ready"):
        make_pool(connection_class=Talkative).get_connection()


@pytest.mark.anyio
async def test_a_connection_that_is_never_ready_ends_with_redis_pys_words_async(
    make_async_pool: Callable[..., Any],
) -> None:
    """Do the same for tasks."""

    class Talkative(redis.asyncio.Connection):
        async def can_read_destructive(self) -> bool:
            return True

        async def can_read(self, timeout: float | None = 0) -> bool:
            return True

    with pytest.raises(redis.ConnectionError, match=r"^Connection not ready"):
        await make_async_pool(connection_class=Talkative).get_connection()
