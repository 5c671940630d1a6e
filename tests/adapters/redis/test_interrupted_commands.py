"""An exception between a command and its reply never gives that reply to the next caller."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
import redis.asyncio

from poolkit.errors import LeaseOverdue
from poolkit_adapters.redis import AsyncPoolkitConnectionPool, AsyncPoolkitServerGroup, PoolkitConnectionPool
from tests.support.waiting import until, until_async

from .rogue import RogueRedis

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGALRM")

SECRET = "alice's secret"


class TimeIsUp(Exception):
    """Like the time limit of a task queue: an ordinary exception of a signal handler."""


INTERRUPTS = pytest.mark.parametrize("interrupt", [TimeIsUp, KeyboardInterrupt], ids=["limit", "ctrl-c"])


class Withholding(RogueRedis):
    """Sends the reply to ``ECHO SECRET`` only together with the reply to the next command on that connection."""

    def __init__(self) -> None:
        super().__init__()
        self._withheld: dict[Any, bytes] = {}

    def _reply(self, words: list[bytes]) -> bytes:
        reply, connection = super()._reply(words), asyncio.current_task()
        if words == [b"ECHO", SECRET.encode()]:
            self._withheld[connection] = reply
            return b""
        return self._withheld.pop(connection, b"") + reply


@pytest.fixture
def server() -> Iterator[Withholding]:
    with Withholding() as server:
        yield server


@pytest.fixture(autouse=True)
def strike(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Raise the error of the parameter ``interrupt`` in the main thread by SIGALRM."""

    def handler(*_: object) -> None:
        raise request.node.callspec.params["interrupt"]

    before = signal.signal(signal.SIGALRM, handler)
    yield
    signal.signal(signal.SIGALRM, before)


class Client(redis.Redis):
    interrupted = False
    """Whether a signal comes before the next reply is read."""

    def parse_response(self, *args: Any, **kwargs: Any) -> Any:
        if self.interrupted:
            self.interrupted = False
            signal.raise_signal(signal.SIGALRM)
        return super().parse_response(*args, **kwargs)


class AsyncClient(redis.asyncio.Redis):
    interrupted = False

    async def parse_response(self, *args: Any, **kwargs: Any) -> Any:
        if self.interrupted:
            self.interrupted = False
            signal.raise_signal(signal.SIGALRM)
        return await super().parse_response(*args, **kwargs)


async def interrupted_pipeline(client: Any) -> None:
    """Send two commands; the signal comes between the two replies."""
    async with client.pipeline(transaction=False) as pipe:
        pipe.set_response_callback("ECHO", lambda reply, **_: signal.raise_signal(signal.SIGALRM))
        pipe.echo("first").echo(SECRET)
        await pipe.execute()


@INTERRUPTS
def test_an_interrupted_command_closes_its_connection(server: Withholding, interrupt: type[BaseException]) -> None:
    with PoolkitConnectionPool(host=server.host, port=server.port, max_connections=1) as pool:
        client = Client(connection_pool=pool)
        assert client.echo("warm") == b"warm"
        client.interrupted = True
        with pytest.raises(interrupt):
            client.echo(SECRET)
        assert client.echo("bob") == b"bob"


@INTERRUPTS
def test_an_interrupted_pipeline_closes_its_connection(server: Withholding, interrupt: type[BaseException]) -> None:
    """Two commands are sent; the signal comes between the two replies."""
    with PoolkitConnectionPool(host=server.host, port=server.port, max_connections=1) as pool:
        client = redis.Redis(connection_pool=pool)
        with client.pipeline(transaction=False) as pipe:
            pipe.set_response_callback("ECHO", lambda reply, **_: signal.raise_signal(signal.SIGALRM))
            pipe.echo("first").echo(SECRET)
            with pytest.raises(interrupt):
                pipe.execute()
        assert redis.Redis(connection_pool=pool).echo("bob") == b"bob"


def refusing(reply: Any, **_: Any) -> None:
    raise redis.DataError("a callback of the application refuses this reply")


@pytest.mark.parametrize("interrupt", [None])
def test_a_callback_that_raises_the_drivers_error_closes_the_connection(server: Withholding, interrupt: None) -> None:
    """A pipeline collects error replies only. It leaves the other replies unread after any other error."""
    with PoolkitConnectionPool(host=server.host, port=server.port, max_connections=1) as pool:
        with redis.Redis(connection_pool=pool).pipeline(transaction=False) as pipe:
            pipe.set_response_callback("ECHO", refusing)
            pipe.echo("first").echo(SECRET)
            with pytest.raises(redis.DataError):
                pipe.execute()
        assert redis.Redis(connection_pool=pool).echo("bob") == b"bob"


@pytest.mark.parametrize("interrupt", [None])
@pytest.mark.anyio
async def test_a_callback_of_a_task_that_raises_the_drivers_error_closes_the_connection(
    server: Withholding, interrupt: None
) -> None:
    pool = AsyncPoolkitConnectionPool(host=server.host, port=server.port, max_connections=1)
    async with redis.asyncio.Redis(connection_pool=pool).pipeline(transaction=False) as pipe:
        pipe.set_response_callback("ECHO", refusing)
        pipe.echo("first").echo(SECRET)
        with pytest.raises(redis.DataError):
            await pipe.execute()
    assert await redis.asyncio.Redis(connection_pool=pool).echo("bob") == b"bob"
    await pool.aclose()
    await pool.poolkit.close()


@INTERRUPTS
def test_an_interrupt_while_another_error_is_handled_closes_the_connection(
    server: Withholding, interrupt: type[BaseException]
) -> None:
    """The error that was being handled when the command began does not hide the interrupt."""
    with PoolkitConnectionPool(host=server.host, port=server.port, max_connections=1) as pool:
        client = Client(connection_pool=pool)
        try:
            raise ValueError
        except ValueError:
            client.interrupted = True
            with pytest.raises(interrupt):
                client.echo(SECRET)
            assert client.echo("bob") == b"bob"


@INTERRUPTS
def test_an_interrupted_command_of_a_task_closes_its_connection(
    server: Withholding, interrupt: type[BaseException]
) -> None:
    async def main() -> None:
        pool = AsyncPoolkitConnectionPool(host=server.host, port=server.port, max_connections=1)
        client = AsyncClient(connection_pool=pool)
        assert await client.echo("warm") == b"warm"
        client.interrupted = True
        try:
            await client.echo(SECRET)
        except interrupt:
            assert await client.echo("bob") == b"bob"
        await pool.aclose()
        await pool.poolkit.close()

    asyncio.run(main())


@INTERRUPTS
def test_an_interrupted_pipeline_of_a_task_closes_its_connection(
    server: Withholding, interrupt: type[BaseException]
) -> None:
    """redis-py's pipelines give their connections back in another task."""

    async def main() -> None:
        pool = AsyncPoolkitConnectionPool(host=server.host, port=server.port, max_connections=1)
        try:
            await interrupted_pipeline(redis.asyncio.Redis(connection_pool=pool))
        except interrupt:
            assert await redis.asyncio.Redis(connection_pool=pool).echo("bob") == b"bob"
        else:
            pytest.fail("the pipeline was not interrupted")
        await pool.aclose()
        await pool.poolkit.close()

    asyncio.run(main())


@INTERRUPTS
def test_an_interrupted_pipeline_of_a_group_closes_its_connection(
    server: Withholding, interrupt: type[BaseException]
) -> None:
    async def main() -> None:
        async with AsyncPoolkitServerGroup([f"{server.host}:{server.port}"], max_size=1) as group:
            try:
                await interrupted_pipeline(group.client())
            except interrupt:
                assert await group.client().echo("bob") == b"bob"
            else:
                pytest.fail("the pipeline was not interrupted")

    asyncio.run(main())


@pytest.mark.parametrize("interrupt", [TimeIsUp, KeyboardInterrupt, SystemExit, asyncio.CancelledError])
def test_commands_in_an_except_block_use_the_same_connection(
    make_pool: Callable[..., Any], interrupt: type[BaseException]
) -> None:
    """A program that ends writes its last state. The exception was handled before these commands began."""
    client = redis.Redis(connection_pool=make_pool(max_connections=1))
    first = client.client_id()
    try:
        raise interrupt
    except interrupt:
        assert {client.client_id() for _ in range(5)} == {first}
        with pytest.raises(redis.ResponseError):  # an answer of the server: nothing is outstanding
            client.execute_command("NOSUCHCOMMAND")
    finally:
        assert client.client_id() == first


@pytest.mark.parametrize("interrupt", [TimeIsUp, KeyboardInterrupt, asyncio.CancelledError])
@pytest.mark.anyio
async def test_commands_of_a_task_in_an_except_block_use_the_same_connection(
    make_async_pool: Callable[..., Any], interrupt: type[BaseException]
) -> None:
    client = redis.asyncio.Redis(connection_pool=make_async_pool(max_connections=1))
    first = await client.client_id()
    try:
        raise interrupt
    except interrupt:
        assert {await client.client_id() for _ in range(5)} == {first}


@pytest.mark.parametrize("interrupt", [TimeIsUp])
def test_a_lease_that_ends_late_in_an_except_block_is_reported(
    make_pool: Callable[..., Any], interrupt: type[BaseException]
) -> None:
    """LeaseOverdue replaces no exception that is being raised, but the caller has this one already."""
    pool = make_pool(leak_after=0.01, on_leak="raise")
    try:
        raise interrupt
    except interrupt:
        connection = pool.get_connection()
        until(lambda: pool.poolkit.stats().leaks)
        with pytest.raises(LeaseOverdue):
            pool.release(connection)


@pytest.mark.parametrize("interrupt", [TimeIsUp])
@pytest.mark.anyio
async def test_a_lease_of_a_task_that_ends_late_in_an_except_block_is_reported(
    make_async_pool: Callable[..., Any], interrupt: type[BaseException]
) -> None:
    pool = make_async_pool(leak_after=0.01, on_leak="raise")
    try:
        raise interrupt
    except interrupt:
        connection = await pool.get_connection()
        await until_async(lambda: pool.poolkit.stats().leaks)
        with pytest.raises(LeaseOverdue):
            await pool.release(connection)


class Local:
    """An object of the frame that raised."""


def failing(kept: list[weakref.ref[Local]]) -> None:
    local = Local()
    kept.append(weakref.ref(local))
    raise ValueError


@pytest.mark.parametrize("interrupt", [None])
def test_a_long_lease_keeps_no_exception_alive(make_pool: Callable[..., Any], interrupt: None) -> None:
    """A subscription that begins in an ``except`` block may last for hours."""
    kept: list[weakref.ref[Local]] = []
    pubsub = redis.Redis(connection_pool=make_pool()).pubsub()
    try:
        failing(kept)
    except ValueError:
        pubsub.subscribe("a-channel")
    gc.collect()
    assert kept[0]() is None
    pubsub.close()


@pytest.mark.parametrize("interrupt", [None])
@pytest.mark.anyio
async def test_a_long_lease_of_a_task_keeps_no_exception_alive(
    make_async_pool: Callable[..., Any], interrupt: None
) -> None:
    kept: list[weakref.ref[Local]] = []
    pubsub = redis.asyncio.Redis(connection_pool=make_async_pool()).pubsub()
    try:
        failing(kept)
    except ValueError:
        await pubsub.subscribe("a-channel")
    gc.collect()
    assert kept[0]() is None
    await pubsub.aclose()


@pytest.mark.parametrize("interrupt", [TimeIsUp, KeyboardInterrupt])
@pytest.mark.parametrize("options", [{}, {"decode_responses": True, "protocol": 3}, {"timeout": 0}], ids=str)
def test_an_error_between_complete_replies_closes_nothing(
    make_pool: Callable[..., Any], interrupt: type[BaseException], options: dict[str, Any]
) -> None:
    """A program that finds a wrong value in a ``WATCH`` block leaves it with an exception."""
    pool = make_pool(max_connections=1, **options)
    client = redis.Redis(connection_pool=pool)
    for _ in range(5):
        with pytest.raises(interrupt), client.pipeline() as pipe:
            pipe.watch("a-key")
            pipe.get("a-key")
            raise interrupt
    assert client.ping()
    assert pool.poolkit.stats().connects == 1


@pytest.mark.parametrize("interrupt", [TimeIsUp, KeyboardInterrupt, asyncio.CancelledError])
@pytest.mark.parametrize("options", [{}, {"decode_responses": True, "protocol": 3}, {"timeout": 0}], ids=str)
@pytest.mark.anyio
async def test_an_error_of_a_task_between_complete_replies_closes_nothing(
    make_async_pool: Callable[..., Any], interrupt: type[BaseException], options: dict[str, Any]
) -> None:
    pool = make_async_pool(max_connections=1, **options)
    client = redis.asyncio.Redis(connection_pool=pool)
    for _ in range(5):
        try:
            async with client.pipeline() as pipe:
                await pipe.watch("a-key")
                await pipe.get("a-key")
                raise interrupt
        except interrupt:
            pass
    assert await client.ping()
    assert pool.poolkit.stats().connects == 1


@INTERRUPTS
def test_a_server_that_does_not_answer_after_an_interrupt_costs_the_next_caller_no_error(
    interrupt: type[BaseException],
) -> None:
    """A blocking command, for example, has its reply much later."""
    with (
        RogueRedis() as server,
        PoolkitConnectionPool(
            host=server.host, port=server.port, max_connections=1, check_timeout=0.1, protocol=2
        ) as pool,
    ):
        client = Client(connection_pool=pool)
        server.mute.add("ECHO")
        client.interrupted = True
        with pytest.raises(interrupt):
            client.get("a-key")
        assert client.ping()
        assert pool.poolkit.stats().connects == 2
