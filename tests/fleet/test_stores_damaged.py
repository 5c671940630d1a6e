"""The data of a store are deleted or damaged: nothing new is granted until all members have reported."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from poolkit.fleet import Ask, Grant, PostgresStore, RedisStore
from poolkit.testing.servers import PostgresServer, RedisServer

KEY = "poolkit:fleet:damaged"
TTL = 600.0  # virtual: the tests themselves move the ends of leases and graces


class Fleet:
    """Two members that hold four permits of ten each; ``do`` changes what is in the store."""

    def __init__(self, stores: list[Any], do: Any, over: Any) -> None:
        self.stores, self.do, self._over = stores, do, over
        self.held = [0] * len(stores)
        self.ask(0, 0)  # the first use begins a grace
        over()
        assert [self.ask(number, 4).permits for number in range(2)] == [4, 4]

    def ask(self, number: int, want: int, *, who: str = "") -> Grant:
        ask = Ask("damaged", who or f"m{number}", 0 if who else self.held[number], want, 10, TTL)
        grant: Grant = self.stores[number].exchange(ask)
        if not who:
            self.held[number] = grant.permits
        return grant

    def begins_anew(self) -> None:
        """A newcomer gets nothing, those who hold permits keep them, and no more than that until the grace is over."""
        assert self.ask(0, 8, who="late").permits == 0
        assert [self.ask(number, 8).permits for number in range(2)] == [4, 4]
        assert not any(self.ask(number, 8).lost for number in range(2))
        self.stores[0].leave("damaged", "late")
        self._over()
        assert sum(self.ask(number, 8).permits for number in range(2)) == 10


@pytest.fixture
def postgres_fleet(postgres: PostgresServer) -> Iterator[Fleet]:
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS poolkit_damaged")
        stores = [PostgresStore(postgres.url, table="poolkit_damaged", timeout=20) for _ in range(2)]
        over = "UPDATE poolkit_damaged SET until = to_timestamp(0) WHERE member = ''"
        # the server may have been started less than a ttl ago
        connection.execute("CREATE SCHEMA IF NOT EXISTS poolkit_damaged_early")
        connection.execute(
            "CREATE OR REPLACE FUNCTION poolkit_damaged_early.pg_postmaster_start_time() RETURNS timestamptz"
            " LANGUAGE sql AS 'SELECT to_timestamp(0)'"
        )
        try:
            for store in stores:
                store._connect()
                store._connection.execute("SET search_path = public, poolkit_damaged_early, pg_catalog")
            yield Fleet(stores, connection.execute, lambda: connection.execute(over))
        finally:
            for store in stores:
                store.close()
            connection.execute("DROP TABLE IF EXISTS poolkit_damaged")
            connection.execute("DROP SCHEMA poolkit_damaged_early CASCADE")


@pytest.fixture
def redis_fleet(redis_server: RedisServer) -> Iterator[Fleet]:
    with contextlib.closing(redis_server.connect()) as client:
        client.delete(KEY)
        stores = [RedisStore(redis_server.url, timeout=20) for _ in range(2)]
        yield Fleet(stores, client, lambda: client.hset(KEY, "grace", 1))
        for store in stores:
            store.close()
        client.delete(KEY)


def test_an_emptied_table_starts_with_a_grace_period(postgres_fleet: Fleet) -> None:
    postgres_fleet.do("TRUNCATE poolkit_damaged")
    postgres_fleet.begins_anew()


def test_a_dropped_table_is_created_again_and_starts_with_a_grace_period(postgres_fleet: Fleet) -> None:
    postgres_fleet.do("DROP TABLE poolkit_damaged")
    assert postgres_fleet.ask(0, 8, who="late").permits == 0
    assert [postgres_fleet.ask(number, 8).permits for number in range(2)] == [4, 4]


@pytest.mark.parametrize(
    "change", ["permits = -4", "want = -1", "token = -1", "token = 9223372036854775807", "until = 'infinity'"]
)
def test_invalid_rows_are_deleted_and_logged_once(
    postgres_fleet: Fleet, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    postgres_fleet.do(f"UPDATE poolkit_damaged SET {change} WHERE member LIKE 'm%'")
    with caplog.at_level(logging.WARNING, "poolkit"):
        postgres_fleet.begins_anew()
    (record,) = caplog.records
    assert record.getMessage() == (
        "damaged: 2 invalid rows of the fleet in the table poolkit_damaged were deleted; "
        "nothing new is granted for 600 s"
    )


def test_a_deleted_key_starts_with_a_grace_period(redis_fleet: Fleet) -> None:
    redis_fleet.do.delete(KEY)
    redis_fleet.begins_anew()


@pytest.mark.parametrize(
    "value", ["garbage", "", "4 0 1", "4 0 x 1", "-4 0 99999999999999 1", f"4 0 {'9' * 400} 1", f"{'9' * 400} 0 1 1",
              f"4 0 1 {'9' * 400}", "4 0 1 1 1"]
)  # fmt: skip
@pytest.mark.parametrize("member", ["m:m1", "m:stranger"])
def test_invalid_members_are_deleted_and_logged_once(
    redis_fleet: Fleet, member: str, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    redis_fleet.do.hset(KEY, member, value)
    with caplog.at_level(logging.WARNING, "poolkit"):
        redis_fleet.begins_anew()
    (record,) = caplog.records
    assert record.getMessage() == (
        "damaged: 1 invalid entries of the fleet's key in Redis were deleted; nothing new is granted for 600 s"
    )


@pytest.mark.parametrize("name", ["grace", "token", "run", "all of it"])
@pytest.mark.parametrize("value", ["garbage", "9" * 30])
def test_an_invalid_key_is_replaced(redis_fleet: Fleet, name: str, value: str) -> None:
    if name == "all of it":
        redis_fleet.do.set(KEY, value)
    else:
        redis_fleet.do.hset(KEY, name, value)
    redis_fleet.begins_anew()
