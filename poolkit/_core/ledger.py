"""The permits of a budget that several pools share: which pool may open a connection, and which has to close one.

The ledger has no clock. Each account takes the ledger's lock itself, so pools and simulations run the same code.

Rules
-----
1. The pools never hold more permits than ``limit``. A connection that is closing keeps its permit. There is no separate
   counter: the number of permits taken is the sum over the accounts.
2. Each account's ``minimum`` is reserved for it, used or not.
3. Free permits go in order of arrival: first to accounts below their share, then to the others. A pool gets a permit if
   more are free than the claims before its own need. Otherwise the ledger records a *claim*, and notifies the pool when
   a permit is free. A claim reserves nothing: the notified pool asks again. If its callers have been served otherwise
   by then, it does not ask, and the permit goes to the next claim.
4. If no permit is free, the longest unused idle connection of all accounts is closed for a claim. No account goes below
   its minimum for that. For the claim of an account that has its share, the connection has to be settled or the claim
   pressing: see :func:`~poolkit.policies.retire.evictable_at`.
5. If no connection is idle, a returned one is closed, even if its own pool has requests. This happens only if its
   account is above its share and the claiming account below its own, or if the claiming account holds nothing and its
   claim is older than those requests. No account goes below its share for a claim of the first kind.
6. No more connections are closed than the claims need. Those that are closing already count.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any, Protocol, TypeVar

__all__ = ("LAST", "Account", "BudgetLedger", "LedgerGate", "NoGate")

T = TypeVar("T")

LAST = float("inf")  # the place in the queue behind all callers: for connections that no caller waits for


class LedgerGate(Protocol):
    """The lock of a ledger. A step under it takes microseconds."""

    @property
    def held(self) -> bool:
        """Whether this thread is in the middle of a step. The call then comes from a finalizer."""

    def step(self, step: Callable[..., T], *args: Any) -> T:
        """Call ``step(*args)`` under the lock."""

    def post(self, step: Callable[..., object], *args: Any) -> None:
        """Call ``step(*args)`` under the lock, after this thread has released it."""


class NoGate:
    """A gate without a lock, for a ledger that one thread uses."""

    held = False

    def step(self, step: Callable[..., T], *args: Any) -> T:
        """Call ``step(*args)``."""
        return step(*args)

    def post(self, step: Callable[..., object], *args: Any) -> None:
        """Call ``step(*args)``."""
        step(*args)


class Account:
    """One pool's part of a budget, and the pool's access to it. Thread-safe if the ledger's gate is.

    ``minimum``: permits that are reserved for it. ``oldest_spare``: returns since when the pool's longest unused idle
    connection has been unused, None without one. It is called with the ledger's lock held, so its answer may be out of
    date.
    """

    __slots__ = (  # noqa: RUF023  grouped by who writes them
        # constant
        "ledger", "oldest_spare", "ticket",
        # under the ledger's lock
        "held", "leaving", "minimum", "need", "notified", "place", "pressing", "share", "sharing_needed", "weight",
    )  # fmt: skip

    def __init__(
        self, ledger: BudgetLedger, minimum: int, weight: float, oldest_spare: Callable[[], float | None]
    ) -> None:
        self.ledger = ledger
        self.oldest_spare = oldest_spare
        self.ticket: Callable[[], int] = ledger.tickets.__next__  # the next place in the queue over all pools
        self.minimum = minimum
        self.weight = weight
        self.share = 0  # permits that it is entitled to: its minimum, and a part of the rest by weight
        self.held = 0  # permits
        self.leaving = 0  # those of them whose connection is being closed
        self.need = 0  # permits that it claims
        self.place = LAST  # of the claim in the queue
        self.pressing = False  # whether one permit of the claim does not wait for a settled connection
        self.sharing_needed = False  # the pool has to ask for each returned connection whether to close it
        self.notified = False

    @property
    def stay(self) -> int:
        """Permits that remain taken or reserved after the closing connections are gone."""
        return max(self.held - self.leaving, self.minimum)

    @property
    def rich(self) -> bool:
        """Whether the account has its share. Accounts that do not have theirs come first."""
        return self.held > 0 and self.held >= self.share

    @property
    def beyond(self) -> int:
        """The part of its claim that its reserved permits do not cover."""
        return max(0, self.need - max(0, self.minimum - self.held))

    # -- for its pool ---------------------------------------------------------------------------------------------

    @property
    def short(self) -> bool:
        """Whether connections have to be closed for the claims of other pools."""
        return self.ledger.short

    @property
    def claiming(self) -> bool:
        """Whether this pool has a claim."""
        return self.need > 0

    @property
    def news(self) -> bool:
        """Whether notifications for pools are pending: see :meth:`deliver`."""
        return bool(self.ledger.messages)

    def deliver(self) -> None:
        """Notify other pools. Called without any lock."""
        self.ledger.deliver()

    def words(self) -> str:
        """Return the state of the budget for an error message."""
        return self.ledger.words()

    def take(self, place: float, need: int, *, pressing: bool = False) -> bool:
        """Take a permit; whether there was one. If not, claim ``need`` permits (0: none) at ``place`` in the queue.

        ``pressing``: one of them may close any idle connection, even if the account has its share.
        """
        return self._ask(False, self.ledger.take, place, need, pressing)

    def give(self, announced: bool) -> None:
        """Return a permit. ``announced``: :meth:`leave`, :meth:`may_evict` or :meth:`must_yield` has counted it."""
        self._do(self.ledger.give, announced)

    def leave(self) -> None:
        """Note that a connection is being closed."""
        self._do(self.ledger.leave)

    def lower(self, need: int) -> None:
        """Reduce the claim to ``need``, because callers were served otherwise."""
        self._do(self.ledger.lower, need)

    def look(self) -> None:
        """This pool has no further connection to close. Ask another one, if permits are still short."""
        if self.ledger.short:
            self._do(self.ledger.review)

    def may_evict(self, unused_since: float, *, settled: bool) -> bool:
        """Whether to close the idle connection that is unused since then. If so, it counts as leaving.

        ``settled``: whether that is long enough for a claim of an account that has its share.
        """
        return self._ask(False, self.ledger.may_evict, unused_since, settled)

    def keep(self) -> None:
        """Undo :meth:`may_evict`: another thread has just taken the connection, so it stays."""
        self._do(self.ledger.keep)

    def must_yield(self, place: float) -> bool:
        """Whether to close a returned connection although a caller waits at ``place``. If so, it counts as leaving."""
        return self._ask(False, self.ledger.must_yield, place)

    def correct(self, held: int, leaving: int) -> None:
        """After an interruption: set the permits that this pool holds."""
        self._do(self.ledger.correct, held, leaving)

    def relax(self) -> bool:
        """Whether the pool still has to ask for each returned connection."""
        return self._ask(True, self.ledger.relax)

    def retire(self) -> None:
        """The pool admits no more callers. It keeps its permits until its connections are closed, and reserves none."""
        self._do(self.ledger.retire)

    def change(self, minimum: int, weight: float) -> None:
        """Change the settings. Raises what :attr:`BudgetLedger.fits` raises."""
        self.ledger.gate.step(self.ledger.change, self, minimum, weight)

    def hear(self) -> None:
        """The pool has received its notification. Its claim ends; it asks again for what it still needs."""
        self._do(self.ledger.repeat if self.ledger.gate.held else self.ledger.hear)

    def _do(self, step: Callable[..., object], *args: Any) -> None:
        gate = self.ledger.gate
        (gate.post if gate.held else gate.step)(step, self, *args)

    def _ask(self, otherwise: bool, question: Callable[..., bool], *args: Any) -> bool:
        """The answer to a question. In a finalizer, which must not take the lock: ``otherwise``, and a notification
        later, after which the pool asks again.
        """
        gate = self.ledger.gate
        if gate.held:
            gate.post(self.ledger.notify, self)
            return otherwise
        return gate.step(question, self, *args)


def _nothing(*_args: object) -> None:
    """Do nothing: the default of a callback that the owner has not set."""


class BudgetLedger:
    """The accounts of one budget. The accounts call its steps under the lock of its ``gate``.

    ``fits(account, minimum)``: called before a change. Raises an error if the account may not reserve ``minimum``.
    """

    def __init__(
        self, limit: int, gate: LedgerGate | None = None, fits: Callable[[Account, int], object] = _nothing
    ) -> None:
        self.limit = limit
        self.gate: LedgerGate = NoGate() if gate is None else gate
        self.fits = fits
        # callbacks of the owner
        self.claimed: Callable[[], object] = _nothing  # called for each claim; must not block
        self.deliver: Callable[[], object] = _nothing  # notifies the pools; called without any lock
        self.words: Callable[[], str] = str  # the state of the budget, for error messages
        self.accounts: dict[Account, None] = {}
        self.messages: deque[Account] = deque()  # accounts whose pools are to be notified
        self.short = False
        self.frozen = False  # no permit is given out for now
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
        """Claimed permits that are neither free nor about to be free; 0 or less: no connection has to be closed."""
        return sum(account.stay + account.beyond for account in self.accounts) - self.limit

    @property
    def urgent(self) -> int:
        """The same without the claims of accounts that have their share, except one permit for a pressing claim."""
        claimed = sum(min(one.beyond, int(one.pressing)) if one.rich else one.beyond for one in self.accounts)
        return sum(one.stay for one in self.accounts) + claimed - self.limit

    # -- the pools ------------------------------------------------------------------------------------------------

    def open(self, account: Account) -> None:
        """Add the account of a pool."""
        self.accounts[account] = None
        self.share_out()
        self.review()

    def close(self, account: Account) -> None:
        """Remove the account of a pool that no longer exists. Its permits are free: its connections are gone, too."""
        account.held = account.leaving = account.minimum = account.need = 0
        self.accounts.pop(account, None)
        self.share_out()
        self.review()

    def change(self, account: Account, minimum: int, weight: float) -> None:
        """Change the settings of a pool."""
        self.fits(account, minimum)
        account.minimum, account.weight = minimum, weight
        self.share_out()
        self.review()

    def resize(self, limit: int) -> None:
        """Change the limit. Connections above it are closed if they are idle, else when they are returned."""
        self.limit = limit
        self.share_out()
        self.review()

    def retire(self, account: Account) -> None:
        """See :meth:`Account.retire`."""
        account.need, account.place = 0, LAST
        account.minimum, account.weight = 0, 0.0
        self.share_out()
        self.review()

    def share_out(self) -> None:
        """Compute each account's share: its minimum, and by weight a part of the unreserved permits, rounded down."""
        rest = max(0, self.limit - self.reserved)
        total = sum(account.weight for account in self.accounts)
        for account in self.accounts:
            account.share = account.minimum + (int(rest * account.weight / total) if total else 0)

    # -- permits --------------------------------------------------------------------------------------------------

    def take(self, account: Account, place: float, need: int, pressing: bool = False) -> bool:
        """See :meth:`Account.take`."""
        held = self.held
        if account in self.accounts and held < self.limit and not self.frozen:
            turn = (account.rich or not need, place)  # connections that no caller waits for come last
            others = (a for a in self.accounts if a.need and a is not account)
            before = sum(a.beyond for a in others if (a.rich, a.place) < turn)
            room = self.limit - sum(max(a.held, a.minimum) for a in self.accounts)
            if account.held < account.minimum or room > before:
                account.held += 1
                account.need = max(0, min(account.need, need - 1))
                self.review()
                return True
        if need and account in self.accounts:
            account.need, account.place, account.pressing = max(need, 1), place, pressing
            self.claimed()
            self.review(claimant=account)
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
        account.sharing_needed = True  # the pool looks now; its call of relax() clears this unless permits are short
        self.lower(account, 0)

    def correct(self, account: Account, held: int, leaving: int) -> None:
        """See :meth:`Account.correct`."""
        if account in self.accounts:
            account.held, account.leaving = held, leaving
            self.review()

    # -- closing connections for other pools ----------------------------------------------------------------------

    def may_evict(self, account: Account, unused_since: float, settled: bool) -> bool:
        """See :meth:`Account.may_evict`."""
        if account not in self.accounts or self.wanted <= 0 or account.held - account.leaving <= account.minimum:
            return False
        first = self._oldest_spare()
        if first is not None and first is not account and (first.oldest_spare() or LAST) < unused_since:
            self.notify(first)
            return False
        if not settled and self.urgent <= 0:
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
        if over or any(_owed(account, stay, other, place) for other in self.accounts if other is not account):
            account.leaving += 1
            self.short = self.wanted > 0
            return True
        return False

    def relax(self, account: Account) -> bool:
        """See :meth:`Account.relax`."""
        account.sharing_needed = self.short
        return self.short

    # -- notifications --------------------------------------------------------------------------------------------

    def review(self, _account: Account | None = None, *, claimant: Account | None = None) -> None:
        """After a change: notify the pools that can have a permit now. If permits are short, notify those that may have
        to close a connection.

        ``claimant``: the account that has just claimed. Its pool looks at its own idle connections in the same step, so
        a message would only have it claim, and be notified, again and again.
        """
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
            if first is not None and not (first is claimant and first.sharing_needed):
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
        """The pool could not receive its notification now: send it again."""
        account.notified = False
        self.notify(account)

    def notify(self, account: Account) -> None:
        """Queue a notification for the pool, unless one is queued already."""
        if not account.notified:
            account.notified = True
            self.messages.append(account)


def _owed(account: Account, stay: int, other: Account, place: float) -> bool:
    if not other.need:
        return False
    if stay > account.share and other.held < other.share:
        return True
    return other.held == 0 and other.place < place and stay > account.minimum
