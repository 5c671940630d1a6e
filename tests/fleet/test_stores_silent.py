"""A store that says nothing, or answers much too late: each exchange has an end, and the next one works."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from poolkit import AcquireTimeout, ConfigError, Pool
from poolkit.fleet import Ask, FileStore, FleetBudget, PostgresStore, RedisStore, StoreError
from poolkit.testing import FakeConnector
from poolkit.testing.servers import PostgresServer, RedisServer
from tests.faults.proxy import FaultProxy
from tests.support.waiting import PATIENCE, until

ASK = Ask("silent", "me", 0, 0, 10, 5.0)
LIMIT = 0.3  # seconds; the stores wait for so long in earnest


def ends(call: Callable[[], Any]) -> BaseException | None:
    """Run ``call`` in a thread; its error. AssertionError if it does not end."""
    errors: list[BaseException | None] = [None]

    def work() -> None:
        try:
            call()
        except BaseException as error:
            errors[0] = error

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive(), "it does not end"
    return errors[0]


@pytest.fixture(params=["postgres", "redis"])
def behind(
    request: pytest.FixtureRequest,
    postgres: PostgresServer,
    redis_server: RedisServer,
    fault_proxy: Callable[[str, int], FaultProxy],
) -> Iterator[tuple[Any, FaultProxy]]:
    """A store behind a proxy."""
    server: Any = postgres if request.param == "postgres" else redis_server
    proxy = fault_proxy(server.host, server.port)
    if request.param == "postgres":
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            connection.execute("DROP TABLE IF EXISTS poolkit_silent")
        conninfo = make_conninfo(postgres.url, port=proxy.port)
        store: Any = PostgresStore(conninfo, table="poolkit_silent", timeout=LIMIT)
    else:
        store = RedisStore(redis_server.url.replace(f":{server.port}", f":{proxy.port}"), timeout=LIMIT)
    yield store, proxy
    proxy.mode = "pass"
    store.close()


def works_again(store: Any) -> None:
    """A busy machine may miss a limit as short as this one."""

    def works() -> bool:
        try:
            return bool(store.exchange(ASK).members == 1)
        except StoreError:
            return False

    until(works, "the store works")


@pytest.mark.parametrize("stage", ["connect", "exchange", "leave"])
@pytest.mark.parametrize("mode", ["silent", "hold"])
def test_an_exchange_ends(behind: tuple[Any, FaultProxy], mode: Any, stage: str) -> None:
    """With a peer that swallows everything, and with one that answers later everything that it was asked."""
    store, proxy = behind
    if stage != "connect":
        works_again(store)
    proxy.mode = mode
    call = (lambda: store.leave("silent", "me")) if stage == "leave" else (lambda: store.exchange(ASK))
    assert isinstance(ends(call), StoreError)
    proxy.mode = "pass"
    works_again(store)


@pytest.mark.parametrize("stage", ["connect", "exchange", "leave"])
def test_an_exchange_ends_whose_answer_comes_byte_by_byte(behind: tuple[Any, FaultProxy], stage: str) -> None:
    """Each byte comes within the limit of a read, and the whole answer much later."""
    store, proxy = behind
    if stage != "connect":
        works_again(store)
    proxy.trickle = LIMIT / 2
    call = (lambda: store.leave("silent", "me")) if stage == "leave" else (lambda: store.exchange(ASK))
    assert isinstance(ends(call), StoreError)
    proxy.trickle = None
    works_again(store)


@pytest.mark.parametrize("last", ["works", "refuses", "silent"])
def test_the_hosts_of_a_store_share_its_time(
    last: str, postgres: PostgresServer, fault_proxy: Callable[[str, int], FaultProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one is silent, and leaves time for the second one. A store of which one is silent is not down."""
    first, second = (fault_proxy(postgres.host, postgres.port) for _ in range(2))
    first.mode = "silent"
    second.mode = {"works": "pass", "refuses": "refuse", "silent": "silent"}[last]  # type: ignore[assignment]
    conninfo = make_conninfo(postgres.url, host="127.0.0.1,127.0.0.1", port=f"{first.port},{second.port}")
    store = PostgresStore(conninfo, table="poolkit_silent_hosts", timeout=10.0 if last == "works" else LIMIT)
    if last == "works":
        opened = store._opened
        limit = iter((0.05, PATIENCE))  # the first part, in less time
        monkeypatch.setattr(store, "_opened", lambda place, until: opened(place, time.monotonic() + next(limit)))
        store.exchange(ASK)
    else:
        error = ends(lambda: store.exchange(ASK))
        assert type(error) is StoreError, repr(error)
        assert "no connection to 127.0.0.1 in time" in str(error)
        assert second.accepted == (last == "silent")
    assert first.accepted == 1
    store.close()


@pytest.mark.parametrize("behind", ["postgres"], indirect=True)
@pytest.mark.parametrize("mode", ["silent", "hold"])
def test_a_server_that_falls_silent_when_the_table_is_made(
    behind: tuple[Any, FaultProxy], mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, proxy = behind
    connect = store._opened

    def connected(*arguments: Any) -> Any:
        connection = connect(*arguments)
        proxy.mode = mode
        return connection

    with monkeypatch.context() as patch:
        patch.setattr(store, "_opened", connected)
        assert isinstance(ends(lambda: store.exchange(ASK)), StoreError)
    proxy.mode = "pass"
    works_again(store)


# -- the files of one host --------------------------------------------------------------------------------------------

_KEEPER = """
import fcntl, os, signal, sys
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.lockf(file, fcntl.LOCK_EX)
print("locked", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""


@contextlib.contextmanager
def stopped(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that was stopped in the middle of its exchange: it keeps the lock of the fleet."""
    command = [sys.executable, "-c", _KEEPER, str(directory / "silent.fleet")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "locked\n"
            yield process
        finally:
            process.kill()


def test_a_stopped_process_does_not_keep_the_others(tmp_path: Path) -> None:
    """Each exchange ends, and they work when the lock is free."""
    store = FileStore(tmp_path, timeout=LIMIT)
    works_again(store)
    with stopped(tmp_path):
        for call in (lambda: store.exchange(ASK), lambda: store.leave("silent", "me")):
            error = ends(call)
            assert isinstance(error, StoreError)
            assert "silent.fleet: another process, perhaps a stopped one, has kept the lock for 0.3 s" in str(error)
        assert not store.expires  # nobody takes this process for a dead one
    works_again(store)
    store.leave("silent", "me")


def test_a_fleet_goes_on_with_what_it_has_beside_a_stopped_process(tmp_path: Path) -> None:
    """Callers use the permits that are there, those who need more hear why, and the budget can be closed."""
    store = FileStore(tmp_path, timeout=LIMIT)
    with FleetBudget(store, "silent", limit=4, block=1, ttl=0.5) as budget:
        with Pool(FakeConnector(), budget=budget, max_size=4) as pool:
            first = pool.acquire(PATIENCE)
            with stopped(tmp_path):
                until(lambda: budget.fleet().error, "the store's silence is told")
                error = ends(lambda: [pool.acquire(1.0) for _ in range(4)])
                assert isinstance(error, AcquireTimeout)
                assert "has kept the lock" in str(error)
                assert not first.closed
            until(lambda: budget.fleet().error is None, "the store works")
            pool.release(first)


def test_another_thread_does_not_keep_the_lock_either(tmp_path: Path) -> None:
    from poolkit.fleet import _file

    store = FileStore(tmp_path, timeout=LIMIT)
    with _file._thread_lock:
        error = ends(lambda: store.exchange(ASK))
    assert isinstance(error, StoreError)
    assert "silent.fleet: another thread has kept the lock for 0.3 s" in str(error)
    works_again(store)
    store.leave("silent", "me")


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan"), "1", True, None])
def test_a_time_that_cannot_be_meant_is_refused(tmp_path: Path, timeout: Any) -> None:
    with pytest.raises(ConfigError, match="timeout="):
        FileStore(tmp_path, timeout=timeout)
