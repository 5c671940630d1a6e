"""A budget that several pools share: who may open a connection, and whose gives way. Pure: no lock, no clock.

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
5. When none is idle, one that is returned gives way, even if its own pool has waiters, but only from an account above
   its share to one below its own (each stays with its share), or to one that holds nothing and came first.
6. Only as many give way as claims are short of, those that are closing already counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Protocol

__all__ = ("Account", "Book", "Permits")

LAST = float("inf")  # the place in the queue of one who waits for nobody


class Permits(Protocol):
    """What a core needs of the budget that it shares. Never blocks for longer than a few decisions take."""

    @property
    def short(self) -> bool:
        """Whether connections should give way."""

    @property
    def claiming(self) -> bool:
        """Whether this pool has a claim."""

    @property
    def news(self) -> bool:
        """Whether somebody has to be told something (by the shell, without its lock)."""

    def ticket(self) -> int:
        """The next place in the queue over all pools."""

    def take(self, ticket: float, need: int) -> bool:
        """A permit; if there is none and ``need`` is above 0, that many are claimed from place ``ticket`` on."""

    def give(self, left: bool) -> None:
        """A permit comes back; ``left``: it was announced by :meth:`leave`."""

    def leave(self) -> None:
        """A connection is being closed."""

    def lower(self, need: int) -> None:
        """Claim ``need`` at most (somebody was served otherwise)."""

    def look(self) -> None:
        """This pool has nothing more that could give way: another one has to look, if that is still wanted."""

    def evict(self, unused_since: float) -> bool:
        """Whether the idle connection that is unused since then has to give way (then it counts as leaving)."""

    def stays(self) -> None:
        """The connection that had to give way was taken in this moment, and stays."""

    def yields(self, ticket: float) -> bool:
        """Whether a returned connection has to give way, although a caller with ``ticket`` waits (as evict)."""

    def correct(self, held: int, leaving: int) -> None:
        """After an interruption: what this pool really holds."""

    def ease(self) -> bool:
        """Whether returns still have to look here."""

    def retire(self) -> None:
        """The pool admits nobody any more: it keeps its permits until they come back, and reserves none."""

    def change(self, minimum: int, weight: float) -> None:
        """Other settings; ConfigError if the minimums do not fit into the budget any more."""

    def heard(self) -> None:
        """The pool looks at the news: it claims nothing any more, and what it still needs it asks for again."""

    def deliver(self) -> None:
        """Tell other pools the news. Called without any lock."""

    def words(self) -> str:
        """The state of the budget for an error message."""


class Account:
    """One pool's part of a budget."""

    __slots__ = ("held", "leaving", "minimum", "need", "oldest_spare", "place", "pressed", "share", "told", "weight")

    def __init__(self, minimum: int, weight: float, oldest_spare: Callable[[], float | None]) -> None:
        self.minimum = minimum
        self.weight = weight
        self.share = 0  # what it can count on: minimum and its part of the rest by weight
        self.held = 0  # permits
        self.leaving = 0  # of which connections that are being closed
        self.need = 0  # permits that it claims
        self.place = LAST  # of the claim in the queue
        self.oldest_spare = oldest_spare  # since when the connection is unused that would give way; a guess
        self.pressed = False  # it was told to look at returned connections
        self.told = False

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


class Book:
    """The accounts of one budget. Not thread-safe: the shell has a lock around every call."""

    def __init__(self, limit: int, claimed: Callable[[], object] = lambda: None) -> None:
        self.limit = limit
        self.claimed = claimed  # called for each claim; must not block
        self.accounts: dict[Account, None] = {}
        self.tell: deque[Account] = deque()  # who has to be told to look again
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
        self.change(account, 0, 0.0)

    def share_out(self) -> None:
        """Each account's share: its minimum, and of what is not reserved the part of its weight, rounded down."""
        rest = max(0, self.limit - self.reserved)
        total = sum(account.weight for account in self.accounts)
        for account in self.accounts:
            account.share = account.minimum + (int(rest * account.weight / total) if total else 0)

    # -- permits --------------------------------------------------------------------------------------------------

    def take(self, account: Account, place: float, need: int) -> bool:
        """See :meth:`Permits.take`."""
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

    def give(self, account: Account, left: bool) -> None:
        """See :meth:`Permits.give`."""
        if account in self.accounts:
            account.held -= 1
            account.leaving -= left
            self.review()

    def leave(self, account: Account) -> None:
        """See :meth:`Permits.leave`."""
        if account in self.accounts:
            account.leaving += 1
            self.short = self.wanted > 0

    def lower(self, account: Account, need: int) -> None:
        """See :meth:`Permits.lower`."""
        if account.need > need:
            account.need = need
            self.review()

    def heard(self, account: Account) -> None:
        """See :meth:`Permits.heard`."""
        account.told = False
        account.pressed = True  # for now: it is about to look
        self.lower(account, 0)

    def correct(self, account: Account, held: int, leaving: int) -> None:
        """See :meth:`Permits.correct`."""
        if account in self.accounts:
            account.held, account.leaving = held, leaving
            self.review()

    # -- giving way -----------------------------------------------------------------------------------------------

    def evict(self, account: Account, unused_since: float) -> bool:
        """See :meth:`Permits.evict`."""
        if account not in self.accounts or self.wanted <= 0 or account.held - account.leaving <= account.minimum:
            return False
        first = self._oldest_spare()
        if first is not None and first is not account and (first.oldest_spare() or LAST) < unused_since:
            self._tell(first)
            return False
        account.leaving += 1
        self.short = self.wanted > 0
        return True

    def stays(self, account: Account) -> None:
        """See :meth:`Permits.stays`."""
        account.leaving -= 1
        self.short = self.wanted > 0

    def yields(self, account: Account, place: float) -> bool:
        """See :meth:`Permits.yields`."""
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

    def ease(self, account: Account) -> bool:
        """See :meth:`Permits.ease`."""
        account.pressed = self.short
        return self.short

    # -- who has to know ------------------------------------------------------------------------------------------

    def review(self) -> None:
        """After a change: tell those who can have a permit now; if some are short of one, have others look."""
        free = 0 if self.frozen else self.limit - self.held
        room = self.limit - sum(max(a.held, a.minimum) for a in self.accounts)
        claims = sorted((a for a in self.accounts if a.need), key=lambda a: (a.rich, a.place))
        for account in claims:
            if free > 0 and (account.held < account.minimum or room > 0):
                self._tell(account)
                free -= account.need
                room -= account.beyond
        self.short = self.wanted > 0
        if self.short:
            for account in self.accounts:
                if not account.pressed:
                    self._tell(account)
            first = self._oldest_spare()
            if first is not None:
                self._tell(first)

    def _oldest_spare(self) -> Account | None:
        oldest, found = LAST, None
        for account in self.accounts:
            if account.held - account.leaving > account.minimum:
                since = account.oldest_spare()
                if since is not None and since < oldest:
                    oldest, found = since, account
        return found

    def look(self, account: Account) -> None:
        """See :meth:`Permits.look`."""
        self.review()

    def notify(self, account: Account) -> None:
        """Something could not be asked just now: the pool asks again when it is told."""
        self._tell(account)

    def repeat(self, account: Account) -> None:
        """The pool could not hear the news just now."""
        account.told = False
        self._tell(account)

    def _tell(self, account: Account) -> None:
        if not account.told:
            account.told = True
            self.tell.append(account)
