"""A connect that fails, or a connection that is aborted, may leave a session at the server: until that has ended it
counts against ``max_size``.
"""

from __future__ import annotations

import asyncio
import gc
import time
from concurrent.futures import Future
from typing import Any

import pytest

from poolkit import AcquireTimeout, AsyncPool, Budget, Pool, PoolError
from poolkit.testing import AsyncFakeConnector, FakeConnector
from tests.support.waiting import leak_warning


class Interrupted(Exception):
    pass


def leave(connector: Any, left: list[Any]) -> None:
    """Interrupt each connect from now on. Each leaves the last element of ``left``."""
    connector.fail("connect", lambda: Interrupted())
    connector.leftover = lambda error: left[-1] if isinstance(error, Interrupted) and left else None


@pytest.mark.parametrize("in_caller", [True, False])
@pytest.mark.parametrize("budget", [True, False], ids=["with a budget", "alone"])
def test_a_leftover_keeps_its_permit_until_it_has_ended(in_caller: bool, budget: bool) -> None:
    connector = FakeConnector(in_caller=in_caller)
    left: list[Any] = [Future()]
    leave(connector, left)
    shared = {"budget": Budget(1)} if budget else {}
    with Pool(connector, max_size=1, **shared) as pool:
        with pytest.raises(Interrupted if in_caller else AcquireTimeout):
            pool.acquire(timeout=0)
        while pool.stats().connecting:  # a detached connect goes on in another thread
            time.sleep(0.001)
        connector.free_all()
        stats = pool.stats()
        assert (stats.size, stats.closing, stats.connecting) == (1, 1, 0)
        pool.check_books()
        with pytest.raises(AcquireTimeout):
            pool.acquire(timeout=0)
        assert connector.calls["connect"] == 1
        left[0].set_result(None)
        assert pool.stats().size == 0
        pool.release(pool.acquire(timeout=5))
        pool.check_books()


@pytest.mark.parametrize("in_caller", [True, False])
def test_a_task_s_leftover_keeps_its_permit_until_it_has_ended(in_caller: bool) -> None:
    async def main() -> None:
        connector = AsyncFakeConnector(in_caller=in_caller)
        left: list[Any] = [asyncio.get_running_loop().create_future()]
        leave(connector, left)
        async with AsyncPool(connector, max_size=1) as pool:
            with pytest.raises(Interrupted if in_caller else AcquireTimeout):
                await pool.acquire(timeout=0)
            while pool.stats().connecting:  # a detached connect goes on in another task
                await asyncio.sleep(0)
            connector.free_all()
            stats = pool.stats()
            assert (stats.size, stats.closing, stats.connecting) == (1, 1, 0)
            pool.check_books()
            with pytest.raises(AcquireTimeout):
                await pool.acquire(timeout=0)
            assert connector.calls["connect"] == 1
            left[0].set_result(None)
            await pool.release(await pool.acquire(timeout=5))
            pool.check_books()

    asyncio.run(main())


def test_draining_waits_for_a_leftover() -> None:
    connector = FakeConnector(in_caller=True)
    left: list[Any] = [Future()]
    leave(connector, left)
    pool = Pool(connector, max_size=1)
    with pytest.raises(Interrupted):
        pool.acquire()
    assert pool.drain(timeout=0)
    assert pool.stats().closing == 1
    left[0].set_result(None)
    assert pool.stats().size == 0


@pytest.mark.parametrize("how", ["discard", "drop", "cut", "retire"])
def test_what_an_aborted_connection_leaves_keeps_its_permit(how: str) -> None:
    connector = FakeConnector()
    left: Future[None] = Future()
    connector.abort = lambda connection: left  # type: ignore[method-assign]
    with Pool(connector, max_size=1, **({"budget": Budget(1)} if how == "cut" else {})) as pool:
        held: Any = pool.lease() if how == "drop" else pool.acquire()
        if how == "discard":
            pool.release(held, discard=True)
        elif how == "drop":
            with leak_warning():
                del held
                gc.collect()
                pool.stats()
                pool.check_books()
        elif how == "cut":
            pool._membership.cut()
        else:
            connector_closes(pool, held)
        stats = pool.stats()
        assert (stats.size, stats.closing) == (1, 1)
        with pytest.raises(AcquireTimeout):
            pool.acquire(timeout=0)
        left.set_result(None)
        assert pool.stats().size == 0
        pool.release(pool.acquire(timeout=5))
        pool.check_books()


def connector_closes(pool: Any, held: Any) -> None:
    """The connection is closed in an orderly way, by a connector that can only abort."""
    pool._driver.operations.close = None
    pool.clear()
    pool.release(held)


def test_what_an_aborted_connection_leaves_keeps_its_permit_among_tasks() -> None:
    async def main() -> None:
        connector = AsyncFakeConnector()
        left = asyncio.get_running_loop().create_future()
        connector.abort = lambda connection: left  # type: ignore[method-assign]
        async with AsyncPool(connector, max_size=1) as pool:
            await pool.release(await pool.acquire(), discard=True)
            assert (pool.stats().size, pool.stats().closing) == (1, 1)
            with pytest.raises(AcquireTimeout):
                await pool.acquire(timeout=0)
            left.set_result(None)
            await pool.release(await pool.acquire(timeout=5))
            pool.check_books()

    asyncio.run(main())


@pytest.mark.parametrize("in_caller", [True, False])
def test_what_a_new_connection_that_cannot_be_used_leaves_keeps_its_permit(in_caller: bool) -> None:
    connector = FakeConnector(in_caller=in_caller)
    left: Future[None] = Future()
    connector.abort = lambda connection: left  # type: ignore[method-assign]
    connector.capacity = lambda connection: -1  # type: ignore[method-assign]
    with Pool(connector, max_size=1) as pool:
        with pytest.raises(PoolError, match=r"capacity\(\) returned -1"):
            pool.acquire(timeout=5)
        assert (pool.stats().size, pool.stats().closing) == (1, 1)
        pool.check_books()
        left.set_result(None)
        assert pool.stats().size == 0
        pool.check_books()


@pytest.mark.parametrize("how", ["in caller", "detached", "plain function"])
def test_what_a_task_s_new_connection_that_cannot_be_used_leaves_keeps_its_permit(how: str) -> None:
    async def main() -> None:
        connector: Any = AsyncFakeConnector(in_caller=how == "in caller")
        left = asyncio.get_running_loop().create_future()
        connector.abort = lambda connection: left
        if how == "plain function":
            connector.connect = lambda timeout: object()
        else:
            connector.capacity = lambda connection: -1
        async with AsyncPool(connector, max_size=1) as pool:
            with pytest.raises(PoolError, match=r"must be a coroutine|capacity\(\) returned -1"):
                await pool.acquire(timeout=5)
            assert (pool.stats().size, pool.stats().closing) == (1, 1)
            pool.check_books()
            left.set_result(None)
            await asyncio.sleep(0)
            assert pool.stats().size == 0

    asyncio.run(main())


def test_a_leftover_that_has_ended_already_holds_no_permit() -> None:
    connector = FakeConnector(in_caller=True)
    left: list[Any] = [Future()]
    left[0].set_result(None)
    leave(connector, left)
    with Pool(connector, max_size=1) as pool:
        with pytest.raises(Interrupted):
            pool.acquire()
        assert pool.stats().size == 0
        pool.check_books()


@pytest.mark.parametrize("value", [RuntimeError("odd"), 7])
def test_a_connector_that_gives_no_leftover_costs_the_pool_nothing(
    value: object, caplog: pytest.LogCaptureFixture
) -> None:
    connector = FakeConnector(in_caller=True)
    connector.fail("connect", lambda: Interrupted())

    def leftover(error: BaseException) -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    connector.leftover = leftover  # type: ignore[method-assign]
    with Pool(connector, max_size=1) as pool:
        for _ in range(3):
            with pytest.raises(Interrupted):
                pool.acquire(timeout=0)
        assert pool.stats().size == 0
        connector.fail("connect", None)
        pool.release(pool.acquire())
        pool.check_books()
    said = [record.getMessage() for record in caplog.records if "leftover()" in record.getMessage()]
    assert len(said) == 1, "said once"
    assert "must" in said[0]
