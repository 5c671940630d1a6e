"""A budget whose permits are leased from a store that many processes share."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

from .._numbers import seconds, whole
from ..budget import Budget
from ..errors import ConfigError, UsageError
from ._lease import FleetLease
from ._renewal import Renewal
from ._store import Store

__all__ = ("FleetBudget", "FleetStats")


@dataclass(frozen=True)
class FleetStats:
    """One process's view of the fleet.

    ``limit``: of the whole fleet; ``granted``: permits leased by this process; ``members``: processes in the fleet.
    ``lease``: seconds for which the permits are safe; ``token``: the fencing token. ``error``: the last error of the
    store, None while it works.
    """

    limit: int
    granted: int
    members: int
    lease: float
    token: int
    error: str | None


def _check(block: Any, ttl: Any) -> None:
    whole("block", block, 1)
    seconds("ttl", ttl, least=0.5)


class FleetBudget(Budget):
    """At most ``limit`` connections over all pools of all processes that name the same ``fleet`` in the same store.

    ``FleetBudget(RedisStore(url), "orders-db", limit=100)`` is used like a :class:`~poolkit.Budget`. Permits are taken
    from the store ``block`` at a time, leased for ``ttl`` seconds and renewed in the background. So a caller waits for
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
        old: Renewal | None = getattr(self, "_renewal", None)  # None: it is being created
        super()._begin(0)  # until the store has granted something
        wake = threading.Event()
        self._ledger.claimed = wake.set
        self._lease = FleetLease(self.name, self._ledger, total=limit, block=self._block, ttl=self._ttl, wake=wake)
        self._members.enter(self._lease.account, self._lease.waker)
        self._renewal = Renewal(
            self.name, self._store, self._lease, self._gate, self._members, wake=wake, trust_refusal=self._trust
        )
        if old is not None:
            old.ended = True  # not end(): another thread of the parent may have held the lock of its event
            self._store.forget()

    def open_account(self, pool: Any, minimum: int, weight: float) -> Any:
        """Open the account of a pool; see :class:`~poolkit.Budget`. Raises UsageError if the budget is closed."""
        if self._closed:
            raise UsageError(f"{self.name}: the fleet budget is closed")
        account = super().open_account(pool, minimum, weight)
        try:
            self._renewal.start()
        except BaseException:
            self._gate.step(self._members.forget, account)
            raise
        return account

    def resize(self, limit: int) -> None:
        """Raise UsageError: a fleet's limit cannot change while it runs. Change it in all processes; restart them."""
        raise UsageError(
            f"{self.name}: the limit of a fleet cannot be changed while it runs; change it in the settings of all "
            "processes and restart them"
        )

    def fleet(self) -> FleetStats:
        """A frozen snapshot of this process's part of the fleet. Thread-safe; does no I/O."""
        lease = self._lease
        left = max(0.0, lease.safe_until - time.monotonic()) if self._store.expires else self._ttl
        grant, error = lease.grant, self._renewal.error
        return FleetStats(self._total, lease.permits, grant.members, left, grant.token, error)

    def explain(self) -> str:
        """Return the state of the budget as text. Thread-safe."""
        error, count = self._renewal.error, self._lease.grant.members
        trouble = f"; {error}" if error else ""
        return f"{super().explain()} of the fleet's {self._total}, {count} process{'es' * (count != 1)}{trouble}"

    def close(self, timeout: float = 5.0) -> None:
        """Return all permits to the fleet. Close the pools first.

        Waits up to ``timeout`` seconds for their last connections. Raises UsageError if a pool is still open or a
        connection is left then, and changes nothing in that case. Thread-safe.
        """
        seconds("timeout", timeout)
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
        self._renewal.end()
        if self._renewal.started:
            self._renewal.leave()
        self._store.close()

    def __enter__(self) -> FleetBudget:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _still_open(self) -> tuple[list[str], int]:
        """Return the names of the open pools, and the number of connections. Call it under the lock."""
        pools = self._members.pools(without=self._lease.account)
        held = self._ledger.held - self._lease.account.held
        return [pool.name for pool in pools if not pool.closed], held
