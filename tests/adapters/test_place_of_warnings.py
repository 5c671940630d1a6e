"""A warning about settings names the line of the application that made the pool, under every adapter."""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import create_engine

from poolkit import Pool, PoolConfig, PoolConfigWarning
from poolkit.testing import FakeConnector
from poolkit_adapters.dbapi import PooledDatabase
from poolkit_adapters.httpx import PoolkitTransport
from poolkit_adapters.psycopg import PoolkitConnectionPool
from poolkit_adapters.redis import PoolkitConnectionPool as RedisPool
from poolkit_adapters.sqlalchemy import PoolkitPool

DOUBTFUL = PoolConfig(idle_timeout=100, max_lifetime=50)

MADE: dict[str, Callable[[], Any]] = {
    "engine": lambda: Pool(FakeConnector(), DOUBTFUL),
    "reconfigure": lambda: Pool(FakeConnector()).reconfigure(idle_timeout=100, max_lifetime=50),
    "httpx": lambda: PoolkitTransport(config=DOUBTFUL),
    "psycopg": lambda: PoolkitConnectionPool("", min_size=0, max_size=2, config=DOUBTFUL, open=False),
    "redis": lambda: RedisPool(config=DOUBTFUL),
    "dbapi": lambda: PooledDatabase(sqlite3, "file:x?mode=memory", uri=True, config=DOUBTFUL),
    "sqlalchemy": lambda: create_engine("postgresql+psycopg://", poolclass=PoolkitPool, config=DOUBTFUL),
}


@pytest.mark.parametrize("name", MADE)
def test_a_warning_names_the_line_of_the_application(name: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        MADE[name]()
    [warning] = [one for one in caught if issubclass(one.category, PoolConfigWarning)]
    assert warning.filename == __file__
    assert warning.lineno == MADE[name].__code__.co_firstlineno
