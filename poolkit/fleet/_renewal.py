"""The threads of a fleet budget: one renews the lease of the process, the other ends a lease that was not renewed."""

from __future__ import annotations

import threading
import time
from typing import Any

from .._budget_members import BudgetMembers
from .._gate import Gate
from .._log import logger
from ..errors import UsageError, describe, said
from ._lease import FREEZE, SAFE, FleetLease
from ._store import Store, StoreDown, StoreError

__all__ = ("Renewal",)

POLL = 0.1  # seconds between two exchanges while permits are wanted
START = 1.0  # seconds for which starting a thread is retried
BEAT = 1.0  # maximum seconds between two exchanges, so that the needs of other processes are seen


class Renewal:
    """Exchanges with the store in the background, and closes all connections if the permits are lost.

    Args:
        name: of the budget, for messages.
        store: the store.
        lease: the permits of this process.
        gate: of the budget.
        members: the pools of the budget.
        wake: set to have the next exchange now.
        trust_refusal: whether a refused connection is as good as a renewal.
    """

    def __init__(
        self,
        name: str,
        store: Store,
        lease: FleetLease,
        gate: Gate,
        members: BudgetMembers,
        *,
        wake: threading.Event,
        trust_refusal: bool,
    ) -> None:
        self._name = name
        self._store = store
        self._lease = lease
        self._gate = gate
        self._members = members
        self._wake = wake
        self._trust = trust_refusal
        self.ended = False  # the threads end soon; also set in a forked child, for gevent's greenlets survive a fork
        self.error: str | None = None  # the last error of the store; None while it works
        self.started = False
        self._former: list[tuple[float, str]] = []  # members whose permits were lost, and when their leases end
        # started in reverse order: the thread that ends leases runs before the first lease is requested
        self._to_start = [self._exchange_loop, self._expiry_loop]

    def start(self) -> None:
        """Start the threads that do not run yet. Raises UsageError if one cannot be started within ``START``."""
        deadline = time.monotonic() + START
        while self._to_start:
            work = self._to_start.pop()
            try:
                threading.Thread(target=work, name="poolkit-fleet", daemon=True).start()
                self.started = True
            except BaseException as error:
                self._to_start.append(work)  # retried, also by the next pool
                if not isinstance(error, (RuntimeError, MemoryError)):
                    raise
                if time.monotonic() >= deadline:
                    raise UsageError(
                        f"{self._name}: a fleet budget needs its own threads to renew its lease, and none can be "
                        f"started ({type(error).__name__}: {error})"
                    ) from error
                time.sleep(START / 20)

    def leave(self) -> None:
        """Return the permits of this member to the store, and those of former members that it still keeps."""
        for member in (*(former for _, former in self._former), self._lease.member):
            try:
                self._store.leave(self._name, member)
            except StoreError as error:  # continue with the others
                logger.warning(
                    "%s: could not return the permits; they are free when their lease ends: %s",
                    self._name, said(error, 500),
                )  # fmt: skip

    def end(self) -> None:
        """Let the threads end soon, because the budget is closed."""
        self.ended = True
        self._wake.set()

    # -- the exchange with the store ------------------------------------------------------------------------------

    def _exchange_loop(self) -> None:
        """The body of the thread that exchanges with the store."""
        wake, ttl = self._wake, self._lease.ttl
        while not self.ended:
            wake.clear()
            try:
                busy = self._exchange()
            except Exception as error:  # noqa: BLE001 - a user's store may raise anything; the exchange goes on
                self._report_failure(f"the store gives no answer: {describe(error)}", exc_info=True)
                busy = True
            if busy:
                time.sleep(min(POLL, ttl / 10))
            elif wake.wait(min(BEAT, ttl / 5)):
                time.sleep(0.002)  # one exchange for requests that arrive together

    def _exchange(self) -> bool:
        """Do one exchange. Return whether the next one is due soon."""
        lease = self._lease
        ask, epoch = self._gate.step(lease.prepare)
        begun = time.monotonic()
        try:
            grant = self._store.exchange(ask)
        except StoreDown as error:
            self._report_failure(f"the store is down: {said(error, 500)}")
            if self._trust and epoch == lease.epoch and lease.safe_until > begun:
                lease.renewed(begun)
            return True
        except StoreError as error:
            self._report_failure(f"the store gives no answer: {said(error, 500)}")
            return True
        if self.error is not None:
            logger.info("%s: the store answers again", self._name)
            self.error = None
        if epoch != lease.epoch or (self._store.expires and time.monotonic() > begun + FREEZE * lease.ttl):
            return True  # an answer from before the permits were lost, or one too late to rely on
        if grant.lost:
            self._permits_lost("the store had already ended the lease")
            return True
        lease.renewed(begun)
        self._gate.step(lease.apply, grant)
        self._members.deliver()
        self._leave_former(begun)
        return grant.owed > 0 or self._gate.step(lease.in_need)

    def _leave_former(self, now: float) -> None:
        """Let members leave that ended without leaving the store: a FileStore would keep their permits for ever.

        After the exchange, because the lease of the present member must not wait for it. Tried again after one ``ttl``.
        """
        for due, member in [one for one in self._former if one[0] <= now]:
            self._former.remove((due, member))
            try:
                self._store.leave(self._name, member)
            except StoreError as error:
                self._former.append((now + self._lease.ttl, member))
                logger.warning("%s: a former member could not leave the store: %s", self._name, said(error, 500))

    def _report_failure(self, text: str, *, exc_info: bool = False) -> None:
        """Log the first failure of a series, not every one."""
        if self.error is None:
            logger.warning("%s: %s", self._name, text, exc_info=exc_info)
        self.error = text

    # -- the end of a lease ---------------------------------------------------------------------------------------

    def _expiry_loop(self) -> None:
        """The body of the thread that ends an expired lease, even while the exchange is blocked."""
        lease = self._lease
        while not self.ended:
            now = time.monotonic()
            if lease.permits and self._store.expires:
                if now >= lease.safe_until:
                    self._permits_lost(f"no answer from the store for {SAFE * lease.ttl:.1f} s")
                elif now >= lease.fresh_until and not lease.frozen:
                    self._gate.step(lease.freeze)
            time.sleep(lease.ttl / 50)

    def _permits_lost(self, why: str) -> None:
        """Close every connection at once: other processes may have the permits now."""
        former, pools = self._gate.step(self._drop_permits)
        cut = sum(pool.cut() for pool in pools)
        # not at once: the server takes a moment to end the sessions of the connections that were aborted
        self._former.append((time.monotonic() + (1 - SAFE) * self._lease.ttl, former))
        logger.error("%s: permits lost (%s); all connections are closed, %d leases were aborted", self._name, why, cut)

    def _drop_permits(self) -> tuple[str, list[Any]]:
        """Return the former member, and the pools that must close their connections. Call it under the lock."""
        return self._lease.drop(), self._members.pools(without=self._lease.account)
