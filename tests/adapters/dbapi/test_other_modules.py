"""Modules for which there is no server here: fakes with the traits of pymysql and psycopg2."""

from __future__ import annotations

import types
from typing import Any

import pytest

import poolkit
from poolkit_adapters.dbapi import PooledDatabase


class Error(Exception): ...


class InterfaceError(Error): ...


class DatabaseError(Error): ...


class OperationalError(DatabaseError): ...


class ProgrammingError(DatabaseError): ...


class Cursor:
    description = None

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def execute(self, statement: str) -> int:
        self.connection.said.append(statement)
        return 1

    def fetchall(self) -> list[tuple[int]]:
        return [(1,)]

    def close(self) -> None: ...


class Connection:
    """Behaves as pymysql: ``ping`` reconnects by default, and the new session lacks its settings."""

    made: list[Connection]

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments
        self.said: list[str] = []
        self.open = True
        self.made.append(self)

    def cursor(self) -> Cursor:
        return Cursor(self)

    def ping(self, reconnect: bool = True) -> None:
        self.said.append(f"ping {reconnect}")
        if not self.open and not reconnect:
            raise OperationalError(2006, "MySQL server has gone away")
        self.open = True

    def commit(self) -> None:
        self.said.append("commit")

    def rollback(self) -> None:
        if not self.open:
            raise OperationalError(2006, "MySQL server has gone away")
        self.said.append("rollback")

    def close(self) -> None:
        self.open = False


def pymysql(**names: Any) -> Any:
    made: Any = types.ModuleType("pymysql")
    kind = type("Connection", (Connection,), {"made": []})
    made.__dict__.update(
        {
            "connect": kind, "made": kind.made, "threadsafety": 1, "paramstyle": "pyformat", "Error": Error,
            "InterfaceError": InterfaceError, "OperationalError": OperationalError,
            "ProgrammingError": ProgrammingError,
        } | names
    )  # fmt: skip
    return made


def test_ping_never_reconnects_behind_the_pools_back() -> None:
    module = pymysql()
    with PooledDatabase(module, check_after_idle=0, setup=lambda c: c.said.append("setup")) as db:
        db.connect().close()
        module.made[0].open = False
        db.connect().close()
        assert module.made[0].said == ["setup", "commit", "ping False"]
        assert module.made[1].said == ["setup", "commit"]


def test_a_statement_may_take_the_place_of_ping() -> None:
    module = pymysql()
    with PooledDatabase(module, check_after_idle=0, check="/* ping */ DO 1") as db:
        db.connect().close()
        db.connect().close()
    assert module.made[0].said == ["/* ping */ DO 1", "rollback"]


def test_a_check_that_says_false_means_dead() -> None:
    module = pymysql()
    with PooledDatabase(module, check_after_idle=0, check=lambda connection: False) as db:
        db.connect().close()
        db.connect().close()
    assert len(module.made) == 2


def test_connect_timeout_is_handed_on_in_the_modules_words() -> None:
    module = pymysql()
    with PooledDatabase(module, host="db", connect_timeout=7.2) as db:
        db.connect().close()
    answers = {"read_timeout": 7.2, "write_timeout": 7.2}  # of the handshake, which connect_timeout does not cover
    assert module.made[0].arguments == {"host": "db", "connect_timeout": 7} | answers
    with PooledDatabase(module, connect_kwargs={"connect_timeout": 99}) as db:
        db.connect().close()
    answers = dict.fromkeys(answers, 99)
    assert module.made[1].arguments == {"connect_timeout": 99} | answers
    settings = {"connect_in_caller": True, "acquire_timeout": 30, "connect_timeout": None}  # the module's own counts
    for own, given in ((2, "2"), (99, "30")):  # a caller that connects itself can only lower it; libpq takes no float
        with PooledDatabase(module, connect_kwargs={"connect_timeout": own}, **settings) as db:
            db.connect().close()
        assert str(module.made[-1].arguments["connect_timeout"]) == given


def test_access_denied_raises_at_once() -> None:
    def connect(**arguments: Any) -> Any:
        raise OperationalError(1045, "Access denied for user 'me'@'here'")

    with PooledDatabase(pymysql(connect=connect)) as db:
        with pytest.raises(OperationalError, match="Access denied") as caught:
            db.connect()
    assert isinstance(caught.value, poolkit.ConnectFailed)


def test_error_classes_with_a_layout_of_their_own_still_work() -> None:

    module = pymysql()
    module.__name__ = "layout"
    module.OperationalError = type("OperationalError", (Error, SyntaxError), {})  # SyntaxError has a C layout too
    with PooledDatabase(module, max_size=1) as db, db.connect():
        with pytest.raises(module.OperationalError) as caught:
            db.connect(timeout=0)
    assert isinstance(caught.value, poolkit.PoolError)
