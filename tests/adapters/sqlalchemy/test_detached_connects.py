"""The pool opens connections in threads of its own. What SQLAlchemy's users see of a connect stays the same."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import pytest
from sqlalchemy import event, exc, make_url, text

import poolkit
from poolkit.testing.servers import PostgresServer
from poolkit_adapters.sqlalchemy import PoolkitPool
from tests.faults.proxy import FaultProxy
from tests.support.waiting import PATIENCE, until

CALLERS = 50


@pytest.fixture
def through(postgres: PostgresServer) -> Iterator[FaultProxy]:
    proxy = FaultProxy(postgres.host, postgres.port).start()
    yield proxy
    proxy.mode = "pass"
    proxy.cut()
    proxy.stop()


def via(postgres: PostgresServer, proxy: FaultProxy) -> str:
    url = make_url(postgres.sqlalchemy_url("psycopg")).set(host=proxy.host, port=proxy.port)
    return url.render_as_string(hide_password=False)


def test_a_spike_that_the_open_connections_serve_opens_few_more(fake: Any) -> None:
    """50 callers on 5 connections; QueuePool opens one for each caller up to its limit."""
    slow = False

    def creator() -> Any:
        time.sleep(0.3 if slow else 0.2)  # the pool pauses for a part of the usual time between two connects
        return fake()

    pool = PoolkitPool(creator, pool_size=20, max_overflow=0, timeout=PATIENCE)
    with ThreadPoolExecutor(CALLERS) as threads:
        held = list(threads.map(lambda _: pool.connect(), range(5)))
        for connection in held:
            connection.close()
        slow = True
        together = threading.Barrier(CALLERS)

        def use(_: int) -> None:
            together.wait(PATIENCE)
            connection = pool.connect()
            time.sleep(0.001)
            connection.close()

        list(threads.map(use, range(CALLERS)))
    assert len(fake.made) + pool.poolkit.stats().connecting <= 5 + 2
    pool.dispose()


def test_events_come_in_order_and_see_the_caller_s_context(make_engine: Any) -> None:
    engine = make_engine(pool_size=1)
    seen: list[tuple[str, str, bool]] = []
    request: ContextVar[str] = ContextVar("request", default="none")
    caller = threading.current_thread()

    def note(name: str) -> Any:
        return lambda *_: seen.append((name, request.get(), threading.current_thread() is caller))

    for name in ("do_connect", "first_connect", "connect", "checkout", "engine_connect"):
        event.listen(engine, name, note(name))
    request.set("first")
    engine.connect().close()
    assert seen == [
        ("do_connect", "first", False), ("first_connect", "first", False), ("connect", "first", False),
        ("checkout", "first", True), ("engine_connect", "first", True),
    ]  # fmt: skip
    seen.clear()
    request.set("second")
    engine.pool.poolkit.clear()
    engine.connect().close()
    assert [name for name, _, _ in seen] == ["do_connect", "connect", "checkout", "engine_connect"]
    assert {context for _, context, _ in seen} == {"second"}


def test_each_waiting_caller_hears_of_a_failed_connect_with_an_error_of_its_own(
    make_engine: Any, postgres: PostgresServer
) -> None:
    engine = make_engine(make_url(postgres.sqlalchemy_url("psycopg")).set(database="nowhere"), pool_size=5)
    go = threading.Event()

    @event.listens_for(engine, "do_connect")
    def wait(*_: Any) -> None:
        go.wait(PATIENCE)

    failures: list[Any] = []

    def use() -> None:
        with pytest.raises(exc.OperationalError) as caught:
            engine.connect()
        failures.append(caught.value)

    threads = [threading.Thread(target=use) for _ in range(5)]
    for thread in threads:
        thread.start()
    until(lambda: engine.pool.poolkit.stats().waiting == 5)
    go.set()
    for thread in threads:
        thread.join(PATIENCE)
    for error in failures:
        assert isinstance(error, poolkit.ConnectFailed)
        assert isinstance(error.orig, engine.dialect.dbapi.OperationalError)
        assert isinstance(error.orig, poolkit.ConnectFailed)
        assert 'database "nowhere" does not exist' in str(error.orig)
    assert len({id(error) for error in failures}) == len({id(error.orig) for error in failures}) == 5


def test_the_deadline_bounds_the_wait_for_a_server_that_never_answers(
    make_engine: Any, postgres: PostgresServer, through: FaultProxy
) -> None:
    """The caller hears at its deadline. The connect goes on, and its connection serves the next caller."""
    engine = make_engine(via(postgres, through), pool_size=1, max_overflow=0, pool_timeout=0.2)
    through.mode = "hold"
    with pytest.raises(exc.TimeoutError) as caught:
        engine.connect()
    assert isinstance(caught.value, poolkit.AcquireTimeout)
    assert engine.pool.poolkit.stats().connecting == 1
    through.mode = "pass"
    until(lambda: engine.pool.checkedin() == 1)
    with engine.connect() as connection:
        assert connection.scalar(text("select 42")) == 42
    assert engine.pool.poolkit.stats().connects == 1
