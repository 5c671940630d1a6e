"""Each error of the DB-API adapter happens, under several modules, and is poolkit's and the module's."""

from __future__ import annotations

import sqlite3
import types
from pathlib import Path
from typing import Any

import psycopg
import pymysql
import pytest

import poolkit
from poolkit import BreakerConfig, ConfigError
from poolkit.testing.servers import PostgresServer
from poolkit_adapters._errors import MISSING, Row
from poolkit_adapters.dbapi import PooledDatabase
from poolkit_adapters.dbapi._errors import errors_of
from tests.adapters.errors.walk import check
from tests.support.waiting import until

MODULES: dict[str, Any] = {"sqlite3": sqlite3, "psycopg": psycopg}


class Place:
    """Creates pools of one module on one database."""

    def __init__(self, module: Any, server: PostgresServer, folder: Path) -> None:
        self.module = module
        self.sqlite = module is sqlite3
        self._where = str(folder / "app.db") if self.sqlite else server.url

    def pool(self, where: str = "", **settings: Any) -> PooledDatabase:
        return PooledDatabase(self.module, where or self._where, **{"name": "orders", "max_size": 1, **settings})

    @property
    def nobody(self) -> str:
        """Return a database that cannot be reached."""
        return "/no/such/folder/app.db" if self.sqlite else "host=127.0.0.1 port=1"


def exhausted(place: Place) -> None:
    with place.pool() as pool, pool.connect():
        pool.connect(0.01)


def down(place: Place) -> None:
    if place.sqlite:
        pytest.skip("a file that cannot be opened is fatal")
    with place.pool(place.nobody) as pool:
        pool.connect(0.3)


def fatal(place: Place) -> None:
    with place.pool(place.nobody) if place.sqlite else place.pool(connect_kwargs={"dbname": "nosuch"}) as pool:
        pool.connect(60)


def open_breaker(place: Place) -> None:
    with place.pool(place.nobody, breaker=BreakerConfig(failure_threshold=1)) as pool:
        with pytest.raises(place.module.OperationalError):
            pool.connect(0.3)
        pool.connect(60)


def full(place: Place) -> None:
    with place.pool(max_waiting=0) as pool, pool.connect():
        pool.connect()


def suspended(place: Place) -> None:
    with place.pool() as pool:
        pool.poolkit.suspend(fail_fast=True)
        pool.connect()


def closed(place: Place) -> None:
    with place.pool() as pool:
        pass
    pool.connect()


def overdue(place: Place) -> None:
    with place.pool(leak_after=0.01, on_leak="raise") as pool:
        connection = pool.connect()
        until(lambda: pool.stats().leaks)
        connection.close()


def used_after_close(place: Place) -> None:
    with place.pool() as pool:
        connection = pool.connect()
        connection.close()
        connection.cursor()


def bad_setting(place: Place) -> None:
    place.pool(max_size=-1)


SCENARIOS: dict[type, tuple[Any, str]] = {
    poolkit.AcquireTimeout: (exhausted, "in use 1/1"),
    poolkit.ServerUnavailable: (down, "last connect error"),
    poolkit.ConnectFailed: (fatal, ""),  # in the module's words
    poolkit.CircuitOpen: (open_breaker, "circuit open"),
    poolkit.PoolBusy: (full, "max_waiting=0"),
    poolkit.PoolSuspended: (suspended, "suspended"),
    poolkit.PoolClosed: (closed, "closed"),
    poolkit.LeaseOverdue: (overdue, "leak_after=0.01"),
    poolkit.UsageError: (used_after_close, "returned to its pool"),
    ConfigError: (bad_setting, "max_size=-1"),
}
ROWS = [row for row in errors_of(sqlite3) if row is not MISSING]


def test_every_row_has_a_scenario() -> None:
    assert {row.bases[0] for row in ROWS} == set(SCENARIOS)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("base", [row.bases[0] for row in ROWS], ids=lambda kind: kind.__name__)
def test_it_happens_and_is_both(base: type, name: str, postgres: PostgresServer, tmp_path: Path) -> None:
    row = next(row for row in errors_of(MODULES[name]) if row.bases[0] is base)
    scenario, word = SCENARIOS[base]
    with pytest.raises(row.bases[-1]) as caught:
        scenario(Place(MODULES[name], postgres, tmp_path))
    check(caught.value, row, word, *(["orders"] if base not in (ConfigError, poolkit.ConnectFailed) else []))


class Refusing(types.ModuleType):
    """A module whose errors have attributes, like those of most modules."""

    threadsafety, paramstyle, apilevel = 1, "qmark", "2.0"

    class Error(Exception):
        sqlstate = ""

    class OperationalError(Error):
        pass

    class DatabaseError(Error):
        pass

    InterfaceError = ProgrammingError = DatabaseError

    def __init__(self, kind: type[Exception]) -> None:
        super().__init__("refusing")
        self._kind = kind

    def connect(self, *args: Any, **kwargs: Any) -> Any:
        error: Any = self._kind(1045, "Access denied for user 'app'")
        error.sqlstate = "28000"
        raise error


@pytest.mark.parametrize("in_caller", [False, True])
@pytest.mark.parametrize("kind", [Refusing.OperationalError, Refusing.DatabaseError])
def test_the_error_of_a_connect_has_what_the_module_gave_it(kind: Any, in_caller: bool) -> None:
    """Handlers read its arguments and attributes, and catch the module's class or OperationalError."""
    with PooledDatabase(Refusing(kind), name="orders", connect_in_caller=in_caller) as pool:
        with pytest.raises(kind) as first, pool.connect(60):
            pass
        with pytest.raises(Refusing.OperationalError) as second, pool.connect(60):
            pass
    for caught in (first, second):
        error: Any = caught.value
        assert isinstance(error, poolkit.ConnectFailed)
        assert (error.args, error.sqlstate, error.fatal) == ((1045, "Access denied for user 'app'"), "28000", True)
        assert type(error.__cause__) is kind
    assert first.value is not second.value


def test_an_error_of_a_statement_is_the_modules_alone(tmp_path: Path) -> None:
    with PooledDatabase(sqlite3, str(tmp_path / "app.db")) as pool, pool.connect() as connection:
        with pytest.raises(sqlite3.OperationalError) as caught:
            connection.execute("no statement")
        assert type(caught.value) is sqlite3.OperationalError


def test_a_lease_that_is_reclaimed_ends_in_an_error_of_the_module(postgres: PostgresServer) -> None:
    with PooledDatabase(psycopg, postgres.url, leak_after=60, on_leak="reclaim", max_size=1) as pool:
        with pytest.raises(psycopg.OperationalError):
            with pool.connect() as connection:
                connection.execute("select 1")
                pool.poolkit.reconfigure(leak_after=0.01)
                until(lambda: connection._lease.connection.closed)
        pool.poolkit.reconfigure(leak_after=60)
        with pool.connect() as connection:
            assert connection.execute("select 1").fetchone() == (1,)


def test_a_lease_that_lasted_too_long_does_not_hide_the_error_of_its_block(tmp_path: Path) -> None:
    with PooledDatabase(sqlite3, str(tmp_path / "app.db"), leak_after=0.01, on_leak="raise") as pool:
        with pytest.raises(KeyError):
            with pool.connect():
                until(lambda: pool.stats().leaks)
                raise KeyError("mine")


def test_pymysqls_errors_are_both_as_well() -> None:
    pool = PooledDatabase(pymysql, connect_kwargs={"host": "127.0.0.1", "port": 1})
    with pool, pytest.raises(pymysql.err.OperationalError) as caught:
        pool.connect(2)  # on a busy machine the refusal takes time
    assert isinstance(caught.value, poolkit.ServerUnavailable)


def test_classes_that_cannot_be_timeouts_too_are_of_the_nearest_that_can() -> None:
    class Odd(UnicodeDecodeError):
        """Has a layout of its own that excludes OSError's, as psycopg2's errors have."""

    names = dict.fromkeys(("Error", "InterfaceError", "OperationalError", "ProgrammingError"), Odd)
    module: Any = types.ModuleType("odd_driver")
    module.__dict__.update(names)
    row: Row = next(row for row in errors_of(module) if row.bases[0] is poolkit.ServerUnavailable)
    assert issubclass(row.error, Odd)
    assert issubclass(row.error, poolkit.ConnectFailed)
    assert not issubclass(row.error, OSError)
    timeout = next(row for row in errors_of(module) if row.bases[0] is poolkit.AcquireTimeout)
    assert issubclass(timeout.error, Odd)
    assert issubclass(timeout.error, poolkit.PoolError)
