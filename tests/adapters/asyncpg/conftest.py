"""Fixtures: an administrator, and a name that identifies the sessions of one test."""

from __future__ import annotations

import asyncio
import functools
import inspect
import itertools
import os
from collections.abc import Iterator
from typing import Any

import pytest

from poolkit.testing.servers import PostgresServer
from poolkit_adapters.asyncpg import PoolkitPool, create_pool
from tests.adapters.psycopg.support import Admin

_numbers = itertools.count()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run coroutine tests of this folder on asyncio, which asyncpg needs."""
    function = pyfuncitem.obj
    if not inspect.iscoroutinefunction(function):
        return None
    names = inspect.signature(function).parameters
    arguments = {name: value for name, value in pyfuncitem.funcargs.items() if name in names}
    asyncio.run(functools.partial(function, **arguments)())
    return True


@pytest.fixture
def admin(postgres: PostgresServer) -> Iterator[Admin]:
    admin = Admin(postgres)
    yield admin
    admin.close()


@pytest.fixture
def application() -> str:
    return f"asyncpg-{os.getpid()}-{next(_numbers)}"


@pytest.fixture
def make(postgres: PostgresServer, application: str) -> Any:
    """``make(**arguments)``: a pool whose sessions have the name of the test."""

    def made(dsn: str | None = None, **arguments: Any) -> PoolkitPool:
        arguments.setdefault("min_size", 0)
        arguments.setdefault("max_size", 2)
        arguments.setdefault("server_settings", {"application_name": application})
        return create_pool(postgres.url if dsn is None else dsn, **arguments)

    return made
