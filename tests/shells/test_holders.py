"""The holder of a lease: an identity that is never reused, keeps nothing alive, and shows that its owner has ended."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import anyio
import pytest

import poolkit
from poolkit import AcquireTimeout, AsyncPool, Pool
from poolkit.runtimes import ThreadRuntime
from poolkit.runtimes.holders import hashable, named
from poolkit.testing import AsyncFakeConnector, FakeConnector
from tests.shells.kit import ASYNC, Rig
from tests.support.waiting import leak_warning

pytestmark = pytest.mark.anyio
Make = Callable[..., Rig]


def in_thread(call: Callable[[], object], name: str) -> threading.Thread:
    """Run it in a thread of that name, and wait for the end of the thread."""
    thread = threading.Thread(target=call, name=name)
    thread.start()
    thread.join()
    return thread


def longest_held(text: str) -> str:
    found = re.search(r"longest held [\d.]+ s by (.*?)(?: at |; )", text)
    assert found is not None, text
    return found[1]


@pytest.mark.parametrize("debug", [False, True])
def test_a_thread_that_has_ended_is_never_taken_for_another(debug: bool) -> None:
    """Python gives its identifier to the next thread: here to each of 50 that get no connection."""
    with Pool(FakeConnector(), max_size=1, debug=debug) as pool:
        kept: list[Any] = []
        in_thread(lambda: kept.append(pool.acquire()), "leaky")
        told: list[str] = []

        def ask() -> None:
            try:
                pool.acquire(0)
            except AcquireTimeout as error:
                told.append(str(error))

        for number in range(50):
            in_thread(ask, f"innocent-{number}")
        told += [pool.explain(), pool.dump()]
        assert len(told) == 52
        assert {longest_held(text) for text in told} == {"thread leaky (ended)"}
        assert not any("self-deadlock" in text for text in told)
        assert [lease.holder for lease in pool.details().leases] == ["thread leaky (ended)"]
        pool.release(kept.pop())


@ASYNC
@pytest.mark.parametrize("debug", [False, True])
async def test_a_task_that_has_ended_is_never_taken_for_another(make: Make, flavour: str, debug: bool) -> None:
    """Python creates the next task at the address of the last one."""
    async with make(max_size=1, debug=debug) as rig:
        kept: list[Any] = []
        told: list[str] = []

        async def leak() -> None:
            kept.append(await rig.pool.acquire())

        async def ask() -> None:
            with pytest.raises(AcquireTimeout) as caught:
                await rig.pool.acquire(0.0001)
            told.append(str(caught.value))

        async with anyio.create_task_group() as group:
            group.start_soon(leak, name="leaky")
        gc.collect()
        for _ in range(30):
            async with anyio.create_task_group() as group:
                for number in range(3):
                    group.start_soon(ask, name=f"innocent-{number}")
        told += [rig.pool.explain(), rig.pool.dump()]
        names = {longest_held(text) for text in told}
        assert names == {"task leaky (ended)" if debug else "a task (ended)"}
        assert not any("self-deadlock" in text for text in told)
        await rig.pool.release(kept.pop())


@ASYNC
async def test_a_task_that_has_ended_and_is_still_referred_to_has_ended(make: Make, flavour: str) -> None:
    async with make(max_size=1) as rig:
        kept: list[Any] = []

        async def leak() -> None:
            kept.append(await rig.pool.acquire())
            if flavour == "trio":
                import trio

                kept.append(trio.lowlevel.current_task())
            else:
                kept.append(asyncio.current_task())

        async with anyio.create_task_group() as group:
            group.start_soon(leak, name="leaky")
        assert longest_held(rig.pool.explain()) == "task leaky (ended)"
        await rig.pool.release(kept[0])


async def test_the_holder_is_shown_by_the_name_that_it_has_now(make: Make, flavour: str) -> None:
    if flavour == "threads":
        with Pool(FakeConnector(), max_size=1) as pool:
            thread = threading.current_thread()
            before = thread.name
            lease = pool.lease()
            thread.name = "renamed"
            try:
                assert longest_held(pool.explain()) == "renamed"
            finally:
                thread.name = before
                lease.close()
    elif flavour == "asyncio":
        async with AsyncPool(AsyncFakeConnector(), max_size=1) as other, other.lease():
            task = asyncio.current_task()
            assert task is not None
            task.set_name("renamed")
            assert longest_held(other.explain()) == "renamed"


def test_the_name_of_a_thread_is_the_last_that_was_known() -> None:
    with Pool(FakeConnector(), max_size=1) as pool:
        kept: list[Any] = []

        def work() -> None:
            kept.append(pool.acquire())
            threading.current_thread().name = "renamed"
            pool.explain()

        thread = in_thread(work, "first")  # kept: the object lives longer than the thread
        assert not thread.is_alive()
        assert longest_held(pool.explain()) == "thread renamed (ended)"
        pool.release(kept.pop())


@ASYNC
async def test_a_lease_keeps_no_task_alive(make: Make, flavour: str) -> None:
    async with make(max_size=1, debug=True) as rig:
        kept: list[Any] = []
        tasks: list[weakref.ref[Any]] = []

        async def leak() -> None:
            kept.append(await rig.pool.acquire())
            found: Any = rig.pool._runtime.caller()
            tasks.append(found)

        async with anyio.create_task_group() as group:
            group.start_soon(leak)
        rig.pool.explain()
        del group
        gc.collect()
        assert tasks[0]() is None
        await rig.pool.release(kept.pop())


def test_a_lease_keeps_no_thread_alive() -> None:
    with Pool(FakeConnector(), max_size=1, debug=True) as pool:
        kept: list[Any] = []
        thread = threading.Thread(target=lambda: kept.append(pool.acquire()))
        thread.start()
        thread.join()
        pool.explain()
        ref = weakref.ref(thread)
        del thread
        gc.collect()
        assert ref() is None
        pool.release(kept.pop())


def test_each_thread_has_one_identity() -> None:
    caller = ThreadRuntime().caller
    mine = caller()
    others: list[Any] = []
    in_thread(lambda: others.append((caller(), caller())), "other")
    assert caller() is mine
    assert others[0][0] is others[0][1]
    assert others[0][0] != mine
    assert str(mine) == "MainThread"


def test_a_local_storage_that_was_replaced_since_is_the_one_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """gevent replaces it after the import of poolkit. Greenlets are separate callers from then on."""

    class Local(threading.local):
        pass

    before = ThreadRuntime().caller
    monkeypatch.setattr(threading, "local", Local)
    after = ThreadRuntime().caller
    assert after is not before
    assert after() is after()
    assert after() != before()


def test_an_identity_that_was_not_compared_before_its_end_is_equal_to_no_other() -> None:
    class Task:
        pass

    task = Task()
    first, again = weakref.ref(task), named(weakref.ref(task), lambda _: "job")
    assert first == again
    assert hash(first) == hash(again)
    other = Task()
    unhashed = weakref.ref(other)
    del other
    gc.collect()
    with pytest.raises(TypeError):
        hash(unhashed)
    assert hashable(unhashed) not in {first, again}


def test_self_deadlock_is_reported_to_the_caller_that_holds_the_pool() -> None:
    with Pool(FakeConnector(), max_size=2) as pool:
        held = [pool.acquire(), pool.acquire()]
        with pytest.raises(AcquireTimeout, match="self-deadlock: MainThread waits for a connection while it holds"):
            pool.acquire(0)
        told: list[str] = []

        def ask() -> None:
            with pytest.raises(AcquireTimeout) as caught:
                pool.acquire(0)
            told.append(str(caught.value))

        in_thread(ask, "innocent")
        assert "self-deadlock" not in told[0]
        for connection in held:
            pool.release(connection)


def test_every_holder_that_has_ended_counts_as_a_leak_not_only_those_that_are_named() -> None:
    with Pool(FakeConnector(), max_size=6) as pool:
        kept: list[Any] = []
        for number in range(6):
            in_thread(lambda: kept.append(pool.acquire()), f"leaky-{number}")
        pool._core.endpoint.last_failed_check = 0.0
        for slot in pool._core.slots.living():
            slot.since -= 5.0
        with pytest.raises(AcquireTimeout, match="leaking: 6 of 6 leases are held by a thread or task that has ended"):
            pool.acquire(0)
        for connection in kept:
            pool.release(connection)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_after_a_fork_the_child_is_a_caller_like_any() -> None:
    pool = Pool(FakeConnector(), max_size=1, name="forked")
    pool.release(pool.acquire())
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:  # pragma: no cover
        try:
            pool.acquire()
            try:
                pool.acquire(0)
            except AcquireTimeout as error:
                os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with os.fdopen(reader, "rb") as stream:
        assert "self-deadlock: MainThread waits" in stream.read().decode()
    pool.close()


@pytest.mark.parametrize("debug", [False, True])
def test_a_pool_knows_whether_the_calling_thread_holds_a_lease(debug: bool) -> None:
    with Pool(FakeConnector(), max_size=2, debug=debug) as pool:
        answers: list[bool] = [pool.held_by_caller()]
        with pool.lease():
            answers.append(pool.held_by_caller())
            in_thread(lambda: answers.append(pool.held_by_caller()), "another")
        answers.append(pool.held_by_caller())
    assert answers == [False, True, False, False]


@ASYNC
async def test_a_pool_knows_whether_the_calling_task_holds_a_lease(make: Make) -> None:
    async with make(max_size=2) as it:
        answers: list[bool] = [it.pool.held_by_caller()]

        async def ask() -> None:
            answers.append(it.pool.held_by_caller())

        lease = await it.lease()
        await ask()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
        await it.give(lease)
        await ask()
    assert answers == [False, True, False, False]


def test_dump_shows_the_end_of_a_holder() -> None:
    with Pool(FakeConnector(), max_size=1, name="dumped") as pool:
        kept: list[Any] = []
        in_thread(lambda: kept.append(pool.acquire()), "leaky")
        assert re.search(r"lease of connection 1: [\d.]+ s by thread leaky \(ended\)", poolkit.dump())
        pool.release(kept.pop())


def test_a_dropped_lease_names_the_thread_that_took_it() -> None:
    with Pool(FakeConnector(), max_size=1, name="dropped") as pool:
        kept: list[Any] = []
        in_thread(lambda: kept.append(pool.lease()), "careless")
        with leak_warning(r"taken by thread careless \(ended\)"):
            kept.clear()
            gc.collect()
            pool._housekeeping.run_inbox()
            pool.stats()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.Runner")
def test_outside_of_a_task_the_caller_is_unknown_and_never_equal_to_another() -> None:
    async def scenario() -> None:
        async with AsyncPool(AsyncFakeConnector(), max_size=1) as pool:
            held = await pool.acquire()
            await pool.release(held)
            done: list[Any] = []

            def by_hand() -> None:
                for _ in range(2):
                    try:
                        pool.acquire(0).send(None)
                    except StopIteration as result:
                        done.append(result.value)
                    except AcquireTimeout as error:
                        done.append(str(error))

            asyncio.get_running_loop().call_soon(by_hand)
            while len(done) < 2:
                await asyncio.sleep(0.001)
            assert "self-deadlock" not in done[1]
            await pool.release(done[0])

    asyncio.run(scenario())
