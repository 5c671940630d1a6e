"""Seeded simulation of several pools under one budget: random steps of each, messages that come late.

After each step: the permits are what the pools really hold, never more than the limit; and whenever all messages have
arrived, nobody waits while the budget has room for him, or while an idle connection elsewhere may give way.
"""

from __future__ import annotations

import random
from collections import deque

from poolkit._core import books
from poolkit._core.entry import CLOSING
from poolkit._core.sharing import Account, Book, Permits

from .simulate import CoreSimulation, SimulationFailure

__all__ = ("BudgetSimulation",)


class _Part(Permits):
    """One pool's way to the book, without a lock."""

    def __init__(self, book: Book, minimum: int, weight: float) -> None:
        self.book = book
        self.pool: CoreSimulation | None = None
        self.account = Account(minimum, weight, self._oldest_spare)

    def _oldest_spare(self) -> float | None:
        return None if self.pool is None else self.pool.core.unused_since()

    @property
    def short(self) -> bool:
        return self.book.short

    @property
    def claiming(self) -> bool:
        return self.account.need > 0

    @property
    def news(self) -> bool:
        return False  # the simulation looks by itself

    def ticket(self) -> int:
        return next(self.book.tickets)

    def take(self, ticket: float, need: int) -> bool:
        return self.book.take(self.account, ticket, need)

    def give(self, left: bool) -> None:
        self.book.give(self.account, left)

    def leave(self) -> None:
        self.book.leave(self.account)

    def lower(self, need: int) -> None:
        self.book.lower(self.account, need)

    def look(self) -> None:
        self.book.look(self.account)

    def evict(self, unused_since: float) -> bool:
        return self.book.evict(self.account, unused_since)

    def stays(self) -> None:
        self.book.stays(self.account)

    def yields(self, ticket: float) -> bool:
        return self.book.yields(self.account, ticket)

    def correct(self, held: int, leaving: int) -> None:
        self.book.correct(self.account, held, leaving)

    def retire(self) -> None:
        self.book.retire(self.account)

    def change(self, minimum: int, weight: float) -> None:
        self.book.change(self.account, minimum, weight)

    def heard(self) -> None:
        self.book.heard(self.account)

    def ease(self) -> bool:
        return self.book.ease(self.account)

    def deliver(self) -> None:
        """Messages are delivered by the simulation."""

    def words(self) -> str:
        return "simulated"


class BudgetSimulation:
    """One random schedule over 2 to 4 pools; ``BudgetSimulation(seed).run(400)`` raises
    :class:`~tests.simulation.SimulationFailure` or returns.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = pick = random.Random(seed)
        limit = pick.choice([2, 3, 5, 8])
        self.book = Book(limit)
        self.most = limit  # the limit before it was lowered: what is above it goes when it comes back
        self.parts: list[_Part] = []
        self.trace: deque[str] = deque(maxlen=60)
        left = limit
        for number in range(pick.randint(2, 4)):
            minimum = min(pick.choice([0, 0, 1, 2]), left - 1)
            part = _Part(self.book, 0, pick.choice([0.5, 1.0, 3.0]))
            pool = CoreSimulation(seed * 7 + number, permits=part, minimum=minimum)
            pool.core.name = f"pool {number}"
            part.pool = pool
            part.account.minimum = pool.core.config.min_size
            left -= part.account.minimum
            self.parts.append(part)
            self.book.open(part.account)

    def _pool(self, part: _Part) -> CoreSimulation:
        assert part.pool is not None
        return part.pool

    def _deliver(self) -> bool:
        """One message arrives, if there is any."""
        if not self.book.tell:
            return False
        account = self.book.tell.popleft()
        for part in self.parts:
            if part.account is account:
                pool = self._pool(part)
                self.trace.append(f"{pool.core.name} hears")
                part.heard()
                pool.core.settle(pool.now)
                pool.core.pressed = part.ease()
                pool.core.settle(pool.now)
                pool._perform()
        return True

    def _step(self) -> None:
        pick = self.random
        roll = pick.random()
        if roll < 0.25:
            self._deliver()
        elif roll < 0.26:
            low = self.book.reserved + 1
            self.book.resize(pick.randint(low, max(low, 8)))
            self.most = max(self.most, self.book.limit)
            self.trace.append(f"limit {self.book.limit}")
        else:
            part = pick.choice(self.parts)
            pool = self._pool(part)
            pool.now = max(self._pool(each).now for each in self.parts)  # one clock for all
            pool.step()
            self.trace.append(f"{pool.core.name} {pool.trace[-1] if pool.trace else ''}")
            if pool.core.pressed and not self.book.short and pick.random() < 0.5:
                pool.core.pressed = part.ease()
        self.check()

    def check(self) -> None:
        """The permits are what is held; with all messages delivered, nobody is stranded."""
        book = self.book
        for part in self.parts:
            core, account = self._pool(part).core, part.account
            assert account.held == len(core.entries), f"{core.name}: {account.held} permits, {len(core.entries)} held"
            closing = sum(entry.state is CLOSING for entry in core.entries.values())
            assert account.leaving == closing, f"{core.name}: {account.leaving} leave, {closing} are closing"
        assert book.held <= self.most, f"{book.held} connections under a budget of {self.most}"
        if book.held <= book.limit:
            self.most = book.limit
        if not book.tell:
            self._check_quiet()

    def _check_quiet(self) -> None:
        book = self.book
        claims = sorted((part.account for part in self.parts if part.claiming), key=lambda a: (a.rich, a.place))
        room = book.limit - sum(max(part.account.held, part.account.minimum) for part in self.parts)
        if claims and book.held < book.limit:
            first = claims[0]
            assert room <= 0, f"a claim for {first.need} is not served although {room} permits are free"
            assert first.held >= first.minimum, "a claim on what is reserved is not served"
        assert book.short == (book.wanted > 0)
        if book.short:
            for part in self.parts:
                core = self._pool(part).core
                assert core.pressed, f"{core.name} does not look at returned connections"
                above = part.account.held - part.account.leaving > part.account.minimum
                assert core.longest_unused() is None or not above, f"{core.name} keeps an idle connection from others"

    def run(self, steps: int) -> None:
        """``steps`` random events over all pools, then everybody is served or told, and all is closed."""
        try:
            for _ in range(steps):
                self._step()
            self._wind_down()
        except AssertionError as error:
            trace = "\n  ".join(self.trace)
            raise SimulationFailure(f"seed {self.seed}: {error}\n  {trace}") from error

    def _wind_down(self) -> None:
        pools = [self._pool(part) for part in self.parts]
        for pool in pools:
            pool.mend_world()
        for _ in range(400):
            done = [pool.settle() for pool in pools]
            while self._deliver():
                self.check()
            if all(done) and not any(pool.waiting or pool.closing or pool.dialling for pool in pools):
                break
        for pool in pools:
            assert not pool.waiting, f"{pool.core.name}: {len(pool.waiting)} callers were never served nor told"
        for pool in pools:
            pool.shut()
            while self._deliver():
                self.check()
            books.check(pool.core)
        assert not self.book.held, "permits are left after all pools are closed"
