"""A statement of psycopg is cancelled or interrupted, under SQLAlchemy and DB-API, and its server does not learn of it.

The same for psycopg's own pools: ``tests/adapters/psycopg/test_endings.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import TimeoutError as NoConnection
from sqlalchemy.ext.asyncio import create_async_engine

from poolkit import AcquireTimeout
from poolkit.testing.servers import PostgresServer
from poolkit_adapters import _psycopg_ending as ending
from poolkit_adapters.dbapi import PooledDatabase
from poolkit_adapters.psycopg import AsyncPoolkitConnectionPool, PoolkitCluster, PoolkitConnectionPool
from poolkit_adapters.sqlalchemy import AsyncPoolkitPool, PoolkitPool
from tests.faults.proxy import FaultProxy
from tests.support.ctrl_c import ctrl_c_when
from tests.support.waiting import PATIENCE, until

SLEEP = "select pg_sleep(3600)"
RUNNING = "select pid from pg_stat_activity where application_name = %s and state = 'active' and query = %s"


class Driver:
    """psycopg with a pool of one connection, in threads. ``call`` runs a method."""

    def __init__(self, server: PostgresServer, proxy: FaultProxy, application: str, check_timeout: float) -> None:
        self.address = {**server.dsn, "host": proxy.host, "port": proxy.port, "application_name": application}
        self.url = make_url(server.sqlalchemy_url("psycopg")).set(
            host=proxy.host, port=proxy.port, query={"application_name": application}
        )
        self.limits: dict[str, Any] = {"check_timeout": check_timeout, "acquire_timeout": 3 * PATIENCE}
        self.open()

    def open(self) -> None:
        raise NotImplementedError

    def interrupted(self, condition: Callable[[], object]) -> None:
        """Start a long statement, and interrupt it when ``condition()`` is true."""
        with ctrl_c_when(condition):
            self.statement(SLEEP)

    def statement(self, statement: str, timeout: float = PATIENCE) -> None:
        """Run a statement on a connection of the pool."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class DBAPI(Driver):
    def open(self) -> None:
        self.database = PooledDatabase(psycopg, connect_kwargs=self.address, max_size=1, **self.limits)
        self.engine: Any = self.database.poolkit

    def statement(self, statement: str, timeout: float = PATIENCE) -> None:
        with contextlib.closing(self.database.connect(timeout)) as connection:
            connection.cursor().execute(statement)

    def close(self) -> None:
        self.database.close()


class SQLAlchemy(Driver):
    def open(self) -> None:
        self.made = create_engine(self.url, poolclass=PoolkitPool, pool_size=1, max_overflow=0, **self.limits)
        self.engine = self.made.pool.poolkit  # type: ignore[attr-defined]

    def statement(self, statement: str, timeout: float = PATIENCE) -> None:
        self.engine.reconfigure(acquire_timeout=timeout)
        with self.made.connect() as connection:
            connection.execute(text(statement))

    def close(self) -> None:
        self.made.dispose()


class AsyncSQLAlchemy(Driver):
    def open(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.made = create_async_engine(
            self.url, poolclass=AsyncPoolkitPool, pool_size=1, max_overflow=0, **self.limits
        )
        self.engine = self.made.pool.poolkit  # type: ignore[attr-defined]

    def interrupted(self, condition: Callable[[], object]) -> None:
        async def interrupt() -> None:
            task = asyncio.ensure_future(self._statement(SLEEP))
            while not condition():
                await asyncio.sleep(0.005)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(task, PATIENCE)

        self.loop.run_until_complete(interrupt())

    async def _statement(self, statement: str) -> None:
        async with self.made.connect() as connection:
            await connection.execute(text(statement))

    def statement(self, statement: str, timeout: float = PATIENCE) -> None:
        self.engine.reconfigure(acquire_timeout=timeout)
        self.loop.run_until_complete(self._statement(statement))

    def close(self) -> None:
        self.loop.run_until_complete(self.made.dispose())
        self.loop.close()


DRIVERS = [DBAPI, SQLAlchemy, AsyncSQLAlchemy]


@pytest.fixture
def proxy(fault_proxy: Callable[[str, int], FaultProxy], postgres: PostgresServer) -> FaultProxy:
    return fault_proxy(postgres.host, postgres.port)


@pytest.fixture
def application() -> str:
    return f"test-{uuid.uuid4()}"


@pytest.fixture
def running(postgres: PostgresServer, application: str) -> Iterator[Callable[[], list[int]]]:
    """Return the process ids of the sessions of this test that run the long statement. They are ended after the test.

    Others have not begun it: SQLAlchemy's first connection makes a few short queries of its own.
    """
    with postgres.connect() as admin:

        def running() -> list[int]:
            return [pid for (pid,) in admin.execute(RUNNING, (application, SLEEP))]

        yield running
        for pid in running():
            admin.execute("select pg_terminate_backend(%s)", (pid,))


@pytest.fixture
def make(
    postgres: PostgresServer, proxy: FaultProxy, application: str
) -> Iterator[Callable[[type[Driver], float], Driver]]:
    made: list[Driver] = []

    def make(kind: type[Driver], check_timeout: float) -> Driver:
        made.append(kind(postgres, proxy, application, check_timeout))
        return made[-1]

    yield make
    proxy.mode = "pass"
    for driver in made:
        driver.close()


@pytest.mark.parametrize("kind", DRIVERS)
def test_a_caller_does_not_wait_for_psycopgs_own_limits_when_its_server_is_silent(
    kind: type[Driver],
    make: Callable[..., Driver],
    proxy: FaultProxy,
    running: Callable[[], list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """psycopg waits up to 11 s; in this test without end."""
    driver = make(kind, 0.1)
    driver.statement("select 1")
    asked: list[Any] = []
    monkeypatch.setattr(ending, "CANCEL_TIMEOUT", 0.1)
    monkeypatch.setattr(psycopg.Connection, "cancel_safe", lambda self, **_: asked.append(self))
    monkeypatch.setattr(psycopg.AsyncConnection, "cancel_safe", lambda self, **_: asked.append(self) or asyncio.Event())

    def silent() -> bool:
        if not running():
            return False
        proxy.mode = "silent"
        return True

    driver.interrupted(silent)
    assert asked == [], "psycopg's own request, which has its own limit"
    proxy.mode = "pass"
    driver.statement("select 2")
    driver.engine.check_books()


@pytest.mark.parametrize("kind", DRIVERS)
def test_a_session_that_goes_on_keeps_its_place(
    kind: type[Driver],
    make: Callable[..., Driver],
    proxy: FaultProxy,
    running: Callable[[], list[int]],
    postgres: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The cancel request is lost, so the statement and its session go on."""
    driver = make(kind, 2 * PATIENCE)
    driver.statement("select 1")
    monkeypatch.setattr(ending, "CANCEL_TIMEOUT", 0.1)

    def swallowed() -> bool:
        proxy.swallow = bool(running())
        return proxy.swallow

    driver.interrupted(swallowed)
    proxy.swallow = False
    (old,) = running()
    with pytest.raises((AcquireTimeout, NoConnection)):
        driver.statement("select 2", timeout=0.5)
    assert driver.engine.stats().size == 1
    with postgres.connect() as admin:
        admin.execute("select pg_terminate_backend(%s)", (old,))
    driver.statement("select 3")
    assert running() == []


@pytest.mark.parametrize("kind", DRIVERS)
def test_a_place_is_kept_for_check_timeout_only(
    kind: type[Driver],
    make: Callable[..., Driver],
    proxy: FaultProxy,
    running: Callable[[], list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = make(kind, 0.1)
    driver.statement("select 1")
    monkeypatch.setattr(ending, "CANCEL_TIMEOUT", 0.1)

    def swallowed() -> bool:
        proxy.swallow = bool(running())
        return proxy.swallow

    driver.interrupted(swallowed)
    proxy.swallow = False
    assert len(running()) == 1
    driver.statement("select 2")


def test_a_statement_that_is_cancelled_again_and_again_is_stopped(
    make: Callable[..., Driver], proxy: FaultProxy, running: Callable[[], list[int]]
) -> None:
    """anyio cancels at each step, so psycopg drops its cancel request and closes the connection."""
    driver = make(AsyncSQLAlchemy, PATIENCE)
    assert isinstance(driver, AsyncSQLAlchemy)

    async def work() -> None:
        task = asyncio.ensure_future(driver._statement(SLEEP))
        while not running():
            await asyncio.sleep(0.005)
        proxy.swallow = True  # that request
        task.cancel()
        while not proxy.swallowed:
            await asyncio.sleep(0.005)
        proxy.swallow = False
        while not task.done():
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task

    driver.loop.run_until_complete(work())
    until(lambda: not running(), "the statement has been stopped")
    driver.statement("select 1")


class _Failed(Exception):
    """An error of the application."""


def _sync(enter: Callable[[], Any], proxy: FaultProxy) -> None:
    with pytest.raises(_Failed), enter() as connection:
        connection.execute("select 1") if hasattr(connection, "execute") else connection.cursor().execute("select 1")
        proxy.mode = "silent"
        raise _Failed


@pytest.mark.parametrize("kind", ["pool", "cluster", "async", "dbapi"])
def test_a_block_that_fails_does_not_wait_for_its_rollback(
    kind: str, proxy: FaultProxy, postgres: PostgresServer
) -> None:
    """The server has vanished meanwhile. The caller gets the error of the block."""
    conninfo = psycopg.conninfo.make_conninfo(postgres.url, port=proxy.port)
    limits: dict[str, Any] = {"min_size": 0, "max_size": 1, "check_timeout": 0.1}

    async def in_loop() -> None:
        async with AsyncPoolkitConnectionPool(conninfo, open=False, **limits) as pool:
            with pytest.raises(_Failed):
                async with pool.connection() as connection:
                    await connection.execute("select 1")
                    proxy.mode = "silent"
                    raise _Failed
            proxy.mode = "pass"

    def work() -> None:
        if kind == "pool":
            with PoolkitConnectionPool(conninfo, open=False, **limits) as pool:
                _sync(pool.connection, proxy)
                proxy.mode = "pass"
        elif kind == "cluster":
            with PoolkitCluster([conninfo], **limits) as cluster:
                _sync(cluster.connection, proxy)
                proxy.mode = "pass"
        elif kind == "dbapi":
            del limits["min_size"]
            with PooledDatabase(psycopg, conninfo, **limits) as database:
                _sync(database.connect, proxy)
                proxy.mode = "pass"
        else:
            asyncio.run(in_loop())

    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive(), "it does not end"
    assert failures == []
