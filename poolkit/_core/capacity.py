"""Whether the pool may have one more connection: by its own limit alone, or by that of a budget that pools share.

The number of connections is not kept here: it is the number of slots, and the limit is the pool's size.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

from .ledger import LAST, Account
from .queue import Queue
from .request import Request
from .slot import Slot

__all__ = ("Capacity", "OwnLimit", "SharedLimit")


class OwnLimit:
    """A pool that shares its limit with nobody: every permit below the limit is its own."""

    account: Account | None = None
    sharing_needed = False
    """Whether other pools need connections of this one: returned ones have to be looked at."""
    claiming = False
    """Whether the budget has noted that this pool needs permits."""

    def __init__(self) -> None:
        self.ticket: Callable[[], int] = count(1).__next__  # the next place in the queue

    def take(self, request: Request, need: int) -> bool:
        """Take a permit for the caller; if there is none, claim ``need`` of them."""
        return True

    def take_spare(self) -> bool:
        """Take a permit for a connection that nobody waits for, if there is one to spare."""
        return True

    def take_minimum(self, short: int) -> bool:
        """Take a permit for ``min_size``, after all who wait; if there is none, claim the ``short`` reserved ones."""
        return True

    def give(self, *, announced: bool) -> None:
        """A permit is free; ``announced``: the connection was being closed."""

    def leave(self) -> None:
        """A connection is being closed."""

    def must_yield(self, queue: Queue) -> bool:
        """Whether a returned connection gives way to another pool, although callers wait for it here."""
        return False

    def yield_to_others(self, longest_unused: Callable[[], Slot | None], evict: Callable[[Slot], bool]) -> bool:
        """Let idle connections give way to other pools; whether the other pools have to be told something."""
        return False

    def correct(self, held: int, leaving: int) -> None:
        """After an interruption: the permits that are taken, and those of connections that are being closed."""

    def agrees(self, held: int, leaving: int) -> bool:
        """Whether these are the numbers that the budget has."""
        return True

    def retire(self) -> None:
        """The pool admits nobody any more."""


class SharedLimit:
    """A pool under a budget: each permit is taken from the :class:`~.ledger.Account`, too.

    ``account.ticket`` counts over all pools, so that permits go to whoever came first in any of them.
    """

    def __init__(self, account: Account) -> None:
        self.account: Account | None = account
        self._account = account
        self.ticket = account.ticket
        self.sharing_needed = False
        self._asked = 0  # permits that were refused since the claim was adjusted last

    @property
    def claiming(self) -> bool:
        """Whether the budget has noted that this pool needs permits."""
        return self._account.claiming

    def take(self, request: Request, need: int) -> bool:
        """Take a permit for the caller; if there is none, claim ``need`` of them."""
        if self._account.take(request.ticket, need):
            return True
        self._asked = need
        return False

    def take_spare(self) -> bool:
        """Take a permit for a connection that nobody waits for, if there is one to spare."""
        return self._account.take(LAST, 0)

    def take_minimum(self, short: int) -> bool:
        """Take a permit for ``min_size``, after all who wait; if there is none, claim the ``short`` reserved ones."""
        if self._asked:
            return False
        if self._account.take(LAST, short):
            return True
        self._asked = short
        return False

    def give(self, *, announced: bool) -> None:
        """A permit is free; ``announced``: the connection was being closed."""
        self._account.give(announced)

    def leave(self) -> None:
        """A connection is being closed."""
        self._account.leave()

    def must_yield(self, queue: Queue) -> bool:
        """Whether a returned connection gives way to another pool, although callers wait for it here. Then it counts as
        leaving.
        """
        if not (self.sharing_needed and self._account.short):
            return False
        request = queue.first()
        return request is not None and self._account.must_yield(request.ticket)

    def yield_to_others(self, longest_unused: Callable[[], Slot | None], evict: Callable[[Slot], bool]) -> bool:
        """Claim no more than is needed, and let idle connections give way, longest unused first, as long as other pools
        need them. Whether the other pools have to be told something.

        ``evict``: closes the connection, which counts as leaving already; False if another thread has just taken it.
        """
        account = self._account
        if account.claiming:
            account.lower(self._asked)
        self._asked = 0
        while self.sharing_needed and account.short:
            slot = longest_unused()
            if slot is None or not account.may_evict(slot.last_used):
                account.look()
                break
            if not evict(slot):
                account.keep()
        return account.news or (self.sharing_needed and not account.short)

    def correct(self, held: int, leaving: int) -> None:
        """After an interruption: the permits that are taken, and those of connections that are being closed."""
        self._account.correct(held, leaving)

    def agrees(self, held: int, leaving: int) -> bool:
        """Whether these are the numbers that the budget has. True for an account that is closed."""
        account = self._account
        return account not in account.ledger.accounts or (account.held, account.leaving) == (held, leaving)

    def retire(self) -> None:
        """The pool admits nobody any more."""
        self._account.retire()


Capacity = OwnLimit | SharedLimit
"""Both have the same methods."""
