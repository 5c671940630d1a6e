"""The server behind a simulated pool: what it has open, and what must be true of what the pool hands out, to whom."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from poolkit._core.queue import Request
from poolkit._core.service import Service
from poolkit.testing.connectors import FakeConnection

__all__ = ("Order", "SimulatedServer")


class SimulatedServer:
    """The invariants of a server in virtual time. The connectors of the simulations add how long each step takes."""

    def __init__(self) -> None:
        self.numbers = itertools.count(1)
        self.live = self.max_live = 0
        self.up = True
        self.begun = 0  # connects
        self.begun_as: dict[int, int] = {}  # which connect a connection comes from
        self.open: weakref.WeakValueDictionary[int, FakeConnection] = weakref.WeakValueDictionary()
        self.inherited: set[int] = set()  # from the parent process
        self.problems: list[str] = []  # what it raises itself the pool takes for the driver's trouble
        self.held: set[int] = set()
        self.dropped: set[int] = set()

    def begin(self) -> int:
        """A connect arrives; which one it is."""
        self.begun += 1
        return self.begun

    def refusal(self, begun: int) -> ConnectionRefusedError:
        """The answer to a connect that is refused, in one of the two ways in which servers do it."""
        return ConnectionRefusedError("too many clients" if begun % 3 == 0 else "simulated")

    def accept(self, begun: int) -> FakeConnection:
        """The connection that a connect comes to."""
        self.live += 1
        self.max_live = max(self.max_live, self.live)
        connection = FakeConnection(next(self.numbers))
        self.begun_as[connection.number] = begun
        self.open[connection.number] = connection
        return connection

    def abort(self, connection: FakeConnection) -> None:
        """Close it at once."""
        self.mine(connection)
        if connection.closed:
            self.problems.append(f"{connection} was closed twice")
        connection.closed = True
        self.live -= 1

    def mine(self, connection: FakeConnection) -> None:
        """The pool is about to speak on it."""
        if connection.number in self.inherited:
            self.problems.append(f"{connection} of the parent process was touched in the child")

    def go_down(self) -> None:
        """Lose every connection and refuse new ones."""
        for connection in list(self.open.values()):
            connection.alive = False
        self.up = False

    def forked(self) -> None:
        """From here on in a child process."""
        self.inherited = set(self.begun_as)
        self.live, self.up = 0, True
        self.held.clear()

    # -- what the pool has promised -----------------------------------------------------------------------------------

    def handed_out(self, connection: FakeConnection, cleared: int) -> None:
        """Somebody gets it; ``cleared``: the last connect that had begun when the pool was cleared before it asked."""
        assert connection.number not in self.held, f"{connection} is in two hands"
        assert connection.number not in self.dropped, f"{connection} was handed out after its lease was dropped"
        assert not connection.closed, f"{connection} was handed out after it was closed"
        assert not connection.dirty, f"{connection} was handed out dirty"
        assert self.begun_as[connection.number] > cleared, f"{connection} was handed out after clear()"
        self.mine(connection)
        self.held.add(connection.number)

    def all_at_once(self, connections: list[FakeConnection]) -> None:
        """They are all that the pool may have."""
        assert len({connection.number for connection in connections}) == len(connections), "one connection twice"
        assert self.max_live <= 4, f"{self.max_live} connections at the server"
        for connection in connections:
            self.mine(connection)

    def after_close(self, pool: Any) -> None:
        """The pool was closed some time ago."""
        assert self.live == 0, f"{self.live} connections were left open"
        assert not self.problems, self.problems[0]
        pool.check_books()
        # the audit heals what a bug loses: nothing of the kind may have been necessary
        assert pool._core.counts.reclaimed == 0, f"{pool._core.counts.reclaimed} connections were in nobody's hands"

    def after_drop(self, pool: weakref.ref[Any]) -> None:
        """The pool was forgotten some time ago."""
        assert pool() is None, "something keeps a dropped pool alive"
        left = [connection for connection in self.open.values() if not connection.closed]
        assert not left, f"something keeps {left} of a dropped pool alive"


_ROUNDING = 1e-9  # seconds


class Order:
    """Nobody is overtaken by those who came ``barging_window`` seconds after it, or later, except while the pool is
    overloaded (tests/core/test_overload.py).
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._joined: dict[int, float] = {}  # when who stood in the queue; by id, to keep nobody alive

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note who joins a queue meanwhile."""
        enqueue = Service.enqueue

        def noting(service: Service, request: Request, now: float) -> None:
            self._joined[id(request)] = self._now()
            enqueue(service, request, now)

        with mock.patch.object(Service, "enqueue", noting):
            yield

    def served(self, pool: Any, asked: float) -> None:
        """Somebody who had asked at that time has its connection."""
        if pool._core.counts.overloads:
            return
        window = pool.config.barging_window
        for request in list(pool._core.endpoint.requests):
            joined = self._joined[id(request)]
            assert asked <= joined or asked < joined + window + _ROUNDING, (
                f"who asked at {asked:.4f} overtook one who stood in the queue since {joined:.4f}"
            )
