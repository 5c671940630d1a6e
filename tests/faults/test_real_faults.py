"""Real drivers and servers under real faults: no caller gets another's reply, and the capacity comes back."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from bench.reliability import async_clients, clients
from bench.reliability.async_clients import AsyncClient, AsyncPsycopg, AsyncSQLAlchemy
from bench.reliability.cancels import cancel_statements
from bench.reliability.clients import SyncClient
from bench.reliability.faults import FAULTS
from bench.reliability.load import Load, kind_of
from bench.reliability.measure import ADAPTERS, quiet
from bench.reliability.world import World, proxy, wait_until, world
from poolkit import BackoffConfig, BreakerConfig
from poolkit.testing.servers import free_port
from tests.faults.proxy import FaultProxy
from tests.support.loops import LoopThread

pytestmark = pytest.mark.slow

ON_TCP = [name for name in ADAPTERS if "h2" not in name]
CHECKED = {"check_after_idle": 0.0}


@pytest.fixture(scope="module")
def _servers() -> Iterator[World]:
    with world() as servers:
        yield servers


@pytest.fixture
def servers(_servers: World) -> Iterator[World]:
    _servers.set_right()
    with quiet():
        yield _servers


class Users:
    """Callers of one client, sync or async, that send requests at the same time or one after the other."""

    def __init__(self, adapter: str, front: FaultProxy, **settings: Any) -> None:
        self.size = settings.setdefault("size", 10)
        made = {"ours": True, "host": front.host, "port": front.port, "name": f"test-{adapter}", **settings}
        self._loop: LoopThread | None = None
        kind = ADAPTERS[adapter]
        if issubclass(kind, SyncClient):
            self.client: Any = kind(**made)
        else:
            self._loop = LoopThread("users")
            self._loop.start()
            self.client = kind()
            self._run(self.client.open(**made))

    def ask(self, number: int = 1, *, at_once: bool = False) -> list[str]:
        """Send ``count`` requests. Return the result of each: "ok", "WRONG" or the type of its error."""
        if at_once:
            if self._loop is None:
                with ThreadPoolExecutor(number) as threads:
                    return list(threads.map(self._ask, map(str, range(number))))
            return self._run(self._all(number))
        if self._loop is None:
            return [self._ask(str(n)) for n in range(number)]
        return [self._run(self._aask(str(n))) for n in range(number)]

    def fill(self) -> None:
        """Open as many connections as allowed, and leave them idle."""
        if self._loop is None:
            with contextlib.ExitStack() as held:
                for _ in range(self.size):
                    held.enter_context(self.client.hold())
        else:
            self._run(self._fill())

    def close(self) -> None:
        if self._loop is None:
            self.client.close()
            return
        self._run(self.client.close())
        self._loop.stop()

    def _run(self, work: Any) -> Any:
        assert self._loop is not None
        return self._loop.run(work)

    def _ask(self, key: str) -> str:
        try:
            return "ok" if self.client.ask(key) == key else "WRONG"
        except Exception as error:
            return kind_of(error)

    async def _aask(self, key: str) -> str:
        try:
            return "ok" if await self.client.ask(key) == key else "WRONG"
        except Exception as error:
            return kind_of(error)

    async def _all(self, number: int) -> list[str]:
        return list(await asyncio.gather(*(self._aask(str(n)) for n in range(number))))

    async def _fill(self) -> None:
        async with contextlib.AsyncExitStack() as held:
            for _ in range(self.size):
                await held.enter_async_context(self.client.hold())


@pytest.fixture
def users(servers: World) -> Iterator[Callable[..., tuple[Users, FaultProxy]]]:
    """Make users of an adapter behind a proxy of their own."""
    with contextlib.ExitStack() as stack:

        def make(adapter: str, **settings: Any) -> tuple[Users, FaultProxy]:
            front = stack.enter_context(proxy(servers.address(ADAPTERS[adapter].kind)))
            made = Users(adapter, front, **settings)
            stack.callback(made.close)
            return made, front

        yield make


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the clients wait long: a busy machine may take longer for a request than the benchmark's half second."""
    for module in (clients, async_clients):
        for name in ("ACQUIRE", "ANSWER", "CONNECT"):
            monkeypatch.setattr(module, name, 30.0)
    monkeypatch.setattr(AsyncPsycopg, "deadline", 30.0)


def end_sessions(servers: World, adapter: str, front: FaultProxy) -> None:
    """End every connection at the server, and wait until the clients' kernels know it."""
    kind = ADAPTERS[adapter].kind
    if kind == "postgres":
        servers.postgres.kill_backends(f"test-{adapter}")
    elif kind == "redis":
        servers.redis.kill_clients()
    else:
        servers.http.close_connections()
    assert wait_until(lambda: front.open == 0)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("adapter", ON_TCP)
def test_ten_idle_sessions_that_the_server_has_ended_fail_no_caller_with_checks(
    adapter: str, servers: World, users: Callable[..., tuple[Users, FaultProxy]]
) -> None:
    some, front = users(adapter, **CHECKED)
    some.fill()
    end_sessions(servers, adapter, front)
    assert Counter(some.ask(30, at_once=True)) == {"ok": 30}


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("adapter", ON_TCP)
def test_ten_idle_sessions_ended_by_the_server_fail_one_request_without_checks(
    adapter: str, servers: World, users: Callable[..., tuple[Users, FaultProxy]]
) -> None:
    some, front = users(adapter, check_after_idle=None)
    some.fill()
    end_sessions(servers, adapter, front)
    answers = some.ask(30)
    assert answers.count("ok") >= 29, Counter(answers)
    assert "WRONG" not in answers


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("adapter", ON_TCP)
def test_the_first_caller_after_that_is_served_within_two_connect_times(
    adapter: str, servers: World, users: Callable[..., tuple[Users, FaultProxy]]
) -> None:
    """The network is made slow, so that round trips take most of the time. A busy machine has three attempts."""
    ratios = []
    for _ in range(3):
        some, front = users(adapter, **CHECKED)
        front.latency = 0.02
        some.fill()
        alone = connect_time(adapter, front)
        if alone is None:  # on a very busy machine a single connect takes a second
            continue
        end_sessions(servers, adapter, front)
        ratios.append(elapsed(some) / alone)
        if ratios[-1] <= 2:
            return
    pytest.fail(f"times of a connect: {ratios}")


def connect_time(adapter: str, front: FaultProxy) -> float | None:
    """Return the seconds for the first request of an empty pool: a connect and the request.

    None if that takes longer than the pool lets a caller wait.
    """
    begun = time.perf_counter()
    one = Users(adapter, front, size=1, **CHECKED)
    try:
        (answer,) = one.ask()
        if answer.endswith("AcquireTimeout"):
            return None
        assert answer == "ok"
        return time.perf_counter() - begun
    finally:
        one.close()


def elapsed(some: Users) -> float:
    begun = time.perf_counter()
    assert some.ask() == ["ok"]
    return time.perf_counter() - begun


@pytest.mark.parametrize("adapter", ["sqlalchemy", "sqlalchemy-async", "psycopg", "psycopg-async"])
def test_after_a_failover_one_request_finds_out_that_the_old_sessions_only_read(
    adapter: str, servers: World, users: Callable[..., tuple[Users, FaultProxy]]
) -> None:
    some, _ = users(adapter, size=5)
    some.fill()
    servers.fail_over()
    # a session reads the new settings before its next statement; the reload reaches them one by one
    answers = [one for _ in range(3) for one in some.ask(10)]
    assert answers.count("ok") >= 25, Counter(answers)
    assert answers[-10:] == ["ok"] * 10
    assert {one for one in answers if one != "ok"} <= {
        f"{kind} 25006"
        for kind in ("sqlalchemy.InternalError", "sqlalchemy.DBAPIError", "psycopg.ReadOnlySqlTransaction")
    }


def test_a_transaction_that_was_meant_to_read_only_costs_no_session(
    servers: World, users: Callable[..., tuple[Users, FaultProxy]]
) -> None:
    some, front = users("sqlalchemy", size=2)
    some.fill()
    opened = front.accepted
    for _ in range(3):
        with contextlib.suppress(Exception), some.client._engine.connect() as connection:
            connection.exec_driver_sql("set transaction read only")
            connection.exec_driver_sql("insert into hits (key) values ('no')")
    assert some.ask(4) == ["ok"] * 4
    assert front.accepted == opened


@pytest.mark.parametrize("adapter", ["psycopg", "psycopg-async"])
def test_an_outage_with_fifty_waiters_is_dialled_as_the_backoff_says_and_all_are_served(
    adapter: str, servers: World, users: Callable[..., tuple[Users, FaultProxy]]
) -> None:
    backoff = BackoffConfig(base=0.1, cap=0.5)
    some, front = users(adapter, timeout=20, backoff=backoff)
    some.fill()
    there, front.target = front.target, (front.host, free_port())  # accepts and hangs up, so attempts can be counted
    front.cut()
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.extend(some.ask(50, at_once=True)))
    before = front.accepted
    thread.start()
    time.sleep(2)
    attempts = front.accepted - before
    front.target = there
    thread.join(10)
    # Ten may be under way when the first fails; then one at a time, 0.05, 0.1, 0.2, 0.25 ... s apart on average:
    # twelve in two seconds. Three times as many is what chance may do; fifty waiters on their own would be 50 at once
    # and thousands in all.
    assert 2 <= attempts <= 10 + 36
    assert len(answers) == 50
    assert answers.count("ok") >= 40, Counter(answers)  # callers whose connection was cut get an error
    assert "WRONG" not in answers
    assert Counter(some.ask(20, at_once=True)) == {"ok": 20}


@pytest.mark.parametrize("adapter", ["sqlalchemy", "sqlalchemy-async", "redis", "redis-async"])
def test_a_breaker_bounds_the_attempts_where_each_caller_connects_itself(
    adapter: str, servers: World, users: Callable[..., tuple[Users, FaultProxy]]
) -> None:
    breaker = BreakerConfig(failure_threshold=3, reset_timeout=0.3)
    settings: dict[str, Any] = {"breaker": breaker}
    if adapter.startswith("redis"):
        settings["retry"] = None
    some, front = users(adapter, **settings)
    some.fill()
    there, front.target = front.target, (front.host, free_port())
    front.cut()
    before, begun = front.accepted, time.monotonic()
    told = [one for _ in range(4) for one in some.ask(50, at_once=True)]
    lasted = time.monotonic() - begun
    attempts = front.accepted - before
    assert len(told) == 200
    assert "ok" not in told
    assert "WRONG" not in told
    # ten under way at once count as one failure after the other only once: three rounds of them, then one probe at
    # a time
    assert attempts <= 3 * 10 + lasted / 0.3 + 1, Counter(told)
    front.target = there
    assert wait_until(lambda: some.ask() == ["ok"])
    assert Counter(some.ask(20, at_once=True)) == {"ok": 20}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_after_each_fault_capacity_is_back_and_no_reply_was_anothers(adapter: str, servers: World) -> None:
    kind = ADAPTERS[adapter]
    with contextlib.ExitStack() as stack:
        front: Any = None
        made: dict[str, Any] = {"ours": True}
        if kind.kind == "http2":
            made |= {"server": servers.http2, "context": servers.certificates.client_context()}
        else:
            front = stack.enter_context(proxy(servers.address(kind.kind)))
            made |= {"host": front.host, "port": front.port, "name": f"test-{adapter}"}
        load = Load(kind, callers=6, size=3, **made)
        load.start()
        for fault in FAULTS:
            if kind.kind not in fault.kinds or fault.name == "restart" or (fault.way == "tls" and front is None):
                continue  # HTTP/2 is tested without a proxy
            fault.begin(servers, front)
            time.sleep(0.15 if fault.end else 0)
            if fault.end is not None:
                fault.end(servers, front)
            time.sleep(0.1)
        servers.set_right()
        over = time.monotonic()
        assert wait_until(lambda: any(not one.error and one.began > over for one in load.requests[-200:]), 10)
        assert load.finish(15), "callers hang"
    assert load.wrong == []
    assert load.capacity == 3


@pytest.mark.parametrize("kind", [AsyncSQLAlchemy, AsyncPsycopg])
def test_cancelled_statements_never_make_more_sessions_than_the_pool_may_have(
    kind: type[AsyncClient], servers: World
) -> None:
    """anyio cancels again at every step of the clean-up. If that is skipped, statements go on at the server."""
    found = cancel_statements(servers, kind, ours=True)
    # a place is free when the server has taken the cancel request; its process hears of that within milliseconds,
    # in which a sample may find the next session beside it
    assert 0 < found.most_active <= found.size + 1, found
    assert found.above <= found.samples // 20, found
    assert found.cancelled > 10, found
    assert found.answered
