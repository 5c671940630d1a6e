"""Seeded simulation of a whole :class:`~poolkit.Pool`: threads switched between any two lines, in virtual time."""

from __future__ import annotations

import itertools
from unittest import mock

from .. import _shell
from .._threads import Pool
from ..config import BackoffConfig
from ..connector import Connector
from ..errors import AcquireTimeout
from .connectors import FakeConnection
from .interleave import Interleaving, SimulatedRuntime

__all__ = ("PoolSimulation",)

LONG = 1000.0  # seconds of virtual time that nobody waits unless he is forgotten


class _Connector(Connector[FakeConnection]):
    """A server in virtual time: slow, sometimes refusing, counting what it has open."""

    def __init__(self, interleaving: Interleaving) -> None:
        self.world = interleaving
        self.numbers = itertools.count(1)
        self.live = self.max_live = 0
        self.up = True

    def connect(self, timeout: float | None) -> FakeConnection:
        """Open a connection, or be refused."""
        self.world.sleep(self.world.random.choice([0.0, 0.01, 0.1]))
        if self.up and self.world.random.random() < 0.1:
            raise ConnectionRefusedError("simulated")
        self.live += 1
        self.max_live = max(self.max_live, self.live)
        return FakeConnection(next(self.numbers))

    def close(self, connection: FakeConnection) -> None:
        """Close it, in its own time."""
        self.world.sleep(self.world.random.choice([0.0, 0.01]))
        self.abort(connection)

    def abort(self, connection: FakeConnection) -> None:
        """Close it at once."""
        assert not connection.closed, f"{connection} was closed twice"
        connection.closed = True
        self.live -= 1


class _CheckingConnector(_Connector):
    """The same, with a look, a check and a reset."""

    def peek(self, connection: FakeConnection) -> bool:
        """Whether the server still knows it."""
        return connection.alive

    def check(self, connection: FakeConnection, timeout: float | None) -> bool:
        """Ask the server."""
        self.world.sleep(0.01)
        return connection.alive

    def needs_reset(self, connection: FakeConnection) -> bool:
        """Whether somebody left it dirty."""
        return connection.dirty

    def reset(self, connection: FakeConnection) -> None:
        """Clean it."""
        self.world.sleep(0.001)
        connection.dirty = False


class PoolSimulation:
    """One random schedule over one random pool; ``PoolSimulation(seed).run()`` raises AssertionError or returns.

    Callers acquire, hold, return, discard, drop, break and time out; the pool is cleared, suspended and
    reconfigured meanwhile. Nobody gets a connection that somebody else holds, that was closed or left dirty; nobody
    waits for ever; the server never sees more than the limit; at the end everything is closed and the books balance.
    """

    def __init__(self, seed: int) -> None:
        self.world = world = Interleaving(seed, switch=(0.003, 0.01, 0.03)[seed % 3])
        pick = world.random
        self.connector = pick.choice([_Connector, _CheckingConnector])(world)
        self.runtime = SimulatedRuntime(world)
        with mock.patch.object(_shell, "Lock", self.runtime.lock):
            self.pool = Pool(
                self.connector,
                runtime=self.runtime,
                clock=world.clock,
                random=pick.random,
                max_size=pick.choice([1, 2, 4]),
                min_size=pick.choice([0, 0, 1]),
                order=pick.choice(["lifo", "fifo"]),
                check_after_idle=pick.choice([0, 1, None]),
                barging_window=pick.choice([0.0, 0.001, 0.05]),
                idle_timeout=pick.choice([None, 0.5]),
                max_lifetime=pick.choice([None, 1.0]),
                backoff=BackoffConfig(base=0.01, cap=0.1),
                max_connecting=pick.choice([1, 16]),
                acquire_timeout=2 * LONG,
                connect_timeout=5,
            )
        self.pool._core.vigil = float("inf")  # it would help those who are forgotten, which is to be found out
        self.held: set[int] = set()
        self.workers = pick.randint(2, 6)
        self.left = self.workers

    def _use(self) -> None:
        """One caller, one lease."""
        pool, world = self.pool, self.world
        pick = world.random
        begun = world.clock.now
        try:
            lease = pool.lease(timeout=pick.choice([0, 0.01, 0.05, LONG, LONG, LONG]))
        except AcquireTimeout as error:
            if world.clock.now - begun < LONG:
                return
            raise AssertionError(f"a caller was forgotten: {error}") from error
        connection = lease.connection
        assert connection.number not in self.held, f"{connection} is in two hands"
        assert not connection.closed, f"{connection} was handed out after it was closed"
        assert not connection.dirty, f"{connection} was handed out dirty"
        self.held.add(connection.number)
        if pick.random() < 0.7:
            world.sleep(pick.choice([0.0, 0.001, 0.02]))
        self.held.discard(connection.number)
        how = pick.random()
        if how < 0.1:
            lease.close(discard=True)
        elif how < 0.2:
            lease.close(error=ConnectionResetError("simulated"))
        else:
            connection.alive = how > 0.3
            connection.dirty = how > 0.8 and isinstance(self.connector, _CheckingConnector)
            lease.close()

    def _command(self) -> None:
        pool, world = self.pool, self.world
        what = world.random.random()
        if what < 0.05:
            pool.clear()
        elif what < 0.1:
            pool.suspend()
            world.sleep(0.01)
            pool.resume()
        elif what < 0.15:
            pool.reconfigure(max_size=world.random.randint(1, 4))
        elif what < 0.2:
            pool.stats()

    def _work(self) -> None:
        for _ in range(self.world.random.randint(1, 6)):
            self._use()
            self._command()
        self.left -= 1

    def _finish(self) -> None:
        """When all callers are gone, the whole capacity is there; then close."""
        pool, world = self.pool, self.world
        world.block(lambda: not self.left)
        size = pool.config.max_size
        assert size is not None
        got = [pool.acquire(timeout=LONG) for _ in range(size)]
        assert len({connection.number for connection in got}) == size, "one connection twice"
        assert self.connector.max_live <= 4, f"{self.connector.max_live} connections at the server"
        for connection in got:
            pool.release(connection)
        pool.close()
        world.sleep(LONG)
        assert self.connector.live == 0, f"{self.connector.live} connections were left open"
        pool.check_books()
        assert not pool._core.counts.reclaimed, "a connection was in nobody's hands"

    def run(self) -> None:
        """Run the schedule to its end."""
        for _ in range(self.workers):
            self.world.spawn(self._work)
        self.world.spawn(self._finish, name="finish")
        try:
            self.world.run()
        except AssertionError as error:
            raise AssertionError(f"seed {self.world.seed}: {error}") from error
