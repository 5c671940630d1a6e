"""PooledDatabase with sqlite3: the interface of PEP 249, and what a pool adds."""

from __future__ import annotations

import gc
import pickle
import sqlite3
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import poolkit
from poolkit_adapters.dbapi import PooledDatabase
from tests.support.waiting import leak_warning


@pytest.fixture
def db(tmp_path: Path) -> Iterator[PooledDatabase]:
    with PooledDatabase(sqlite3, tmp_path / "file.db", max_size=2, acquire_timeout=5.0) as database:
        with database.connect() as connection:
            connection.execute("create table t (x integer)")
        yield database


def real(connection: Any) -> Any:
    return connection._lease.connection


def test_the_one_line_change_reuses_the_connection(db: PooledDatabase) -> None:
    connection = db.connect()
    first = real(connection)
    connection.execute("insert into t values (1)")
    connection.commit()
    connection.close()
    connection = db.connect()
    assert real(connection) is first
    assert connection.execute("select x from t").fetchall() == [(1,)]
    connection.close()
    assert db.stats().connects == 1


def test_what_was_left_open_is_rolled_back_on_return(db: PooledDatabase) -> None:
    connection = db.connect()
    connection.cursor().execute("insert into t values (1)")
    connection.close()
    with db.connect() as connection:
        assert connection.execute("select count(*) from t").fetchone() == (0,)


def test_the_block_commits_or_rolls_back(db: PooledDatabase) -> None:
    with db.connect() as connection:
        connection.execute("insert into t values (1)")
    with pytest.raises(ZeroDivisionError), db.connect() as connection:
        connection.execute("insert into t values (2)")
        raise ZeroDivisionError
    with db.connect() as connection:
        assert connection.execute("select x from t").fetchall() == [(1,)]
    assert db.stats().connects == 1


def test_use_after_close_is_the_modules_error_and_poolkits(db: PooledDatabase) -> None:
    connection = db.connect()
    cursor = connection.cursor()
    cursor.execute("select 1")
    connection.close()
    connection.close()  # does nothing
    for use in (connection.cursor, connection.commit, lambda: cursor.fetchone(), lambda: cursor.execute("x")):
        for kind in (sqlite3.InterfaceError, sqlite3.ProgrammingError, sqlite3.Error, poolkit.UsageError):
            with pytest.raises(kind, match="returned to its pool"):
                use()


def test_a_cursor_cannot_read_from_the_connection_of_the_next_user(db: PooledDatabase) -> None:
    first = db.connect()
    with db.connect() as connection:
        connection.executemany("insert into t values (?)", [(n,) for n in range(5)])
    cursor = first.execute("select x from t")
    rows = iter(cursor)
    next(rows)
    first.close()
    with db.connect(), pytest.raises(sqlite3.ProgrammingError):
        next(rows)


def test_attributes_that_were_set_are_put_back(db: PooledDatabase) -> None:
    with db.connect() as connection:
        connection.row_factory = sqlite3.Row
        connection.isolation_level = None
        assert connection.execute("select 1 as one").fetchone()["one"] == 1
    with db.connect() as connection:
        assert connection.row_factory is None
        assert connection.isolation_level == ""
    assert db.stats().connects == 1


def test_an_unused_connection_is_returned_without_a_word(tmp_path: Path) -> None:
    said = []
    with PooledDatabase(sqlite3, tmp_path / "file.db", setup=lambda c: c.set_trace_callback(said.append)) as db:
        db.connect().close()
        assert said == []


def test_a_cursor_keeps_the_lease_alive(db: PooledDatabase) -> None:
    cursor = db.connect().cursor()
    gc.collect()
    assert cursor.execute("select 1").fetchone() == (1,)
    assert db.stats().in_use == 1
    cursor.connection.close()
    assert db.stats().in_use == 0


def test_13_a_dropped_connection_frees_its_place_and_is_reported(db: PooledDatabase) -> None:
    def drop() -> None:
        db.connect()

    with leak_warning("dropped without close"):
        drop()
        gc.collect()
        first, second = db.connect(timeout=5), db.connect(timeout=5)
    first.close()
    second.close()
    assert db.stats().leaks == 1


def test_exhaustion_is_an_operational_error_and_tells_the_state(db: PooledDatabase) -> None:
    with db.connect(), db.connect():
        for kind in (sqlite3.OperationalError, poolkit.AcquireTimeout, TimeoutError):
            with pytest.raises(kind, match=r"in use 2/2"):
                db.connect(timeout=0)


def test_a_database_that_cannot_be_opened_raises_at_once(tmp_path: Path) -> None:
    with PooledDatabase(sqlite3, tmp_path / "missing" / "file.db") as db:
        with pytest.raises(sqlite3.OperationalError, match="unable to open") as caught:
            db.connect()
    assert isinstance(caught.value, poolkit.ConnectFailed)
    assert type(caught.value.__cause__) is sqlite3.OperationalError


def test_a_closed_pool_is_an_interface_error(db: PooledDatabase) -> None:
    db.close()
    with pytest.raises(sqlite3.InterfaceError) as caught:
        db.connect()
    assert isinstance(caught.value, poolkit.PoolClosed)


def test_errors_survive_pickling(db: PooledDatabase) -> None:
    with db.connect(), db.connect(), pytest.raises(poolkit.AcquireTimeout) as caught:
        db.connect(timeout=0)
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is type(caught.value)
    assert str(again) == str(caught.value)


def test_connections_pass_from_thread_to_thread(db: PooledDatabase) -> None:
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for n in range(20):
                with db.connect() as connection:
                    connection.execute("insert into t values (?)", (n,))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert db.stats().connects <= 2
    with db.connect() as connection:
        assert connection.execute("select count(*) from t").fetchone() == (80,)


def test_interruption_in_mid_statement_discards_the_connection(db: PooledDatabase) -> None:
    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    connection = db.connect()
    first = real(connection)
    with pytest.raises(KeyboardInterrupt):
        connection._call(interrupt, "")
    connection.close()
    with db.connect() as connection:
        assert real(connection) is not first


def test_setup_runs_on_every_new_connection_and_reset_after_use(tmp_path: Path) -> None:
    seen: list[str] = []

    def setup(connection: sqlite3.Connection) -> None:
        seen.append("setup")
        connection.execute("pragma foreign_keys = on")

    with PooledDatabase(
        sqlite3, tmp_path / "file.db", setup=setup, reset=lambda c: seen.append("reset"), max_size=1
    ) as db:
        for _ in range(2):
            with db.connect() as connection:
                assert connection.execute("pragma foreign_keys").fetchone() == (1,)
    assert seen == ["setup", "reset", "reset"]


def test_a_failed_reset_closes_the_connection(tmp_path: Path) -> None:
    def reset(connection: sqlite3.Connection) -> None:
        raise ValueError

    with PooledDatabase(sqlite3, tmp_path / "file.db", reset=reset, max_size=1) as db:
        for _ in range(2):
            with db.connect() as connection:
                connection.execute("select 1")
        assert db.stats().connects == 2


def test_detach_makes_it_the_callers(db: PooledDatabase) -> None:
    connection = db.connect().detach()
    assert isinstance(connection, sqlite3.Connection)
    assert db.stats().size == 0 or db.stats().in_use == 0
    connection.close()


def test_names_of_the_module_are_at_hand(db: PooledDatabase) -> None:
    assert db.Error is sqlite3.Error
    assert db.paramstyle == "qmark"
    assert hasattr(db, "Binary")
    assert not hasattr(db, "nonsense")


def test_settings_and_arguments_are_distinguished(tmp_path: Path) -> None:
    with PooledDatabase(
        sqlite3, tmp_path / "file.db", max_size=3, timeout=0.1, connect_kwargs={"cached_statements": 7}
    ) as db:
        assert db.poolkit.config.max_size == 3
        with db.connect() as one, db.connect() as other:
            one.execute("begin immediate")
            with pytest.raises(sqlite3.OperationalError, match="locked"):  # the module's own timeout=0.1
                other.execute("begin immediate")


def module(**names: Any) -> Any:
    made: Any = types.ModuleType("fake_driver")
    made.__dict__.update({name: getattr(sqlite3, name) for name in dir(sqlite3) if name.endswith("Error")})
    made.__dict__.update({"connect": sqlite3.connect, "threadsafety": 1, "paramstyle": "qmark"} | names)
    return made


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PooledDatabase("sqlite3"), "the module itself"),  # type: ignore[arg-type]
        (lambda: PooledDatabase(types), "the module itself|not a PEP 249 module|has no attribute"),
        (lambda: PooledDatabase(module(threadsafety=0)), "threadsafety is 0"),
        (lambda: PooledDatabase(sqlite3, "x", check_same_thread=True), "check_same_thread=True"),
        (lambda: PooledDatabase(sqlite3, "x", connect_timeout=3), "knows of no connect timeout"),
        (lambda: PooledDatabase(sqlite3, "x", max_size=0), "max_size=0"),
        (lambda: PooledDatabase(sqlite3, "x", max_size=2, min_size=3), "min_size=3"),
        (lambda: PooledDatabase(sqlite3, "x", setup=1), "setup=1"),  # type: ignore[arg-type]
        (lambda: PooledDatabase(sqlite3, "x", check=1), "check=1"),  # type: ignore[arg-type]
        (lambda: PooledDatabase(sqlite3, "x", reset="commit"), "reset='commit'"),  # type: ignore[arg-type]
        (lambda: PooledDatabase(sqlite3, "x", uri=True, connect_kwargs={"uri": True}), "given twice"),
        (lambda: PooledDatabase(sqlite3, "x", connect_kwargs=3), "connect_kwargs: must be a dict"),  # type: ignore[arg-type]
    ],
)
def test_bad_input_is_one_clear_error_at_once(make: Any, words: str) -> None:
    with pytest.raises(poolkit.ConfigError, match=words):
        make()


@pytest.mark.parametrize("name", ["asyncpg", "aiosqlite"])
def test_an_asynchronous_module_is_refused(name: str) -> None:
    driver = pytest.importorskip(name)
    with pytest.raises(poolkit.ConfigError, match="asynchronous"):
        PooledDatabase(driver)


def test_an_unknown_asynchronous_module_is_refused_when_it_shows(tmp_path: Path) -> None:
    async def connect() -> None: ...

    def disguised() -> Any:
        return connect()

    with PooledDatabase(module(connect=disguised)) as db:
        with pytest.raises(poolkit.ConnectFailed, match="asynchronous"):
            db.connect()


def test_arguments_that_the_module_does_not_take_raise_at_once() -> None:
    with PooledDatabase(sqlite3, "x", nonsense=1) as db:
        with pytest.raises(sqlite3.OperationalError, match="nonsense"):
            db.connect()


def test_a_database_in_memory_for_each_connection_warns() -> None:
    with pytest.warns(poolkit.PoolConfigWarning, match="opens a separate database"):
        PooledDatabase(sqlite3, ":memory:").close()
    with PooledDatabase(sqlite3, ":memory:", max_size=1, idle_timeout=None, max_lifetime=None) as db:
        with db.connect() as connection:
            connection.execute("create table t (x)")
        with db.connect() as connection:
            assert connection.execute("select count(*) from t").fetchone() == (0,)
