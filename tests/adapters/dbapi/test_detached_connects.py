"""Connects in threads of the pool: the caller's context, one deadline, the limit; modules bound to a thread."""

from __future__ import annotations

import contextvars
import sqlite3
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import psycopg
import pytest

import poolkit
from poolkit import Setting
from poolkit.testing.servers import PostgresServer
from poolkit_adapters.dbapi import PooledDatabase
from tests.faults.proxy import FaultProxy
from tests.support.waiting import until

PLACE = contextvars.ContextVar("PLACE", default="nowhere")
SOON = 0.3


def together(count: int, work: Callable[[], object]) -> list[BaseException]:
    """Run ``work`` in so many threads and return the errors."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def server_behind(proxy: FaultProxy, postgres: PostgresServer) -> str:
    return postgres.url.replace(f":{postgres.port}", f":{proxy.port}")


def test_a_connect_runs_in_the_context_of_its_caller(postgres: PostgresServer) -> None:
    where: list[tuple[str, int]] = []
    PLACE.set("here")
    with PooledDatabase(
        psycopg, postgres.url, setup=lambda connection: where.append((PLACE.get(), threading.get_ident()))
    ) as db:
        db.connect().close()
        assert db.poolkit.describe()["connect_in_caller"] == Setting(False, "default")
    [(place, thread)] = where
    assert place == "here"
    assert thread != threading.get_ident()


@pytest.mark.parametrize("given", [{"connect_in_caller": True}, {}])
def test_sqlite_connects_in_its_caller(given: dict[str, Any], tmp_path: Any) -> None:
    threads: list[int] = []
    with PooledDatabase(
        sqlite3, tmp_path / "x.db", setup=lambda connection: threads.append(threading.get_ident()), **given
    ) as db:
        db.connect().close()
        source = "keyword" if given else "default for sqlite3"
        assert db.poolkit.describe()["connect_in_caller"] == Setting(True, source)
    assert threads == [threading.get_ident()]


def test_the_caller_gets_its_error_at_its_deadline_and_the_connect_serves_the_next(
    postgres: PostgresServer, fault_proxy: Callable[..., FaultProxy]
) -> None:
    proxy = fault_proxy(postgres.host, postgres.port)
    proxy.mode = "hold"
    with PooledDatabase(psycopg, server_behind(proxy, postgres), max_size=1) as db:
        with pytest.raises(psycopg.OperationalError) as caught:
            db.connect(timeout=SOON)
        assert isinstance(caught.value, poolkit.AcquireTimeout)
        assert db.stats().connecting == 1
        proxy.mode = "pass"
        with db.connect() as connection:
            assert connection.cursor().execute("SELECT 1").fetchone() == (1,)
        assert proxy.accepted == 1


def test_each_caller_has_an_error_of_its_own(postgres: PostgresServer) -> None:
    with PooledDatabase(psycopg, postgres.url, connect_kwargs={"dbname": "no such database"}, max_size=4) as db:
        errors = together(6, db.connect)
    assert len({id(error) for error in errors}) == 6
    for error in errors:
        assert isinstance(error, psycopg.OperationalError)
        assert isinstance(error, poolkit.ConnectFailed)
        assert isinstance(error.__cause__, psycopg.OperationalError)
        assert "no such database" in str(error)


def test_never_more_sessions_than_the_limit(postgres: PostgresServer) -> None:
    name, ended = "dbapi-sessions", threading.Event()
    seen: list[int] = []
    surplus: list[list[int]] = []

    def sample() -> None:
        with psycopg.connect(postgres.url, autocommit=True) as own:
            while not ended.is_set():
                query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
                seen.append(own.execute(query, [name]).fetchone()[0])  # type: ignore[index]
                # the server needs a moment to end a session that its client has closed
                if len(seen) > 500 and min(seen[-500:]) > 3:
                    surplus.append(seen[-500:])

    sampler = threading.Thread(target=sample)
    sampler.start()
    with PooledDatabase(psycopg, postgres.url, connect_kwargs={"application_name": name}, max_size=3) as db:

        def work() -> None:
            for turn in range(10):
                try:
                    db.connect(timeout=0.001 * turn).close()
                except poolkit.AcquireTimeout:
                    db.poolkit.clear()

        assert together(6, work) == []
        until(lambda: db.stats().connecting == 0)
    ended.set()
    sampler.join()
    assert surplus == []


class Bound(ModuleType):
    """A module whose connect() works in one thread only."""

    threadsafety, paramstyle, apilevel = 1, "qmark", "2.0"
    Error = InterfaceError = DatabaseError = OperationalError = ProgrammingError = sqlite3.OperationalError

    def __init__(self) -> None:
        super().__init__("bound")
        self.home = threading.get_ident()

    def connect(self, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != self.home:
            raise sqlite3.OperationalError("objects may only be created in the main thread")
        return sqlite3.connect(":memory:", check_same_thread=False)


def test_a_module_that_needs_its_thread() -> None:
    with PooledDatabase(Bound(), max_size=2) as db:
        with pytest.raises(sqlite3.OperationalError, match=r"main thread; .* set connect_in_caller=True") as caught:
            db.connect()
        assert isinstance(caught.value, poolkit.ConnectFailed)
    with PooledDatabase(Bound(), max_size=2, connect_in_caller=True) as db:
        db.connect().close()
