"""A peer between a driver and its server that ignores everything: each operation in progress ends.

The peer is the fault proxy in mode "silent": it takes bytes and passes none on, as a host that has vanished does until
the operating system gives up, minutes later.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.util import greenlet_spawn

from tests.adapters.sqlalchemy.servers import ASYNC, MYSQL, Caller, Databases, calling, sockets_to
from tests.faults.proxy import FaultProxy
from tests.support.waiting import PATIENCE, until

DRIVERS = ("psycopg", "psycopg2", "pg8000", "pymysql", "asyncpg", "psycopg_async", "aiomysql", "asyncmy")
OVER_TCP = tuple(driver for driver in ASYNC if driver in DRIVERS)

Calling = Callable[..., contextlib.AbstractContextManager[Caller]]


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url(databases: Databases, driver: str) -> str:
    return databases.url(driver)


@pytest.fixture
def proxy(url: str) -> Iterator[FaultProxy]:
    direct = make_url(url)
    assert direct.host is not None
    assert direct.port is not None
    proxy = FaultProxy(direct.host, direct.port).start()
    yield proxy
    proxy.stop()


@pytest.fixture
def settings() -> dict[str, Any]:
    return {}


@pytest.fixture
def caller(url: str, driver: str, proxy: FaultProxy, settings: dict[str, Any]) -> Iterator[Caller]:
    """An engine with two connections, through the proxy. Its limits are short: the tests wait for a dead peer."""
    through = make_url(url).set(host=proxy.host, port=proxy.port).render_as_string(hide_password=False)
    limit = 0.2 if driver in MYSQL else 2.0  # ten times that for a rollback there, which a busy server must meet
    settings = {"pool_size": 2, "max_overflow": 0, "pool_timeout": PATIENCE, "check_timeout": limit} | settings
    with calling(through, driver, **settings) as caller:
        yield caller
        proxy.mode = "pass"


def finished(caller: Caller, function: Callable[[], Any]) -> None:
    """Run ``function``, and ignore what it raises. Raises AssertionError if it does not end."""
    if caller.loop is not None:

        async def in_time() -> None:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(greenlet_spawn(function), PATIENCE)
                return
            assert not waited_in_vain(), "it does not end"

        began = caller.loop.time()

        def waited_in_vain() -> bool:
            assert caller.loop is not None
            return caller.loop.time() >= began + PATIENCE

        caller.loop.run_until_complete(in_time())
        return

    def in_thread() -> None:
        with contextlib.suppress(Exception):
            function()

    thread = threading.Thread(target=in_thread, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive(), "it does not end"


def open_two(caller: Caller) -> None:
    """Fill the pool with two idle connections."""

    def work() -> None:
        first, second = caller.engine.connect(), caller.engine.connect()
        for connection in (first, second):
            connection.execute(text("select 1"))
            connection.close()

    caller.run(work)


def all_places_free(caller: Caller, proxy: FaultProxy) -> None:
    """Check, with the server back, that both slots have working connections."""
    proxy.mode = "pass"
    pool: Any = caller.engine.pool

    def done() -> bool:
        caller.run(lambda: None)  # an iteration of the event loop, if there is one
        stats = pool.poolkit.stats()
        return stats.closing == 0 and pool.checkedout() == 0

    until(done, "no place is taken")
    open_two(caller)


def test_connections_that_are_ended_in_the_background_leave_their_places(caller: Caller, proxy: FaultProxy) -> None:
    """As after max_lifetime or idle_timeout. The peer does not answer the close."""
    open_two(caller)
    proxy.mode = "silent"
    finished(caller, caller.engine.pool.poolkit.clear)  # type: ignore[attr-defined]
    all_places_free(caller, proxy)


def test_dispose_ends(caller: Caller, proxy: FaultProxy) -> None:
    """It leaves no open socket."""
    open_two(caller)
    proxy.mode = "silent"
    finished(caller, caller.engine.dispose)
    assert sockets_to(proxy.port) == 0
    all_places_free(caller, proxy)


def test_a_reset_on_return_ends(caller: Caller, proxy: FaultProxy) -> None:
    """The peer never answers the rollback of close()."""
    open_two(caller)

    def work() -> None:
        with caller.engine.connect() as connection:
            connection.execute(text("select 1"))
            proxy.mode = "silent"

    finished(caller, work)
    all_places_free(caller, proxy)


def test_a_dbapi_connection_in_a_transaction_comes_back(caller: Caller, proxy: FaultProxy) -> None:
    """With ``raw_connection()`` the pool does the reset."""
    open_two(caller)

    def work() -> None:
        connection = caller.engine.raw_connection()
        cursor = connection.cursor()
        cursor.execute("select 1")
        cursor.close()
        proxy.mode = "silent"
        connection.close()

    finished(caller, work)
    all_places_free(caller, proxy)


def test_an_invalidated_connection_leaves_its_place(caller: Caller, proxy: FaultProxy) -> None:
    """Its slot is free and reconnects."""
    open_two(caller)

    def work() -> None:
        with caller.engine.connect() as connection:
            connection.execute(text("select 1"))
            proxy.mode = "silent"
            connection.invalidate()

    finished(caller, work)
    all_places_free(caller, proxy)


@pytest.mark.parametrize("driver", OVER_TCP, indirect=True)
def test_a_cancelled_statement_leaves_its_place(caller: Caller, driver: str, proxy: FaultProxy) -> None:
    """The peer learns neither of the end of the statement nor of that of the connection."""
    open_two(caller)
    assert caller.loop is not None
    sleep = "select sleep(600)" if driver in MYSQL else "select pg_sleep(600)"
    began = threading.Event()

    def work() -> None:
        with caller.engine.connect() as connection:
            connection.execute(text("select 1"))
            began.set()
            connection.execute(text(sleep))

    async def cancelled(work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.ensure_future(work)
        while not began.is_set():
            await asyncio.sleep(0.01)
        proxy.mode = "silent"
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=PATIENCE)
        assert done, "the cancelled task does not end"

    caller.loop.run_until_complete(cancelled(greenlet_spawn(work)))
    all_places_free(caller, proxy)


@pytest.mark.parametrize("settings", [{"pool_pre_ping": True}, {"check_after_idle": 0.0}], ids=["pre_ping", "check"])
def test_a_ping_ends(caller: Caller, proxy: FaultProxy) -> None:
    """The peer of an idle connection is gone, and the address serves new connections."""
    open_two(caller)
    proxy.mode = "silent"
    sent = threading.Event()

    def back() -> None:  # the bytes sent meanwhile are lost: the old connections wait for ever
        sent.wait(PATIENCE)
        proxy.mode = "pass"

    asked = caller.engine.dialect.do_ping

    def ask(connection: Any) -> Any:
        threading.Timer(0.1, sent.set).start()
        return asked(connection)

    caller.engine.dialect.do_ping = ask  # type: ignore[method-assign]
    thread = threading.Thread(target=back)
    thread.start()
    answers: list[Any] = []

    def work() -> None:
        with caller.engine.connect() as connection:
            answers.append(connection.execute(text("select 1")).scalar())

    finished(caller, work)
    thread.join()
    assert answers == [1]
    all_places_free(caller, proxy)
