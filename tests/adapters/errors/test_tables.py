"""The tables of errors of all adapters: no class of poolkit is missing, and every row is correct."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import pickle
import sqlite3
import subprocess
import sys
from typing import Any

import asyncpg
import pytest

import poolkit
from poolkit import errors
from poolkit.cluster import NoNodeAvailable
from poolkit_adapters._errors import MISSING, Table, both
from poolkit_adapters.asyncpg._errors import ERRORS as ASYNCPG
from poolkit_adapters.dbapi._errors import errors_of
from poolkit_adapters.httpcore._errors import ERRORS as HTTPCORE
from poolkit_adapters.httpx._cluster import CLUSTER_ERRORS as HTTPX
from poolkit_adapters.psycopg._cluster import CLUSTER_ERRORS as PSYCOPG
from poolkit_adapters.redis._group import CLUSTER_ERRORS as REDIS
from poolkit_adapters.sqlalchemy._cluster import CLUSTER_ERRORS as SQLALCHEMY

TABLES: dict[str, Table] = {
    "asyncpg": ASYNCPG,
    "dbapi": errors_of(sqlite3), "httpcore": HTTPCORE, "httpx": HTTPX, "psycopg": PSYCOPG, "redis": REDIS,
    "sqlalchemy": SQLALCHEMY,
}  # fmt: skip
if importlib.util.find_spec("httpx2"):  # needs Python 3.11
    TABLES["httpx2"] = importlib.import_module("poolkit_adapters.httpx2._cluster").CLUSTER_ERRORS
    TABLES["httpcore2"] = importlib.import_module("poolkit_adapters.httpcore2._errors").ERRORS
if importlib.util.find_spec("urllib3") and importlib.util.find_spec("requests"):
    for name in ("urllib3", "requests"):
        TABLES[name] = importlib.import_module(f"poolkit_adapters.{name}._errors").ERRORS
if importlib.util.find_spec("valkey"):
    TABLES["valkey"] = importlib.import_module("poolkit_adapters.valkey._group").CLUSTER_ERRORS
CANNOT: dict[str, set[type]] = {
    "asyncpg": {NoNodeAvailable},  # no cluster
    # no pool for tasks, no cluster; connections are only returned through the proxy; a late connect is tried again
    "dbapi": {errors.WrongLoop, errors.NotLeased, errors.ConnectTimeout, NoNodeAvailable},
    "httpcore": {errors.NotLeased, NoNodeAvailable},  # callers get no connections
    "httpcore2": {errors.NotLeased, NoNodeAvailable},
    "httpx": {errors.NotLeased},
    "httpx2": {errors.NotLeased},
    # callers get no connections; threads only; no cluster; a request that is wrong is urllib3's to refuse
    "requests": {errors.NotLeased, errors.UsageError, errors.WrongLoop, NoNodeAvailable},
    "urllib3": {errors.NotLeased, errors.UsageError, errors.WrongLoop, NoNodeAvailable},
}
"""Errors that cannot happen under an adapter."""
PUBLIC = {getattr(errors, name) for name in errors.__all__} | {NoNodeAvailable}
INSIDE = {errors.PoolError}  # a base class, never raised itself
ALL = pytest.mark.parametrize("adapter", TABLES)


@ALL
def test_every_error_of_poolkit_that_can_leave_is_in_the_table(adapter: str) -> None:
    told = {row.bases[0] for row in TABLES[adapter]}
    assert told == PUBLIC - INSIDE - CANNOT.get(adapter, set())


@ALL
def test_every_class_of_the_adapter_is_in_the_table(adapter: str) -> None:
    package = importlib.import_module(f"poolkit_adapters.{adapter}")
    told = {row.error for row in TABLES[adapter]}
    names = [name for name in dir(package) if not name.startswith("_")] + list(package.__all__)
    for name in names:
        kind = getattr(package, name)
        if inspect.isclass(kind) and issubclass(kind, BaseException):
            assert kind in told, f"{adapter}.{name} is in no row"
    for row in TABLES[adapter]:
        if row.error.__module__.startswith(package.__name__):
            assert row.error.__name__ in package.__all__, f"{row.error.__name__} cannot be imported from {adapter}"


@ALL
def test_a_row_is_of_all_its_classes_and_occurs_once(adapter: str) -> None:
    rows = TABLES[adapter].rows
    assert len({row.what for row in rows}) == len(rows)
    for row in rows:
        assert len(row.bases) >= 2
        assert issubclass(row.bases[0], errors.PoolError)
        assert not issubclass(row.bases[-1], errors.PoolError)
        if issubclass(row.error, errors.PoolError):  # otherwise the driver's, in a class of both types
            assert all(issubclass(row.error, base) for base in row.bases), row


@ALL
def test_an_error_of_the_engine_becomes_the_adapters_with_all_it_has(adapter: str) -> None:
    table = TABLES[adapter]
    for kind in sorted({row.bases[0] for row in table} - {NoNodeAvailable, errors.MissingExtra}, key=repr):
        error = kind("orders: no", "here") if kind is errors.ConfigError else kind("orders: no")
        error.__notes__ = ["a note"]
        error.extra = 1  # type: ignore[attr-defined]
        error.__cause__ = OSError("why")
        new = table.adapted(error)
        assert isinstance(new, kind)
        assert str(new).startswith(str(error))  # SQLAlchemy adds a link
        assert new.__notes__ == ["a note"]
        assert new.extra == 1  # type: ignore[attr-defined]
        assert new.__cause__ is error.__cause__
        assert table.adapted(new) is new
        again = pickle.loads(pickle.dumps(new))
        assert (type(again), str(again)) == (type(new), str(new))


class Custom(OSError):
    """An error with arguments, attributes and a text of its own."""

    def __init__(self, host: str, *, port: int) -> None:
        super().__init__(113, "No route", host)
        self.port = port

    def __str__(self) -> str:
        return f"{self.filename}:{self.port}"

    def __reduce__(self) -> Any:
        return _custom, (self.filename, self.port)


def _custom(host: str, port: int) -> Custom:
    return Custom(host, port=port)


class Sealed(Exception):
    """A class that cannot have subclasses."""

    def __init_subclass__(cls) -> None:
        raise TypeError("sealed")


@pytest.mark.parametrize(
    "error",
    [ValueError("a", 1), ConnectionRefusedError(111, "refused"), FileNotFoundError(2, "no", "file", None, "other"),
     UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), KeyError("k"), Custom("here", port=5),
     sqlite3.OperationalError("x"), ImportError("no", name="it", path="there")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_a_joined_error_is_the_drivers_in_all_but_that_it_is_poolkits(error: Any) -> None:
    error.__notes__ = ["a note"]
    error.mine = {"of": "the driver"}
    try:
        raise error
    except Exception as caught:
        new: Any = both(poolkit.ConnectFailed, caught)
    assert isinstance(new, (type(error)))
    assert isinstance(new, poolkit.ConnectFailed)
    assert (str(new), repr(new), new.args) == (str(error), repr(error), error.args)
    assert (new.__notes__, new.mine) == (error.__notes__, error.mine)
    assert (type(new).__name__, type(new).__module__) == (type(error).__name__, type(error).__module__)
    assert new.__traceback__ is error.__traceback__
    assert new.__cause__ is error
    for name in ("errno", "filename", "filename2", "reason", "port", "name", "path"):
        assert getattr(new, name, None) == getattr(error, name, None)
    if not isinstance(error, Custom):  # its own __reduce__ creates an instance of its own class
        for again in (copy.copy(new), pickle.loads(pickle.dumps(new))):
            assert type(again) is type(new)
            assert (str(again), again.args, again.mine) == (str(error), error.args, error.mine)
    assert type(both(poolkit.ConnectFailed, type(error)(*error.args) if not isinstance(error, Custom) else error)) is (
        type(new)
    )
    assert both(poolkit.ConnectFailed, new) is new


def test_an_error_of_asyncpg_can_be_joined_although_its_module_allows_no_second_class_of_a_name() -> None:
    error = asyncpg.InvalidCatalogNameError("no such database")
    new: Any = both(poolkit.ConnectFailed, error)
    assert isinstance(new, asyncpg.InvalidCatalogNameError)
    assert isinstance(new, poolkit.ConnectFailed)
    assert new.sqlstate == "3D000"
    assert type(pickle.loads(pickle.dumps(new))) is type(new)


def test_an_error_that_allows_no_subclass_stays_as_it_is() -> None:
    error = Sealed("x")
    assert both(poolkit.ConnectFailed, error) is error


DRIVER = {"dbapi": "", "httpcore": "httpcore", "httpx": "httpx", "httpcore2": "httpcore2", "httpx2": "httpx2",
          "psycopg": "psycopg_pool", "redis": "redis", "valkey": "valkey", "asyncpg": "asyncpg",
          "urllib3": "urllib3", "requests": "requests",
          "sqlalchemy": "sqlalchemy"}  # fmt: skip


@ALL
def test_a_missing_driver_is_both_and_says_what_to_install(adapter: str) -> None:
    assert MISSING in TABLES[adapter].rows
    if not DRIVER[adapter]:
        return  # the caller has imported the module
    program = f"""
import sys
sys.modules[{DRIVER[adapter]!r}] = None
import poolkit
try:
    import poolkit_adapters.{adapter}
except ImportError as error:
    assert isinstance(error, poolkit.MissingExtra), type(error)
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "pip install" in done.stdout, done.stderr
