"""Errors are both poolkit's and SQLAlchemy's, and distinguish an exhausted pool from a server that is down."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import pytest
from sqlalchemy import create_engine, exc

import poolkit
from poolkit import BreakerConfig
from poolkit_adapters.sqlalchemy import (
    AcquireTimeout,
    CircuitOpen,
    PoolBusy,
    PoolClosed,
    PoolkitPool,
    PoolSuspended,
)


def test_07_the_error_of_a_full_pool_names_the_holders(fake: Any) -> None:
    pool = PoolkitPool(fake, pool_size=1, max_overflow=1, timeout=0.05, name="orders")
    held = [pool.connect(), pool.connect()]
    with pytest.raises(exc.TimeoutError) as caught:
        pool.connect()
    error = caught.value
    assert isinstance(error, AcquireTimeout)
    assert isinstance(error, poolkit.AcquireTimeout)
    assert isinstance(error, TimeoutError)
    assert not isinstance(error, poolkit.ConnectFailed)
    assert error.code == "3o7r"
    assert error.__context__ is None
    text = str(error)
    assert text.startswith("PoolkitPool limit of size 1 overflow 1 reached, connection timed out, timeout 0.05: orders")
    assert "in use 2/2" in text
    assert "self-deadlock: MainThread waits for a connection while it holds all 2" in text
    assert "sqlalche.me/e/" in text
    assert len(held) == 2


def test_08_a_timeout_of_0_never_waits_and_none_waits(fake: Any) -> None:
    pool = PoolkitPool(fake, pool_size=1, max_overflow=0, timeout=0)
    held = pool.connect()
    with pytest.raises(exc.TimeoutError):
        pool.connect()
    held.close()
    pool.connect().close()
    patient = PoolkitPool(fake, pool_size=1, max_overflow=0, timeout=None)
    held = patient.connect()
    timer = threading.Timer(0.05, held.close)
    timer.start()
    patient.connect().close()
    timer.join()


def test_08_a_timeout_of_0_may_connect_beside_another_connect() -> None:
    begun, go = threading.Event(), threading.Event()

    class Connection:
        def rollback(self) -> None: ...
        def close(self) -> None: ...

    def creator() -> Connection:
        if threading.current_thread().name == "slow":
            begun.set()
            go.wait(10)
        return Connection()

    pool = PoolkitPool(creator, pool_size=3, max_overflow=0, timeout=0)
    first = pool.connect()
    slow = threading.Thread(target=lambda: pool.connect().close(), name="slow")
    slow.start()
    assert begun.wait(5)
    second = pool.connect()
    go.set()
    slow.join(10)
    first.close()
    second.close()
    assert pool.checkedin() == 3


def test_max_waiting(fake: Any) -> None:
    pool = PoolkitPool(fake, pool_size=1, max_overflow=0, max_waiting=0)
    held = pool.connect()
    with pytest.raises(exc.TimeoutError, match="max_waiting=0") as caught:
        pool.connect()
    assert isinstance(caught.value, PoolBusy)
    assert isinstance(caught.value, poolkit.PoolBusy)
    held.close()


def test_suspended_and_closed(fake: Any) -> None:
    pool = PoolkitPool(fake)
    pool.poolkit.suspend(fail_fast=True)
    with pytest.raises(exc.TimeoutError) as suspended:
        pool.connect()
    assert isinstance(suspended.value, PoolSuspended)
    assert isinstance(suspended.value, poolkit.PoolSuspended)
    pool.poolkit.resume()
    held = pool.connect()
    pool.poolkit.close()
    with pytest.raises(exc.InvalidRequestError) as closed:
        pool.connect()
    assert isinstance(closed.value, PoolClosed)
    assert isinstance(closed.value, poolkit.PoolClosed)
    held.close()
    assert fake.made[0].closed


def test_a_server_that_is_down_is_the_drivers_error_and_opens_the_breaker() -> None:
    engine = create_engine(
        "postgresql+psycopg://u:p@127.0.0.1:1/d", poolclass=PoolkitPool, breaker=BreakerConfig(failure_threshold=2)
    )
    for _ in range(2):
        with pytest.raises(exc.OperationalError, match="refused"):
            engine.connect()
    with pytest.raises(exc.OperationalError) as caught:
        engine.connect()
    error = caught.value
    assert isinstance(error, CircuitOpen)
    assert isinstance(error, poolkit.CircuitOpen)
    assert 0 < error.retry_after <= 10
    assert "refused" in str(error.orig)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.retry_after) == (type(error), str(error), error.retry_after)


@pytest.mark.parametrize("kind", [AcquireTimeout, PoolBusy, PoolSuspended, PoolClosed])
def test_errors_survive_pickling(kind: Any) -> None:
    error = kind("orders: full")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.code) == (kind, str(error), error.code)


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), SystemExit()])
def test_05_a_connect_that_fails_or_is_interrupted_frees_its_place(fake: Any, error: BaseException) -> None:
    pool = PoolkitPool(fake, pool_size=1, max_overflow=0, timeout=0)
    fake.error = error
    for _ in range(3):
        with pytest.raises(type(error)) as caught:
            pool.connect()
        if isinstance(error, Exception):  # of its own class and poolkit's
            assert isinstance(caught.value, poolkit.ConnectFailed)
            assert caught.value.__cause__ is error
        else:
            assert caught.value is error
            assert caught.value.__context__ is None
    fake.error = None
    pool.connect().close()
    pool.poolkit.check_books()
    pool.poolkit.close()  # the error, which is a parameter of this test, keeps it
