"""What QueuePool lacks: lifetimes, checks, a minimum size, live changes. And its order of idle connections."""

from __future__ import annotations

import contextlib
import gc
import itertools
import threading
import time
from typing import Any

import pytest
from sqlalchemy import event, exc, text

from poolkit.testing.servers import PostgresServer
from poolkit_adapters.sqlalchemy import PoolkitPool
from poolkit_adapters.sqlalchemy import _fairy as fairy
from tests.adapters.sqlalchemy.conftest import since
from tests.support.waiting import until

PID = text("select pg_backend_pid()")


def pids(engine: Any, count: int) -> list[int]:
    connections = [engine.connect() for _ in range(count)]
    found = [connection.scalar(PID) for connection in connections]
    for connection in connections:
        connection.close()
    return found


@pytest.fixture
def pings(make_engine: Any) -> list[Any]:
    return []


def watch_pings(engine: Any, pings: list[Any]) -> Any:
    plain = engine.dialect.do_ping
    engine.dialect.do_ping = lambda connection: (pings.append(connection), plain(connection))[1]
    return engine


def test_26_idle_connections_leave_without_a_checkout_and_the_floor_stays(
    make_engine: Any, postgres: PostgresServer
) -> None:
    engine = make_engine(pool_size=5, min_size=1, idle_timeout=0.2)
    burst = pids(engine, 4)
    until(lambda: len(set(burst) & set(postgres.backends())) == 1)
    assert engine.pool.checkedin() == 1
    engine.pool.poolkit.check_books()


def test_a_floor_is_kept_from_the_first_use_on_and_not_after_dispose(
    make_engine: Any, postgres: PostgresServer
) -> None:
    engine = make_engine(pool_size=5, min_size=3, connect_args={"application_name": "floor"})
    assert postgres.backends("floor") == []
    pids(engine, 1)
    until(lambda: len(postgres.backends("floor")) == 3)
    engine.dispose()
    until(lambda: postgres.backends("floor") == [])
    pids(engine, 1)
    until(lambda: len(postgres.backends("floor")) == 3)


def test_a_connect_that_is_under_way_at_dispose_is_closed_when_it_ends(fake: Any) -> None:
    """Otherwise it would stay open in the old pool until that pool is collected."""
    gate, begun = threading.Event(), itertools.count()

    def connect() -> Any:  # the first connect goes through, the second one waits
        assert next(begun) == 0 or gate.wait(10)
        return fake()

    pool = PoolkitPool(connect, pool_size=3, min_size=2)
    in_use = pool.connect()
    until(lambda: pool.poolkit.stats().connecting == 1)
    pool.dispose()
    successor = pool.recreate()
    gate.set()
    in_use.close()
    until(lambda: pool.poolkit.stats().size == 0)
    assert [one.closed for one in fake.made] == [True, True]
    assert successor.size() == pool.size() == 3
    pool.connect().close()  # an abandoned pool is still a pool, with its old settings
    until(lambda: pool.checkedin() >= 2)


def test_max_lifetime_replaces_a_connection(make_engine: Any) -> None:
    engine = make_engine(pool_size=1, max_overflow=0, max_lifetime=0.2, lifetime_jitter=0.0)
    [first] = pids(engine, 1)
    until(lambda: pids(engine, 1) != [first])


def test_warm_up_opens_connections_that_are_fit_for_use(make_engine: Any, postgres: PostgresServer) -> None:
    engine = make_engine(connect_args={"application_name": "warm"})
    engine.pool.poolkit.warm_up(3)
    assert len(postgres.backends("warm")) == 3
    assert set(pids(engine, 3)) == set(postgres.backends("warm"))


def test_without_settings_of_its_own_nothing_is_asked_of_the_server(make_engine: Any, pings: list[Any]) -> None:
    engine = watch_pings(make_engine(), pings)
    for _ in range(3):
        pids(engine, 2)
    assert pings == []


def test_pre_ping_asks_at_every_checkout_as_before(make_engine: Any, pings: list[Any]) -> None:
    engine = watch_pings(make_engine(pool_pre_ping=True), pings)
    for _ in range(4):
        pids(engine, 1)
    assert len(pings) == 3


def test_pre_ping_with_check_after_idle_asks_only_after_that_time(make_engine: Any, pings: list[Any]) -> None:
    engine = watch_pings(make_engine(pool_pre_ping=True, check_after_idle=0.2), pings)
    for _ in range(20):
        pids(engine, 1)
    assert pings == []
    time.sleep(0.25)
    pids(engine, 1)
    assert len(pings) == 1


@pytest.mark.parametrize(
    "settings", [{"pool_pre_ping": True}, {"check_after_idle": 0}, {"pool_pre_ping": True, "check_after_idle": 0.01}]
)
def test_16_a_restart_of_the_server_costs_no_caller_an_error(
    make_engine: Any, postgres: PostgresServer, settings: dict[str, Any]
) -> None:
    engine = make_engine(pool_size=5, connect_args={"application_name": "restart"}, **settings)
    old = pids(engine, 5)
    time.sleep(0.02)
    postgres.kill_backends("restart")
    new = pids(engine, 5)
    assert len(set(new)) == 5
    assert not set(old) & set(new)
    engine.pool.poolkit.check_books()


def test_a_server_that_hangs_up_is_noticed_without_a_round_trip(
    make_engine: Any, postgres: PostgresServer, pings: list[Any]
) -> None:
    engine = watch_pings(make_engine(check_after_idle=0, connect_args={"application_name": "gone"}), pings)
    pids(engine, 1)
    postgres.kill_backends("gone")
    pids(engine, 1)
    assert pings == []  # one check of the socket was enough


def test_09_a_ping_that_gets_no_answer_is_bounded(
    make_engine: Any, postgres: PostgresServer, fault_proxy: Any, pings: list[Any]
) -> None:
    proxy = fault_proxy(postgres.host, postgres.port)
    url = postgres.sqlalchemy_url("psycopg").replace(f":{postgres.port}/", f":{proxy.port}/")
    engine = watch_pings(make_engine(url, pool_size=3, check_after_idle=0, check_timeout=0.3), pings)
    old = pids(engine, 3)
    proxy.mode = "silent"
    timer = threading.Timer(0.15, setattr, (proxy, "mode", "pass"))
    timer.start()
    with engine.connect() as connection:
        assert connection.scalar(PID) not in old
    timer.join()
    assert len(pings) == 1  # the other idle ones are dropped without another wait


def test_keepalive_asks_idle_connections(make_engine: Any, pings: list[Any]) -> None:
    engine = watch_pings(make_engine(keepalive=0.1), pings)
    [first] = pids(engine, 1)
    until(lambda: len(pings) >= 2 and engine.pool.checkedin() == 1)
    assert pids(engine, 1) == [first]


def test_12_recycle_is_sqlalchemys(make_engine: Any) -> None:
    engine = make_engine(pool_recycle=0, pool_size=1)
    opened: list[Any] = []
    event.listen(engine, "connect", lambda connection, record: opened.append(record))
    first = pids(engine, 1)
    time.sleep(0.01)
    assert pids(engine, 1) != first
    assert engine.pool.poolkit.stats().connects == len(opened)  # the engine knows of each connect
    assert len(set(opened)) == 1  # the record stayed, its connection changed


def test_18_one_call_retires_all_connections(make_engine: Any) -> None:
    engine = make_engine(pool_size=5)
    with engine.connect() as held:
        old = [held.scalar(PID), *pids(engine, 2)]
        engine.pool.poolkit.clear()
        assert held.scalar(PID) in old
    assert not set(old) & set(pids(engine, 3))


def test_23_the_size_can_be_changed_while_connections_are_out(make_engine: Any) -> None:
    engine = make_engine(pool_size=4, max_overflow=0, pool_timeout=0)
    held = [engine.connect() for _ in range(4)]
    engine.pool.poolkit.reconfigure(max_size=2, max_idle=2)
    assert [c.scalar(text("select 1")) for c in held] == [1] * 4
    for connection in held:
        connection.close()
    assert (engine.pool.checkedin(), engine.pool.size()) == (2, 2)
    held = [engine.connect() for _ in range(2)]
    with pytest.raises(exc.TimeoutError):
        engine.connect()
    engine.pool.poolkit.reconfigure(max_size=3)
    engine.connect().close()
    for connection in held:
        connection.close()


def test_25_drain_lets_leases_end_and_cuts_the_rest(make_engine: Any, postgres: PostgresServer) -> None:
    engine = make_engine(connect_args={"application_name": "drain"})
    held = engine.connect()
    held.execute(PID)
    assert engine.pool.poolkit.drain(timeout=0.1) is False
    until(lambda: postgres.backends("drain") == [])
    with pytest.raises(exc.SQLAlchemyError):
        held.execute(PID)
    held.close()
    with pytest.raises(exc.InvalidRequestError, match="closed"):
        engine.connect()


def test_13_dispose_closes_what_comes_back_later(make_engine: Any, postgres: PostgresServer) -> None:
    engine = make_engine(connect_args={"application_name": "late"})
    held = engine.connect()
    old = held.scalar(PID)
    engine.dispose()
    assert held.scalar(PID) == old
    held.close()
    until(lambda: postgres.backends("late") == [])
    engine.connect().close()
    assert len(postgres.backends("late")) == 1


def test_13_a_dropped_connection_is_back_after_one_collection(fake: Any) -> None:
    pool = PoolkitPool(fake, pool_size=1, max_overflow=0, timeout=0)
    cycle: list[Any] = [pool.connect()]
    cycle.append(cycle)
    with pytest.raises(exc.TimeoutError):
        pool.connect()
    del cycle
    gc.collect()
    pool.connect().close()
    pool.poolkit.check_books()


def test_14_a_collection_in_every_critical_section_does_no_harm(fake: Any) -> None:
    pool = PoolkitPool(fake, pool_size=3, max_overflow=2, timeout=5)
    before = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(200):
            lost: list[Any] = [pool.connect()]
            lost.append(lost)
            del lost
            pool.connect().close()
    finally:
        gc.set_threshold(*before)
    # while another thread (housekeeping) collects, collect() returns at once and has done nothing
    until(lambda: gc.collect() >= 0 and pool.checkedout() == 0)
    pool.poolkit.check_books()


def test_leak_after_names_the_place_in_the_program(make_engine: Any, caplog: pytest.LogCaptureFixture) -> None:
    engine = make_engine(leak_after=0.05)
    with caplog.at_level("WARNING", logger="poolkit"), engine.connect():
        until(lambda: caplog.records)
    assert __file__ in caplog.text


def test_20_waiters_are_served_in_turn(fake: Any) -> None:
    pool = PoolkitPool(fake, pool_size=1, max_overflow=0, timeout=20)
    served: list[str] = []

    def work() -> None:
        connection = pool.connect()
        served.append(threading.current_thread().name)
        connection.close()

    held = pool.connect()
    threads = []
    for number in range(5):
        threads.append(threading.Thread(target=work, name=f"w{number}"))
        threads[-1].start()
        until(lambda: pool.poolkit.stats().waiting == number + 1)  # noqa: B023
    held.close()
    for thread in threads:
        thread.join(10)
    assert served == ["w0", "w1", "w2", "w3", "w4"]


def test_19_no_thread_starves(fake: Any) -> None:
    """Threads that have returned a connection and ask again are served after those that have waited."""
    pool = PoolkitPool(fake, pool_size=1, max_overflow=0, timeout=30)
    served: list[int] = []

    def work(number: int) -> None:
        for _ in range(5):
            connection = pool.connect()
            served.append(number)
            connection.close()

    held = pool.connect()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for waiting, thread in enumerate(threads, 1):
        thread.start()
        until(lambda: pool.poolkit.stats().waiting == waiting)  # noqa: B023
    held.close()
    for thread in threads:
        thread.join(30)
    assert served[:20] == list(range(20))
    assert len(served) == 100


@pytest.mark.parametrize("soft", [False, True])
def test_invalidate_and_detach_give_their_place_to_the_next(make_engine: Any, soft: bool) -> None:
    engine = make_engine(pool_size=1, max_overflow=0, pool_timeout=5)
    connection = engine.raw_connection()
    connection.invalidate(soft=soft)
    connection.close()
    with engine.connect() as other:
        first = other.scalar(PID)
        other.detach()
        with engine.connect() as third:
            assert third.scalar(PID) != first
    assert engine.pool.checkedin() == 1


@since[2, 0, 25]
def test_handle_error_is_called_for_failed_pings(make_engine: Any, postgres: PostgresServer, fault_proxy: Any) -> None:
    proxy = fault_proxy(postgres.host, postgres.port)
    url = postgres.sqlalchemy_url("psycopg").replace(f":{postgres.port}/", f":{proxy.port}/")
    engine = make_engine(url, check_after_idle=0, check_timeout=0.1)
    heard: list[bool] = []
    event.listen(engine, "handle_error", lambda context: heard.append(context.is_pre_ping))
    pids(engine, 1)
    proxy.mode = "mute"
    timer = threading.Timer(0.05, setattr, (proxy, "mode", "pass"))
    timer.start()
    pids(engine, 1)
    timer.join()
    assert heard == [True]


@pytest.mark.parametrize("name", ["checkin", "finalizer"])
@pytest.mark.parametrize("beside", ["nothing", "reset listener", "failing reset listener", "log", "lost connection"])
def test_a_listener_that_fails_at_the_return_costs_no_slot(
    make_engine: Any, postgres: PostgresServer, name: str, beside: str
) -> None:
    engine = make_engine(pool_size=1, max_overflow=0, pool_timeout=60, echo_pool="debug" if beside == "log" else None)
    pool = engine.pool
    failing = [True]

    def fail(*_: Any) -> None:
        if failing[0]:
            raise RuntimeError(name)

    if name != "finalizer":
        event.listen(engine, name, fail)
    if "listener" in beside:
        event.listen(engine, "reset", fail if "failing" in beside else lambda *_: None)
    before = len(fairy._checkout_refs)
    for _ in range(2):
        connection = engine.connect()
        raw = connection.connection
        backend = connection.scalar(PID)
        if name == "finalizer":
            raw._connection_record.finalize_callback.append(fail)
        if beside == "lost connection":
            with postgres.connect() as admin:
                admin.execute("select pg_terminate_backend(%s, 5000)", [backend])
        lost = beside in ("failing reset listener", "lost connection")  # a finalizer is not told of these
        with contextlib.nullcontext() if lost and name == "finalizer" else pytest.raises(RuntimeError, match=name):
            raw.close()
        assert pool.checkedout() == 0
        assert raw.dbapi_connection is None
    assert len(fairy._checkout_refs) == before
    failing[0] = False
    with engine.connect() as connection:
        assert connection.scalar(PID) != backend  # what the listener left is unknown
    pool.poolkit.check_books()
