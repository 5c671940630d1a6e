"""Databases for tests that run with each driver of SQLAlchemy that is installed here."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.util import greenlet_spawn

from poolkit.testing.servers import PostgresServer
from poolkit_adapters.sqlalchemy import AsyncPoolkitPool, PoolkitPool

MODULES = {
    "psycopg": "psycopg", "psycopg2": "psycopg2", "pg8000": "pg8000", "psycopg_async": "psycopg", "asyncpg": "asyncpg",
    "pysqlite": "sqlite3", "aiosqlite": "aiosqlite",
    "pymysql": "pymysql", "mysqlconnector": "mysql.connector", "aiomysql": "aiomysql", "asyncmy": "asyncmy",
}  # fmt: skip
MYSQL = ("pymysql", "mysqlconnector", "aiomysql", "asyncmy")
ASYNC = ("psycopg_async", "asyncpg", "aiosqlite", "aiomysql", "asyncmy")
SYNC = tuple(driver for driver in MODULES if driver not in ASYNC)


class Databases:
    """``url(driver)`` returns the URL of a database for that driver. All drivers of a server share one."""

    def __init__(self, postgres: PostgresServer, directory: Path) -> None:
        self._postgres = postgres
        self._directory = directory
        self._stack = contextlib.ExitStack()
        self._mysql: Any = None

    def url(self, driver: str) -> str:
        """Return the URL. Skips the test if the driver or its server is missing."""
        try:
            importlib.import_module(MODULES[driver])
        except ImportError:
            pytest.skip(f"the driver {MODULES[driver]} is not installed")
        if driver in ("pysqlite", "aiosqlite"):
            return f"sqlite+{driver}:///{self._directory / 'a.db'}"
        if driver not in MYSQL:
            return self._postgres.start().sqlalchemy_url(driver)
        if self._mysql is None:
            mariadb = pytest.importorskip("tests.support.mariadb", reason="needs the server of tests/support/mariadb")
            pytest.importorskip("pymysql")
            if mariadb.MISSING:
                pytest.skip(mariadb.MISSING)
            self._mysql = self._stack.enter_context(mariadb.MariaDBServer())
        options = "?use_pure=True" if driver == "mysqlconnector" else ""
        return f"mysql+{driver}://root@{self._mysql.host}:{self._mysql.port}/app{options}"

    def close(self) -> None:
        self._stack.close()


class Caller:
    """Runs the same synchronous function on an engine of either kind: ``caller.run(function)``."""

    def __init__(self, url: str, driver: str, poolclass: Any = None, **settings: Any) -> None:
        self.driver = driver
        self.loop: asyncio.AbstractEventLoop | None = None
        if driver in ASYNC:
            self.loop = asyncio.new_event_loop()
            self._async: AsyncEngine = create_async_engine(url, poolclass=poolclass or AsyncPoolkitPool, **settings)
            self.engine: Engine = self._async.sync_engine
        else:
            self.engine = create_engine(url, poolclass=poolclass or PoolkitPool, **settings)

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if self.loop is None:
            return function(*arguments)
        return self.loop.run_until_complete(greenlet_spawn(function, *arguments))

    def sql(self, *statements: str, commit: bool = True) -> Any:
        """Execute statements in one transaction. Return the last result as a scalar."""

        def work() -> Any:
            with self.engine.connect() as connection:
                for statement in statements:
                    answer = connection.execute(text(statement))
                value = answer.scalar() if answer.returns_rows else None
                if commit:
                    connection.commit()
                return value

        return self.run(work)

    def close(self) -> None:
        pools: list[Any] = [self.engine.pool]
        self.run(self.engine.dispose)
        for pool in (*pools, self.engine.pool):  # an error that is kept, such as asyncpg's, would keep them open
            if hasattr(pool, "poolkit"):
                self.run(pool.poolkit.close)
        if self.loop is not None:
            self.loop.run_until_complete(asyncio.sleep(0))
            self.loop.close()


@contextlib.contextmanager
def calling(url: str, driver: str, poolclass: Any = None, **settings: Any) -> Iterator[Caller]:
    """Yield a :class:`Caller` for this block."""
    caller = Caller(url, driver, poolclass, **settings)
    try:
        yield caller
    finally:
        caller.close()


def sockets_to(port: int) -> int:
    """Sockets of this process that are connected to ``port``, as the kernel sees it at this moment (Linux)."""
    inodes = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            kind = os.readlink(f"/proc/self/fd/{name}")
            if kind.startswith("socket:["):
                inodes.add(kind[8:-1])
    found = 0
    for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        found += int(fields[2].split(":")[1], 16) == port and fields[9] in inodes
    return found
