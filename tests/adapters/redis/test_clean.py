"""A connection is handed out only if its peer has not closed it and nothing is to be read from it, at that moment.

The servers of these tests misbehave while the connection is idle; the callers must not notice, and none of them may
get the reply to another's command.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from poolkit.testing.servers import Certificates
from poolkit_adapters.redis import AsyncPoolkitConnectionPool, PoolkitConnectionPool
from tests.faults.proxy import FaultProxy

from .rogue import STOLEN, RogueRedis, bulk, readable
from .test_liveness import TRACKING, parser_class

PUSH = b">2\r\n+invalidate\r\n*1\r\n$1\r\nk\r\n"


def unasked_reply(server: RogueRedis) -> None:
    server.send(bulk(STOLEN))


def half_a_reply(server: RogueRedis) -> None:
    server.send(bulk(STOLEN)[:9])


def half_a_push(server: RogueRedis) -> None:
    server.send(PUSH[:16])


def push_and_reply(server: RogueRedis) -> None:
    server.send(PUSH + bulk(STOLEN))


def error_and_close(server: RogueRedis) -> None:
    server.send(b"-ERR max number of clients reached\r\n")
    server.fin()


def fin(server: RogueRedis) -> None:
    server.fin()


def rst(server: RogueRedis) -> None:
    server.reset()


MISDEEDS = [unasked_reply, half_a_reply, half_a_push, push_and_reply, error_and_close, fin, rst]


@pytest.fixture(params=["tcp", "tls", "unix"])
def rogue(request: pytest.FixtureRequest, certificates: Certificates, tmp_path: Path) -> Iterator[RogueRedis]:
    tls = certificates.server_context() if request.param == "tls" else None
    with RogueRedis(tls, tmp_path / "redis.sock" if request.param == "unix" else None) as server:
        yield server


@pytest.fixture(params=[(2, "python"), (2, "hiredis"), (3, "python"), (3, "hiredis")], ids=str)
def talk(request: pytest.FixtureRequest) -> tuple[int, str]:
    """The version of the protocol and the parser."""
    if request.param[1] == "hiredis":
        pytest.importorskip("hiredis")
    return request.param  # type: ignore[no-any-return]


def arguments(rogue: RogueRedis, certificates: Certificates, talk: tuple[int, str], module: Any) -> dict[str, Any]:
    is_async = module is redis.asyncio
    kwargs: dict[str, Any] = {
        "max_connections": 1,
        "socket_timeout": 10,
        "retry": (redis.asyncio.retry.Retry if is_async else Retry)(NoBackoff(), 0),
        "protocol": talk[0],
        "parser_class": parser_class(talk[1], talk[0], is_async=is_async),
    }
    if rogue.path is not None:
        return {**kwargs, "connection_class": module.UnixDomainSocketConnection, "path": str(rogue.path)}
    if rogue._tls is None:
        return {**kwargs, "host": rogue.host, "port": rogue.port}
    authority = certificates.authority.cert_pem.bytes().decode()
    return {
        **kwargs, "host": rogue.host, "port": rogue.port,
        "connection_class": module.SSLConnection, "ssl_ca_data": authority,
    }  # fmt: skip


def loops() -> list[Any]:
    return [pytest.param("asyncio"), pytest.param("uvloop")]


def run(loop: str, main: Callable[[], Awaitable[None]]) -> None:
    """Run ``main()`` on a new event loop of this kind."""
    made = asyncio.new_event_loop() if loop == "asyncio" else pytest.importorskip("uvloop").new_event_loop()
    made.set_exception_handler(lambda loop, context: None)  # asyncio reports what the server has done to its streams
    try:
        made.run_until_complete(main())
    finally:
        made.close()


def descriptor(connection: Any) -> int:
    if hasattr(connection, "_sock"):
        return int(connection._sock.fileno())
    return int(connection._writer.get_extra_info("socket").fileno())


async def processed(connection: Any) -> None:
    """Let the event loop process what has arrived."""
    for _ in range(2000):
        reader, writer = connection._reader, connection._writer
        if reader is None or reader._buffer or reader.at_eof() or reader.exception() or writer.transport.is_closing():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("the loop has read nothing")


@pytest.mark.parametrize("misdeed", MISDEEDS)
def test_what_a_server_does_to_an_idle_connection_reaches_no_caller(
    rogue: RogueRedis, certificates: Certificates, talk: tuple[int, str], misdeed: Callable[[RogueRedis], None]
) -> None:
    pool = PoolkitConnectionPool(**arguments(rogue, certificates, talk, redis))
    client = redis.Redis(connection_pool=pool)
    assert client.echo("first") == b"first"
    connection = pool._available_connections[0]
    misdeed(rogue)
    readable(descriptor(connection))
    assert [client.echo(f"{number}") for number in range(3)] == [b"0", b"1", b"2"]
    pool.disconnect()


@pytest.mark.parametrize("loop", loops())
@pytest.mark.parametrize("known", [False, True], ids=["in the socket", "known to the loop"])
@pytest.mark.parametrize("misdeed", MISDEEDS)
def test_what_a_server_does_to_an_idle_connection_reaches_no_task(
    rogue: RogueRedis,
    certificates: Certificates,
    talk: tuple[int, str],
    misdeed: Callable[[RogueRedis], None],
    known: bool,
    loop: str,
) -> None:
    async def main() -> None:
        pool = AsyncPoolkitConnectionPool(**arguments(rogue, certificates, talk, redis.asyncio))
        client = redis.asyncio.Redis(connection_pool=pool)
        assert await client.echo("first") == b"first"
        connection = pool._available_connections[0]
        misdeed(rogue)
        readable(descriptor(connection))  # blocks the loop, so it has processed nothing
        if known:
            await processed(connection)
        assert [await client.echo(f"{number}") for number in range(3)] == [b"0", b"1", b"2"]
        await pool.disconnect()

    run(loop, main)


def test_a_second_reply_in_the_same_packet_reaches_no_caller(
    rogue: RogueRedis, certificates: Certificates, talk: tuple[int, str]
) -> None:
    pool = PoolkitConnectionPool(**arguments(rogue, certificates, talk, redis))
    client = redis.Redis(connection_pool=pool)
    for more in (bulk(STOLEN), bulk(STOLEN)[:9]):
        rogue.after_echo = more
        assert [client.echo(f"{number}") for number in range(3)] == [b"0", b"1", b"2"]
    pool.disconnect()


@pytest.mark.parametrize("loop", loops())
def test_a_second_reply_in_the_same_packet_reaches_no_task(
    rogue: RogueRedis, certificates: Certificates, talk: tuple[int, str], loop: str
) -> None:
    async def main() -> None:
        pool = AsyncPoolkitConnectionPool(**arguments(rogue, certificates, talk, redis.asyncio))
        client = redis.asyncio.Redis(connection_pool=pool)
        for more in (bulk(STOLEN), bulk(STOLEN)[:9]):
            rogue.after_echo = more
            assert [await client.echo(f"{number}") for number in range(3)] == [b"0", b"1", b"2"]
        await pool.disconnect()

    run(loop, main)


def test_what_the_server_sends_to_a_connection_that_was_opened_in_advance_reaches_no_caller(
    rogue: RogueRedis, certificates: Certificates, talk: tuple[int, str]
) -> None:
    pool = PoolkitConnectionPool(**arguments(rogue, certificates, talk, redis))
    pool.poolkit.warm_up(1)
    connection = pool._available_connections[0]
    rogue.send(bulk(STOLEN))
    readable(descriptor(connection))
    assert redis.Redis(connection_pool=pool).echo("mine") == b"mine"
    pool.disconnect()


@pytest.mark.parametrize("loop", loops())
def test_what_the_server_sends_to_a_connection_that_was_opened_in_advance_reaches_no_task(
    rogue: RogueRedis, certificates: Certificates, talk: tuple[int, str], loop: str
) -> None:
    async def main() -> None:
        pool = AsyncPoolkitConnectionPool(**arguments(rogue, certificates, talk, redis.asyncio))
        await pool.poolkit.warm_up(1)
        connection = pool._available_connections[0]
        rogue.send(bulk(STOLEN))
        readable(descriptor(connection))
        assert await redis.asyncio.Redis(connection_pool=pool).echo("mine") == b"mine"
        await pool.disconnect()

    run(loop, main)


@pytest.mark.parametrize("loop", loops())
def test_a_reused_descriptor_number_does_not_vouch_for_a_connection_that_was_reset(
    rogue: RogueRedis, certificates: Certificates, talk: tuple[int, str], loop: str
) -> None:
    if rogue.path is not None:
        pytest.skip("unix sockets know no RST, and asyncio does not close a stream at its end")

    async def main() -> None:
        pool = AsyncPoolkitConnectionPool(
            **{**arguments(rogue, certificates, talk, redis.asyncio), "max_connections": 5}
        )
        client = redis.asyncio.Redis(connection_pool=pool)
        held = [await pool.get_connection() for _ in range(5)]
        for connection in held:
            await pool.release(connection)
        numbers = {descriptor(connection) for connection in held}
        rogue.reset()
        for connection in held:
            await processed(connection)
        while rogue.sessions:
            await asyncio.sleep(0.001)
        others: list[socket.socket] = []
        for _ in range(1000):
            others += socket.socketpair()
            if numbers <= {other.fileno() for other in others}:
                break
            await asyncio.sleep(0)
        else:
            raise AssertionError("the loop has not closed the sockets")
        try:
            assert [await client.echo(f"{number}") for number in range(5)] == [b"%d" % n for n in range(5)]
            await pool.disconnect()
            assert pool.poolkit.stats().size == 0
        finally:
            for other in others:
                other.close()

    run(loop, main)


def test_a_reused_descriptor_number_does_not_vouch_for_a_socket_that_was_closed(
    rogue: RogueRedis, certificates: Certificates, talk: tuple[int, str]
) -> None:
    pool = PoolkitConnectionPool(**arguments(rogue, certificates, talk, redis))
    client = redis.Redis(connection_pool=pool)
    client.echo("first")
    sock = pool._available_connections[0]._sock
    number = sock.fileno()
    sock.close()
    others: list[socket.socket] = []
    while number not in {other.fileno() for other in others}:
        others += socket.socketpair()
    try:
        assert client.echo("second") == b"second"
        pool.disconnect()
    finally:
        for other in others:
            other.close()


@pytest.mark.parametrize("loop", loops())
def test_a_reset_connection_in_use_raises_redis_errors_only(
    rogue: RogueRedis, certificates: Certificates, talk: tuple[int, str], loop: str
) -> None:
    """asyncio's transport raises AttributeError (Python 3.12 and later), uvloop's RuntimeError."""

    async def main() -> None:
        pool = AsyncPoolkitConnectionPool(**arguments(rogue, certificates, talk, redis.asyncio))
        connection = await pool.get_connection()
        rogue.reset()
        await processed(connection)
        for _ in range(3):
            await asyncio.sleep(0)
        with pytest.raises(redis.ConnectionError):
            await connection.send_command("ECHO", "late")
            await connection.read_response()
        await connection.send_command("ECHO", "again")  # redis-py reconnects
        assert await connection.read_response() == b"again"
        await pool.release(connection)
        await pool.disconnect()

    run(loop, main)


def test_a_part_of_a_tls_record_counts_as_something_to_be_read(certificates: Certificates) -> None:
    """OpenSSL reads it from the socket and shows it nowhere until the rest has arrived."""
    with RogueRedis(certificates.server_context()) as rogue:
        proxy = FaultProxy(rogue.host, rogue.port).start()
        try:
            kwargs = arguments(rogue, certificates, (2, "python"), redis)
            pool = PoolkitConnectionPool(**{**kwargs, "port": proxy.port})
            client = redis.Redis(connection_pool=pool)
            assert client.echo("first") == b"first"
            connection = pool._available_connections[0]
            proxy.reply_limit = 12
            rogue.send(bulk(STOLEN))
            readable(descriptor(connection))
            proxy.reply_limit = None
            assert [client.echo(f"{number}") for number in range(3)] == [b"0", b"1", b"2"]
            [other] = pool._available_connections
            assert other is not connection
            pool.disconnect()
        finally:
            proxy.stop()


@pytest.mark.parametrize("loop", loops())
def test_tickets_of_tls_cost_no_connection(certificates: Certificates, loop: str) -> None:
    """Tickets arrive after the handshake and make the socket readable."""
    with RogueRedis(certificates.server_context()) as rogue:
        pool = PoolkitConnectionPool(**arguments(rogue, certificates, (2, "python"), redis))
        client = redis.Redis(connection_pool=pool)
        for _ in range(3):
            client.ping()
        pool.disconnect()

        async def main() -> None:
            pool = AsyncPoolkitConnectionPool(**arguments(rogue, certificates, (2, "python"), redis.asyncio))
            client = redis.asyncio.Redis(connection_pool=pool)
            for _ in range(3):
                await client.ping()
            await pool.disconnect()

        before = rogue.heard.count("CLIENT")
        run(loop, main)
        assert rogue.heard.count("CLIENT") == 2 * before, "each has connected once"


@pytest.mark.parametrize("loop", loops())
def test_half_a_message_that_a_caller_has_not_waited_for_is_not_the_next_ones(
    rogue: RogueRedis, certificates: Certificates, loop: str
) -> None:
    async def main() -> None:
        pool = AsyncPoolkitConnectionPool(**arguments(rogue, certificates, (2, "python"), redis.asyncio))
        connection = await pool.get_connection()
        rogue.send(b"*2\r\n$3\r\none\r\n")
        readable(descriptor(connection))
        await processed(connection)
        assert await connection.read_response(timeout=0.05) is None
        await pool.release(connection)
        client = redis.asyncio.Redis(connection_pool=pool)
        assert [await client.echo(f"{number}") for number in range(3)] == [b"0", b"1", b"2"]
        await pool.disconnect()

    run(loop, main)


@pytest.mark.parametrize("loop", loops())
@pytest.mark.parametrize("kind", ["tcp", "tls"])
def test_many_pushes_cost_no_connection(
    certificates: Certificates, talk: tuple[int, str], kind: str, loop: str
) -> None:
    if talk[0] == 2:
        pytest.skip("RESP2 has no pushes")
    if talk[1] == "hiredis" and not (
        hasattr(pytest.importorskip("hiredis"), "PushNotification")
        and hasattr(parser_class("hiredis", 3), "handle_push_response")
    ):
        pytest.skip("hiredis, or redis-py's parser for it, does not tell pushes from replies")
    with RogueRedis(certificates.server_context() if kind == "tls" else None) as rogue:
        pool = PoolkitConnectionPool(**arguments(rogue, certificates, talk, redis), **TRACKING)
        client = redis.Redis(connection_pool=pool)
        client.ping()
        sock = pool._available_connections[0]._sock
        rogue.send(PUSH * 500)
        readable(sock.fileno())
        assert client.echo("mine") == b"mine"
        assert pool._available_connections[0]._sock is sock
        pool.disconnect()

        async def main() -> None:
            pool = AsyncPoolkitConnectionPool(**arguments(rogue, certificates, talk, redis.asyncio), **TRACKING)
            client = redis.asyncio.Redis(connection_pool=pool)
            await client.ping()
            writer = pool._available_connections[0]._writer
            rogue.send(PUSH * 500)
            readable(descriptor(pool._available_connections[0]))
            assert await client.echo("mine") == b"mine"
            assert pool._available_connections[0]._writer is writer
            await pool.disconnect()

        run(loop, main)
