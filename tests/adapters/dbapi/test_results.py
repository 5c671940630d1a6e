"""Whatever a connection or a cursor has returned ends with the lease, and cannot disturb the next user."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

import poolkit
from poolkit.testing.servers import PostgresServer
from poolkit_adapters.dbapi import PooledDatabase
from tests.faults.proxy import FaultProxy
from tests.support.waiting import until


@pytest.fixture(params=["file", "memory"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PooledDatabase]:
    place = ":memory:" if request.param == "memory" else str(tmp_path / "blobs.db")
    with PooledDatabase(sqlite3, place, max_size=1) as database:
        with database.connect() as connection:
            connection.execute("create table blobs (id integer primary key, content blob)")
            connection.execute("insert into blobs values (1, zeroblob(10))")
        yield database


@pytest.mark.skipif(not hasattr(sqlite3.Connection, "blobopen"), reason="blobopen came with Python 3.11")
@pytest.mark.parametrize("readonly", [True, False])
def test_a_blob_is_closed_with_its_lease(blobs: PooledDatabase, readonly: bool) -> None:
    connection = blobs.connect()
    blob = connection.blobopen("blobs", "content", 1, readonly=readonly)
    assert isinstance(blob, sqlite3.Blob)
    connection.close()
    with pytest.raises(sqlite3.Error, match="closed blob"):
        blob.read(1)
    with blobs.connect() as other:
        other.execute("insert into blobs values (2, 'other')")
        assert other.execute("select count(*) from blobs").fetchone() == (2,)
    assert blobs.stats().connects == 1


@pytest.mark.parametrize("begun", [True, False])
def test_a_dump_ends_with_its_lease(blobs: PooledDatabase, begun: bool) -> None:
    connection = blobs.connect()
    lines = connection.iterdump()
    if begun:
        next(lines)
    connection.close()
    with blobs.connect() as other:
        other.execute("insert into blobs values (2, 'secret')")
        with pytest.raises(poolkit.UsageError, match="already returned"):
            list(lines)


def test_an_interrupted_close_of_a_cursor_gives_the_slot_back(tmp_path: Path) -> None:
    class Interrupted(sqlite3.Cursor):
        def close(self) -> None:
            raise KeyboardInterrupt

    with PooledDatabase(sqlite3, str(tmp_path / "data.db"), max_size=1) as database:
        connection = database.connect()
        cursor = connection.cursor(Interrupted)
        cursor.execute("select 1")
        with pytest.raises(KeyboardInterrupt) as kept:  # with its traceback, and so the lease
            connection.close()
        assert kept.value.__traceback__ is not None
        assert database.stats().in_use == 0
        with database.connect(timeout=60) as other:
            assert other.execute("select 1").fetchone() == (1,)


@pytest.mark.parametrize("error", [None, RuntimeError])
def test_an_interrupted_statement_closes_the_connection_without_another_call_of_the_module(
    tmp_path: Path, error: type[Exception] | None
) -> None:
    calls: list[str] = []

    class Cursor(sqlite3.Cursor):
        def execute(self, *args: Any) -> Any:
            raise KeyboardInterrupt

        def close(self) -> None:
            calls.append("close of the cursor")

    class Connection(sqlite3.Connection):
        def rows(self) -> Iterator[int]:
            try:
                yield 1
                yield 2
            finally:
                calls.append("end of the iterator")

        @contextlib.contextmanager
        def transaction(self) -> Iterator[None]:
            try:
                yield
            finally:
                calls.append("end of the block")

        def rollback(self) -> None:
            calls.append("rollback")

        def close(self) -> None:
            calls.append("close")
            super().close()

    with PooledDatabase(sqlite3, str(tmp_path / "data.db"), max_size=1, factory=Connection) as database:
        connection = database.connect()
        cursor, rows, block = connection.cursor(Cursor), connection.rows(), connection.transaction()
        assert next(rows) == 1
        block.__enter__()
        with contextlib.suppress(RuntimeError), connection:
            with pytest.raises(KeyboardInterrupt):
                cursor.execute("select 1")
            if error is not None:
                raise error
            connection.close()
        until(lambda: "close" in calls, "it is closed")
        assert calls[0] == "close"
        with pytest.raises(poolkit.UsageError, match="already returned"):
            next(rows)
        with pytest.raises(poolkit.UsageError, match="already returned"):
            cursor.execute("select 1")
        with pytest.raises(poolkit.UsageError, match="already returned"):
            block.__exit__(None, None, None)


def test_a_reader_that_a_connection_fetches_is_the_modules_own_and_closed_at_the_return(tmp_path: Path) -> None:
    class Reader:  # as pyarrow's, which other libraries ask for its type
        open = True

        def __next__(self) -> int:
            return 1

        def close(self) -> None:
            self.open = False

    class Connection(sqlite3.Connection):
        def fetch_reader(self) -> Reader:
            return Reader()

        def fetch_batches(self) -> Iterator[int]:
            yield from (1, 2)

    with PooledDatabase(sqlite3, str(tmp_path / "data.db"), max_size=1, factory=Connection) as database:
        connection = database.connect()
        reader, batches = connection.fetch_reader(), connection.fetch_batches()
        assert type(reader) is Reader
        assert reader.open
        assert next(batches) == 1
        connection.close()
        assert not reader.open
        with pytest.raises(poolkit.UsageError, match="already returned"):  # not an early end
            next(batches)


@pytest.fixture
def database(postgres: PostgresServer) -> Iterator[PooledDatabase]:
    with PooledDatabase(psycopg, postgres.url, max_size=1) as database:
        yield database


LATE: dict[str, Callable[[Any], Any]] = {
    "notifies": lambda connection: connection.notifies(timeout=0),
    "stream": lambda connection: connection.cursor().stream("select 1"),
    "copy": lambda connection: connection.cursor().copy("copy (select 1) to stdout"),
    "transaction": lambda connection: connection.transaction(),
    "pipeline": lambda connection: connection.pipeline(),
}


@pytest.mark.parametrize("make", LATE.values(), ids=LATE)
def test_what_has_not_begun_cannot_begin_after_the_lease(database: PooledDatabase, make: Callable[[Any], Any]) -> None:
    connection = database.connect()
    late = make(connection)
    connection.close()
    with database.connect() as other:
        session = other.info.backend_pid
        with pytest.raises(poolkit.UsageError, match="already returned"):
            if hasattr(type(late), "__next__"):
                next(late)
            else:
                late.__enter__()
        assert other.info.transaction_status == other.info.pipeline_status == 0
        assert session == other.execute("select pg_backend_pid()").fetchone()[0]


@pytest.mark.parametrize("kind", ["transaction", "pipeline"])
def test_a_block_ends_when_its_connection_is_returned_within_it(database: PooledDatabase, kind: str) -> None:
    with database.connect() as connection:
        connection.execute("create table if not exists dbapi_blocks (a int)")
        connection.execute("truncate dbapi_blocks")
    connection = database.connect()
    with pytest.raises(poolkit.UsageError, match="already returned"), getattr(connection, kind)():
        connection.execute("insert into dbapi_blocks values (1)")
        connection.close()
        other = database.connect()
        other.execute("insert into dbapi_blocks values (2)")
    assert other.info.transaction_status == 2  # the end of the block did not touch it
    other.commit()
    assert other.execute("select a from dbapi_blocks").fetchall() == [(2,)]
    other.close()


def test_blocks_and_iterators_work_as_the_drivers(database: PooledDatabase) -> None:
    with database.connect() as connection:
        connection.execute("create temp table dbapi_rows (a int)")
        with connection.cursor() as cursor, cursor.copy("copy dbapi_rows from stdin") as copy:
            copy.write_row([1])
        with connection.transaction() as outer:
            connection.execute("insert into dbapi_rows values (2)")
            raise_back = psycopg.Rollback(outer)
            with connection.transaction():
                connection.execute("insert into dbapi_rows values (3)")
            raise raise_back
        with connection.pipeline() as pipeline:
            connection.execute("insert into dbapi_rows values (4)")
            pipeline.sync()
        with connection.cursor() as cursor:
            assert [row[0] for row in cursor.stream("select a from dbapi_rows order by a")] == [1, 4]
        connection.rollback()


def test_a_block_as_a_decorator_is_a_new_block_at_each_call_and_none_after_the_lease(database: PooledDatabase) -> None:
    connection = database.connect()
    connection.execute("create temp table dbapi_calls (a int)")
    connection.commit()

    @connection.transaction()
    def insert(a: int) -> int:
        """Insert."""
        connection.execute("insert into dbapi_calls values (%s)", [a])
        if a == 2:
            raise LookupError
        return a

    assert (insert.__name__, insert.__doc__) == ("insert", "Insert.")
    assert insert(1) == 1
    with pytest.raises(LookupError):
        insert(2)
    assert insert(3) == 3
    assert connection.info.transaction_status == 0
    assert connection.execute("select a from dbapi_calls").fetchall() == [(1,), (3,)]
    connection.close()
    with database.connect() as other:
        with pytest.raises(poolkit.UsageError, match="already returned"):
            insert(4)
        assert other.info.transaction_status == 0


@pytest.mark.filterwarnings("ignore:.*was deleted while still open")  # by psycopg: its close had no answer
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_server_cursor_at_a_silent_server_delays_the_return_by_check_timeout(postgres: PostgresServer) -> None:
    proxy = FaultProxy("127.0.0.1", postgres.port).start()
    url = postgres.url.replace(f":{postgres.port}", f":{proxy.port}")
    with PooledDatabase(psycopg, url, max_size=1, check_timeout=0.3, acquire_timeout=60) as database:
        connection = database.connect()
        cursor = connection.cursor("dbapi_cursor")
        cursor.execute("select generate_series(1, 100000)")
        cursor.fetchone()
        proxy.mode = "silent"
        connection.close()  # without the limit it never returns
        assert database.stats().in_use == 0
        proxy.mode = "pass"
        with database.connect() as other:
            assert other.execute("select 1").fetchone() == (1,)
        assert database.stats().connects == 2
    proxy.stop()


@pytest.mark.parametrize("rows", [3, 3_000_000])
def test_a_begun_stream_ends_at_the_return_and_the_session_stays(database: PooledDatabase, rows: int) -> None:
    connection = database.connect()
    session = connection.info.backend_pid
    stream = connection.cursor().stream(f"select generate_series(1, {rows})")
    assert next(stream) == (1,)
    connection.close()
    with database.connect() as other:
        assert other.info.backend_pid == session
        with pytest.raises(poolkit.UsageError, match="already returned"):
            next(stream)
    assert database.stats().connects == 1
