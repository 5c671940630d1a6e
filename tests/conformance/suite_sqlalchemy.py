"""SQLAlchemy's own tests of pools and of what stands on them, on SQLite and PostgreSQL, sync and asyncio."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from tests.conformance.fetch import installed
from tests.conformance.sessions import Session
from tests.conformance.suite import Suite

ENGINE = (
    "engine/test_pool.py",
    "engine/test_reconnect.py",
    "engine/test_transaction.py",
    "engine/test_execute.py",
)
ASYNCIO = ("ext/asyncio/test_engine.py", "ext/asyncio/test_session.py", "ext/asyncio/test_scoping.py")
CANCEL = ("ext/asyncio/test_cancellation.py",)
# Not named after pools, but built on them (test/base has nothing that is).
MORE = ("engine/test_logging.py", "engine/test_ddlevents.py")
ONCE = ("engine/test_parseconnect.py", "engine/test_deprecations.py", "dialect/sqlite/test_dialect.py")
THREADS = (
    "aaa_profiling/test_threading.py::EngineThreadSafetyTest",
    "aaa_profiling/test_threading.py::SessionThreadingTest",
)
ORM = ("orm/test_transaction.py", "orm/test_session.py")
# Pre-ping, reset of read-only and isolation state, two-phase, stale caches.
PG = (
    "dialect/postgresql/test_dialect.py::MiscBackendTest",
    "dialect/postgresql/test_dialect.py::TwoPhaseCommitTest",
)
ASYNC_PG = ("dialect/postgresql/test_async_pg.py",)

# Session, driver, files; longest first.
FULL = (
    ("cancel-psycopg-async", "psycopg_async", CANCEL),
    ("cancel-asyncpg", "asyncpg", CANCEL),
    ("cancel-aiosqlite", "aiosqlite", CANCEL),
    ("psycopg-async", "psycopg_async", ENGINE + ASYNCIO + PG),
    ("asyncpg", "asyncpg", ENGINE + ASYNCIO + PG + ASYNC_PG),
    ("aiosqlite", "aiosqlite", ENGINE + ASYNCIO),
    ("sqlite", "sqlite", ENGINE + MORE + ONCE + THREADS + ORM),
    ("psycopg", "psycopg", ENGINE + MORE + THREADS + ORM + PG),
)
QUICK = (
    ("sqlite", "sqlite", ENGINE[:2] + MORE[:1] + ONCE[1:2] + THREADS),
    ("psycopg", "psycopg", ENGINE[1:]),
    ("asyncpg", "asyncpg", ASYNCIO[:1]),
    ("psycopg-async", "psycopg_async", ASYNCIO[:1]),
)
NEEDS = {
    "sqlite": (),
    "aiosqlite": ("aiosqlite", "greenlet"),
    "psycopg": ("psycopg",),
    "psycopg_async": ("psycopg", "greenlet"),
    "asyncpg": ("asyncpg", "greenlet", "psycopg"),
}
# pytest shows the driver and the server's version in the names of generated classes.
SUFFIX = re.compile(r"_(?:sqlite|postgresql)\+[a-z0-9]+(?:_async)?(?:_\d+)+(?=::)")


class SQLAlchemy(Suite):
    """Pools of SQLAlchemy."""

    name = "sqlalchemy"
    distribution = "sqlalchemy"
    tests = "test"
    classes: ClassVar[Mapping[str, str]] = {
        "sync": "poolkit_adapters.sqlalchemy:PoolkitPool",
        "async": "poolkit_adapters.sqlalchemy:AsyncPoolkitPool",
    }
    needs = ("greenlet", "psycopg")

    def sessions(self, root: Path, quick: bool, stack: contextlib.ExitStack) -> list[Session]:
        from poolkit.testing.servers import PostgresServer

        settings = {"max_prepared_transactions": "50"}  # two-phase transactions are off otherwise
        server = stack.enter_context(PostgresServer(max_connections=300, settings=settings))
        plan = [row for row in (QUICK if quick else FULL) if all(installed(need) for need in NEEDS[row[1]])]
        for name, driver, _ in () if quick else FULL:
            if name not in {row[0] for row in plan}:
                print(f"  session {name} left out: it needs {', '.join(NEEDS[driver])}")
        return [self._session(root, server, name, driver, files) for name, driver, files in plan]

    def _session(self, root: Path, server: object, name: str, driver: str, files: tuple[str, ...]) -> Session:
        if driver == "sqlite":
            url = "sqlite:///conformance.db"
        elif driver == "aiosqlite":
            url = "sqlite+aiosqlite:///conformance.db"
        else:
            url = _database(server, f"conformance_{name.replace('-', '_')}", driver)
        return Session(
            name=name,
            root=root,
            files=tuple(f"test/{file}" for file in files if (root / "test" / file.split("::")[0]).exists()),
            plugins=(),
            swap="conf_sqlalchemy",
            config=root / "pyproject.toml",
            arguments=("-o", "addopts=", "--strict-markers", "--dburi", url),
            # Otherwise test/conftest.py puts the sdist's own lib/ before what is installed.
            environment={"PYTHONNOUSERSITE": "1"},
            own_directory=True,
            test_limit=120.0,
        )

    def same_id(self, test: str, roles: Mapping[str, str]) -> str:
        head, bracket, parameters = SUFFIX.sub("", test).partition("[")
        for role, stock in (("async", "AsyncAdaptedQueuePool"), ("sync", "QueuePool")):
            if role in roles:
                own = re.escape(roles[role].partition(":")[2])
                parameters = re.sub(rf"\b{own}\b", stock, parameters)
        return head + bracket + parameters


def _database(server: object, name: str, driver: str) -> str:
    """Make an empty database with the schemas that SQLAlchemy's tests expect; return its URL."""
    import psycopg
    from sqlalchemy.engine import make_url

    from poolkit.testing.servers import PostgresServer

    assert isinstance(server, PostgresServer)
    with server.connect() as connection:
        connection.execute(f"create database {name} template template0 encoding 'utf8'".encode())
    with psycopg.connect(**{**server.dsn, "dbname": name}, autocommit=True) as connection:
        for schema in ("test_schema", "test_schema_2"):
            connection.execute(f"create schema {schema}".encode())
    url = make_url(server.sqlalchemy_url(driver)).set(database=name)
    return url.render_as_string(hide_password=False)
