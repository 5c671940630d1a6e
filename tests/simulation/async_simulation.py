"""Seeded simulation of a whole :class:`~poolkit.AsyncPool`: an event loop in virtual time that cancels at will.

Tasks are resumed in random order and cancelled at random suspensions, also in the moment between being woken and
going on: there a careless pool loses a connection. The same seed gives the same schedule.
"""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Mapping
from contextvars import copy_context
from functools import partial
from typing import Any
from unittest import mock

from poolkit import _begin, _binding, _registry
from poolkit._async import AsyncLease, AsyncPool
from poolkit.config import BackoffConfig, PoolConfigWarning
from poolkit.connector import AsyncConnector
from poolkit.errors import AcquireTimeout, ConnectTimeout
from poolkit.testing.connectors import FakeConnection
from tests.support.story import Story

from .async_loop import Cancelled, CollectingLock, SimulatedLoop
from .classes import CallerClasses
from .replay import Decisions, explain
from .simulate import some_autoscale
from .simulated_server import Order, SimulatedServer

__all__ = ("AsyncPoolSimulation", "Cancelled", "SimulatedLoop")

LONG = 1000.0  # seconds of virtual time that nobody waits unless it is forgotten


class _ChildEnded(BaseException):
    """The schedule has come to its end in a forked child."""


class _Server(SimulatedServer, AsyncConnector[FakeConnection]):
    """Slow, sometimes refusing or restarting."""

    def __init__(self, loop: SimulatedLoop) -> None:
        super().__init__()
        self.loop = loop

    async def connect(self, timeout: float | None) -> FakeConnection:
        """Open a connection, be refused, or get no answer in time."""
        pick = self.loop.random
        begun = self.begin()
        await self.loop.sleep(pick.choice([0.0, 0.01, 0.1, 0.1, 20.0]))
        if not self.up or pick.random() < 0.1:
            raise self.refusal(begun)
        return self.accept(begun)

    async def close(self, connection: FakeConnection) -> None:
        """Close it, in its own time."""
        self.mine(connection)
        await self.loop.sleep(self.loop.random.choice([0.0, 0.01]))
        self.abort(connection)

    async def restart(self) -> None:
        """The server loses every connection and refuses new ones for a moment."""
        self.go_down()
        try:
            await self.loop.sleep(0.05)
        finally:
            self.up = True


class _CheckingServer(_Server):
    """The same, with a check and a reset."""

    async def check(self, connection: FakeConnection, timeout: float | None) -> bool:
        """Ask the server."""
        self.mine(connection)
        await self.loop.sleep(self.loop.random.choice([0.0, 0.01, 20.0]))
        return connection.alive

    def needs_reset(self, connection: FakeConnection) -> bool:
        """Whether somebody left it dirty."""
        self.mine(connection)
        return connection.dirty

    async def reset(self, connection: FakeConnection) -> None:
        """Clean it."""
        self.mine(connection)
        await self.loop.sleep(self.loop.random.choice([0.0, 0.001]))
        connection.dirty = False


class AsyncPoolSimulation:
    """One random schedule over one random pool; ``AsyncPoolSimulation(seed).run()`` raises
    :class:`~tests.simulation.SimulationFailure` or returns.

    The promises and the events are those of :class:`~tests.simulation.pool_simulation.PoolSimulation`; here callers
    are cancelled, too, at any suspension. What was dropped is collected between any two steps of tasks and at the
    edges of the pool's critical sections. In a forked child a new loop begins, while the collector ends the
    parent's tasks wherever they were.
    """

    class_share = 0.3  # of the schedules: callers are of several classes

    def __init__(self, seed: int, script: Mapping[Any, Any] | None = None) -> None:
        self.loop = loop = SimulatedLoop(seed, decisions=Decisions(script))
        pick = loop.random
        self.server = pick.choice([_Server, _CheckingServer])(loop)
        self.server.connect_in_caller = pick.random() < 0.3
        self.classes = CallerClasses(seed, self.class_share)
        self.story = Story() if seed % 5 == 1 else None  # not drawn: other schedules stay what they were
        size = pick.choice([1, 1, 2, 4])
        with mock.patch.object(_begin, "Lock", partial(CollectingLock, loop)), warnings.catch_warnings():
            warnings.simplefilter("ignore", PoolConfigWarning)
            self.pool: AsyncPool[FakeConnection] = AsyncPool(
                self.server,
                runtime=loop,
                clock=loop.clock,
                random=lambda: self.loop.random.random(),
                max_size=size,
                min_size=pick.choice([0, 0, 1]),
                order=pick.choice(["lifo", "fifo"]),
                check_after_idle=pick.choice([0, 1, None]),
                barging_window=self.classes.barging(pick.choice([0.0, 0.001, 0.05])),
                idle_timeout=pick.choice([None, 0.5]),
                max_lifetime=pick.choice([None, 1.0]),
                backoff=BackoffConfig(base=0.01, cap=0.1),
                autoscale=some_autoscale(seed),
                max_connecting=pick.choice([1, 16]),
                acquire_timeout=2 * LONG,
                classes=self.classes.configs(size),
                connect_timeout=5,
                listeners=[self.story] if self.story else (),
            )
        self.order = Order(lambda: loop.clock.now)
        self.cleared = 0  # the last connect that had begun when the pool was cleared
        self.forked = False
        self.leases: list[AsyncLease[FakeConnection]] = []  # of a pool that is dropped
        self.workers = [loop.start(self._work(number), f"worker-{number}") for number in range(pick.randint(3, 10))]

    async def _use(self, fork: bool) -> None:
        pool, loop = self.pool, self.loop
        pick = loop.random
        begun, cleared = loop.clock.now, self.cleared
        self.classes.choose(pick)  # read before the first suspension: these tasks have no contexts of their own
        try:
            lease = await pool.lease(timeout=pick.choice([0, 0.01, 0.05] + [LONG] * 6))
        except AcquireTimeout as error:
            if loop.clock.now - begun < LONG:
                return
            raise AssertionError(f"a caller was forgotten: {error}") from error
        except (ConnectionRefusedError, ConnectTimeout) as error:
            if isinstance(error, ConnectTimeout) and not self.server.connect_in_caller:
                raise
            return  # it connected by itself
        connection = lease.connection
        self.server.handed_out(connection, cleared)
        if not self.classes.drawn:
            self.order.served(pool, begun)
        fault: BaseException | None = None
        try:
            if pick.random() < 0.8:
                await loop.sleep(pick.choice([0.0, 0.001, 0.02]))
        except Cancelled as error:
            fault = error  # in mid-exchange
        if fork and pick.random() < 0.5:
            self._fork(lease)
        self.server.held.discard(connection.number)
        how = pick.random()
        if how < 0.1 and fault is None:
            self.server.dropped.add(connection.number)
            if how < 0.05:
                loop.drop(lease)  # in a cycle: its finalizer runs later
            return  # forgotten: found and reported
        connection.alive = connection.alive and how > 0.2
        connection.dirty = how > 0.8 and isinstance(self.server, _CheckingServer)
        await lease.close(discard=how < 0.15, error=fault)
        if fault is not None:
            raise fault

    async def _work(self, worker: int) -> None:
        loop, make = self.loop, self.loop.decisions.make
        for number in range(loop.random.randint(3, 12)):
            if not make(("use", worker, number), lambda: True, False):
                continue
            fork = not self.forked and make(("fork", worker, number), lambda: loop.chance() < 0.01, False)
            loop.reseed((worker, number))
            try:
                await self._use(fork)
                if fork:
                    self._fork(None)
                await self._command()
            except Cancelled:
                pass  # and on to the next request, as a service does

    async def _command(self) -> None:
        what = self.loop.random.random()
        if what < 0.05:
            before = self.server.begun
            self.pool.clear()
            self.cleared = max(self.cleared, before)
        elif what < 0.1:
            self.pool.suspend()
            try:
                await self.loop.sleep(0)
            finally:
                self.pool.resume()
        elif what < 0.15:
            self.pool.reconfigure(max_size=self.loop.random.randint(1 + self.classes.reserved, 4))
        elif what < 0.2:
            await self.server.restart()
        elif what < 0.23:
            self.pool.discard_idle()

    async def _cancel_some(self) -> None:
        loop = self.loop
        for number in range(loop.random.randint(0, 60)):
            loop.reseed(("cancel", number))
            await loop.sleep(loop.random.choice([0.0, 0.0, 0.0005, 0.005, 0.05]))
            chosen = loop.decisions.make(("cancel", number), lambda: int(loop.chance() * len(self.workers)), -1)
            if chosen >= 0:
                loop.cancel(self.workers[chosen])

    def _fork(self, lease: AsyncLease[FakeConnection] | None) -> None:
        """Go on as the child process, with a loop of its own, to the end; ``lease``: one of the parent's in hand."""
        pool, child = self.pool, self.loop.fork()
        self.forked, self.loop = True, child
        self.server.forked()
        if self.story:
            self.story.restart()
        self.server.loop = child
        known = {id(slot.connection) for slot in pool._core.slots.living() if slot.connection is not None}
        lock = mock.patch.object(_begin, "Lock", partial(CollectingLock, child))
        with lock, mock.patch.object(_binding, "current_runtime", return_value=child):
            _begin.after_fork(pool)
            assert known <= {id(each) for each in _registry._kept_from_finalizers}, (
                "a connection of the parent may be finalized"
            )
            assert not pool._core.all_slots, "the child begins with connections"
            if pool._core.suspended:
                pool.resume()  # who suspended it is not there any more
            if lease is not None:
                child.start(lease.close(), "close in the child")
            self.workers = [child.start(self._work(number), f"worker-{number}") for number in (101, 102, 103)]
            child.start(self._finish(), "finish in the child")
            child.run()
        raise _ChildEnded

    async def _finish(self) -> None:
        """When all callers are gone, the whole capacity is there; then the pool is closed, or dropped."""
        pool, loop = self.pool, self.loop
        await loop.until(lambda: all(worker.done for worker in self.workers))
        assert pool.config.max_size is not None
        got: list[FakeConnection] = []
        begun = loop.clock.now
        while len(got) < pool.config.max_size:
            assert loop.clock.now - begun < LONG, "the capacity did not come back"
            self.classes.fill(len(got), pool.config.max_size)
            try:
                got.append(await pool.acquire(timeout=LONG))
            except OSError:
                pass  # it connected by itself and was refused, or had no answer
        self.server.all_at_once(got)
        for connection in got:
            await pool.release(connection)
        if not self.forked and loop.random.random() < 0.1 and not self.server.connect_in_caller:
            self.classes.fill(0, len(got))
            most = len(got) - self.classes.reserved
            self.leases = [await pool.lease(timeout=LONG) for _ in range(loop.random.randint(0, most))]
            loop.start(self._forget_pool(), "forget")
            return
        await pool.close()
        assert not loop.pending(pool), "a timer of the pool outlives close()"
        await loop.sleep(LONG)
        self.server.after_close(pool)
        if self.story:
            self.story.check(leased=0)

    async def _forget_pool(self) -> None:
        """Nobody knows the pool any more but its leases; then nobody does."""
        loop, ref = self.loop, weakref.ref(self.pool)
        me = loop.current
        del self.pool
        while self.leases:
            lease = self.leases.pop()
            assert not lease.connection.closed, f"{lease.connection} was closed in somebody's hands"
            if loop.random.random() < 0.5:
                await lease.close()
            del lease
            await loop.sleep(0.01)
        for _ in range(20):
            gc.collect()
            if ref() is None:
                break
            await loop.until(lambda: all(task is me or task.done for task in loop.tasks))  # a connect keeps it
        self.server.after_drop(ref)

    def replay(self, script: Mapping[Any, Any]) -> None:
        """Of the seed's schedule only the decisions of ``script``, as a failure shows it. Raises what went wrong."""
        AsyncPoolSimulation(self.loop.seed, script)._play()

    def run(self) -> None:
        """Run the schedule to its end."""
        seed, decisions = self.loop.seed, self.loop.decisions
        try:
            self._play()
        except Exception as error:
            raise explain("AsyncPoolSimulation", seed, lambda part: AsyncPoolSimulation(seed, part)._play(),
                          decisions.made, error) from error  # fmt: skip

    def _play(self) -> None:
        self.loop.start(self._cancel_some(), "canceller")
        self.loop.start(self._finish(), "finish")
        kept, begun = len(_registry._kept_from_finalizers), self.loop
        with warnings.catch_warnings(), self.order.watched():
            warnings.simplefilter("ignore", ResourceWarning)  # leases are dropped on purpose
            warnings.simplefilter("ignore", PoolConfigWarning)  # so are settings that have no effect
            try:
                copy_context().run(self.loop.run)  # what its tasks choose stays there
            except _ChildEnded:
                pass
            finally:
                del _registry._kept_from_finalizers[kept:]
                for loop in {begun, self.loop}:
                    loop.end()
