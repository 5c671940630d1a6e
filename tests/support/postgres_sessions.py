"""Fixtures of the adapters for PostgreSQL: an administrator, and a name that identifies the sessions of one test."""

from __future__ import annotations

import asyncio
import functools
import inspect
import itertools
import os
from collections.abc import Iterator

import pytest

from poolkit.testing.servers import PostgresServer
from tests.adapters.psycopg.support import Admin

__all__ = ("admin", "application", "pytest_pyfunc_call")

_numbers = itertools.count()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run coroutine tests of the folder on asyncio, which the driver needs."""
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
    return f"test-{os.getpid()}-{next(_numbers)}"
