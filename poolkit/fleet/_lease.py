"""The permits that a process has on lease from the store: what it asks for, and how long they are safe.

Safety
------
A process counts its lease from the moment *before* it sent its request, and ends it after 80 % of ``ttl``. The store
ends it after the full ``ttl``, counted from when it received the request. So the process has closed its connections
before others can get its permits. After half of ``ttl`` without an answer nothing new is opened, so that no connect is
running when the lease ends.

A process that is cut off from the store cannot know whether the store serves others. It gives up its permits at the
end of its lease. A store whose host *refuses* connections (:class:`~poolkit.fleet.StoreDown`) serves no process at
that moment, and grants nothing new for one ``ttl`` after it has come back. So a refusal is as good as a renewal: for
one ``ttl`` from then on no other process can get these permits. Therefore the fleet keeps its permits while the store
is down.
"""

from __future__ import annotations

import math
import threading
import time
import uuid

from .._core.ledger import LAST, Account, BudgetLedger
from ._ledger import Ask, Grant

__all__ = ("FREEZE", "SAFE", "FleetLease")

SAFE = 0.8  # share of ttl that a process uses; the rest covers clocks that differ in rate, and connects that end late
FREEZE = 0.5  # share of ttl without an answer after which nothing new is opened


class _ReturnAccount(Account):
    """The account that claims permits in order to return them to other processes."""

    __slots__ = ()

    @property
    def rich(self) -> bool:
        """Only permits owed to other processes take precedence over the needs of this process."""
        return self.held >= self.minimum


class _NewsWaker:
    """Stands for a pool in the ledger. Wakes the exchange when there are permits to return."""

    name = "other processes"

    def __init__(self, wake: threading.Event) -> None:
        self._wake = wake

    def on_news(self) -> None:
        self._wake.set()


class FleetLease:
    """This process's part of the fleet. It changes under the budget's lock, but for :meth:`renewed`.

    Args:
        fleet: the name of the fleet.
        ledger: of the budget; its limit is what this process has on lease.
        total: the limit of the whole fleet.
        block: number of permits taken from the store at a time.
        ttl: seconds for which permits are leased.
        wake: set when there are permits to return.
    """

    def __init__(
        self, fleet: str, ledger: BudgetLedger, *, total: int, block: int, ttl: float, wake: threading.Event
    ) -> None:
        self._fleet = fleet
        self._ledger = ledger
        self._total = total
        self._block = block
        self.ttl = ttl
        self.waker = _NewsWaker(wake)
        self.account = _ReturnAccount(ledger, 0, 0.0, lambda: None)
        self.account.sharing_needed = True
        ledger.open(self.account)
        self._member = uuid.uuid4().hex
        self.grant = Grant(0, 0)
        self.safe_until = self.fresh_until = 0.0
        self.epoch = 0  # incremented when permits are lost: earlier answers are ignored
        self._unused_since = time.monotonic()

    @property
    def member(self) -> str:
        """The name of this process in the store."""
        return self._member

    @property
    def permits(self) -> int:
        """Permits on lease now."""
        return self._ledger.limit

    @property
    def frozen(self) -> bool:
        """Whether nothing new is opened."""
        return self._ledger.frozen

    def in_need(self) -> bool:
        """Whether a pool of this process waits for a permit."""
        return any(account.need for account in self._ledger.accounts if account is not self.account)

    def prepare(self) -> tuple[Ask, int]:
        """Return the next Ask, and the epoch. From here on the permits that the Ask returns are not in use."""
        ledger, account, now = self._ledger, self.account, time.monotonic()
        ledger.hear(account)
        for _ in range(self.grant.short):
            if not ledger.take(account, LAST, 0):
                break
        giving, account.minimum = account.held, 0
        unused = ledger.limit - ledger.held
        local = max(0, ledger.wanted)
        if local or unused < self._block:
            self._unused_since = now
        elif now - self._unused_since > self.ttl:
            giving += unused // self._block * self._block
            self._unused_since = now
        account.held = 0
        ledger.limit -= giving
        want = math.ceil(local / self._block) * self._block
        if self.grant.short and local:
            want = local  # other processes wait too: ask only for what is needed
        held = ledger.limit
        ledger.share_out()
        want = max(0, min(want, self._total - held))
        return Ask(self._fleet, self._member, held, want, self._total, self.ttl), self.epoch

    def renewed(self, begun: float) -> None:
        """Record a renewal: the lease holds for one ``ttl`` from ``begun``, the time before the request was sent."""
        self.fresh_until = begun + FREEZE * self.ttl
        self.safe_until = begun + SAFE * self.ttl

    def apply(self, grant: Grant) -> None:
        """Apply a grant: the permits of this process, and how many the other processes need."""
        ledger, account = self._ledger, self.account
        self.grant = grant
        ledger.limit, ledger.frozen = grant.permits, False
        account.minimum, account.need, account.place = grant.owed, grant.short, LAST
        ledger.share_out()
        ledger.review()

    def freeze(self) -> None:
        """Stop opening connections if the store has not answered for too long."""
        if time.monotonic() >= self.fresh_until:
            self._ledger.frozen = True

    def drop(self) -> str:
        """Drop the lost permits and join again as another member. Return the name of the former member."""
        ledger, account, former = self._ledger, self.account, self._member
        self.epoch += 1
        self._member = uuid.uuid4().hex
        self.grant = Grant(0, self.grant.token)
        ledger.limit, ledger.frozen = 0, False
        account.minimum = account.held = account.need = 0
        ledger.share_out()
        ledger.review()
        return former
