"""A budget whose permits are leased from a store that many processes share.

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
import weakref
from dataclasses import dataclass
from typing import Any

from .._core.ledger import LAST, Account
from .._log import logger
from ..budget import Budget
from ..errors import ConfigError, UsageError, describe, said
from ._ledger import Ask, Grant
from ._store import Store, StoreDown, StoreError

__all__ = ("FleetBudget", "FleetStats")

SAFE = 0.8  # share of ttl that a process uses; the rest covers clocks at different rates and connects that end late
FREEZE = 0.5  # share of ttl without an answer after which nothing new is opened
POLL = 0.1  # seconds between two exchanges while permits are wanted
START = 1.0  # seconds for which starting a thread is retried
BEAT = 1.0  # maximum seconds between two exchanges, so that the needs of other processes are seen


@dataclass(frozen=True)
class FleetStats:
    """One process's view of the fleet.

    ``limit``: of the whole fleet; ``granted``: permits leased by this process; ``members``: processes in the fleet;
    ``lease``: seconds for which the permits are safe; ``token``: the fencing token; ``error``: the last error of the
    store, None while it works.
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


class _ReturnAccount(Account):
    """The account that claims permits in order to return them to other processes."""

    __slots__ = ()

    @property
    def rich(self) -> bool:
        """Only permits owed to other processes take precedence over the needs of this process."""
        return self.held >= self.minimum


class _NewsWaker:
    """Stands for a pool in the ledger: wakes the exchange when there are permits to return."""

    name = "other processes"

    def __init__(self, wake: threading.Event) -> None:
        self._wake = wake

    def on_news(self) -> None:
        self._wake.set()


class FleetBudget(Budget):
    """At most ``limit`` connections over all pools of all processes that name the same ``fleet`` in the same store.

    ``FleetBudget(RedisStore(url), "orders-db", limit=100)`` is used like a :class:`~poolkit.Budget`. Permits are taken
    from the store ``block`` at a time, leased for ``ttl`` seconds and renewed in the background: a caller waits for
    the store only if its process has no free permit. The permits of a crashed process are free after ``ttl`` seconds.
    Each process is entitled to an even share of the limit. What other processes do not use is lent, and is returned
    when they need it.

    While the store is down, each process keeps the permits that it has. A process that is cut off from a store which
    may still serve others closes all its connections, leased ones too, before its lease ends. Thread-safe. A forked
    child is a separate member.

    Args:
        store: a :class:`RedisStore`, a :class:`PostgresStore`, a :class:`FileStore` or your own :class:`Store`.
        fleet: the name of the fleet, the same in all processes.
        limit: maximum number of connections of the whole fleet, the same in all processes.
        block: number of permits taken from the store at a time.
        ttl: seconds for which permits are leased; 0.5 or more.
        trust_refusal: False: a refused connection to the store counts as being cut off, too. Use it where a proxy or
            firewall in between may refuse connections by itself.

    Raises :class:`~poolkit.ConfigError` for invalid settings.
    """

    def __init__(
        self, store: Store, fleet: str, *, limit: int, block: int = 4, ttl: float = 10.0, trust_refusal: bool = True
    ) -> None:
        if not callable(getattr(store, "exchange", None)):
            raise ConfigError(
                f"store={store!r}: must be a RedisStore, a PostgresStore, a FileStore or your own Store", "store"
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
        super()._begin(0)  # until the store has granted something
        self._wake = threading.Event()
        self._ledger.claimed = self._wake.set
        self._news_waker = _NewsWaker(self._wake)
        self._return_account = _ReturnAccount(self._ledger, 0, 0.0, lambda: None)
        self._return_account.sharing_needed = True
        self._ledger.open(self._return_account)
        self._members[self._return_account] = weakref.ref(self._news_waker)
        self._started = False
        # started from the end: the thread that ends leases runs before the first lease is requested
        self._to_start = [self._exchange_loop, self._expiry_loop]
        self._member = uuid.uuid4().hex
        self._grant = Grant(0, 0)
        self._safe_until = self._fresh_until = 0.0
        self._epoch = 0  # incremented when permits are lost: earlier answers are ignored
        self._unused_since = time.monotonic()
        self._error: str | None = None
        if again:
            self._store.forget()

    def open_account(self, pool: Any, minimum: int, weight: float) -> Any:
        """Open the account of a pool; see :class:`~poolkit.Budget`. Raises UsageError if the budget is closed."""
        if self._closed:
            raise UsageError(f"{self.name}: the fleet budget is closed")
        account = super().open_account(pool, minimum, weight)
        try:
            self._start()
        except BaseException:
            self._gate.step(self._forget, account)
            raise
        return account

    def _start(self) -> None:
        """Start the threads that do not run yet. Raises UsageError if one cannot be started within ``START``."""
        deadline = time.monotonic() + START
        while self._to_start:
            work = self._to_start.pop()
            try:
                threading.Thread(target=work, args=(self._wake,), name="poolkit-fleet", daemon=True).start()
                self._started = True
            except BaseException as error:
                self._to_start.append(work)  # retried, also by the next pool
                if not isinstance(error, (RuntimeError, MemoryError)):
                    raise
                if time.monotonic() >= deadline:
                    raise UsageError(
                        f"{self.name}: a fleet budget needs its own threads to renew its lease, and none can be "
                        f"started ({type(error).__name__}: {error})"
                    ) from error
                time.sleep(START / 20)

    def resize(self, limit: int) -> None:
        """Not supported: raises UsageError. Change the limit in the settings of all processes and restart them."""
        raise UsageError(
            f"{self.name}: the limit of a fleet cannot be changed while it runs; change it in the settings of all "
            "processes and restart them"
        )

    def fleet(self) -> FleetStats:
        """A frozen snapshot of this process's part of the fleet. Thread-safe; does no I/O."""
        left = max(0.0, self._safe_until - time.monotonic()) if self._store.expires else self._ttl
        grant = self._grant
        return FleetStats(self._total, self._ledger.limit, grant.members, left, grant.token, self._error)

    def explain(self) -> str:
        """The state of the budget as text. Thread-safe."""
        trouble = f"; {self._error}" if self._error else ""
        count = self._grant.members
        return f"{super().explain()} of the fleet's {self._total}, {count} process{'es' * (count != 1)}{trouble}"

    def close(self, timeout: float = 5.0) -> None:
        """Return all permits to the fleet. Close the pools first.

        Waits up to ``timeout`` seconds for their last connections. Raises UsageError if a pool is still open or a
        connection is left then, and changes nothing in that case. Thread-safe.
        """
        deadline = time.monotonic() + timeout
        while True:
            pools, held = self._gate.step(self._still_open)
            if not held or pools or time.monotonic() > deadline:
                break
            time.sleep(0.01)
        if pools or held:
            what = f"close the pools first ({', '.join(pools)})" if pools else "close the open leases first"
            raise UsageError(f"{self.name}: {held} connections are still open; {what}")
        self._closed = True
        self._wake.set()
        if self._started:
            try:
                self._store.leave(self.name, self._member)
            except StoreError as error:
                logger.warning(
                    "%s: could not return the permits; they are free when their lease ends: %s",
                    self.name, said(error, 500),
                )  # fmt: skip
        self._store.close()

    def __enter__(self) -> FleetBudget:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _still_open(self) -> tuple[list[str], int]:
        """Under the lock: the names of the open pools, and the number of connections."""
        others = (ref for account, ref in self._members.items() if account is not self._return_account)
        pools = [pool for ref in others if (pool := ref())]
        held = self._ledger.held - self._return_account.held
        return [pool.name for pool in pools if not pool.closed], held

    # -- the exchange with the store ------------------------------------------------------------------------------

    def _exchange_loop(self, mine: threading.Event) -> None:
        """Body of the thread that talks to the store."""
        while not self._closed and mine is self._wake:  # ends after a fork
            mine.clear()
            try:
                busy = self._exchange()
            except Exception as error:  # noqa: BLE001 - a user's store may raise anything; the exchange goes on
                self._report_failure(f"the store gives no answer: {describe(error)}", exc_info=True)
                busy = True
            if busy:
                time.sleep(min(POLL, self._ttl / 10))
            elif mine.wait(min(BEAT, self._ttl / 5)):
                time.sleep(0.002)  # one exchange for requests that arrive together

    def _exchange(self) -> bool:
        """Do one exchange. Returns whether the next one is due soon."""
        ask, epoch = self._gate.step(self._prepare)
        begun = time.monotonic()
        try:
            grant = self._store.exchange(ask)
        except StoreDown as error:
            self._report_failure(f"the store is down: {said(error, 500)}")
            if self._trust and epoch == self._epoch and self._safe_until > begun:
                self._renewed(begun)
            return True
        except StoreError as error:
            self._report_failure(f"the store gives no answer: {said(error, 500)}")
            return True
        if self._error is not None:
            logger.info("%s: the store answers again", self.name)
            self._error = None
        if epoch != self._epoch or (self._store.expires and time.monotonic() > begun + FREEZE * self._ttl):
            return True  # an answer from before the permits were lost, or one too late to rely on
        if grant.lost:
            self._permits_lost("the store had already ended the lease")
            return True
        self._renewed(begun)
        self._gate.step(self._apply, grant)
        self._deliver()
        return grant.owed > 0 or self._gate.step(self._in_need)

    def _report_failure(self, text: str, *, exc_info: bool = False) -> None:
        """Log the start of a series of failures once, not each failed exchange."""
        if self._error is None:
            logger.warning("%s: %s", self.name, text, exc_info=exc_info)
        self._error = text

    def _in_need(self) -> bool:
        return any(account.need for account in self._ledger.accounts if account is not self._return_account)

    def _renewed(self, begun: float) -> None:
        self._fresh_until = begun + FREEZE * self._ttl
        self._safe_until = begun + SAFE * self._ttl

    def _prepare(self) -> tuple[Ask, int]:
        """Under the lock: build the next Ask. The permits that it returns are not used any more from here on."""
        ledger, return_account, now = self._ledger, self._return_account, time.monotonic()
        ledger.hear(return_account)
        for _ in range(self._grant.short):
            if not ledger.take(return_account, LAST, 0):
                break
        giving, return_account.minimum = return_account.held, 0
        unused = ledger.limit - ledger.held
        local = max(0, ledger.wanted)
        if local or unused < self._block:
            self._unused_since = now
        elif now - self._unused_since > self._ttl:
            giving += unused // self._block * self._block
            self._unused_since = now
        return_account.held = 0
        ledger.limit -= giving
        want = math.ceil(local / self._block) * self._block
        if self._grant.short and local:
            want = local  # other processes wait too: ask only for what is needed
        held = ledger.limit
        ledger.share_out()
        return Ask(
            self.name, self._member, held, max(0, min(want, self._total - held)), self._total, self._ttl
        ), self._epoch

    def _apply(self, grant: Grant) -> None:
        """Under the lock: take over what was granted and what other processes need."""
        ledger, return_account = self._ledger, self._return_account
        self._grant = grant
        ledger.limit, ledger.frozen = grant.permits, False
        return_account.minimum, return_account.need, return_account.place = grant.owed, grant.short, LAST
        ledger.share_out()
        ledger.review()

    # -- the end of a lease ---------------------------------------------------------------------------------------

    def _expiry_loop(self, mine: threading.Event) -> None:
        """Body of the thread that ends an expired lease, even while the exchange is blocked."""
        while not self._closed and mine is self._wake:
            now = time.monotonic()
            if self._ledger.limit and self._store.expires:
                if now >= self._safe_until:
                    self._permits_lost(f"no answer from the store for {SAFE * self._ttl:.1f} s")
                elif now >= self._fresh_until and not self._ledger.frozen:
                    self._gate.step(self._freeze)
            time.sleep(self._ttl / 50)

    def _freeze(self) -> None:
        if time.monotonic() >= self._fresh_until:
            self._ledger.frozen = True

    def _permits_lost(self, why: str) -> None:
        """Close every connection at once: other processes may have the permits now."""
        pools = self._gate.step(self._drop_permits)
        cut = sum(pool.cut() for pool in pools if pool is not None)
        logger.error("%s: permits lost (%s); all connections are closed, %d leases were aborted", self.name, why, cut)

    def _drop_permits(self) -> list[Any]:
        ledger, return_account = self._ledger, self._return_account
        self._epoch += 1
        self._member = uuid.uuid4().hex
        self._grant = Grant(0, self._grant.token)
        ledger.limit, ledger.frozen = 0, False
        return_account.minimum = return_account.held = return_account.need = 0
        ledger.share_out()
        ledger.review()
        return [ref() for account, ref in self._members.items() if account is not return_account]
