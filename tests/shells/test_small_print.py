"""Rare situations: interrupts, failing clean-up, a setting that changes at a bad moment."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from poolkit import Connector, NotLeased, Pool, PoolConfig
from poolkit.testing import FakeConnection, FakeConnector, ManualClock
from tests.shells.kit import ASYNC, THREADS, Rig

pytestmark = pytest.mark.anyio


class Interrupting(FakeConnector):
    """A connector whose first abort is interrupted, as by Ctrl-C."""

    interrupted = False

    def abort(self, connection: FakeConnection) -> None:
        super().abort(connection)
        if not self.interrupted:
            self.interrupted = True
            raise KeyboardInterrupt


@THREADS
async def test_an_interrupt_in_one_abort_does_not_stop_the_others(flavour: str) -> None:
    pool = Pool(Interrupting(), max_size=3)
    for lease in [pool.lease() for _ in range(3)]:
        lease.close()
    with pytest.raises(KeyboardInterrupt):
        _drop_all(pool)
    assert pool.stats().closing == 0
    assert pool.stats().size == 0
    pool.check_books()
    pool.close()


def _drop_all(pool: Pool[Any]) -> None:
    """Do what a check without a reply does to the other idle connections."""
    pool._gate.step(lambda: pool._core.service.distrust_idle(pool._endpoint, pool._clock(), drop=True))


async def test_an_abort_that_fails_frees_the_place(make: Callable[..., Rig]) -> None:
    async with make(max_size=1) as rig:
        rig.connector.fail("abort", lambda: OSError("no more descriptors"))
        await rig.give(await rig.lease(), discard=True)
        await rig.give(await rig.lease())
        assert rig.connector.calls["connect"] == 2


async def test_acquire_takes_nothing_that_is_in_doubt(make: Callable[..., Rig]) -> None:
    clock = ManualClock()
    async with make(max_size=1, check_after_idle=1.0, clock=clock) as rig:
        await rig.release(await rig.acquire())
        rig.connector.kill_all()
        clock.advance(5)
        connection = await rig.acquire()
        assert connection.alive
        await rig.release(connection)


async def test_a_lease_that_ends_after_clear_gives_nothing_back(make: Callable[..., Rig]) -> None:
    async with make(max_size=1, features={"resets": False}) as rig:
        lease = await rig.lease()
        old = lease.connection
        rig.pool.clear()
        await rig.give(lease)
        assert rig.stats.idle == 0  # it is not kept until a caller finds it
        lease = await rig.lease()
        assert lease.connection is not old
        await rig.give(lease)


@pytest.mark.parametrize("resets", [True, False])
async def test_release_with_an_error_has_it_judged(make: Callable[..., Rig], resets: bool) -> None:
    async with make(max_size=1, features={"resets": resets}) as rig:
        connection = await rig.acquire()
        await rig.release(connection, error=ConnectionResetError())
        other = await rig.acquire()
        assert other is not connection
        await rig.release(other)


async def test_a_connection_whose_capacity_fails_is_closed(make: Callable[..., Rig]) -> None:
    async with make(max_size=1, features={"streams": 2}) as rig:
        capacity, rig.connector.capacity = rig.connector.capacity, None
        rig.pool._driver.operations.capacity = lambda connection: 1 / 0
        with pytest.raises(Exception, match=r"division|cannot connect"):
            await rig.lease(1)
        await rig.until(lambda: rig.connector.live == 0)
        rig.pool._driver.operations.capacity = capacity


@ASYNC
async def test_a_check_without_an_answer_ends_with_check_timeout(make: Callable[..., Rig]) -> None:
    clock = ManualClock()
    async with make(max_size=1, check_after_idle=1.0, check_timeout=0.05, clock=clock) as rig:
        await rig.fill(1)
        clock.advance(5)
        rig.connector.hold("check")
        lease = await rig.lease()
        assert lease.connection.number == 2
        await rig.give(lease)


@ASYNC
async def test_a_close_without_an_end_is_cut_off(make: Callable[..., Rig]) -> None:
    async with make(max_size=1, check_timeout=0.05) as rig:
        await rig.fill(1)
        rig.connector.hold("close")
        rig.pool.clear()
        await rig.until(lambda: rig.connector.calls["abort"] == 1, "it is aborted")
        await rig.until(lambda: rig.connector.live == 0)


@THREADS
async def test_a_child_never_finalizes_what_its_parent_has_open(flavour: str) -> None:
    """The finalizer of a driver's object would end the session of the parent, so it must not run in the child."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    reading, writing = os.pipe()

    class Polite:
        def __del__(self) -> None:
            os.write(writing, b"goodbye")

    class Server(Connector[Polite]):
        def connect(self, timeout: float | None) -> Polite:
            return Polite()

    pool = Pool(Server(), PoolConfig(max_size=2))
    lease = pool.lease()
    pool.lease().close()
    pid = os.fork()
    if pid == 0:
        try:
            lease.close()
            del lease
            gc.collect()
            pool.close()
            del pool
            gc.collect()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.set_blocking(reading, False)
    with pytest.raises(BlockingIOError):
        os.read(reading, 100)
    lease.close()
    pool.close()
    del lease, pool
    gc.collect()
    os.close(reading)
    os.close(writing)


@THREADS
async def test_a_background_job_that_fails_is_logged_and_ends_no_worker(
    flavour: str, caplog: pytest.LogCaptureFixture
) -> None:
    from poolkit.runtimes.threads import ThreadRuntime

    done = threading.Event()
    ThreadRuntime().spawn(lambda: 1 / int(done.is_set()))
    for _ in range(1000):
        if "background job failed" in caplog.text:
            break
        await anyio.sleep(0.01)
    assert "background job failed" in caplog.text
    ThreadRuntime().spawn(done.set)
    assert done.wait(10)


async def test_a_connection_that_is_returned_during_clear_is_not_handed_out(make: Callable[..., Rig]) -> None:
    """The releasing thread decided before clear() and pushed the connection after it, both without the lock."""
    async with make(max_size=1) as rig:
        lease = await rig.lease()
        old = lease.connection
        slot = next(iter(rig.pool._core.slots.living()))
        await rig.give(lease)
        rig.pool._endpoint.idle.remove(slot)  # held by the releasing thread
        rig.pool.clear()
        slot.fresh_until = rig.pool._clock() + 100
        rig.pool._endpoint.idle.append(slot)
        again = await rig.lease()
        assert again.connection is not old
        await rig.give(again)
        assert old.closed


@THREADS
async def test_of_two_threads_that_release_the_same_connection_one_is_refused(flavour: str) -> None:
    """Both may find it in the register, but only one removes it."""
    pool = Pool(FakeConnector(resets=False), max_size=2)
    connection = pool.acquire()
    pool.release(connection)
    with pytest.raises(NotLeased):
        pool.release(connection)
    first, second = pool.acquire(), pool.acquire()
    assert first is not second
    pool.release(first, True)  # discard, by position: the same with and without the lock
    pool.suspend()
    pool.release(second, True)
    assert pool.stats().closes["discarded"] == 2
    pool.close()
