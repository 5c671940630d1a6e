"""Complaints 11 and 12: a forked child starts with an empty pool and does not touch the parent's connections."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from poolkit import AsyncPool, Connector, Pool, _begin
from poolkit.testing import AsyncFakeConnector, FakeConnection, FakeConnector
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


def in_child(work: Callable[[], object]) -> str:
    """Return the result of ``work()`` in a forked child, as text. The child ends without the parent's clean-up."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = repr(work())
        except BaseException:
            answer = traceback.format_exc()
        os.write(writing, answer.encode()[:60000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return answer


class Echo(Connector[socket.socket]):
    """A connector with real sockets to a server that answers each line with the number of the connection."""

    def __init__(self, port: int) -> None:
        self.port = port

    def connect(self, timeout: float | None) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def close(self, connection: socket.socket) -> None:
        connection.sendall(b"bye\n")
        connection.close()

    def abort(self, connection: socket.socket) -> None:
        connection.shutdown(socket.SHUT_RDWR)
        connection.close()


def ask(connection: socket.socket) -> str:
    connection.sendall(b"hello\n")
    return connection.recv(100).decode().strip()


class Server:
    """A server that counts connections and orderly closes."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.goodbyes: list[int] = []
        self.ended: list[int] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        number = 0
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            number += 1
            threading.Thread(target=self._serve, args=(connection, number), daemon=True).start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        with connection, connection.makefile("rb") as lines:
            for line in lines:
                if line == b"bye\n":
                    self.goodbyes.append(number)
                else:
                    connection.sendall(f"{number}\n".encode())
        self.ended.append(number)

    def close(self) -> None:
        self.listener.close()


def test_11_the_childs_connections_are_its_own() -> None:
    server = Server()
    pool = Pool(Echo(server.port), max_size=3)
    idle, other, leased = pool.acquire(), pool.acquire(), pool.lease()
    assert [ask(idle), ask(other), ask(leased.connection)] == ["1", "2", "3"]
    pool.release(idle)
    pool.release(other)

    def child() -> object:
        with pool.lease() as connection:
            number = ask(connection)
        size = pool.stats().size
        leased.close()  # the parent's: it is not touched
        pool.close()
        return number, size, pool.closed

    assert in_child(child) == "('4', 1, True)"
    assert in_child(lambda: ask(pool.acquire())) == "'5'"  # ends without any clean-up
    again = [pool.acquire(), pool.acquire()]
    assert [ask(again[0]), ask(again[1]), ask(leased.connection)] == ["2", "1", "3"]
    for connection in again:
        pool.release(connection)
    deadline = time.monotonic() + PATIENCE
    while sorted(server.ended) != [4, 5] and time.monotonic() < deadline:
        time.sleep(0.005)
    assert sorted(server.ended) == [4, 5]
    assert server.goodbyes == [4]
    assert not pool.closed
    leased.close()
    pool.check_books()
    pool.close()
    server.close()


def test_11_what_the_parent_knows_stays_in_the_parent() -> None:
    connector = FakeConnector()
    pool = Pool(connector, max_size=2, name="p", max_waiting=7)
    held = pool.acquire()
    pool.suspend()

    def child() -> object:
        phase = pool.stats().phase
        pool.resume()
        pool.release(held)  # the parent's; no error
        connection = pool.acquire(timeout=5)
        pool.release(connection)
        pool.check_books()
        return phase, pool.name, pool.config.max_waiting, pool.stats().connects, connection is held

    assert in_child(child) == "('suspended', 'p', 7, 1, False)"
    pool.resume()
    pool.release(held)
    assert pool.stats().idle == 1
    pool.check_books()
    pool.close()


def test_11_forget_lets_the_driver_let_go() -> None:
    forgotten: list[int] = []

    class Forgetting(FakeConnector):
        def forget(self, connection: FakeConnection) -> None:
            forgotten.append(connection.number)
            raise OSError("what it says does not matter")

    pool = Pool(Forgetting(), max_size=2)
    first, second = pool.acquire(), pool.acquire()
    pool.release(first)
    assert in_child(lambda: sorted(forgotten)) == "[1, 2]"
    assert not forgotten
    pool.release(second)
    pool.close()


def test_12_fork_while_another_thread_is_inside() -> None:
    """In the parent one thread holds the pool's lock, another one connects, and a third one waits."""
    connector = FakeConnector()
    pool = Pool(connector, max_size=2)
    gate = connector.hold("connect")
    locked, done = threading.Event(), threading.Event()

    def hold() -> None:
        with pool._gate.lock:
            locked.set()
            done.wait(20)

    def wait() -> None:
        try:
            pool.release(pool.acquire(timeout=20))
        except Exception:
            traceback.print_exc()

    waiting = [threading.Thread(target=wait, daemon=True) for _ in range(3)]
    for thread in waiting:
        thread.start()
    while connector.dialling < 2:
        time.sleep(0.001)
    holder = threading.Thread(target=hold, daemon=True)
    holder.start()
    locked.wait(5)

    def child() -> object:
        gate.set()
        connections = [pool.acquire(timeout=3600) for _ in range(2)]  # a lock of the parent would block here
        for connection in connections:
            pool.release(connection)
        pool.clear()
        pool.check_books()
        pool.close()
        return True

    # a waiting thread may hold the gate's own lock at this moment; the test is about the pool's lock
    connector.gates.clear()
    assert in_child(lambda: child()) == "True"
    done.set()
    gate.set()
    for thread in waiting:
        thread.join(20)
    assert pool.stats().in_use == 0
    pool.check_books()
    pool.close()


def test_12_housekeeping_works_in_the_child() -> None:
    pool = Pool(FakeConnector(), max_size=5, min_size=1, idle_timeout=0.05)
    for lease in [pool.lease() for _ in range(4)]:
        lease.close()

    def child() -> object:
        for lease in [pool.lease() for _ in range(4)]:
            lease.close()
        deadline = time.monotonic() + PATIENCE
        while pool.stats().size > 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        return pool.stats().size

    assert in_child(child) == "1"
    pool.close()


def test_12_an_async_pool_in_the_child() -> None:
    pool = AsyncPool(AsyncFakeConnector(), max_size=2)

    async def use() -> Any:
        async with pool.lease() as connection:
            return connection.number

    async def main() -> None:
        assert await use() == 1
        assert in_child(lambda: asyncio.run(use())) == "2"  # a loop of its own, a connection of its own
        assert await use() == 1
        pool.check_books()
        await pool.close()

    asyncio.run(main())


def test_12_pools_of_the_process_are_known_to_the_child() -> None:
    import poolkit

    pool = Pool(FakeConnector(), name="known")
    assert in_child(lambda: [each.name for each in poolkit.pools() if each.name == "known"]) == "['known']"
    pool.close()


def test_12_listeners_get_the_events_of_the_child_in_the_child() -> None:
    events: list[Any] = []
    pool = Pool(FakeConnector(), listeners=[events.append])
    pool.release(pool.acquire())

    def child() -> object:
        events.clear()
        pool.release(pool.acquire())
        return [event.kind.value for event in events][-2:]

    assert in_child(child) == "['acquired', 'released']"
    pool.close()


def test_11_a_lease_collected_while_the_child_begins_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its finalizer runs during the restart. The child's pool must not close the parent's connection."""
    pool = Pool(FakeConnector(), max_size=2)
    leases = [pool.lease()]
    connection = leases[0].connection
    core = _begin.Core

    def collecting(*args: Any, **settings: Any) -> Any:
        leases.clear()
        return core(*args, **settings)

    monkeypatch.setattr(_begin, "Core", collecting)

    def child() -> object:
        with pool.lease() as mine:
            number = mine.number
        pool.check_books()
        return connection.closed, number, pool.stats().size

    assert in_child(child) == "(False, 2, 1)"
    leases.clear()
    pool.close()


def test_11_a_method_kept_by_the_program_gives_nothing_of_the_parents() -> None:
    pool = Pool(FakeConnector(), max_size=2)
    acquire, release = pool.acquire, pool.release
    release(acquire())

    def child() -> object:
        connection = acquire(timeout=5)
        release(connection)
        pool.check_books()
        return connection.number, pool.stats().idle

    assert in_child(child) == "(2, 1)"
    assert acquire().number == 1
    pool.close()


@pytest.mark.parametrize("in_caller", [True, False], ids=["acquires", "connects for the pool"])
def test_12_a_task_of_a_loop_that_is_gone_costs_the_next_one_nothing(in_caller: bool) -> None:
    """The collector ends it while the pool is on another loop: it must not free a slot that is not its own.

    The same happens in a child that was forked out of a running loop.
    """
    connector = AsyncFakeConnector(in_caller=in_caller)
    pool = AsyncPool(connector, max_size=1)
    gate = connector.hold("connect")
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)  # asyncio reports that it was destroyed while pending
    task = loop.create_task(pool.acquire())
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()
    gate.set()
    tasks = [task]
    del task, loop

    async def main() -> None:
        connection = await pool.acquire(timeout=5)
        tasks.clear()
        gc.collect()
        assert pool.stats().in_use == 1
        pool.check_books()
        await pool.release(connection)
        assert pool.stats().idle == 1
        await pool.close()

    asyncio.run(main())
    assert connector.live == 0
