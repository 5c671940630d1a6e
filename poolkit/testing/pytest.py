"""Fixtures for pytest. Enable them with ``pytest_plugins = ["poolkit.testing.pytest"]`` in a ``conftest.py``.

========================  ==============================================================================================
``pool_leaks``            fails a test that leaves leases or pools open, and names where they were taken or created
``poolkit_clock``         a :class:`~poolkit.testing.ManualClock`
``poolkit_postgres``      a running PostgreSQL, shared by all tests (``pip install 'poolkit[servers]'``)
``poolkit_redis``         a running Redis
``poolkit_http``          a running HTTP server
========================  ==============================================================================================

A server is started at its first use, once for each test process, and ends with the process. A test may stop or kill
it; the next test finds it running. Without ``pytest_plugins`` nothing of this is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from .._places import place_of
from .._registry import live_pools, watch_pools
from .clock import ManualClock

if TYPE_CHECKING:
    from .servers import HTTPServer, PostgresServer, RedisServer

__all__ = ("PoolLeaks", "pool_leaks", "poolkit_clock", "poolkit_http", "poolkit_postgres", "poolkit_redis")


@dataclass(frozen=True, order=True)
class _Lease:
    pool: int
    connection: int
    since: float
    holder: Any = field(compare=False)
    place: str | None = field(compare=False)


def _leases(pool: Any) -> set[_Lease]:
    records = pool._gate.step(lambda: list(pool._core.leased.copy().values()))
    return {_Lease(id(pool), one.slot.id, one.since, one.holder, place_of(one)) for one in records}


class PoolLeaks:
    """The value of the fixture ``pool_leaks``: it watches all pools of the process from the start of the test."""

    def __init__(self) -> None:
        self._before: list[Any] = live_pools()
        self._made: list[Any] = []
        self._held: set[_Lease] = set()  # leases from before the test
        self._allowed: list[Any] = []
        self._dropped: list[str] = []

    def allow(self, *pools: Any) -> None:
        """Ignore these pools: pools, or objects that have one as their attribute ``poolkit``."""
        self._allowed += [getattr(pool, "poolkit", pool) for pool in pools]

    def found(self) -> list[str]:
        """Return a line for each leak since the start of the test.

        A leak is a lease that is neither closed nor detached, a lease that was dropped without being closed, or a pool
        that was created since then and is still open with connections.
        """
        found = list(self._dropped)
        for pool in (*self._before, *self._made):
            if pool in self._allowed:
                continue
            found += [
                f"{pool.name}: connection {lease.connection} is still leased, taken by "
                f"{pool._driver.name_of(lease.holder)} at {lease.place or 'an unknown place'}"
                for lease in sorted(_leases(pool) - self._held)
            ]
        for pool in self._made:
            if not pool.closed and pool not in self._allowed and (size := pool.stats().size):
                place = "an unknown place" if pool._origin.place is None else "{}:{}".format(*pool._origin.place)
                found.append(f"{pool.name}: left open with {size} connection{'s' * (size > 1)}, created at {place}")
        return found

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Make every pool record who takes a lease and where, and collect reports of dropped leases."""
        traced: list[tuple[Any, bool]] = []

        def watch(pool: Any) -> None:
            traced.append((pool, pool._debug))
            pool._debug = True
            pool._gate.step(pool._fast.outdate)
            report = pool._register.warn

            def noted(text: str, place: tuple[str, int]) -> None:
                if pool not in self._allowed:
                    self._dropped.append(text)
                report(text, place)

            pool._register.warn = noted
            if pool not in self._before:
                self._made.append(pool)  # keep it alive: a pool that is dropped while it has connections was left open

        for pool in self._before:
            self._held |= _leases(pool)
        end = watch_pools(watch)
        try:
            yield
        finally:
            end()
            for pool, debug in traced:
                pool._debug = debug
                del pool._register.warn
                pool._gate.step(pool._fast.outdate)


@pytest.fixture
def pool_leaks() -> Iterator[PoolLeaks]:
    """Fail the test, as an error of its teardown, if it leaves leases or pools open.

    Everything that is set up after this fixture must be closed before the fixture ends. So request it first, or request
    it in a fixture with ``autouse=True``. Earlier pools (of a module or session) may stay open, but not leases that the
    test took from them. Recording the places makes every acquire slower.
    """
    leaks = PoolLeaks()
    with leaks._watching():
        yield leaks
        found = leaks.found()
    if found:
        pytest.fail("\n".join(["poolkit: this test left open:", *(f"- {line}" for line in found)]), pytrace=False)


@pytest.fixture
def poolkit_clock() -> ManualClock:
    """A clock that the test moves: ``Pool(..., clock=poolkit_clock)``."""
    return ManualClock()


@pytest.fixture(scope="session")
def _poolkit_postgres() -> Iterator[PostgresServer]:
    from .servers import PostgresServer

    with PostgresServer(dbname="test") as server:
        yield server


@pytest.fixture
def poolkit_postgres(_poolkit_postgres: PostgresServer) -> PostgresServer:
    """A running PostgreSQL with a database ``test``: ``poolkit_postgres.url``. Tests share its data."""
    return _poolkit_postgres.start()


@pytest.fixture(scope="session")
def _poolkit_redis() -> Iterator[RedisServer]:
    from .servers import RedisServer

    with RedisServer() as server:
        yield server


@pytest.fixture
def poolkit_redis(_poolkit_redis: RedisServer) -> RedisServer:
    """A running Redis: ``poolkit_redis.url``. Tests share its data."""
    return _poolkit_redis.start()


@pytest.fixture(scope="session")
def _poolkit_http() -> Iterator[HTTPServer]:
    from .servers import HTTPServer

    with HTTPServer() as server:
        yield server


@pytest.fixture
def poolkit_http(_poolkit_http: HTTPServer) -> HTTPServer:
    """A running HTTP/1.1 server: ``poolkit_http.url``."""
    return _poolkit_http.start()
