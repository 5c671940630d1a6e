"""Changes that one user makes to a session, by methods, attributes or transactions, do not reach the next user."""

from __future__ import annotations

import importlib
import itertools
import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

import poolkit
from poolkit.testing.servers import PostgresServer
from poolkit_adapters.dbapi import PooledDatabase

from .test_other_modules import pymysql as fake_module

MYSQL = ("pymysql", "mysql.connector", "MySQLdb", "mariadb")
POSTGRES = ("psycopg", "psycopg2", "pg8000.dbapi")

_tables = itertools.count()


def value(connection: Any, statement: str) -> Any:
    """Return the first value of a statement's result."""
    cursor = connection.cursor()
    cursor.execute(statement)
    row = cursor.fetchone()
    cursor.close()
    return None if row is None else row[0]


class Driver:
    """A module, and a pool of one connection of it."""

    def __init__(self, request: pytest.FixtureRequest, name: str, **options: Any) -> None:
        self.module = pytest.importorskip(name)
        if name in MYSQL:
            arguments = request.getfixturevalue("mariadb").arguments()
            self.session = "select connection_id()"
        else:
            server: PostgresServer = request.getfixturevalue("postgres")
            arguments = dict(server.dsn)
            if name == "pg8000.dbapi":
                arguments["database"] = arguments.pop("dbname")
            self.session = "select pg_backend_pid()"
        self.db = PooledDatabase(self.module, max_size=1, acquire_timeout=20, **options, connect_kwargs=arguments)
        request.addfinalizer(self.db.close)

    def visit(self, work: Callable[[Any], Any]) -> Any:
        """Use a connection and close it, without commit or rollback."""
        connection = self.db.connect()
        try:
            return work(connection)
        finally:
            connection.close()

    def same_session_after(self, work: Callable[[Any], Any]) -> bool:
        """Return whether the next user has the same session."""
        first = self.visit(lambda connection: value(connection, self.session))
        self.visit(work)
        return bool(self.visit(lambda connection: value(connection, self.session)) == first)


@dataclass(frozen=True)
class Change:
    """A change that a user makes, and where the next one would see it."""

    module: str
    name: str
    do: Callable[[Any], object]
    look: Callable[[Any], Any]
    kept: bool = False
    """Whether the pool undoes the change, so that the session is kept."""

    def __str__(self) -> str:
        return f"{self.module}-{self.name}"


def sql(statement: str) -> Callable[[Any], Any]:
    return lambda connection: value(connection, statement)


AUTOCOMMIT = sql("select @@autocommit")
DATABASE = sql("select database()")
CHARSET = sql("select @@character_set_client")
USER = sql("select current_user()")
ISOLATION = sql("show transaction_isolation")

CHANGES = [
    Change("pymysql", "autocommit()", lambda c: c.autocommit(True), AUTOCOMMIT, kept=True),
    Change("pymysql", "select_db()", lambda c: c.select_db("mysql"), DATABASE, kept=True),
    Change("pymysql", "set_character_set()", lambda c: c.set_character_set("latin1"), CHARSET),
    Change("MySQLdb", "autocommit()", lambda c: c.autocommit(True), AUTOCOMMIT, kept=True),
    Change("MySQLdb", "select_db()", lambda c: c.select_db("mysql"), DATABASE),
    Change("MySQLdb", "set_character_set()", lambda c: c.set_character_set("latin1"), CHARSET),
    Change("MySQLdb", "set_sql_mode()", lambda c: c.set_sql_mode("ANSI"), sql("select @@sql_mode")),
    Change("mysql.connector", "autocommit", lambda c: setattr(c, "autocommit", True), AUTOCOMMIT, kept=True),
    Change("mysql.connector", "database", lambda c: setattr(c, "database", "mysql"), DATABASE, kept=True),
    Change("mysql.connector", "time_zone", lambda c: setattr(c, "time_zone", "+05:00"), sql("select @@time_zone"),
           kept=True),
    Change("mysql.connector", "cmd_init_db()", lambda c: c.cmd_init_db("mysql"), DATABASE),
    Change("mysql.connector", "cmd_change_user()", lambda c: c.cmd_change_user("root", "", "mysql"), DATABASE),
    Change("mysql.connector", "set_charset_collation()", lambda c: c.set_charset_collation("latin1"), CHARSET),
    Change("mariadb", "autocommit", lambda c: setattr(c, "autocommit", True), AUTOCOMMIT, kept=True),
    Change("mariadb", "select_db()", lambda c: c.select_db("mysql"), DATABASE),
    Change("mariadb", "change_user()", lambda c: c.change_user("root", "", "mysql"), DATABASE),
    Change("psycopg", "set_autocommit()", lambda c: c.set_autocommit(True), lambda c: c.autocommit, kept=True),
    Change("psycopg", "autocommit", lambda c: setattr(c, "autocommit", True), lambda c: c.autocommit, kept=True),
    Change("psycopg", "set_isolation_level()", lambda c: c.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE),
           ISOLATION, kept=True),
    Change("psycopg", "set_read_only()", lambda c: c.set_read_only(True), sql("show transaction_read_only"), kept=True),
    Change("psycopg", "row_factory", lambda c: setattr(c, "row_factory", psycopg.rows.dict_row),
           lambda c: c.execute("select 1 as a").fetchone(), kept=True),
    Change("psycopg", "prepare_threshold", lambda c: setattr(c, "prepare_threshold", 0),
           lambda c: c.prepare_threshold, kept=True),
    Change("psycopg", "add_notice_handler()", lambda c: c.add_notice_handler(print),
           lambda c: len(c._notice_handlers)),
    Change("psycopg", "add_notify_handler()", lambda c: c.add_notify_handler(print),
           lambda c: len(c._notify_handlers)),
    Change("psycopg", "adapters", lambda c: c.adapters.register_loader("int4", psycopg.types.string.TextLoader),
           sql("select 1::int4")),
    Change("psycopg2", "autocommit", lambda c: setattr(c, "autocommit", True), lambda c: c.autocommit, kept=True),
    Change("psycopg2", "set_session()", lambda c: c.set_session("SERIALIZABLE", autocommit=True), ISOLATION),
    Change("psycopg2", "set_isolation_level()", lambda c: c.set_isolation_level(0), lambda c: c.autocommit),
    Change("psycopg2", "set_client_encoding()", lambda c: c.set_client_encoding("LATIN1"),
           sql("show client_encoding")),
    Change("psycopg2", "cursor_factory",
           lambda c: setattr(c, "cursor_factory", importlib.import_module("psycopg2.extras").DictCursor),
           lambda c: type(c.cursor()._cursor).__name__, kept=True),
    Change("pg8000.dbapi", "autocommit", lambda c: setattr(c, "autocommit", True), lambda c: c.autocommit, kept=True),
    Change("pg8000.dbapi", "register_in_adapter()", lambda c: c.register_in_adapter(20, str), sql("select 1::int8")),
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_what_one_user_changes_the_next_does_not_find(request: pytest.FixtureRequest, change: Change) -> None:
    driver = Driver(request, change.module)
    fresh = driver.visit(change.look)
    assert driver.same_session_after(change.do) is change.kept
    assert driver.visit(change.look) == fresh


HARMLESS = [
    ("pymysql", lambda c: (c.begin(), c.escape("x"), c.thread_id(), c.get_server_info(), c.ping(reconnect=False))),
    ("MySQLdb", lambda c: (c.begin(), c.escape_string(b"x"), c.thread_id(), c.get_autocommit(), c.ping())),
    ("mysql.connector", lambda c: (c.start_transaction(), c.is_connected(), c.server_info, c.ping())),
    ("mariadb", lambda c: (c.begin(), c.escape_string("x"), c.ping(), c.server_version, c.warnings)),
    ("psycopg", lambda c: (c.info.dbname, c.fileno(), c.execute("select 1"), c.autocommit, c.row_factory)),
    ("psycopg2", lambda c: (c.get_backend_pid(), c.get_dsn_parameters(), c.notices, c.info.dbname, c.encoding)),
    ("pg8000.dbapi", lambda c: (c.autocommit, c.notices)),
]


@pytest.mark.parametrize(("module", "use"), HARMLESS, ids=[name for name, _ in HARMLESS])
def test_questions_and_transactions_do_not_cost_the_connection(
    request: pytest.FixtureRequest, module: str, use: Callable[[Any], object]
) -> None:
    assert Driver(request, module).same_session_after(use)


def test_nested_transactions_and_pipelines_of_psycopg_do_not_cost_the_connection(
    request: pytest.FixtureRequest,
) -> None:
    def use(connection: Any) -> None:
        with connection.transaction(), connection.pipeline():
            connection.execute("select 1")

    assert Driver(request, "psycopg").same_session_after(use)


@pytest.mark.parametrize("mode", ["usual", "autocommit", "committed without effect"])
@pytest.mark.parametrize("module", [*MYSQL, *POSTGRES])
def test_a_transaction_left_open_is_not_the_next_users(request: pytest.FixtureRequest, module: str, mode: str) -> None:
    """Also if a statement began it in autocommit mode, in which some modules' rollback() and commit() do nothing."""
    driver = Driver(request, module)
    table = f"state_{os.getpid()}_{next(_tables)}"
    engine = " engine=innodb" if module in MYSQL else ""

    def create(connection: Any) -> None:
        connection.cursor().execute(f"create table {table} (a int){engine}")
        connection.commit()

    def leave_open(connection: Any) -> None:
        cursor = connection.cursor()
        if mode != "usual":
            if callable(connection.autocommit):
                connection.autocommit(True)
            else:
                connection.autocommit = True
            if mode == "committed without effect":
                connection.commit()
            cursor.execute("begin")
        cursor.execute(f"insert into {table} values (1)")

    def count(connection: Any) -> int:
        found = int(value(connection, f"select count(*) from {table}"))
        connection.commit()
        return found

    driver.visit(create)
    driver.visit(leave_open)
    assert driver.visit(count) == 0
    assert driver.visit(count) == 0, "a commit of the next user was lost, or has committed what the first left"
    driver.visit(lambda connection: connection.cursor().execute(f"drop table {table}"))


def test_psycopg2_begun_in_autocommit_and_committed_by_name(request: pytest.FixtureRequest) -> None:
    """commit() does nothing there, so the transaction stays open although the proxy has seen a commit."""
    driver = Driver(request, "psycopg2")

    def leave_open(connection: Any) -> None:
        connection.autocommit = True
        connection.cursor().execute("begin")
        connection.commit()

    driver.visit(leave_open)
    assert driver.visit(lambda connection: connection.get_transaction_status()) == 0


def test_a_reset_that_leaves_a_transaction_open_has_it_rolled_back(request: pytest.FixtureRequest) -> None:
    driver = Driver(request, "psycopg", reset=lambda connection: connection.execute("select 1"))
    driver.visit(lambda connection: connection.execute("select 1"))
    assert driver.visit(lambda connection: connection.info.transaction_status) == 0


def test_ping_costs_the_connection_only_where_a_new_session_would_lack_its_setup(
    request: pytest.FixtureRequest,
) -> None:
    def setup(connection: Any) -> None:
        connection.cursor().execute("set session sql_mode = 'ANSI'")

    assert Driver(request, "pymysql").same_session_after(lambda connection: connection.ping())
    assert not Driver(request, "pymysql", setup=setup).same_session_after(lambda connection: connection.ping())


def test_without_reset_everything_stays(request: pytest.FixtureRequest) -> None:
    driver = Driver(request, "pymysql", reset=None)
    assert driver.same_session_after(lambda connection: connection.select_db("mysql"))
    assert driver.visit(DATABASE) == "mysql"


# -- sqlite3 ----------------------------------------------------------------------------------------------------------

SQLITE: dict[str, Callable[[Any], object]] = {
    "create_function()": lambda c: c.create_function("mine", 0, lambda: 1),
    "create_aggregate()": lambda c: c.create_aggregate("mine", 0, object),
    "create_collation()": lambda c: c.create_collation("mine", lambda one, other: 0),
    "set_trace_callback()": lambda c: c.set_trace_callback(lambda statement: None),
    "set_authorizer()": lambda c: c.set_authorizer(lambda *arguments: sqlite3.SQLITE_DENY),
    "set_progress_handler()": lambda c: c.set_progress_handler(lambda: 1, 1),
    "setlimit()": lambda c: c.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, 10),
}


@pytest.mark.parametrize("name", SQLITE)
def test_what_a_method_of_sqlite3_changes_ends_with_the_lease(tmp_path: Path, name: str) -> None:
    if not hasattr(sqlite3.Connection, name[:-2]):
        pytest.skip(f"{name} came with Python 3.11")
    with PooledDatabase(sqlite3, tmp_path / "file.db", max_size=1) as db:
        connection = db.connect()
        SQLITE[name](connection)
        connection.close()
        with db.connect() as connection:
            assert connection.execute("select 'long enough'").fetchone() == ("long enough",)
            with pytest.raises(sqlite3.OperationalError, match="no such function"):
                connection.execute("select mine()")
        assert db.stats().connects == 2


@pytest.mark.parametrize("autocommit", [None, True, False])
def test_a_transaction_of_sqlite3_is_not_the_next_users(tmp_path: Path, autocommit: bool | None) -> None:
    arguments = {} if autocommit is None else {"autocommit": autocommit}
    if arguments and not hasattr(sqlite3.Connection, "autocommit"):
        pytest.skip("autocommit came with Python 3.12")
    with PooledDatabase(sqlite3, tmp_path / "file.db", max_size=1, connect_kwargs=arguments) as db:
        with db.connect() as connection:
            connection.execute("create table t (a)")
        connection = db.connect()
        if autocommit is None:
            connection.isolation_level = None
        if autocommit is not False:
            connection.execute("begin")
        connection.execute("insert into t values (1)")
        connection.close()
        with db.connect() as connection:
            assert connection.execute("select count(*) from t").fetchone() == (0,)
        assert db.stats().connects == 1


def test_a_database_in_memory_outlives_what_a_method_changes() -> None:
    """Its connection is the database, so a close would lose the data."""
    for database, arguments in ((":memory:", {}), ("file:state?mode=memory&cache=shared", {"uri": True})):
        with PooledDatabase(sqlite3, database, max_size=1, **arguments) as db:
            with db.connect() as connection:
                connection.execute("create table t (a)")
                connection.create_function("mine", 0, lambda: 1)
            with db.connect() as connection:
                assert connection.execute("select count(*) from t").fetchone() == (0,)
            assert db.stats().connects == 1


# -- the proxy --------------------------------------------------------------------------------------------------------


def test_a_method_that_was_kept_ends_with_the_connection(tmp_path: Path) -> None:
    with PooledDatabase(sqlite3, tmp_path / "file.db", max_size=1) as db:
        connection = db.connect()
        execute, interrupt = connection.execute, connection.interrupt
        connection.close()
        for kept in (lambda: execute("select 1"), interrupt):
            with pytest.raises(poolkit.UsageError, match="returned to its pool"):
                kept()


def test_a_function_as_the_value_of_an_attribute_is_that_function(tmp_path: Path) -> None:
    def factory(cursor: Any, row: Any) -> Any:
        return row

    with PooledDatabase(sqlite3, tmp_path / "file.db", max_size=1) as db:
        with db.connect() as connection:
            connection.row_factory = factory
            assert connection.row_factory is factory
        assert db.stats().connects == 1


def test_an_attribute_that_can_only_be_written_costs_the_connection() -> None:
    """Like oracledb's module, action and client_identifier."""

    def write(connection: Any, name: str) -> None:
        connection.said.append(name)

    module = fake_module()
    module.connect.action = property(None, write)
    with PooledDatabase(module, max_size=1) as db:
        connection = db.connect()
        connection.action = "report"
        connection.close()
        db.connect().close()
    assert len(module.made) == 2
    assert module.made[0].said[0] == "report"
