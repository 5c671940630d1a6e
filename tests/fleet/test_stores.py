"""All stores give the same answers (granted, owed, lost), and a fleet budget refuses invalid settings."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from poolkit import AcquireTimeout, ConfigError, Pool, UsageError
from poolkit.fleet import Ask, FileStore, FleetBudget, Grant, PostgresStore, RedisStore, StoreDown, StoreError
from poolkit.fleet._ledger import Row, decide
from poolkit.testing import FakeConnector
from poolkit.testing.servers import PostgresServer, RedisServer
from tests.support.waiting import until


@pytest.fixture(params=["file", "redis", "postgres"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Any]]:
    """Stores of one kind, as several processes would have them; nothing is remembered in them."""
    stores: list[Any] = []
    kind: Callable[[], Any]
    if request.param == "file":
        kind = lambda: FileStore(tmp_path)  # noqa: E731
    elif request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        with contextlib.closing(server.connect()) as client:
            client.delete("poolkit:fleet:ledger")
        kind = lambda: RedisStore(server.url)  # noqa: E731
    else:
        postgres: PostgresServer = request.getfixturevalue("postgres")
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            connection.execute("DROP TABLE IF EXISTS poolkit_ledger")
        kind = lambda: PostgresStore(postgres.url, table="poolkit_ledger")  # noqa: E731

    def build() -> Any:
        stores.append(kind())
        return stores[-1]

    yield build
    for store in stores:
        store.close()


def test_all_stores_answer_as_the_one_decision_does(open_store: Callable[[], Any]) -> None:
    """Three members ask at random, a limit of ten; each answer is the one of decide(), the sum is never above it."""
    pick = random.Random(11)
    stores = [open_store() for _ in range(3)]
    rows: dict[str, Row] = {}
    held = [0, 0, 0]
    grace = not isinstance(stores[0], FileStore)  # a data set that is new to the fleet
    ttl = 0.5 if grace else 30.0
    if grace:
        assert stores[0].exchange(Ask("ledger", "m0", 0, 5, 10, ttl)).permits == 0
        time.sleep(ttl + 0.1)
        ttl = 30.0
    if isinstance(stores[0], PostgresStore):  # started a moment ago, perhaps
        ttl = 4.0
        time.sleep(ttl)
    for _ in range(60):
        number = pick.randrange(3)
        ask = Ask("ledger", f"m{number}", pick.randint(0, held[number]), pick.choice([0, 0, 2, 7]), 10, ttl)
        expected = decide(rows, ask, 0.0, token=1, grace=False)
        got: Grant = stores[number].exchange(ask)
        assert (got.permits, got.members, got.short, got.owed, got.lost) == (
            expected.permits, expected.members, expected.short, expected.owed, expected.lost,
        )  # fmt: skip
        held[number] = got.permits
        assert sum(held) <= 10
    for number, store in enumerate(stores):
        store.leave("ledger", f"m{number}")


def test_a_lease_that_ran_out_is_lost_only_if_others_have_its_permits() -> None:
    """A late member keeps what is still free, else its permits are lost; the total never exceeds the limit."""
    rows = {"late": Row(6, 0, until=1.0, token=1)}
    assert decide(dict(rows), Ask("f", "late", 6, 0, 10, 5), 2.0, token=2, grace=False).permits == 6
    assert decide(rows, Ask("f", "new", 0, 8, 10, 5), 2.0, token=2, grace=False).permits == 8
    late = decide(rows, Ask("f", "late", 6, 0, 10, 5), 2.0, token=3, grace=False)
    assert late.lost
    assert late.permits == 0
    assert decide(rows, Ask("f", "late", 0, 6, 10, 5), 2.0, token=3, grace=False).token == 3


def test_in_a_grace_held_permits_count_and_nothing_new_is_granted() -> None:
    """After a restart of the store newcomers wait until all who hold something had the time to say so."""
    rows: dict[str, Row] = {}
    assert decide(rows, Ask("f", "new", 0, 4, 10, 5), 0.0, token=1, grace=True).permits == 0
    assert decide(rows, Ask("f", "old", 10, 4, 10, 5), 0.0, token=2, grace=True).permits == 10


def test_permits_above_the_even_share_are_owed_to_members_below_it() -> None:
    """A late member's floor comes back from who has more, not from who has less."""
    rows: dict[str, Row] = {}
    assert decide(rows, Ask("f", "a", 0, 10, 10, 5), 0.0, token=1, grace=False).permits == 10
    late = decide(rows, Ask("f", "b", 0, 9, 10, 5), 0.0, token=2, grace=False)
    assert (late.permits, late.owed) == (0, 0)
    assert decide(rows, Ask("f", "a", 10, 0, 10, 5), 0.0, token=3, grace=False).owed == 5


def test_the_permits_of_a_dead_process_are_free_at_once_where_the_kernel_tells(tmp_path: Path) -> None:
    """A file store needs no time-out: the lock of a killed process is gone with it."""
    child = os.fork()
    if child == 0:
        FileStore(tmp_path).exchange(Ask("f", "child", 0, 10, 10, 5))
        os._exit(0)
    os.waitpid(child, 0)
    store = FileStore(tmp_path)
    assert store.exchange(Ask("f", "me", 0, 10, 10, 5)).permits == 10
    store.leave("f", "me")
    assert [path.name for path in tmp_path.iterdir()] == ["f.fleet"]


def test_a_store_that_refuses_is_down_and_one_that_says_nothing_is_not() -> None:
    """The two errors decide whether a process may go on."""
    ask = Ask("f", "me", 0, 1, 10, 5)
    for store in (RedisStore("redis://127.0.0.1:1"), PostgresStore("host=127.0.0.1 port=1 user=x")):
        with pytest.raises(StoreDown):
            store.exchange(ask)


class _Scripted:
    """A store that answers as the test says."""

    expires = True

    def __init__(self) -> None:
        self.answer: Callable[[Ask], Grant] = lambda ask: Grant(ask.held + ask.want, 7)
        self.left: list[str] = []

    def exchange(self, ask: Ask) -> Grant:
        return self.answer(ask)

    def leave(self, fleet: str, member: str) -> None:
        self.left.append(fleet)

    def forget(self) -> None:
        pass

    def close(self) -> None:
        pass


def test_a_lost_lease_cuts_every_connection_and_giving_it_back_is_no_error() -> None:
    """Leased ones too: other processes may be using their permits. The next lease starts again."""
    store = _Scripted()
    with FleetBudget(store, "f", limit=10, ttl=5) as budget, Pool(FakeConnector(), budget=budget) as pool:
        leased, idle = pool.acquire(), pool.acquire()
        pool.release(idle)
        assert budget.fleet().token == 7
        lost = iter([True])
        store.answer = lambda ask: Grant(ask.held + ask.want, 8, lost=next(lost, False))
        until(lambda: leased.closed and idle.closed)
        pool.release(leased)
        pool.release(pool.acquire())
        pool.close()
    assert store.left == ["f", "f"]  # the member whose lease was lost, and the present one


def test_without_an_answer_the_lease_ends_and_the_error_names_the_reason() -> None:
    """No answer from the store: the connections are closed before the lease ends, and the error names the store."""
    store = _Scripted()

    def silent(ask: Ask) -> Grant:
        raise StoreError("it says nothing")

    with FleetBudget(store, "f", limit=10, ttl=0.5) as budget, Pool(FakeConnector(), budget=budget) as pool:
        connection = pool.acquire()
        store.answer = silent
        until(lambda: connection.closed)
        with pytest.raises(AcquireTimeout, match="the store gives no answer: it says nothing"):
            pool.acquire(0.05)
        pool.release(connection)
        pool.close()


def test_refusals_prolong_the_lease_unless_they_are_not_trusted() -> None:
    """While the store is down work goes on; with trust_refusal=False it ends with the lease."""

    def down(ask: Ask) -> Grant:
        raise StoreDown("refused")

    for trust in (True, False):
        store = _Scripted()
        budget = FleetBudget(store, "f", limit=10, ttl=0.5, trust_refusal=trust)
        with budget, Pool(FakeConnector(), budget=budget) as pool:
            connection = pool.acquire()
            store.answer = down
            if trust:
                time.sleep(1.0)
                assert not connection.closed
            else:
                until(lambda: connection.closed)  # noqa: B023
            pool.release(connection)
            pool.close()


def test_permits_are_asked_for_in_blocks_and_no_caller_waits_for_the_store_in_between() -> None:
    """Twelve connections, three questions at most that asked for something."""
    store = _Scripted()
    asked: list[int] = []

    def answer(ask: Ask) -> Grant:
        asked.append(ask.want)
        return Grant(ask.held + ask.want, 1)

    store.answer = answer
    with (
        FleetBudget(store, "f", limit=12, block=4, ttl=5) as budget,
        Pool(FakeConnector(), budget=budget, max_size=None) as pool,
    ):
        for connection in [pool.acquire() for _ in range(12)]:
            pool.release(connection)
        assert [want for want in asked if want] == [4, 4, 4]
        pool.close()


def test_an_invalid_setting_of_a_fleet_raises_a_config_error_that_names_it(tmp_path: Path) -> None:
    """Each message names the setting, the value and what would be right."""
    store = FileStore(tmp_path)
    for settings, text in (
        ({"limit": 0}, "limit=0: must be a whole number, 1 or more"),
        ({"limit": 5, "block": 0}, "block=0: must be a whole number, 1 or more"),
        ({"limit": 5, "ttl": 0.1}, "ttl=0.1: must be a time in seconds, 0.5 or more"),
    ):
        with pytest.raises(ConfigError, match=text):
            FleetBudget(store, "f", **settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="fleet='': must be a name"):
        FleetBudget(store, "", limit=5)
    with pytest.raises(ConfigError, match="store='redis': must be a RedisStore"):
        FleetBudget("redis", "f", limit=5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="table='a b': must be a plain name"):
        PostgresStore("host=127.0.0.1", table="a b")
    with FleetBudget(store, "f", limit=5) as budget:
        with pytest.raises(UsageError, match="cannot be changed while it runs"):
            budget.resize(3)
        pool = Pool(FakeConnector(), budget=budget, name="orders", min_size=2)
        pool.acquire()
        with pytest.raises(UsageError, match=r"connections are still open; close the pools first \(orders\)"):
            budget.close()
        with pytest.raises(ConfigError, match="min_size=4"):
            Pool(FakeConnector(), budget=budget, min_size=4)
        pool.drain(0)


def test_a_failing_store_is_logged_once_and_so_is_its_recovery(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever it raises, and however many exchanges fail."""
    store = _Scripted()
    for error in (StoreError("it says nothing"), StoreDown("refused"), TypeError("garbage")):
        asked: list[Ask] = []

        def failing(ask: Ask, error: Exception = error, asked: list[Ask] = asked) -> Grant:
            asked.append(ask)
            raise error

        caplog.clear()
        store.answer = lambda ask: Grant(ask.held + ask.want, 7)
        with (
            caplog.at_level("INFO", "poolkit"),
            FleetBudget(store, "f", limit=10, ttl=60) as budget,
            Pool(FakeConnector(), budget=budget) as pool,
        ):
            pool.release(pool.acquire())
            store.answer = failing
            until(lambda: len(asked) > 3)  # noqa: B023
            store.answer = lambda ask: Grant(ask.held + ask.want, 7)
            until(lambda: budget.fleet().error is None)
            pool.close()
        logged = [record.getMessage() for record in caplog.records if "the store" in record.getMessage()]
        assert len(logged) == 2
        assert str(error) in logged[0]
        assert logged[1] == "f: the store answers again"
