"""An exception between any two bytecodes of an adapter's own code loses no slot of the pool."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

import poolkit
import poolkit_adapters
from poolkit.testing.servers import PostgresServer
from poolkit_adapters.dbapi import PooledDatabase
from poolkit_adapters.psycopg import PoolkitConnectionPool
from tests.faults.interrupts import interrupted_at, place_of

SIZE = 2
ROOTS = tuple(os.path.dirname(str(package.__file__)) + os.sep for package in (poolkit, poolkit_adapters))


@pytest.mark.usefixtures("no_collector")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # connections that interrupted callers have dropped
def test_pooled_database(tmp_path: Path) -> None:
    with PooledDatabase(sqlite3, tmp_path / "file.db", max_size=SIZE, acquire_timeout=5.0) as database:
        database.poolkit._core.recheck_interval = 0.002  # seconds between audits, else 1

        def act() -> None:
            with database.connect() as connection:
                connection.execute("select 1").fetchone()

        act()
        at, place = 0, None
        while at == 0 or place is not None:
            at += 1
            place = interrupted_at(at, act, roots=ROOTS)
            try:
                held = [database.connect() for _ in range(SIZE)]
                for number, connection in enumerate(held):
                    assert connection.execute("select ?", (number,)).fetchone() == (number,)
                    connection.close()
            except BaseException as error:
                raise AssertionError(f"bytecode {at}, {place_of(place)}: {error!r}") from error
        assert at > 200
        database.poolkit.check_books()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # as above
@pytest.mark.parametrize("end", ["clean", "in a transaction", "with a reset"])
def test_psycopg(postgres: PostgresServer, end: str) -> None:
    """A connection is between the engine and its caller for a few bytecodes only. Elsewhere its slot comes back."""
    reset = (lambda connection: None) if end == "with a reset" else None
    with PoolkitConnectionPool(postgres.url, min_size=0, max_size=40, timeout=5.0, reset=reset, open=True) as pool:

        def act() -> None:
            connection = pool.getconn()
            if end == "in a transaction":
                connection.execute("select 1")
            pool.putconn(connection)

        act()
        at, place, lost = 0, None, []
        while at == 0 or place is not None:
            at += 1
            place = interrupted_at(at, act, roots=ROOTS[1:])
            pool.poolkit.run_due()  # reads what finalizers have reported
            if pool.poolkit.stats().in_use > len(lost):
                lost.append(place_of(place))
                assert len(lost) < 30, lost
        assert at > 100
