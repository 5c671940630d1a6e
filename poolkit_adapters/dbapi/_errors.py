"""Errors that are poolkit's and the module's at once, made for each module when it is first pooled."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import poolkit
from poolkit import PoolError

__all__ = ("kinds_for", "usage_error")

_OPERATIONAL: tuple[type[PoolError], ...] = (
    poolkit.AcquireTimeout,
    poolkit.ServerUnavailable,
    poolkit.ConnectFailed,
    poolkit.ConnectTimeout,
    poolkit.CircuitOpen,
    poolkit.PoolBusy,
    poolkit.PoolSuspended,
)

_made: dict[tuple[str, str], type[PoolError]] = {}


def kinds_for(module: ModuleType) -> dict[type[PoolError], type[PoolError]]:
    """Poolkit's errors to those that are ``module.OperationalError`` (closed pool: ``InterfaceError``) as well."""
    kinds = {base: _both(module, base, module.OperationalError) for base in _OPERATIONAL}
    kinds[poolkit.PoolClosed] = _both(module, poolkit.PoolClosed, module.InterfaceError)
    return kinds


def usage_error(module: ModuleType) -> type[PoolError]:
    """The error for a connection or cursor that is used after ``close()``.

    Modules disagree whether that is an InterfaceError or a ProgrammingError, so it is both.
    """
    try:
        return _both(module, poolkit.UsageError, module.InterfaceError, module.ProgrammingError)
    except TypeError:
        return _both(module, poolkit.UsageError, module.InterfaceError)


def _both(module: ModuleType, base: type[PoolError], *others: type[BaseException]) -> type[PoolError]:
    key = (module.__name__, base.__name__)
    if key not in _made:
        body: dict[str, Any] = {
            "__doc__": f"poolkit.{base.__name__} and {', '.join(o.__name__ for o in others)} of {module.__name__}.",
            "__module__": base.__module__,
            "__reduce__": lambda self: (_again, (*key, self.args)),
        }
        try:
            made = type(base.__name__, (base, *others), body)
        except TypeError:  # C types whose layouts exclude each other: psycopg2's errors and OSError
            made = type(base.__name__, (PoolError, *others), body)
        _made[key] = made
    return _made[key]


def _again(module: str, name: str, args: tuple[Any, ...]) -> PoolError:
    """Unpickle."""
    if (module, name) not in _made:
        loaded = importlib.import_module(module)
        kinds_for(loaded)
        usage_error(loaded)
    return _made[module, name](*args)
