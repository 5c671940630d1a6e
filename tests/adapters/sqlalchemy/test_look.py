"""Unread data of an idle connection: a notification is kept for the user, the end of the session replaces it."""

from __future__ import annotations

import asyncio
import select
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from poolkit import PoolConfig
from poolkit.testing.servers import PostgresServer
from poolkit_adapters.sqlalchemy import AsyncPoolkitPool, PoolkitPool
from poolkit_adapters.sqlalchemy._look import looks_alive, only_unasked


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body


NOTIFY = message(b"A", b"\0\0\0\1jobs\0one\0")
NOTICE = message(b"N", b"SNOTICE\0\0")
PARAMETER = message(b"S", b"TimeZone\0UTC\0")
FATAL = message(b"E", b"SFATAL\0\0")


@pytest.mark.parametrize(
    ("waiting", "alive"),
    [
        (b"", False),
        (NOTIFY, True),
        (NOTICE + PARAMETER + NOTIFY, True),
        (NOTIFY[:1], True),
        (NOTIFY[:7], True),
        (NOTIFY * 1000, True),
        (NOTIFY + FATAL, False),
        (FATAL, False),
        (FATAL[:1], False),
        (message(b"Z", b"I"), False),  # an answer that no caller asked for
        (b"\x17\x03\x03\x00\x20" + b"x" * 32, True),  # TLS: only the driver can read it
        (b"\x15\x03\x03\x00\x02\x01\x00", False),  # TLS: close_notify
        (b"\x00\x00\x00\x20" + b"x" * 32, True),  # encryption by GSSAPI
        (b"A\0\0\0\0" * 2, True),  # an invalid length causes no wait
    ],
)
def test_what_waits_is_judged_by_its_messages(waiting: bytes, alive: bool) -> None:
    assert only_unasked(waiting) is alive


class Idle:
    """A driver's connection over one end of a socket pair."""

    closed = False

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.fileno = self.ours.fileno

    def end(self) -> None:
        self.ours.close()
        self.theirs.close()


class PostgresIdle(Idle):
    def notifies(self) -> None: ...


def test_a_notification_before_the_end_does_not_hide_the_end() -> None:
    idle = PostgresIdle()
    assert looks_alive(idle)
    idle.theirs.sendall(NOTIFY)
    assert looks_alive(idle)
    assert looks_alive(idle), "the look has taken it"
    idle.theirs.close()
    assert not looks_alive(idle)
    assert idle.ours.recv(100) == NOTIFY
    assert not looks_alive(idle)
    idle.end()


def test_with_another_protocol_whatever_waits_is_unexpected() -> None:
    idle = Idle()
    assert looks_alive(idle)
    idle.theirs.sendall(NOTIFY)
    assert not looks_alive(idle)
    idle.end()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_connection_that_listens_is_kept_and_the_notification_delivered(postgres: PostgresServer, tls: bool) -> None:
    """With poolkit's own defaults, after more than ``check_after_idle`` without use."""
    url = postgres.sqlalchemy_url("psycopg")
    if tls:
        url = url.replace(f":{postgres.port}/", f":{postgres.tls_port}/") + "?sslmode=require"
    engine = create_engine(
        url, isolation_level="AUTOCOMMIT", poolclass=PoolkitPool, config=PoolConfig(max_size=1, check_after_idle=0.01)
    )
    with engine.connect() as connection:
        connection.execute(text("listen jobs"))
        pid = connection.execute(text("select pg_backend_pid()")).scalar()
        driver: Any = connection.connection.driver_connection
    with postgres.connect() as other:
        other.execute("notify jobs, 'one'")
    until(lambda: readable(driver.fileno()))
    engine.pool.poolkit.run_due()  # type: ignore[attr-defined]
    with engine.connect() as connection:
        assert connection.execute(text("select pg_backend_pid()")).scalar() == pid
        driver = connection.connection.driver_connection
        assert [notification.payload for notification in driver.notifies(timeout=10, stop_after=1)] == ["one"]
    engine.dispose()


def test_a_task_s_connection_that_listens_is_kept(postgres: PostgresServer) -> None:
    async def main() -> None:
        engine = create_async_engine(
            postgres.sqlalchemy_url("psycopg_async"), isolation_level="AUTOCOMMIT", poolclass=AsyncPoolkitPool,
            config=PoolConfig(max_size=1, check_after_idle=0.01),
        )  # fmt: skip
        async with engine.connect() as connection:
            await connection.execute(text("listen jobs"))
            pid = await connection.scalar(text("select pg_backend_pid()"))
            driver: Any = (await connection.get_raw_connection()).driver_connection
        with postgres.connect() as other:
            other.execute("notify jobs, 'one'")
        until(lambda: readable(driver.fileno()))
        async with engine.connect() as connection:
            assert await connection.scalar(text("select pg_backend_pid()")) == pid
            found = [notification.payload async for notification in driver.notifies(timeout=10, stop_after=1)]
            assert found == ["one"]
        await engine.dispose()

    asyncio.run(main())


def test_a_session_that_the_server_has_ended_is_replaced_unnoticed(postgres: PostgresServer) -> None:
    """FATAL and the end of the stream follow a notification that is still unread."""
    engine = create_engine(
        postgres.sqlalchemy_url("psycopg"), isolation_level="AUTOCOMMIT", poolclass=PoolkitPool,
        config=PoolConfig(max_size=1, check_after_idle=0.01),
    )  # fmt: skip
    with engine.connect() as connection:
        connection.execute(text("listen jobs"))
        pid = connection.execute(text("select pg_backend_pid()")).scalar()
        driver: Any = connection.connection.driver_connection
    with postgres.connect() as other:
        other.execute("notify jobs, 'one'")
        other.execute("select pg_terminate_backend(%s)", (pid,))
    until(lambda: not looks_alive(driver))
    with engine.connect() as connection:
        assert connection.execute(text("select pg_backend_pid()")).scalar() != pid
    engine.dispose()


def readable(number: int) -> bool:
    return bool(select.select([number], [], [], 0)[0])


def until(condition: Callable[[], object]) -> None:
    time.sleep(0.02)  # longer than check_after_idle
    while not condition():
        time.sleep(0.005)
