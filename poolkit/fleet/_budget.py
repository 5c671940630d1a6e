"""A budget whose limit is a lease from a store that many processes share.

Safety
------
A process counts its lease from the moment *before* it asked for it, and ends it after 80 % of ``ttl``; the store ends
it after the whole ``ttl``, counted from when it heard. So it has closed its connections before others can get its
permits. After half of ``ttl`` without news nothing new is opened, so that no connect is on its way at the end.

Whoever is cut off from the store cannot know whether others are served by it, and gives up at the end of his lease. A
store whose host *refuses* (:class:`~poolkit.fleet.StoreDown`) serves nobody at that moment, and grants nothing new for
one ``ttl`` after it has come back. So each refusal is as good as a renewal: nobody can be given our permits for one
``ttl`` from then on. That is how the fleet goes on with what it has as long as the store is down.
"""

from __future__ import annotations

import math
import threading
import time
import uuid
import weakref
from dataclasses import dataclass
from typing import Any

from .._core.sharing import LAST, Account, Book
from .._log import logger
from ..budget import Budget
from ..errors import ConfigError, UsageError, describe, said
from ._ledger import Ask, Grant
from ._store import Store, StoreDown, StoreError

__all__ = ("FleetBudget", "FleetStats")

SAFE = 0.8  # part of ttl that a process counts on; the rest is for clocks that run unlike and connects that end late
FREEZE = 0.5  # part of ttl without news after which nothing new is opened
POLL = 0.1  # seconds between two questions while something is wanted
START = 1.0  # seconds for which a thread that cannot be started is tried again
BEAT = 1.0  # seconds between two exchanges at most, so that others are not kept waiting


@dataclass(frozen=True)
class FleetStats:
    """One process's view of the fleet. ``granted``: permits on lease, ``lease``: seconds for which they are safe,
    ``members``: processes, ``token``: the fencing token, ``error``: what the store last said, None when it is well.
    """

    limit: int
    granted: int
    members: int
    lease: float
    token: int
    error: str | None


def _check(block: Any, ttl: Any) -> None:
    if isinstance(block, bool) or not isinstance(block, int) or block < 1:
        raise ConfigError(f"block={block!r}: must be a whole number, 1 or more", "block")
    if isinstance(ttl, bool) or not isinstance(ttl, (int, float)) or not 0.5 <= ttl < math.inf:
        raise ConfigError(f"ttl={ttl!r}: must be a time in seconds, 0.5 or more", "ttl")


class _Returner(Account):
    """Who in this process claims permits on behalf of other processes."""

    __slots__ = ()

    @property
    def rich(self) -> bool:
        """Only what others are owed goes before the needs of this process."""
        return self.held >= self.minimum


class _Ear:
    """Is told in the place of a pool."""

    name = "other processes"

    def __init__(self, wake: threading.Event) -> None:
        self._wake = wake

    def _hear(self) -> None:
        self._wake.set()


class FleetBudget(Budget):
    """At most ``limit`` connections over all pools of all processes that name the same ``fleet`` in the same store.

    ``FleetBudget(RedisStore(url), "orders-db", limit=100)``, then as a :class:`~poolkit.Budget`. Permits are taken from
    the store ``block`` at a time and kept for ``ttl`` seconds, renewed in the background: no caller ever waits for the
    store unless his process has no permit left. A crashed process's permits are free after ``ttl`` seconds. Each
    process can count on an even part of the limit; what others leave is lent, and comes back when they need it.

    While the store is down, each process goes on with the permits that it has. A process that is cut off from a store
    which may be serving others closes all its connections, leased ones too, before its lease ends.
    ``trust_refusal=False``: a refused connection to the store counts as cut off, too (where a proxy or a firewall
    between may refuse on its own). Thread-safe. A forked child is a member of its own.

    Raises :class:`~poolkit.ConfigError` for settings that cannot be meant.
    """

    def __init__(
        self, store: Store, fleet: str, *, limit: int, block: int = 4, ttl: float = 10.0, trust_refusal: bool = True
    ) -> None:
        if not callable(getattr(store, "exchange", None)):
            raise ConfigError(
                f"store={store!r}: must be a RedisStore, a PostgresStore, a FileStore or one of yours", "store"
            )
        if not fleet or not isinstance(fleet, str):
            raise ConfigError(f"fleet={fleet!r}: must be a name, the same in all processes", "fleet")
        _check(block, ttl)
        self._store = store
        self._block = block
        self._ttl = float(ttl)
        self._trust = bool(trust_refusal)
        self._closed = False
        super().__init__(limit, name=fleet)

    def _begin(self, limit: int) -> None:
        again = hasattr(self, "_pid")
        super()._begin(limit)
        self._wake = threading.Event()
        self._book = Book(0, self._wake.set)
        self._ear = _Ear(self._wake)
        self._returner = _Returner(0, 0.0, lambda: None)
        self._returner.pressed = True
        self._book.open(self._returner)
        self._members[self._returner] = weakref.ref(self._ear)
        self._started = False
        self._to_start = [self._talk, self._guard]  # from behind: no lease is asked for that nobody would end
        self._member = uuid.uuid4().hex
        self._grant = Grant(0, 0)
        self._safe_until = self._fresh_until = 0.0
        self._held_on = 0  # raised by each loss: answers from before it count no more
        self._unused_since = time.monotonic()
        self._error: str | None = None
        if again:
            self._store.forget()

    def open_account(self, pool: Any, minimum: int, weight: float) -> Any:
        """For pools; see :class:`~poolkit.Budget`."""
        if self._closed:
            raise UsageError(f"{self.name}: the fleet budget is closed")
        permits = super().open_account(pool, minimum, weight)
        try:
            self._start()
        except BaseException:
            self._run(self._forget, permits._account)
            raise
        return permits

    def _start(self) -> None:
        """Start the threads that are not there yet. Raises UsageError if one is refused all the time."""
        deadline = time.monotonic() + START
        while self._to_start:
            work = self._to_start.pop()
            try:
                threading.Thread(target=work, args=(self._wake,), name="poolkit-fleet", daemon=True).start()
                self._started = True
            except BaseException as error:
                self._to_start.append(work)  # the next pool tries again
                if not isinstance(error, (RuntimeError, MemoryError)):
                    raise
                if time.monotonic() >= deadline:
                    raise UsageError(
                        f"{self.name}: a fleet budget renews its lease in threads of its own, and none can be started "
                        f"({type(error).__name__}: {error})"
                    ) from error
                time.sleep(START / 20)

    def resize(self, limit: int) -> None:
        """Another limit for the whole fleet: give the same one to every process. Thread-safe."""
        raise UsageError(
            f"{self.name}: the limit of a fleet is given by its processes' settings; it is not changed live"
        )

    def fleet(self) -> FleetStats:
        """A frozen snapshot of this process's part of the fleet. Thread-safe."""
        left = max(0.0, self._safe_until - time.monotonic()) if self._store.expires else self._ttl
        grant = self._grant
        return FleetStats(self._total, self._book.limit, grant.members, left, grant.token, self._error)

    def explain(self) -> str:
        """The state of the budget in plain words. Thread-safe."""
        trouble = f"; {self._error}" if self._error else ""
        count = self._grant.members
        return f"{super().explain()} of the fleet's {self._total}, {count} process{'es' * (count != 1)}{trouble}"

    def close(self, timeout: float = 5.0) -> None:
        """Give everything back to the fleet. Close the pools first; waits up to ``timeout`` seconds for their last
        connections. Raises UsageError while a pool is open or a connection is left, and changes nothing then.
        """
        deadline = time.monotonic() + timeout
        while True:
            pools, held = self._run(self._left)
            if not held or pools or time.monotonic() > deadline:
                break
            time.sleep(0.01)
        if pools or held:
            who = f"{', '.join(pools)} first" if pools else "what is on lease"
            raise UsageError(f"{self.name}: close {who}; there are {held} connections left")
        self._closed = True
        self._wake.set()
        if self._started:
            try:
                self._store.leave(self.name, self._member)
            except StoreError as error:
                logger.warning("%s: permits come back when their lease ends: %s", self.name, said(error, 500))
        self._store.close()

    def __enter__(self) -> FleetBudget:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _left(self) -> tuple[list[str], int]:
        """Under the lock: the names of pools that are open, and how many connections are left."""
        pools = [pool for account, ref in self._members.items() if account is not self._returner and (pool := ref())]
        held = self._book.held - self._returner.held
        return [pool.name for pool in pools if not pool.closed], held

    # -- the exchange with the store ------------------------------------------------------------------------------

    def _talk(self, mine: threading.Event) -> None:
        """The thread that talks to the store."""
        while not self._closed and mine is self._wake:  # not after a fork
            mine.clear()
            try:
                busy = self._exchange()
            except Exception as error:  # noqa: BLE001 - a store of one's own may raise anything; the exchange goes on
                self._trouble(f"the store gives no answer: {describe(error)}", exc_info=True)
                busy = True
            if busy:
                time.sleep(min(POLL, self._ttl / 10))
            elif mine.wait(min(BEAT, self._ttl / 5)):
                time.sleep(0.002)  # callers who come together ask together

    def _exchange(self) -> bool:
        """One exchange; whether to ask again soon."""
        ask, epoch = self._run(self._prepare)
        begun = time.monotonic()
        try:
            grant = self._store.exchange(ask)
        except StoreDown as error:
            self._trouble(f"the store is down: {said(error, 500)}")
            if self._trust and epoch == self._held_on and self._safe_until > begun:
                self._renewed(begun)
            return True
        except StoreError as error:
            self._trouble(f"the store gives no answer: {said(error, 500)}")
            return True
        if self._error is not None:
            logger.info("%s: the store answers again", self.name)
            self._error = None
        if epoch != self._held_on or (self._store.expires and time.monotonic() > begun + FREEZE * self._ttl):
            return True  # an answer from before a loss, or too late to rely on
        if grant.lost:
            self._lose("its lease had run out")
            return True
        self._renewed(begun)
        self._run(self._apply, grant)
        self._deliver()
        return grant.owed > 0 or self._run(self._in_need)

    def _trouble(self, text: str, *, exc_info: bool = False) -> None:
        """Told once for each time of trouble, not for each of its exchanges."""
        if self._error is None:
            logger.warning("%s: %s", self.name, text, exc_info=exc_info)
        self._error = text

    def _in_need(self) -> bool:
        return any(account.need for account in self._book.accounts if account is not self._returner)

    def _renewed(self, begun: float) -> None:
        self._fresh_until = begun + FREEZE * self._ttl
        self._safe_until = begun + SAFE * self._ttl

    def _prepare(self) -> tuple[Ask, int]:
        """Under the lock: what to give back, what to ask for. What is given back is out of use from now on."""
        book, returner, now = self._book, self._returner, time.monotonic()
        book.heard(returner)
        for _ in range(self._grant.short):
            if not book.take(returner, LAST, 0):
                break
        giving, returner.minimum = returner.held, 0
        unused = book.limit - book.held
        local = max(0, book.wanted)
        if local or unused < self._block:
            self._unused_since = now
        elif now - self._unused_since > self._ttl:
            giving += unused // self._block * self._block
            self._unused_since = now
        returner.held = 0
        book.limit -= giving
        want = math.ceil(local / self._block) * self._block
        if self._grant.short and local:
            want = local  # others wait, too: no more than is needed
        held = book.limit
        book.share_out()
        return Ask(
            self.name, self._member, held, max(0, min(want, self._total - held)), self._total, self._ttl
        ), self._held_on

    def _apply(self, grant: Grant) -> None:
        """Under the lock: what was granted, and what other processes need."""
        book, returner = self._book, self._returner
        self._grant = grant
        book.limit, book.frozen = grant.permits, False
        returner.minimum, returner.need, returner.place = grant.owed, grant.short, LAST
        book.share_out()
        book.review()

    # -- the end of a lease ---------------------------------------------------------------------------------------

    def _guard(self, mine: threading.Event) -> None:
        """The thread that sees to it that nothing outlives its lease, whatever the exchange is waiting for."""
        while not self._closed and mine is self._wake:
            now = time.monotonic()
            if self._book.limit and self._store.expires:
                if now >= self._safe_until:
                    self._lose(f"no news from the store for {SAFE * self._ttl:.1f} s")
                elif now >= self._fresh_until and not self._book.frozen:
                    self._run(self._freeze)
            time.sleep(self._ttl / 50)

    def _freeze(self) -> None:
        if time.monotonic() >= self._fresh_until:
            self._book.frozen = True

    def _lose(self, why: str) -> None:
        """Others may have the permits: close every connection, now."""
        pools = self._run(self._give_up)
        cut = sum(pool._cut() for pool in pools if pool is not None)
        logger.error("%s: permits lost (%s); %d leases cut", self.name, why, cut)

    def _give_up(self) -> list[Any]:
        book, returner = self._book, self._returner
        self._held_on += 1
        self._member = uuid.uuid4().hex
        self._grant = Grant(0, self._grant.token)
        book.limit, book.frozen = 0, False
        returner.minimum = returner.held = returner.need = 0
        book.share_out()
        book.review()
        return [ref() for account, ref in self._members.items() if account is not returner]
