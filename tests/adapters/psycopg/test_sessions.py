"""Notifications, dropped connections, and connects that are interrupted."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import psycopg
import psycopg_pool
import pytest

from poolkit.testing.servers import PostgresServer
from poolkit_adapters.psycopg import (
    AsyncPoolkitCluster,
    AsyncPoolkitNullConnectionPool,
    PoolkitCluster,
    PoolkitNullConnectionPool,
)
from poolkit_adapters.psycopg._io import is_alive
from poolkit_adapters.psycopg._shared import PSYCOPG_VERSION
from tests.support.collector import without_collector
from tests.support.waiting import leak_warning

from .support import Admin, Twin, do, pid, within

# -- notifications ----------------------------------------------------------------------------------------------------


async def received(connection: Any) -> list[str]:
    """Return the notifications that have arrived."""
    found = connection.notifies(timeout=0)
    if hasattr(found, "__aiter__"):
        return [one.payload async for one in found]
    return [one.payload for one in found]


@pytest.fixture
def listening(twin: Twin, application: str) -> Any:
    """Return the arguments of a pool of one connection, which listens on a channel of its own."""

    async def listen(connection: Any) -> None:
        await do(connection.execute(f'listen "{application}"'))

    def listen_here(connection: Any) -> None:
        connection.execute(f'listen "{application}"')

    return {
        "min_size": 1, "max_size": 1, "kwargs": {"autocommit": True, "application_name": application},
        "configure": listen if twin.asynchronous else listen_here,
    }  # fmt: skip


@pytest.mark.parametrize("look", ["look and ping", "background look", "own check", "check()"])
@pytest.mark.skipif(PSYCOPG_VERSION < (3, 3), reason="psycopg before 3.3 keeps no notifications")
async def test_a_notification_that_a_look_reads_is_delivered_to_the_next_user(
    twin: Twin, admin: Admin, application: str, listening: Any, look: str
) -> None:
    settings = {
        "look and ping": {"check_after_idle": 0.0},
        "background look": {"keepalive": 0.05, "check_after_idle": None},
        "own check": {"check": twin.pool_class.check_connection},
        "check()": {"check_after_idle": None},
    }[look]
    async with within(twin.pool(**listening, **settings)) as pool:
        await do(pool.wait())
        admin.connection.execute(f"notify \"{application}\", 'one'")
        if look == "background look":
            entry = next(iter(pool.poolkit._core.slots.living()))
            before = entry.checked_at
            await twin.until(lambda: entry.checked_at > before)
        if look == "check()":
            await do(pool.check())
        async with within(pool.connection()) as connection:
            assert await received(connection) == ["one"]
        assert pool.get_stats()["connections_num"] == 1


async def test_a_notification_that_a_look_reads_reaches_the_handlers(
    twin: Twin, admin: Admin, application: str, listening: Any
) -> None:
    seen: list[str] = []

    def fails(notification: Any) -> None:
        raise ValueError("a fault of the handler's own")

    async with within(twin.pool(**listening, check_after_idle=0.0)) as pool:
        async with within(pool.connection()) as connection:
            connection.add_notify_handler(lambda one: seen.append(one.payload))
            connection.add_notify_handler(fails)
            backend = pid(connection)
        admin.connection.execute(f"notify \"{application}\", 'one'")
        admin.connection.execute(f"notify \"{application}\", 'two'")
        async with within(pool.connection()) as connection:
            assert pid(connection) == backend, "a handler that fails says nothing about the connection"
            assert seen == ["one", "two"]


async def test_what_a_server_may_say_unasked_does_not_cost_the_connection(
    twin: Twin, admin: Admin, listening: Any, application: str
) -> None:
    async with within(twin.pool(**listening, check_after_idle=0.0)) as pool:
        async with within(pool.connection()) as connection:
            backend = pid(connection)
        admin.connection.execute(f'notify "{application}"')
        admin.connection.execute("alter system set application_name = 'changed'")
        admin.connection.execute("alter system reset application_name")
        admin.connection.execute("select pg_reload_conf()")
        async with within(pool.connection()) as connection:
            assert pid(connection) == backend


def test_a_fatal_error_is_noticed_before_the_end_of_the_stream() -> None:
    """Tests the check alone: a server's FATAL error may arrive before its FIN."""
    listener = socket.create_server(("127.0.0.1", 0))
    hold: list[socket.socket] = []

    def serve() -> None:
        client, _ = listener.accept()
        hold.append(client)
        size = int.from_bytes(client.recv(4), "big")
        client.recv(size - 4)
        client.sendall(b"R" + (8).to_bytes(4, "big") + (0).to_bytes(4, "big"))  # AuthenticationOk
        client.sendall(b"S" + (4 + 21).to_bytes(4, "big") + b"client_encoding\x00UTF8\x00")
        client.sendall(b"Z" + (5).to_bytes(4, "big") + b"I")  # ReadyForQuery

    thread = threading.Thread(target=serve)
    thread.start()
    port = listener.getsockname()[1]
    connection = psycopg.connect(f"host=127.0.0.1 port={port} user=x dbname=x sslmode=disable gssencmode=disable")
    thread.join()
    try:
        assert is_alive(connection)
        fields = b"SFATAL\x00VFATAL\x00C57P01\x00Mterminating connection\x00\x00"
        hold[0].sendall(b"E" + (4 + len(fields)).to_bytes(4, "big") + fields)  # without FIN
        assert not is_alive(connection)
    finally:
        connection.close()
        hold[0].close()
        listener.close()


# -- dropped connections ----------------------------------------------------------------------------------------------


async def collected() -> None:
    gc.collect()
    await asyncio.sleep(0)


@pytest.mark.parametrize("null", [False, True], ids=["pool", "null pool"])
async def test_a_dropped_connection_frees_its_place_and_is_reported(
    twin: Twin, admin: Admin, named: Any, application: str, null: bool
) -> None:
    make: Any = twin.null if null else twin.pool
    async with within(make(min_size=0, max_size=1, kwargs=named, timeout=20)) as pool:
        with leak_warning("dropped without close"):
            for _ in range(3):
                connection = await do(pool.getconn())
                await do(connection.execute("select 1"))
                backend = pid(connection)
                del connection
                await collected()
            async with within(pool.connection()) as connection:
                assert pid(connection) != backend
        assert pool.poolkit.stats().leaks == 3
        await twin.until(lambda: len(admin.sessions(application)) <= (0 if null else 1))


async def test_a_dropped_connection_serves_a_caller_that_waits(twin: Twin, named: Any) -> None:
    async with within(twin.pool(min_size=0, max_size=1, kwargs=named, timeout=20)) as pool:
        held = [await do(pool.getconn())]

        async def drop(number: int) -> None:
            if number:
                while not pool.poolkit.stats().waiting:
                    await asyncio.sleep(0.01)
                held.clear()
                await collected()
            else:
                await do(pool.putconn(await do(pool.getconn())))

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            assert await twin.together(drop, 2) == [None, None]


async def test_a_dropped_connection_in_a_cycle_or_in_a_transaction_is_found_too(twin: Twin, named: Any) -> None:
    async with within(twin.pool(min_size=0, max_size=1, kwargs=named, timeout=20)) as pool:
        connection = await do(pool.getconn())
        await do(connection.execute("create temporary table left_behind (a int)"))
        ring: list[Any] = [connection]
        ring.append(ring)
        del connection, ring
        with leak_warning("dropped without close"):
            await collected()
            async with within(pool.connection()) as connection:
                found = await do(connection.execute("select to_regclass('left_behind')"))
                assert (await do(found.fetchone()))[0] is None


async def test_an_abandoned_block_frees_its_place(twin: Twin, named: Any) -> None:
    async with within(twin.pool(min_size=0, max_size=1, kwargs=named, timeout=20)) as pool:
        block = within(pool.connection())
        await block.__aenter__()
        del block
        with leak_warning("dropped without close"):
            await collected()
            async with within(pool.connection()):
                pass


async def test_a_cursor_keeps_the_connection_on_lease(twin: Twin, named: Any) -> None:
    async with within(twin.pool(min_size=0, max_size=1, kwargs=named, timeout=20)) as pool:
        cursor = (await do(pool.getconn())).cursor()
        await collected()
        await do(cursor.execute("select 1"))
        assert pool.poolkit.stats().in_use == 1
        await do(pool.putconn(cursor.connection))
        assert pool.poolkit.stats().leaks == 0


async def test_ordinary_use_reports_no_drop(twin: Twin, named: Any) -> None:
    """A connection that is returned, closed by its user, lost with the server or closed with the pool is not a drop."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        async with within(twin.pool(min_size=0, max_size=2, kwargs=named)) as pool:
            async with within(pool.connection()) as connection:
                pass
            connection = await do(pool.getconn())
            await do(connection.close())
            await do(pool.putconn(connection))
            del connection
            await collected()
            late = await do(pool.getconn())
        await do(pool.putconn(late))
        del late, pool
        await collected()


async def test_the_same_connection_object_comes_back(twin: Twin, named: Any) -> None:
    async with within(twin.pool(min_size=1, max_size=1, kwargs=named)) as pool:
        async with within(pool.connection()) as first:
            number = id(first)
        async with within(pool.connection()) as again:
            assert id(again) == number
            assert again is first


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
async def test_a_dropped_lease_of_a_cluster_frees_its_place(
    postgres: PostgresServer, asynchronous: bool, named: Any
) -> None:
    kind: Any = AsyncPoolkitCluster if asynchronous else PoolkitCluster
    make = {"pool_options": {"max_size": 1, "min_size": 0, "kwargs": named}, "roles": False}
    async with within(kind([f"127.0.0.1:{postgres.port}"], postgres.url, **make)) as cluster:
        with leak_warning("dropped without close"):
            for _ in range(3):
                lease = await do(cluster.lease(timeout=20))
                del lease
                await collected()
            async with within(cluster.connection(timeout=20)):
                pass


# -- what stays -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stock", [True, False], ids=["psycopg_pool", "poolkit"])
async def test_what_a_user_sets_on_a_connection_stays_unless_reset_undoes_it(twin: Twin, stock: bool) -> None:
    """This is psycopg_pool's documented contract: users are responsible for the state of a session."""
    own = psycopg_pool.AsyncConnectionPool if twin.asynchronous else psycopg_pool.ConnectionPool
    kind: Any = own if stock else twin.pool_class
    async with within(kind(twin.postgres.url, min_size=1, max_size=1, open=False)) as pool:
        async with within(pool.connection()) as connection:
            await do(connection.set_autocommit(True))
            connection.add_notice_handler(print)
            connection.row_factory = psycopg.rows.dict_row
        async with within(pool.connection()) as connection:
            assert connection.autocommit
            assert connection._notice_handlers == [print]
            assert connection.row_factory is psycopg.rows.dict_row


# -- overridden methods -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("null", [False, True], ids=["pool", "null pool"])
async def test_a_block_uses_getconn_and_putconn_of_a_subclass(twin: Twin, null: bool) -> None:
    """As with psycopg_pool: tracing and gauges override them."""
    base: Any = twin.null_class if null else twin.pool_class
    log: list[str] = []

    class Traced(base):  # type: ignore[misc]
        def getconn(self, timeout: float | None = None) -> Any:
            log.append(f"getconn {timeout}")
            return super().getconn(timeout)

        def putconn(self, conn: Any) -> Any:
            log.append(f"putconn {conn.info.transaction_status.name}")
            return super().putconn(conn)

    async with within(Traced(twin.postgres.url, min_size=0, max_size=1, open=False)) as pool:
        async with within(pool.connection(timeout=5)) as connection:
            await do(connection.execute("select 1"))
        with pytest.raises(ZeroDivisionError):
            async with within(pool.connection()):
                raise ZeroDivisionError
    assert log == ["getconn 5", "putconn IDLE", "getconn None", "putconn IDLE"]


async def test_a_block_enters_and_leaves_a_connection_class_of_the_users_own(twin: Twin) -> None:
    """As with psycopg_pool, which uses ``with conn:``: an exception that ``__exit__`` swallows stays inside."""
    log: list[str] = []

    class Own(twin.connection_class):  # type: ignore[misc, name-defined]
        if twin.asynchronous:

            async def __aenter__(self) -> Any:
                log.append("enter")
                return await super().__aenter__()

            async def __aexit__(self, *exc: Any) -> Any:
                log.append("exit")
                await super().__aexit__(*exc)
                return exc[0] is KeyError
        else:

            def __enter__(self) -> Any:
                log.append("enter")
                return super().__enter__()

            def __exit__(self, *exc: Any) -> Any:
                log.append("exit")
                super().__exit__(*exc)
                return exc[0] is KeyError

    async with within(twin.pool(min_size=0, max_size=1, connection_class=Own)) as pool:
        async with within(pool.connection()):
            raise KeyError
        with pytest.raises(IndexError):
            async with within(pool.connection()):
                raise IndexError
        assert pool.poolkit.stats().in_use == 0
    assert log == ["enter", "exit"] * 2


# -- connects cut short -----------------------------------------------------------------------------------------------


class Silent:
    """A server that accepts and never answers."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=50)
        self._listener.setblocking(False)
        self._clients: list[socket.socket] = []
        port = self._listener.getsockname()[1]
        self.url = f"host=127.0.0.1 port={port} user=x dbname=x sslmode=disable gssencmode=disable"

    def open(self) -> int:
        """Return how many clients have not closed their connection."""
        with contextlib.suppress(BlockingIOError):
            while True:
                client, _ = self._listener.accept()
                client.setblocking(False)
                self._clients.append(client)
        return sum(not self._over(client) for client in self._clients)

    @property
    def accepted(self) -> int:
        self.open()
        return len(self._clients)

    def _over(self, client: socket.socket) -> bool:
        try:
            while client.recv(4096):
                pass
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self._listener.close()


@pytest.fixture
def silent() -> Iterator[Silent]:
    server = Silent()
    yield server
    server.close()


@pytest.mark.skipif(PSYCOPG_VERSION < (3, 3), reason="psycopg before 3.3 may swallow a cancellation")
async def test_a_cancelled_connect_leaves_nothing_to_the_collector(silent: Silent) -> None:
    errors: list[BaseException] = []  # their tracebacks are kept, as a log handler may keep them
    with without_collector():
        async with AsyncPoolkitNullConnectionPool(silent.url, max_size=2, open=False) as pool:
            for number in range(1, 6):
                task = asyncio.ensure_future(pool.getconn(timeout=60))
                while silent.accepted < number:
                    await asyncio.sleep(0.005)
                task.cancel()
                try:
                    await task
                except asyncio.CancelledError as error:
                    errors.append(error)
                assert silent.open() == 0
    assert len(errors) == 5


async def test_a_connect_that_takes_too_long_leaves_nothing_to_the_collector(twin: Twin, silent: Silent) -> None:
    with without_collector():
        async with within(twin.pool(silent.url, min_size=0, max_size=2, connect_timeout=0.5, timeout=5)) as pool:
            with pytest.raises(psycopg.OperationalError) as caught:
                await do(pool.getconn())
            assert silent.accepted >= 1
            assert silent.open() <= 2, "one attempt may be under way again"
        del caught


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals for one thread")
def test_an_interrupted_connect_leaves_nothing_to_the_collector(silent: Silent) -> None:
    errors: list[BaseException] = []
    main = threading.get_ident()

    def interrupt(number: int) -> None:
        deadline = time.monotonic() + 20
        while silent.accepted < number and time.monotonic() < deadline:
            time.sleep(0.005)
        signal.pthread_kill(main, signal.SIGINT)

    with without_collector(), PoolkitNullConnectionPool(silent.url, max_size=2, open=False) as pool:
        for number in (1, 2, 3):
            thread = threading.Thread(target=interrupt, args=(number,))
            thread.start()
            try:
                pool.getconn(timeout=60)
            except KeyboardInterrupt as error:
                errors.append(error)
            thread.join()
            assert silent.open() == 0
    assert len(errors) == 3


def test_a_forked_child_may_drop_its_parents_connection(postgres: PostgresServer, named: Any) -> None:
    with PoolkitNullConnectionPool(postgres.url, max_size=1, kwargs=named, open=False) as pool:
        connection: Any = pool.getconn()
        child = os.fork()
        if child == 0:
            connection = None
            gc.collect()
            os._exit(0)
        os.waitpid(child, 0)
        assert connection.execute("select 1").fetchone() == (1,)
        pool.putconn(connection)
