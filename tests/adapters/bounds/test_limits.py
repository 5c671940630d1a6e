"""The limits of a connect, which limit nothing else, and of writes whose callers were cancelled."""

from __future__ import annotations

import asyncio
import importlib
import socket
import sys
import types
from collections.abc import Coroutine, Iterator
from typing import Any

import httpcore
import pytest
import trio
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from poolkit.testing.servers import PostgresServer
from poolkit_adapters import _hang_up, _time_limits
from poolkit_adapters._handshake import limit_answers
from poolkit_adapters._hang_up import Connecting
from poolkit_adapters._time_limits import Watch
from poolkit_adapters.dbapi import PooledDatabase
from poolkit_adapters.httpcore import _network as network
from poolkit_adapters.httpcore._h2_async import _Pull
from poolkit_adapters.httpcore._h2_state import State
from poolkit_adapters.sqlalchemy import PoolkitPool
from tests.adapters.sqlalchemy.servers import Databases, calling
from tests.faults.proxy import FaultProxy


@pytest.fixture(scope="module")
def databases(_postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    databases = Databases(_postgres, tmp_path_factory.mktemp("sqlite"))
    yield databases
    databases.close()


def test_pymysql_has_its_own_read_timeout_again_after_the_handshake() -> None:
    keywords: dict[str, Any] = {"read_timeout": 60.0}
    restore = limit_answers("pymysql", keywords, 5.0)
    assert keywords == {"read_timeout": 5.0, "write_timeout": 5.0}
    connection = types.SimpleNamespace()
    assert restore is not None
    restore(connection)
    assert vars(connection) == {"_read_timeout": 60.0, "_write_timeout": None}


def test_a_drivers_own_limit_for_the_handshake_is_kept_where_it_is_shorter() -> None:
    keywords: dict[str, Any] = {"read_timeout": 1}
    limit_answers("pymysql", keywords, 5.0)
    assert keywords["read_timeout"] == 1
    own: dict[str, Any] = {"timeout": 1}
    assert limit_answers("pg8000.dbapi", own, 5.0) is None
    assert own == {"timeout": 1}


@pytest.mark.parametrize("driver", ["pymysql", "pg8000"])
def test_statements_are_not_bound_by_connect_timeout(databases: Databases, driver: str) -> None:
    """The limit of the handshake does not stay on the socket."""
    with calling(databases.url(driver), driver, connect_timeout=20.0) as caller, caller.engine.connect() as connection:
        real: Any = connection.connection.driver_connection
        assert connection.execute(text("select 1")).scalar() == 1
        sock = real._sock if driver == "pymysql" else real._usock
        assert sock.gettimeout() is None


def test_a_dbapi_connection_of_pg8000_is_not_bound_by_connect_timeout(postgres: PostgresServer) -> None:
    module = pytest.importorskip("pg8000.dbapi")
    dsn = dict(postgres.dsn)
    dsn["database"] = dsn.pop("dbname")
    with PooledDatabase(module, connect_kwargs=dsn, connect_timeout=5) as database, database.connect() as connection:
        assert connection._usock.gettimeout() is None


DRIVER = """
import socket

def connect(addresses):
    failure = None
    for ours in addresses:
        sock = ours
        try:
            return read(sock)
        except OSError as error:
            failure = error
    raise failure

def read(sock):
    while True:
        if not sock.recv(1):
            raise OSError("closed")
"""
"""A driver that tries one address after the other, and waits for the end of an endless answer."""


def test_the_limit_of_a_connect_ends_each_address_and_touches_no_socket_of_the_application(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_hang_up, "_IN_PYTHON", {"a_driver"})
    driver = types.ModuleType("a_driver")
    exec(DRIVER, driver.__dict__)
    pairs = [socket.socketpair() for _ in range(3)]
    own, peer = socket.socketpair()
    watch = Watch()

    def application() -> None:
        mine = own  # a socket in a frame that calls the driver, from outside of the limit and from inside
        with watch.limit(Connecting("a_driver"), 0.05, "connect"):
            other = mine
            driver.connect([ours for ours, _ in pairs])
        del other

    with pytest.raises(TimeoutError, match="no reply to the connect"):
        application()
    for ours, theirs in pairs:
        assert ours.fileno() == -1, "closed, although the driver has left it open"
        assert theirs.recv(1) == b""
        theirs.close()
    peer.send(b"x")
    assert own.recv(1) == b"x"
    own.close()
    peer.close()


def test_a_connect_that_has_ended_is_not_hung_up() -> None:
    """Its thread may be in the next connect meanwhile."""
    ours, theirs = socket.socketpair()
    connecting = Connecting(__name__)
    watch = Watch()
    watch.begin(connecting, 60.0)
    assert watch.end(connecting) is False
    connecting.hang_up()
    theirs.send(b"x")
    assert ours.recv(1) == b"x"
    ours.close()
    theirs.close()


SILENT = ("pymysql", "pg8000", "aiomysql", "asyncmy")
"""Drivers whose own connect limit covers TCP only, or does not exist."""


@pytest.mark.filterwarnings("ignore:unclosed", "ignore::pytest.PytestUnraisableExceptionWarning")  # pg8000's, at once
@pytest.mark.parametrize("given", ["connect_args", "nothing"])
@pytest.mark.parametrize("driver", SILENT)
def test_what_bounds_a_connect_without_connect_timeout(
    databases: Databases, driver: str, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver's own argument in ``connect_args`` limits the whole connect; otherwise the adapter does."""
    from sqlalchemy import make_url

    url = make_url(databases.url(driver))
    assert url.host is not None
    assert url.port is not None
    proxy = FaultProxy(url.host, url.port).start()
    proxy.mode = "silent"
    argument = "timeout" if driver == "pg8000" else "connect_timeout"
    own = {"connect_args": {argument: 1}} if given == "connect_args" else {}
    if not own:
        monkeypatch.setattr(_time_limits, "UNSAID", 0.5)
    through = url.set(host=proxy.host, port=proxy.port).render_as_string(hide_password=False)
    try:
        with calling(through, driver, **own) as caller, pytest.raises((OperationalError, TimeoutError)):
            caller.run(caller.engine.connect)
    finally:
        proxy.stop()


def test_connect_args_may_allow_more_than_connect_timeout(postgres: PostgresServer) -> None:
    """They override it: the attempt has their time."""
    engine = create_engine(
        postgres.sqlalchemy_url("psycopg"), poolclass=PoolkitPool, connect_timeout=1.0,
        connect_args={"connect_timeout": "60"},
    )  # fmt: skip
    with engine.connect() as connection:
        record: Any = connection.connection._connection_record
        assert record.attempt.seconds == 60.0
    engine.dispose()


def test_a_connect_without_a_limit_where_the_application_asks_for_none(postgres: PostgresServer) -> None:
    engine = create_engine(
        postgres.sqlalchemy_url("psycopg"), poolclass=PoolkitPool, connect_timeout=None, pool_timeout=None
    )
    with engine.connect() as connection:
        record: Any = connection.connection._connection_record
        assert record.attempt.seconds is None
    engine.dispose()


# -- HTTP/2: a write that its caller has left --------------------------------------------------------------------------


class _Stuck(httpcore.AsyncNetworkStream):
    """A peer that reads nothing while all buffers are full."""

    def __init__(self) -> None:
        self.writing = 0
        self.ended = 0
        self.closed = False

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.writing += 1
        try:
            if asyncio._get_running_loop() is None:
                await trio.sleep_forever()
            await asyncio.Event().wait()
        finally:
            self.ended += 1

    async def aclose(self) -> None:
        self.closed = True


def _flush(stuck: _Stuck) -> Coroutine[Any, Any, None]:
    """Send the first frames of an HTTP/2 connection."""
    connection: Any = types.SimpleNamespace(state=State())
    return _Pull(connection, stuck).flush(None)  # type: ignore[arg-type]


def test_a_cancelled_caller_does_not_wait_for_its_write_on_trio(monkeypatch: pytest.MonkeyPatch) -> None:
    """In virtual time. Without a limit of its own the write would block its caller forever, past every timeout."""
    clock: Any = importlib.import_module("trio.testing").MockClock(autojump_threshold=0.01)
    stuck = _Stuck()

    async def main() -> None:
        with trio.move_on_after(1) as scope:
            await _flush(stuck)
        assert scope.cancelled_caught
        assert (stuck.writing, stuck.ended, stuck.closed) == (1, 0, False)  # the rest of the frame may still leave
        await trio.sleep(network.ABANDONED + 1)
        assert (stuck.ended, stuck.closed) == (1, True)

    trio.run(main, clock=clock)


def test_a_write_that_its_caller_has_left_ends_on_asyncio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "ABANDONED", 0.05)
    stuck = _Stuck()

    async def main() -> None:
        task = asyncio.ensure_future(_flush(stuck))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while not stuck.closed:
            await asyncio.sleep(0.01)
        assert (stuck.writing, stuck.ended) == (1, 1)
        assert not network._writes

    asyncio.run(main())


@pytest.mark.parametrize("world", ["asyncio", "trio"])
def test_an_error_of_a_write_reaches_its_caller(world: str) -> None:
    class Broken(_Stuck):
        async def write(self, buffer: bytes, timeout: float | None = None) -> None:
            raise httpcore.WriteError("broken")

    async def main() -> None:
        with pytest.raises(httpcore.WriteError, match="broken"):
            await _flush(Broken())

    if world == "trio":
        trio.run(main)
    else:
        asyncio.run(main())


def test_a_connect_holds_no_reference_to_its_greenlet() -> None:
    """greenlet frees the main greenlet of an ended thread while an object in a collection holds it: a crash."""
    greenlet = pytest.importorskip("greenlet")
    current = greenlet.getcurrent()
    before = sys.getrefcount(current)
    connecting = Connecting("pymysql")
    assert sys.getrefcount(current) == before
    del connecting


def test_a_connect_of_a_greenlet_that_has_ended_has_no_sockets() -> None:
    greenlet = pytest.importorskip("greenlet")
    made = greenlet.greenlet(lambda: Connecting("pymysql"))
    connecting = made.switch()
    connecting.over = False
    del made
    connecting.hang_up()
    assert not connecting.ended()
