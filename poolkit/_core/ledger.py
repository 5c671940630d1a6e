"""A budget that several pools share: who may open a connection, and whose gives way. It has no clock; each account
takes the ledger's lock itself, so pools and simulations use the same code.

Rules
-----
1. Never more permits than ``limit``; a connection that is closing keeps its permit. No counter of its own: the sum of
   what the accounts hold is the number.
2. Each account's ``minimum`` is reserved for it, whether it is used or not.
3. What is free goes in order of arrival, first over those below their share, then over the others: who asks gets a
   permit if more are free than those before it need. A pool that gets none is noted (a *claim*) and told when one is
   free. A claim holds nothing: who is told asks again, so one whose callers were served otherwise meanwhile passes it
   on just by not asking.
4. When nothing is free, an idle connection gives way to a claim: the longest unused one of all accounts, but not below
   its account's minimum.
5. When none is idle, one that is returned gives way, even if its own pool has requests, but only from an account above
   its share to one below its own (each stays with its share), or to one that holds nothing and came first.
6. Only as many give way as claims are short of, those that are closing already counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any, Protocol, TypeVar

__all__ = ("LAST", "Account", "BudgetLedger", "LedgerGate", "NoGate")

T = TypeVar("T")

LAST = float("inf")  # the place in the queue of one who waits for nobody


class LedgerGate(Protocol):
    """What a ledger needs of its lock. A step takes microseconds."""

    @property
    def held(self) -> bool:
        """Whether this thread is in the middle of a step: then it is in a finalizer."""

    def step(self, step: Callable[..., T], *args: Any) -> T:
        """``step(*args)`` under the lock."""

    def post(self, step: Callable[..., object], *args: Any) -> None:
        """The same later, when this thread has released the lock."""


class NoGate:
    """No lock, where only one thread uses the ledger."""

    held = False

    def step(self, step: Callable[..., T], *args: Any) -> T:
        """``step(*args)``."""
        return step(*args)

    def post(self, step: Callable[..., object], *args: Any) -> None:
        """``step(*args)``."""
        step(*args)


class Account:
    """One pool's part of a budget, and the pool's access to it. Thread-safe, if the ledger's gate is.

    ``minimum``: permits that are reserved for it; ``oldest_spare``: since when the connection has been unused that
    would give way first, None without one (called with the ledger's lock held; a guess).
    """

    __slots__ = (  # noqa: RUF023  grouped by who writes them
        # constant
        "ledger", "oldest_spare", "ticket",
        # under the ledger's lock
        "held", "leaving", "minimum", "need", "notified", "place", "share", "sharing_needed", "weight",
    )  # fmt: skip

    def __init__(
        self, ledger: BudgetLedger, minimum: int, weight: float, oldest_spare: Callable[[], float | None]
    ) -> None:
        self.ledger = ledger
        self.oldest_spare = oldest_spare
        self.ticket: Callable[[], int] = ledger.tickets.__next__  # the next place in the queue over all pools
        self.minimum = minimum
        self.weight = weight
        self.share = 0  # what it can count on: minimum and its part of the rest by weight
        self.held = 0  # permits
        self.leaving = 0  # of which connections that are being closed
        self.need = 0  # permits that it claims
        self.place = LAST  # of the claim in the queue
        self.sharing_needed = False  # it was told to look at returned connections
        self.notified = False

    @property
    def stay(self) -> int:
        """Permits that are taken or reserved when those that are leaving are gone."""
        return max(self.held - self.leaving, self.minimum)

    @property
    def rich(self) -> bool:
        """Whether it has its share: those who have not come first."""
        return self.held > 0 and self.held >= self.share

    @property
    def beyond(self) -> int:
        """How much of its claim is not covered by what is reserved for it."""
        return max(0, self.need - max(0, self.minimum - self.held))

    # -- for its pool -------------------------------------------------------------------------------------------------

    @property
    def short(self) -> bool:
        """Whether connections should give way."""
        return self.ledger.short

    @property
    def claiming(self) -> bool:
        """Whether this pool has a claim."""
        return self.need > 0

    @property
    def news(self) -> bool:
        """Whether a pool has to be told something: see :meth:`deliver`."""
        return bool(self.ledger.messages)

    def deliver(self) -> None:
        """Tell other pools the news. Called without any lock."""
        self.ledger.deliver()

    def words(self) -> str:
        """The state of the budget for an error message."""
        return self.ledger.words()

    def take(self, place: float, need: int) -> bool:
        """A permit; if there is none and ``need`` is above 0, that many are claimed from ``place`` in the queue on."""
        return self._ask(False, self.ledger.take, place, need)

    def give(self, announced: bool) -> None:
        """A permit comes back; ``announced``: :meth:`leave`, :meth:`may_evict` or :meth:`must_yield` has said so."""
        self._do(self.ledger.give, announced)

    def leave(self) -> None:
        """A connection is being closed."""
        self._do(self.ledger.leave)

    def lower(self, need: int) -> None:
        """Claim ``need`` at most, for somebody was served otherwise."""
        self._do(self.ledger.lower, need)

    def look(self) -> None:
        """This pool has nothing more that could give way: another one has to look, if that is still wanted."""
        if self.ledger.short:
            self._do(self.ledger.review)

    def may_evict(self, unused_since: float) -> bool:
        """Whether the idle connection that is unused since then has to give way; then it counts as leaving."""
        return self._ask(False, self.ledger.may_evict, unused_since)

    def keep(self) -> None:
        """The connection that had to give way was taken in this moment, and stays."""
        self._do(self.ledger.keep)

    def must_yield(self, place: float) -> bool:
        """Whether a returned connection has to give way, although a caller waits at that ``place``; then it counts as
        leaving.
        """
        return self._ask(False, self.ledger.must_yield, place)

    def correct(self, held: int, leaving: int) -> None:
        """After an interruption: what this pool really holds."""
        self._do(self.ledger.correct, held, leaving)

    def relax(self) -> bool:
        """Whether returned connections still have to be looked at."""
        return self._ask(True, self.ledger.relax)

    def retire(self) -> None:
        """The pool admits nobody any more: it keeps its permits until they come back, and reserves none."""
        self._do(self.ledger.retire)

    def change(self, minimum: int, weight: float) -> None:
        """Other settings. Raises what :attr:`BudgetLedger.fits` raises."""
        self.ledger.gate.step(self.ledger.change, self, minimum, weight)

    def hear(self) -> None:
        """The pool looks at the news: it claims nothing any more, and what it still needs it asks for again."""
        self._do(self.ledger.repeat if self.ledger.gate.held else self.ledger.hear)

    def _do(self, step: Callable[..., object], *args: Any) -> None:
        gate = self.ledger.gate
        (gate.post if gate.held else gate.step)(step, self, *args)

    def _ask(self, otherwise: bool, question: Callable[..., bool], *args: Any) -> bool:
        """The answer to a question; ``otherwise`` where it cannot be asked just now: the pool is told to ask again."""
        gate = self.ledger.gate
        if gate.held:
            gate.post(self.ledger.notify, self)
            return otherwise
        return gate.step(question, self, *args)


def _nothing(*_args: object) -> None:
    """What nobody wants to know."""


class BudgetLedger:
    """The accounts of one budget. Its steps are called under the lock of its ``gate``; accounts see to that.

    ``fits(account, minimum)``: raises an error if an account may not reserve so many permits; called for a change.
    """

    def __init__(
        self, limit: int, gate: LedgerGate | None = None, fits: Callable[[Account, int], object] = _nothing
    ) -> None:
        self.limit = limit
        self.gate: LedgerGate = NoGate() if gate is None else gate
        self.fits = fits
        # what its owner does for it
        self.claimed: Callable[[], object] = _nothing  # called for each claim; must not block
        self.deliver: Callable[[], object] = _nothing  # tells the pools the news; called without any lock
        self.words: Callable[[], str] = str  # the state of the budget, for error messages
        self.accounts: dict[Account, None] = {}
        self.messages: deque[Account] = deque()  # who has to be told to look again
        self.short = False
        self.frozen = False  # nobody gets a permit for now
        self.tickets = count(1)

    @property
    def held(self) -> int:
        """Permits taken."""
        return sum(account.held for account in self.accounts)

    @property
    def reserved(self) -> int:
        """The sum of the minimums."""
        return sum(account.minimum for account in self.accounts)

    @property
    def wanted(self) -> int:
        """Permits that are claimed and neither free nor about to be: 0 or less when all is well."""
        return sum(account.stay + account.beyond for account in self.accounts) - self.limit

    # -- the pools ------------------------------------------------------------------------------------------------

    def open(self, account: Account) -> None:
        """One more pool."""
        self.accounts[account] = None
        self.share_out()
        self.review()

    def close(self, account: Account) -> None:
        """The pool is gone, and its connections with it."""
        account.held = account.leaving = account.minimum = account.need = 0
        self.accounts.pop(account, None)
        self.share_out()
        self.review()

    def change(self, account: Account, minimum: int, weight: float) -> None:
        """Other settings of a pool."""
        self.fits(account, minimum)
        account.minimum, account.weight = minimum, weight
        self.share_out()
        self.review()

    def resize(self, limit: int) -> None:
        """Another limit; what is above it gives way as it comes back."""
        self.limit = limit
        self.share_out()
        self.review()

    def retire(self, account: Account) -> None:
        """No callers any more."""
        account.need, account.place = 0, LAST
        account.minimum, account.weight = 0, 0.0
        self.share_out()
        self.review()

    def share_out(self) -> None:
        """Each account's share: its minimum, and of what is not reserved the part of its weight, rounded down."""
        rest = max(0, self.limit - self.reserved)
        total = sum(account.weight for account in self.accounts)
        for account in self.accounts:
            account.share = account.minimum + (int(rest * account.weight / total) if total else 0)

    # -- permits --------------------------------------------------------------------------------------------------

    def take(self, account: Account, place: float, need: int) -> bool:
        """See :meth:`Account.take`."""
        held = self.held
        if account in self.accounts and held < self.limit and not self.frozen:
            turn = (account.rich or not need, place)  # whom nobody waits for comes last, rich or not
            others = (a for a in self.accounts if a.need and a is not account)
            before = sum(a.beyond for a in others if (a.rich, a.place) < turn)
            room = self.limit - sum(max(a.held, a.minimum) for a in self.accounts)
            if account.held < account.minimum or room > before:
                account.held += 1
                account.need = max(0, min(account.need, need - 1))
                self.review()
                return True
        if need and account in self.accounts:
            account.need, account.place = max(need, 1), place
            self.claimed()
            self.review()
        return False

    def give(self, account: Account, announced: bool) -> None:
        """See :meth:`Account.give`."""
        if account in self.accounts:
            account.held -= 1
            account.leaving -= announced
            self.review()

    def leave(self, account: Account) -> None:
        """See :meth:`Account.leave`."""
        if account in self.accounts:
            account.leaving += 1
            self.short = self.wanted > 0

    def lower(self, account: Account, need: int) -> None:
        """See :meth:`Account.lower`."""
        if account.need > need:
            account.need = need
            self.review()

    def hear(self, account: Account) -> None:
        """See :meth:`Account.hear`."""
        account.notified = False
        account.sharing_needed = True  # for now: it is about to look
        self.lower(account, 0)

    def correct(self, account: Account, held: int, leaving: int) -> None:
        """See :meth:`Account.correct`."""
        if account in self.accounts:
            account.held, account.leaving = held, leaving
            self.review()

    # -- giving way -----------------------------------------------------------------------------------------------

    def may_evict(self, account: Account, unused_since: float) -> bool:
        """See :meth:`Account.may_evict`."""
        if account not in self.accounts or self.wanted <= 0 or account.held - account.leaving <= account.minimum:
            return False
        first = self._oldest_spare()
        if first is not None and first is not account and (first.oldest_spare() or LAST) < unused_since:
            self.notify(first)
            return False
        account.leaving += 1
        self.short = self.wanted > 0
        return True

    def keep(self, account: Account) -> None:
        """See :meth:`Account.keep`."""
        account.leaving -= 1
        self.short = self.wanted > 0

    def must_yield(self, account: Account, place: float) -> bool:
        """See :meth:`Account.must_yield`."""
        stay = account.held - account.leaving
        if account not in self.accounts or self.wanted <= 0 or stay <= 0:
            return False
        over = sum(a.held - a.leaving for a in self.accounts) > self.limit
        if over or any(self._owed(account, stay, other, place) for other in self.accounts if other is not account):
            account.leaving += 1
            self.short = self.wanted > 0
            return True
        return False

    def _owed(self, account: Account, stay: int, other: Account, place: float) -> bool:
        if not other.need:
            return False
        if stay > account.share and other.held < other.share:
            return True
        return other.held == 0 and other.place < place and stay > account.minimum

    def relax(self, account: Account) -> bool:
        """See :meth:`Account.relax`."""
        account.sharing_needed = self.short
        return self.short

    # -- who has to know ------------------------------------------------------------------------------------------

    def review(self, _account: Account | None = None) -> None:
        """After a change: tell those who can have a permit now; if some are short of one, have others look."""
        free = 0 if self.frozen else self.limit - self.held
        room = self.limit - sum(max(a.held, a.minimum) for a in self.accounts)
        claims = sorted((a for a in self.accounts if a.need), key=lambda a: (a.rich, a.place))
        for account in claims:
            if free > 0 and (account.held < account.minimum or room > 0):
                self.notify(account)
                free -= account.need
                room -= account.beyond
        self.short = self.wanted > 0
        if self.short:
            for account in self.accounts:
                if not account.sharing_needed:
                    self.notify(account)
            first = self._oldest_spare()
            if first is not None:
                self.notify(first)

    def _oldest_spare(self) -> Account | None:
        oldest, found = LAST, None
        for account in self.accounts:
            if account.held - account.leaving > account.minimum:
                since = account.oldest_spare()
                if since is not None and since < oldest:
                    oldest, found = since, account
        return found

    def repeat(self, account: Account) -> None:
        """The pool could not hear the news just now."""
        account.notified = False
        self.notify(account)

    def notify(self, account: Account) -> None:
        """Have the pool look again, when it can be told."""
        if not account.notified:
            account.notified = True
            self.messages.append(account)
