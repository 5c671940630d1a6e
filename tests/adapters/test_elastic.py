"""Elastic size on real servers: sessions follow the load, and a full server is left in peace."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import asyncpg
import psycopg
import pytest
import redis
import redis.asyncio
import sqlalchemy
from sqlalchemy import create_engine, text

from poolkit import AutoscaleConfig
from poolkit.connector import overloaded
from poolkit.testing.servers import PostgresServer, RedisServer
from poolkit_adapters.psycopg import AsyncPoolkitConnectionPool, PoolkitConnectionPool
from poolkit_adapters.redis import PoolkitConnectionPool as RedisPool
from poolkit_adapters.sqlalchemy import PoolkitPool
from tests.support.waiting import PATIENCE

NAME = "elastic"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer(dbname="poolkit", max_connections=15) as server:
        with server.connect() as admin:  # only the superuser may use what is reserved
            admin.execute("CREATE ROLE app LOGIN PASSWORD 'app'")
        yield server


@pytest.fixture
def small(server: PostgresServer) -> Iterator[str]:
    """The URL of an application that may open 12 sessions, all of which are free."""
    yield server.url.replace(f"{server.user}:{server.password}@", "app:app@")
    server.kill_backends()


class Users:
    """So many callers, each with statements of 20 ms, through a pool for threads or for tasks."""

    def __init__(self, url: str, asynchronous: bool, **settings: Any) -> None:
        settings = {"min_size": 1, "max_size": 12, "timeout": PATIENCE, **settings}
        settings["kwargs"] = {"application_name": NAME}
        self._loop = asyncio.new_event_loop() if asynchronous else None
        self.pool: Any = None
        if asynchronous:
            self.pool = AsyncPoolkitConnectionPool(url, open=False, **settings)
            self._run(self.pool.open())
        else:
            self.pool = PoolkitConnectionPool(url, open=True, **settings)
        self.engine = self.pool.poolkit

    def _run(self, work: Awaitable[Any]) -> Any:
        assert self._loop is not None
        return self._loop.run_until_complete(asyncio.wait_for(work, 2 * PATIENCE))

    def work(self, callers: int, until: Callable[[], object], what: str) -> None:
        """Run all callers, one statement after the other, until the condition is true."""
        deadline = time.monotonic() + PATIENCE

        def over() -> bool:
            assert time.monotonic() < deadline, f"worked in vain until {what}: {self.engine.explain()}"
            return bool(until())

        def one(_: int) -> None:
            while not over():
                with self.pool.connection() as connection:
                    connection.execute("SELECT pg_sleep(0.02)")

        async def async_one() -> None:
            while not over():
                async with self.pool.connection() as connection:
                    await connection.execute("SELECT pg_sleep(0.02)")

        async def all_of_them() -> None:
            await asyncio.gather(*(async_one() for _ in range(callers)))

        if self._loop is not None:
            self._run(all_of_them())
        else:
            with ThreadPoolExecutor(callers) as threads:
                list(threads.map(one, range(callers)))

    def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain until {what}: {self.engine.explain()}"
            if self._loop is not None:
                self._run(asyncio.sleep(0.02))
            else:
                time.sleep(0.02)

    def close(self) -> None:
        if self._loop is None:
            self.pool.close()
            return
        self._run(self.pool.close())
        self._loop.close()


@pytest.fixture(params=[False, True], ids=["threads", "tasks"])
def users(request: pytest.FixtureRequest, small: str) -> Iterator[Callable[..., Users]]:
    made: list[Users] = []

    def make(**settings: Any) -> Users:
        made.append(Users(small, request.param, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


@contextlib.contextmanager
def others(url: str, sessions: int) -> Iterator[None]:
    """Let another program hold so many sessions."""
    with contextlib.ExitStack() as stack:
        for _ in range(sessions):
            stack.enter_context(psycopg.connect(url, application_name="another"))
        yield


def test_sessions_follow_the_load(users: Callable[..., Users], server: PostgresServer) -> None:
    """8 callers get a session each. Soon after the last of them the server has one session again."""
    config = AutoscaleConfig(down_delay=1.5, prewarm=0)
    one = users(autoscale=config)
    one.work(8, lambda: one.engine.stats().idle + one.engine.stats().in_use >= 8, "each has a session")
    assert len(server.backends(NAME)) >= 8, "sessions that were needed a moment ago are there"
    one.until(lambda: one.engine.stats().limit <= 2, "the load is forgotten")
    one.until(lambda: len(server.backends(NAME)) == 1, "the server has min_size sessions")
    assert not one.engine.stats().connect_errors


def test_a_full_server_makes_the_pool_smaller_and_its_callers_wait(users: Callable[..., Users], small: str) -> None:
    """12 sessions, of which another program has 6. 10 callers at once: some connects are refused (53300), the pool
    makes do with fewer, everybody is served. When the other program is gone, the pool grows again, one by one.
    """
    config = AutoscaleConfig(down_delay=60, overload_recovery=0.2)
    one = users(autoscale=config)
    limits: list[str] = []
    one.engine.add_listener(lambda event: limits.append(event.detail) if "resized" in event.kind.value else None)
    with others(small, 6):
        refusal = "the server refused more"
        one.work(10, lambda: any(refusal in detail for detail in limits), "the limit is lowered")
        stats = one.engine.stats()
        assert stats.connect_errors
        assert "too many clients" in stats.last_connect_error or "reserved" in stats.last_connect_error
        one.until(lambda: one.engine.stats().closes["surplus"], "some connections are given up for others")
    refused = one.engine.stats().connect_errors
    one.work(10, lambda: one.engine.stats().idle + one.engine.stats().in_use > 6, "there are more than before")
    assert one.engine.stats().connect_errors == refused


def test_a_full_server_is_recognised_through_every_driver(server: PostgresServer, small: str) -> None:
    """In the messages that drivers and adapters pass on. A refusal by another database is not such an error."""
    with others(small, 12):
        with pytest.raises(psycopg.OperationalError) as plain:
            psycopg.connect(small)
        with pytest.raises(asyncpg.PostgresError) as coded:
            asyncio.run(asyncpg.connect(small))
        engine = create_engine(small.replace("postgresql:", "postgresql+psycopg:"), poolclass=PoolkitPool)
        with pytest.raises(sqlalchemy.exc.OperationalError) as wrapped:
            engine.connect()
        engine.dispose()
    assert overloaded(plain.value)
    assert overloaded(coded.value)
    assert overloaded(wrapped.value)
    with pytest.raises(psycopg.OperationalError) as refused:
        psycopg.connect(small.replace("/poolkit", "/nowhere"))
    assert not overloaded(refused.value)


def test_sqlalchemy_backs_off_too(small: str) -> None:
    """Callers share the connections that the server accepts. No caller that these can serve gets a refusal."""
    url = small.replace("postgresql:", "postgresql+psycopg:")
    engine = create_engine(url, poolclass=PoolkitPool, max_size=12, autoscale=AutoscaleConfig(up_delay=0, max_wait=0))

    def work(_: int) -> str:
        try:
            with engine.connect() as connection:
                connection.execute(text("SELECT pg_sleep(0.02)"))
        except sqlalchemy.exc.OperationalError as error:
            return "refused" if overloaded(error) else repr(error)
        return "ok"

    try:
        with others(small, 9), ThreadPoolExecutor(10) as threads:
            answers = list(threads.map(work, range(200)))
        assert set(answers) <= {"ok", "refused"}
        assert answers.count("refused") < 30, "few of 200 were refused"
    finally:
        engine.dispose()


def test_redis_with_all_its_clients_makes_the_pool_smaller() -> None:
    """Redis accepts the connection, says "max number of clients reached" and hangs up. Callers take another one."""
    with RedisServer(settings={"maxclients": "6"}) as server:
        pool = RedisPool.from_url(
            server.url, max_connections=20, timeout=PATIENCE, autoscale=AutoscaleConfig(up_delay=0, max_wait=0)
        )
        client = redis.Redis(connection_pool=pool)

        def work(_: int) -> str:
            try:
                client.blpop(["nothing"], timeout=0.05)
            except redis.ConnectionError as error:
                return "refused" if overloaded(error) else repr(error)
            return "ok"

        with ThreadPoolExecutor(12) as threads:
            answers = list(threads.map(work, range(100)))
        stats = pool.poolkit.stats()
        assert set(answers) == {"ok"}
        assert stats.connect_errors > 0
        assert stats.limit is not None
        assert stats.limit <= 6
        client.close()
        pool.close()
