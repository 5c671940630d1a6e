"""What a fleet needs of the store that its processes share."""

from __future__ import annotations

from typing import Protocol

from ..errors import PoolError
from ..runtimes.names import addresses
from ._ledger import Ask, Grant

__all__ = ("Store", "StoreDown", "StoreError", "wait_for_name")


class StoreError(PoolError):
    """The store gave no answer: it cannot be known whether others are served by it."""


class StoreDown(StoreError):
    """The store's own host refused: at this moment it serves nobody.

    Two things follow. Nobody could be granted anything in this moment; and a store that comes back grants nothing new
    for one ``ttl``, so nobody will be for that long.
    """


def wait_for_name(host: object, port: object, timeout: float) -> None:
    """Before a driver looks a name up, which nothing can interrupt: StoreError if the resolver does not answer in time.

    Of a name that does not exist the driver tells in its own words.
    """
    try:
        addresses(host, port, timeout)
    except TimeoutError as error:
        raise StoreError(str(error)) from error
    except (OSError, UnicodeError):
        pass


class Store(Protocol):
    """Where the permits of a fleet are counted. Each method may block for at most about a quarter of the lease; called
    by one thread at a time, never under a lock. One store object serves one :class:`~poolkit.fleet.FleetBudget`.
    """

    expires: bool
    """Whether leases run out by time. False: the store knows by itself when a process has died, and only then."""

    def exchange(self, ask: Ask) -> Grant:
        """Tell what is held and wanted, hear what is granted: atomic over the whole fleet.

        Raises :class:`StoreDown` if the store refused to talk, :class:`StoreError` for everything else.
        """

    def leave(self, fleet: str, member: str) -> None:
        """Give back everything. Errors as :meth:`exchange`."""

    def forget(self) -> None:
        """In a forked child: what is open to the store is the parent's; let go of it without a word."""

    def close(self) -> None:
        """Close what is open to the store; the next exchange opens it again. Raises nothing."""
