"""Classes with a known result, to check the harness with: some must score as the stock pool, some must not."""

from __future__ import annotations

import os
import sys
from typing import Any

import psycopg_pool
from psycopg_pool.abc import ACT, CT

_TESTS = os.path.join(os.environ.get("CONF_TESTS", ""), "tests") + os.sep
_INSIDE = ("_sched_runner", "_workers", "_sched", "_tasks", "_growing")  # not what conf_psycopg.py lends


class TrivialPool(psycopg_pool.ConnectionPool[CT]):
    """The stock pool by another name."""


class AsyncTrivialPool(psycopg_pool.AsyncConnectionPool[ACT]):
    """The stock pool by another name."""


class TrivialNullPool(psycopg_pool.NullConnectionPool[CT]):
    """The stock null pool by another name."""


class AsyncTrivialNullPool(psycopg_pool.AsyncNullConnectionPool[ACT]):
    """The stock null pool by another name."""


def _hide(self: Any, name: str) -> Any:
    if name in _INSIDE and sys._getframe(1).f_code.co_filename.startswith(_TESTS):
        raise AttributeError(f"private: {name}")
    return object.__getattribute__(self, name)


class HidingPool(psycopg_pool.ConnectionPool[CT]):
    """Hides its inside from the test files: what fails with it, and nothing else, reads private attributes."""

    __getattribute__ = _hide


class AsyncHidingPool(psycopg_pool.AsyncConnectionPool[ACT]):
    """Hides its inside from the test files."""

    __getattribute__ = _hide


class NoResetPool(psycopg_pool.ConnectionPool[CT]):
    """Broken: never calls reset."""

    def __init__(self, *args: Any, reset: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


class AsyncNoResetPool(psycopg_pool.AsyncConnectionPool[ACT]):
    """Broken: never calls reset."""

    def __init__(self, *args: Any, reset: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


class OtherErrorPool(psycopg_pool.ConnectionPool[CT]):
    """Broken: a timeout is not a PoolTimeout."""

    def getconn(self, timeout: float | None = None) -> Any:
        try:
            return super().getconn(timeout)
        except psycopg_pool.PoolTimeout:
            raise TimeoutError from None


class AsyncOtherErrorPool(psycopg_pool.AsyncConnectionPool[ACT]):
    """Broken: a timeout is not a PoolTimeout."""

    async def getconn(self, timeout: float | None = None) -> Any:
        try:
            return await super().getconn(timeout)
        except psycopg_pool.PoolTimeout:
            raise TimeoutError from None
