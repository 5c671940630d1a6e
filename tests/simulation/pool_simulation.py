"""Seeded simulation of a whole :class:`~poolkit.Pool`: threads switched between any two lines, in virtual time."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Mapping
from typing import Any
from unittest import mock

from poolkit import _begin, _registry
from poolkit._threads import Lease, Pool
from poolkit.config import BackoffConfig, PoolConfigWarning
from poolkit.connector import Connector
from poolkit.errors import AcquireTimeout
from poolkit.testing.connectors import FakeConnection
from tests.support.story import Story

from .classes import CallerClasses
from .interleave import Interleaving, SimulatedRuntime
from .replay import Decisions, explain
from .simulate import some_autoscale
from .simulated_server import Order, SimulatedServer

__all__ = ("PoolSimulation",)

LONG = 1000.0  # seconds of virtual time that nobody waits unless it is forgotten


class _Connector(SimulatedServer, Connector[FakeConnection]):
    """A server in virtual time: slow, sometimes refusing or restarting."""

    def __init__(self, interleaving: Interleaving) -> None:
        super().__init__()
        self.world = interleaving

    def connect(self, timeout: float | None) -> FakeConnection:
        """Open a connection, or be refused."""
        begun = self.begin()
        self.world.sleep(self.world.random.choice([0.0, 0.01, 0.1]))
        if not self.up or self.world.random.random() < 0.1:
            raise self.refusal(begun)
        return self.accept(begun)

    def close(self, connection: FakeConnection) -> None:
        """Close it, in its own time."""
        self.mine(connection)
        self.world.sleep(self.world.random.choice([0.0, 0.01]))
        self.abort(connection)

    def restart(self) -> None:
        """The server loses every connection and refuses new ones for a moment."""
        self.go_down()
        self.world.sleep(0.05)
        self.up = True


class _CheckingConnector(_Connector):
    """The same, with a look, a check and a reset."""

    def peek(self, connection: FakeConnection) -> bool:
        """Whether the server still knows it."""
        self.mine(connection)
        return connection.alive

    def check(self, connection: FakeConnection, timeout: float | None) -> bool:
        """Ask the server."""
        self.mine(connection)
        self.world.sleep(0.01)
        return connection.alive

    def needs_reset(self, connection: FakeConnection) -> bool:
        """Whether somebody left it dirty."""
        self.mine(connection)
        return connection.dirty

    def reset(self, connection: FakeConnection) -> None:
        """Clean it."""
        self.world.sleep(0.001)
        connection.dirty = False


class PoolSimulation:
    """One random schedule over one random pool; ``PoolSimulation(seed).run()`` raises
    :class:`~tests.simulation.SimulationFailure` or returns.

    Callers acquire, hold, return, discard, drop, break and time out; connects fail and the server restarts; the pool
    is cleared, suspended and reconfigured meanwhile. What was dropped is collected at any line of any thread, also
    of the one that holds the lock. At some point the process may fork: then the schedule goes on in the child, whose
    one thread finds the pool as the others have left it.

    Nobody is overtaken by those who came ``barging_window`` later. Nobody gets a connection that somebody else holds,
    that was closed, dropped or left dirty, that was opened before the last ``clear()`` or by the parent process; nobody
    waits for ever; the server never sees more than the limit. In some schedules a listener hears of each lease, and
    what it hears of a connection makes sense. At the end the whole capacity is there, everything is
    closed and the invariants hold; or the pool is dropped with leases outstanding, and nothing of it stays.
    """

    full = True  # forks, restarts, collections and listeners too
    class_share = 0.3  # of the schedules: callers are of several classes

    def __init__(self, seed: int, script: Mapping[Any, Any] | None = None) -> None:
        self.world = world = Interleaving(
            seed, switch=(0.003, 0.01, 0.03)[seed % 3], decisions=Decisions(script), streams=self.full
        )
        pick = world.random
        self.connector = pick.choice([_Connector, _CheckingConnector])(world)
        self.runtime = SimulatedRuntime(world)
        self.classes = CallerClasses(seed, self.class_share)
        self.story = Story() if self.full and seed % 5 == 1 else None  # not drawn: other schedules stay what they were
        size = pick.choice([1, 2, 4])
        with mock.patch.object(_begin, "Lock", self.runtime.lock), warnings.catch_warnings():
            warnings.simplefilter("ignore", PoolConfigWarning)
            self.pool = Pool(
                self.connector,
                runtime=self.runtime,
                clock=world.clock,
                random=lambda: world.random.random(),
                max_size=size,
                min_size=pick.choice([0, 0, 1]),
                order=pick.choice(["lifo", "fifo"]),
                check_after_idle=pick.choice([0, 1, None]),
                barging_window=self.classes.barging(pick.choice([0.0, 0.001, 0.05])),
                idle_timeout=pick.choice([None, 0.5]),
                max_lifetime=pick.choice([None, 1.0]),
                backoff=BackoffConfig(base=0.01, cap=0.1),
                autoscale=some_autoscale(seed) if self.full else None,
                max_connecting=pick.choice([1, 16]),
                acquire_timeout=2 * LONG,
                classes=self.classes.configs(size),
                connect_timeout=5,
                listeners=[self.story] if self.story else (),
            )
        # a recheck would serve callers that were forgotten, and those are what the simulation looks for
        self.pool._core.recheck_interval = float("inf")
        self.order = Order(lambda: world.clock.now)
        self.cleared = 0  # the last connect that had begun when the pool was cleared
        self.forked = False
        self.leases: list[Lease[FakeConnection]] = []  # of a pool that is dropped
        self.workers = pick.randint(2, 6)
        self.left = self.workers

    def _use(self, fork: bool) -> None:
        """One caller, one lease."""
        pool, world = self.pool, self.world
        pick = world.random
        begun, cleared = world.clock.now, self.cleared
        self.classes.choose(pick)
        try:
            lease = pool.lease(timeout=pick.choice([0, 0.01, 0.05, LONG, LONG, LONG]))
        except AcquireTimeout as error:
            if world.clock.now - begun < LONG:
                return
            raise AssertionError(f"a caller was forgotten: {error}") from error
        connection = lease.connection
        self.connector.handed_out(connection, cleared)
        if not self.classes.drawn:
            self.order.served(pool, begun)
        if pick.random() < 0.7:
            world.sleep(pick.choice([0.0, 0.001, 0.02]))
        if fork and pick.random() < 0.5:
            self._fork()  # with a lease in hand
        self.connector.held.discard(connection.number)
        if self.full and pick.random() < 0.15:
            self.connector.dropped.add(connection.number)
            if pick.random() < 0.7:
                world.drop(lease)  # in a cycle: its finalizer runs later
            return  # else it runs here
        how = pick.random()
        if how < 0.1:
            lease.close(discard=True)
        elif how < 0.2:
            lease.close(error=ConnectionResetError("simulated"))
        else:
            connection.alive = connection.alive and how > 0.3
            connection.dirty = how > 0.8 and isinstance(self.connector, _CheckingConnector)
            lease.close()

    def _command(self) -> None:
        pool, world = self.pool, self.world
        what = world.random.random()
        if what < 0.05:
            before = self.connector.begun
            pool.clear()
            self.cleared = max(self.cleared, before)
        elif what < 0.1:
            pool.suspend()
            world.sleep(0.01)
            pool.resume()
        elif what < 0.15:
            pool.reconfigure(max_size=world.random.randint(1 + self.classes.reserved, 4))
        elif what < 0.2:
            pool.stats()
        elif what < 0.25 and self.full:
            self.connector.restart()
        elif what < 0.28 and self.full:
            pool.discard_idle()

    def _work(self, worker: int) -> None:
        world, make = self.world, self.world.decisions.make
        for number in range(world.random.randint(1, 6)):
            if make(("use", worker, number), lambda: True, False):
                fork = self.full and not self.forked and make(
                    ("fork", worker, number), lambda: world.chance() < 0.03, False
                )  # fmt: skip
                world.reseed((worker, number))
                self._use(fork)
                if fork and not self.forked:
                    self._fork()
                self._command()
        self.left -= 1

    def _fork(self) -> None:
        """Go on as the child process, with some new threads."""
        pool, world = self.pool, self.world
        self.forked = True
        world.fork()
        self.connector.forked()
        if self.story:
            self.story.restart()
        known = {id(slot.connection) for slot in pool._core.slots.living() if slot.connection is not None}
        with mock.patch.object(_begin, "Lock", self.runtime.lock), warnings.catch_warnings():
            warnings.simplefilter("ignore", PoolConfigWarning)
            _begin.after_fork(pool)
        pool._core.recheck_interval = float("inf")
        assert known <= {id(each) for each in _registry._kept_from_finalizers}, (
            "a connection of the parent may be finalized"
        )
        assert not pool._core.all_slots, "the child begins with connections"
        if pool._core.suspended:
            pool.resume()  # who suspended it is not there any more
        self.left = 3
        for worker in (101, 102):
            world.spawn(self._work, worker, seed=f"worker {worker}")
        world.spawn(self._finish, name="finish", seed="finish in the child")

    def _finish(self) -> None:
        """When all callers are gone, the whole capacity is there; then the pool is closed, or dropped."""
        pool, world = self.pool, self.world
        world.block(lambda: not self.left)
        world.garbage.clear()
        size = pool.config.max_size
        assert size is not None
        got = []
        for number in range(size):
            self.classes.fill(number, size)
            got.append(pool.acquire(timeout=LONG))
        self.connector.all_at_once(got)
        for connection in got:
            pool.release(connection)
        if self.full and not self.forked and world.random.random() < 0.2:
            self.classes.fill(0, size)
            most = size - self.classes.reserved
            self.leases = [pool.lease(timeout=LONG) for _ in range(world.random.randint(0, most))]
            world.spawn(self._forget_pool, name="forget", seed="forget")
            return
        pool.close()
        world.sleep(LONG)
        self.connector.after_close(pool)
        if self.story:
            self.story.check(leased=0)

    def _forget_pool(self) -> None:
        """Nobody knows the pool any more but its leases; then nobody does."""
        world, ref = self.world, weakref.ref(self.pool)
        me = world.current
        del self.pool
        while self.leases:
            lease = self.leases.pop()
            assert not lease.connection.closed, f"{lease.connection} was closed in somebody's hands"
            if world.random.random() < 0.5:
                lease.close()
            del lease
            world.sleep(0.01)
        for _ in range(20):
            gc.collect()
            if ref() is None:
                break
            world.block(lambda: all(one is me or one.done or one.gone for one in world.threads))  # a connect keeps it
        self.connector.after_drop(ref)

    def replay(self, script: Mapping[Any, Any]) -> None:
        """Of the seed's schedule only the decisions of ``script``, as a failure shows it. Raises what went wrong."""
        type(self)(self.world.seed, script)._play()

    def run(self) -> None:
        """Run the schedule to its end."""
        seed = self.world.seed
        try:
            self._play()
        except Exception as error:
            made = self.world.decisions.made
            again = type(self)
            raise explain("PoolSimulation", seed, lambda part: again(seed, part)._play(), made, error) from error

    def _play(self) -> None:
        world = self.world
        kept = len(_registry._kept_from_finalizers)
        for worker in range(self.workers):
            world.spawn(self._work, worker, seed=f"worker {worker}")
        world.spawn(self._finish, name="finish", seed="finish")
        with warnings.catch_warnings(), self.order.watched():
            warnings.simplefilter("ignore", ResourceWarning)  # leases are dropped on purpose
            warnings.simplefilter("ignore", PoolConfigWarning)  # so are settings that have no effect
            try:
                world.run()
            finally:
                del _registry._kept_from_finalizers[kept:]
