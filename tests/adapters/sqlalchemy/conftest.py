"""Engines on real databases; each is disposed of when its test ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import Engine, create_engine
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.util import greenlet_spawn

from poolkit.testing.servers import PostgresServer
from poolkit_adapters.sqlalchemy import AsyncPoolkitPool, PoolkitPool
from tests.adapters.sqlalchemy.servers import Databases

VERSION = tuple(int(part) for part in sqlalchemy.__version__.split(".")[:3] if part.isdigit())
since = {
    version: pytest.mark.skipif(version > VERSION, reason=f"before {version} SQLAlchemy itself does otherwise")
    for version in ((2, 0, 25), (2, 0, 58))
}
"""Marks for what SQLAlchemy does right from some version on; before it loses connections whose task is cancelled,
under its own pool too."""

MakeEngine = Callable[..., Engine]
MakeAsyncEngine = Callable[..., AsyncEngine]


@pytest.fixture
def anyio_backend() -> str:
    """SQLAlchemy's greenlets support asyncio only."""
    return "asyncio"


@pytest.fixture
def make_engine(postgres: PostgresServer) -> Iterator[MakeEngine]:
    """``make_engine(**settings)``: a sync engine on PostgreSQL (psycopg) over PoolkitPool."""
    made: list[Engine] = []

    def make(url: Any = None, **settings: Any) -> Engine:
        settings.setdefault("poolclass", PoolkitPool)
        made.append(create_engine(url or postgres.sqlalchemy_url("psycopg"), **settings))
        return made[-1]

    yield make
    for engine in made:
        engine.dispose()
        if isinstance(engine.pool, PoolkitPool):
            engine.pool.poolkit.close()  # dispose() has made another one


@pytest.fixture(params=["asyncpg", "psycopg_async"])
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def make_async_engine(postgres: PostgresServer, driver: str) -> AsyncIterator[MakeAsyncEngine]:
    """``make_async_engine(**settings)``: an engine on PostgreSQL over AsyncPoolkitPool, for each driver."""
    made: list[AsyncEngine] = []

    def make(url: Any = None, **settings: Any) -> AsyncEngine:
        settings.setdefault("poolclass", AsyncPoolkitPool)
        made.append(create_async_engine(url or postgres.sqlalchemy_url(driver), **settings))
        return made[-1]

    yield make
    for engine in made:
        await engine.dispose()
        if isinstance(engine.pool, AsyncPoolkitPool):
            await greenlet_spawn(engine.pool.poolkit.close)


@pytest.fixture(scope="module")
def databases(_postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    """One database of each kind for the tests of a module."""
    databases = Databases(_postgres, tmp_path_factory.mktemp("sqlite"))
    yield databases
    databases.close()


class FakeConnection:
    """A minimal DBAPI connection."""

    def __init__(self) -> None:
        self.closed = False

    def rollback(self) -> None: ...

    def close(self) -> None:
        self.closed = True


class FakeDriver:
    """A creator that counts its connections."""

    def __init__(self) -> None:
        self.made: list[FakeConnection] = []
        self.error: BaseException | None = None

    def __call__(self) -> FakeConnection:
        if self.error is not None:
            raise self.error
        self.made.append(FakeConnection())
        return self.made[-1]


@pytest.fixture
def fake() -> FakeDriver:
    return FakeDriver()
