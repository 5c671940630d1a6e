"""Fixtures: a pool, and what the adapters for PostgreSQL share."""

from __future__ import annotations

from typing import Any

import pytest

from poolkit.testing.servers import PostgresServer
from poolkit_adapters.asyncpg import PoolkitPool, create_pool
from tests.support.postgres_sessions import admin, application, pytest_pyfunc_call

__all__ = ("admin", "application", "make", "pytest_pyfunc_call")


@pytest.fixture
def make(postgres: PostgresServer, application: str) -> Any:
    """``make(**arguments)``: a pool whose sessions have the name of the test."""

    def made(dsn: str | None = None, **arguments: Any) -> PoolkitPool:
        arguments.setdefault("min_size", 0)
        arguments.setdefault("max_size", 2)
        arguments.setdefault("server_settings", {"application_name": application})
        return create_pool(postgres.url if dsn is None else dsn, **arguments)

    return made
