"""Errors that are poolkit's and httpcore's at once, so that existing ``except`` clauses keep working."""

from __future__ import annotations

import httpcore

from poolkit import errors
from poolkit_adapters._errors import adapted

__all__ = (
    "AcquireTimeout",
    "CircuitOpen",
    "ConnectFailed",
    "PoolBusy",
    "PoolClosed",
    "PoolSuspended",
    "ServerUnavailable",
    "translated",
)


class AcquireTimeout(errors.AcquireTimeout, httpcore.PoolTimeout):
    """No connection was free within the request's ``timeout["pool"]``."""


class ServerUnavailable(errors.ServerUnavailable, httpcore.PoolTimeout):
    """The same, while no connection to the server could be opened at all."""


class PoolBusy(errors.PoolBusy, httpcore.PoolTimeout):
    """``max_waiting`` requests wait already."""


class PoolSuspended(errors.PoolSuspended, httpcore.PoolTimeout):
    """The pool was suspended with ``fail_fast=True``."""


class PoolClosed(errors.PoolClosed, httpcore.NetworkError):
    """The pool was closed while the request waited for a connection."""


class ConnectFailed(errors.ConnectFailed, httpcore.ConnectError):
    """No connection could be opened."""


class CircuitOpen(errors.CircuitOpen, httpcore.ConnectError):
    """Connects to this origin failed again and again; requests to it fail at once until the next probe."""


_TWINS: dict[type[errors.PoolError], type[errors.PoolError]] = {
    errors.ServerUnavailable: ServerUnavailable,
    errors.AcquireTimeout: AcquireTimeout,
    errors.PoolBusy: PoolBusy,
    errors.PoolSuspended: PoolSuspended,
    errors.PoolClosed: PoolClosed,
    errors.CircuitOpen: CircuitOpen,
    errors.ConnectFailed: ConnectFailed,
}


def translated(error: errors.PoolError) -> errors.PoolError:
    """``error`` as its twin of the same message and cause; unchanged if it has none (errors of usage)."""
    return adapted(error, _TWINS)
