"""Seeded simulation of several pools under one budget: random steps of each, messages that come late.

After each step: the permits are what the pools really hold, never more than the limit; and whenever all messages have
arrived, nobody waits while the budget has room for it, or while an idle connection elsewhere may give way.
"""

from __future__ import annotations

import random
from collections import deque

from poolkit._core import invariants
from poolkit._core.ledger import Account, BudgetLedger
from poolkit._core.slots import CLOSING
from poolkit.policies.retire import SETTLED

from .simulate import CoreSimulation, SimulationFailure

__all__ = ("BudgetSimulation",)


class BudgetSimulation:
    """One random schedule over 2 to 4 pools; ``BudgetSimulation(seed).run(400)`` raises
    :class:`~tests.simulation.SimulationFailure` or returns.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = pick = random.Random(seed)
        limit = pick.choice([2, 3, 5, 8])
        self.ledger = BudgetLedger(limit)
        self.most = limit  # the limit before it was lowered: what is above it goes when it comes back
        self.pools: dict[Account, CoreSimulation] = {}
        self.trace: deque[str] = deque(maxlen=60)
        left = limit
        for number in range(pick.randint(2, 4)):
            minimum = min(pick.choice([0, 0, 1, 2]), left - 1)
            account = self._account(pick.choice([0.5, 1.0, 3.0]))
            pool = CoreSimulation(seed * 7 + number, account=account, minimum=minimum)
            pool.core.name = f"pool {number}"
            self.pools[account] = pool
            account.minimum = pool.core.config.min_size
            left -= account.minimum
            self.ledger.open(account)

    def _account(self, weight: float) -> Account:
        def oldest_spare() -> float | None:
            return self.pools[account].core.unused_since() if account in self.pools else None

        account = Account(self.ledger, 0, weight, oldest_spare)
        return account

    def _deliver(self) -> bool:
        """One message arrives, if there is any."""
        if not self.ledger.messages:
            return False
        account = self.ledger.messages.popleft()
        pool = self.pools[account]
        self.trace.append(f"{pool.core.name} hears")
        account.hear()
        pool.core.settle(pool.now)
        pool.core.capacity.sharing_needed = account.relax()
        pool.core.settle(pool.now)
        pool._perform()
        return True

    def _step(self) -> None:
        pick = self.random
        roll = pick.random()
        if roll < 0.25:
            self._deliver()
        elif roll < 0.26:
            low = self.ledger.reserved + 1
            self.ledger.resize(pick.randint(low, max(low, 8)))
            self.most = max(self.most, self.ledger.limit)
            self.trace.append(f"limit {self.ledger.limit}")
        else:
            account, pool = pick.choice(list(self.pools.items()))
            pool.now = max(each.now for each in self.pools.values())  # one clock for all
            pool.step()
            self.trace.append(f"{pool.core.name} {pool.trace[-1] if pool.trace else ''}")
            if pool.core.capacity.sharing_needed and not self.ledger.short and pick.random() < 0.5:
                pool.core.capacity.sharing_needed = account.relax()
        self.check()

    def check(self) -> None:
        """The permits are what is held; with all messages delivered, nobody is stranded."""
        ledger = self.ledger
        for account, pool in self.pools.items():
            core = pool.core
            assert account.held == len(core.all_slots), (
                f"{core.name}: {account.held} permits, {len(core.all_slots)} held"
            )
            closing = sum(slot.state is CLOSING for slot in core.slots.living())
            assert account.leaving == closing, f"{core.name}: {account.leaving} leave, {closing} are closing"
        assert ledger.held <= self.most, f"{ledger.held} connections under a budget of {self.most}"
        if ledger.held <= ledger.limit:
            self.most = ledger.limit
        if not ledger.messages:
            self._check_quiet()

    def _check_quiet(self) -> None:
        ledger = self.ledger
        claims = sorted((account for account in self.pools if account.claiming), key=lambda a: (a.rich, a.place))
        room = ledger.limit - sum(max(account.held, account.minimum) for account in self.pools)
        if claims and ledger.held < ledger.limit:
            first = claims[0]
            assert room <= 0, f"a claim for {first.need} is not served although {room} permits are free"
            assert first.held >= first.minimum, "a claim on what is reserved is not served"
        assert ledger.short == (ledger.wanted > 0)
        if ledger.short:
            kept: dict[str, float] = {}  # idle connections that another pool may have: since when they are unused
            for account, pool in self.pools.items():
                core = pool.core
                assert core.capacity.sharing_needed, f"{core.name} does not look at returned connections"
                spare = core.endpoints.longest_unused()
                if spare is not None and account.held - account.leaving > account.minimum:
                    kept[core.name] = spare.last_used
            assert not kept or ledger.urgent <= 0, f"{list(kept)} keep idle connections from a pool below its share"
            looked_at = min(pool.core.due for pool in self.pools.values())
            assert not kept or looked_at <= min(kept.values()) + SETTLED, f"{list(kept)} keep idle connections"

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
        pools = list(self.pools.values())
        for pool in pools:
            pool.repair_world()
        for _ in range(400):
            done = [pool.settle() for pool in pools]
            while self._deliver():
                self.check()
            if all(done) and not any(pool.waiting or pool.closing or pool.opening for pool in pools):
                break
        for pool in pools:
            assert not pool.waiting, f"{pool.core.name}: {len(pool.waiting)} callers were never served nor told"
        for pool in pools:
            pool.shut()
            while self._deliver():
                self.check()
            invariants.check(pool.core)
        assert not self.ledger.held, "permits are left after all pools are closed"
