"""The interface of the store that the processes of a fleet share."""

from __future__ import annotations

from typing import Protocol

from ..errors import PoolError
from ..runtimes.names import addresses
from ._ledger import Ask, Grant

__all__ = ("Store", "StoreDown", "StoreError", "wait_for_name")


class StoreError(PoolError):
    """The store gave no answer. Whether it serves other processes is unknown."""


class StoreDown(StoreError):
    """The store's host refused the connection: at this moment the store serves no process.

    So no process can get permits at this moment. A store that comes back grants nothing new for one ``ttl``, so none
    can get new permits for that long either.
    """


def wait_for_name(host: object, port: object, timeout: float) -> None:
    """Look up ``host`` before the driver does, because the driver's own lookup cannot be interrupted.

    Raises StoreError if the resolver does not answer within ``timeout`` seconds. A name that does not exist is left to
    the driver, which reports it itself.
    """
    try:
        addresses(host, port, timeout)
    except TimeoutError as error:
        raise StoreError(str(error)) from error
    except (OSError, UnicodeError):
        pass


class Store(Protocol):
    """The place where the permits of a fleet are counted.

    Each method may block for at most about a quarter of the lease. It is called by one thread at a time, never under
    a lock. One store object serves one :class:`~poolkit.fleet.FleetBudget`.
    """

    expires: bool
    """Whether leases expire by time. False: a lease ends only with its process, whose death the store detects."""

    def exchange(self, ask: Ask) -> Grant:
        """Report what is held and wanted; return what is granted. Atomic over the whole fleet.

        Raises :class:`StoreDown` if the store refuses connections, :class:`StoreError` for any other failure.
        """

    def leave(self, fleet: str, member: str) -> None:
        """Return all permits of the member. Errors as :meth:`exchange`."""

    def forget(self) -> None:
        """In a forked child: drop the parent's connection to the store without sending anything on it."""

    def close(self) -> None:
        """Close the connection to the store; the next exchange opens a new one. Does not raise."""
