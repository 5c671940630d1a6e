"""Error classes that inherit from both poolkit's and the module's errors, created for each module on first use."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import poolkit
from poolkit import PoolError

from .._errors import BAD_SETTING, MISSING, Row, Table, both, of_connect

__all__ = ("errors_of", "told")


def errors_of(module: ModuleType) -> Table:
    """Return the table of all errors that a pool of this module raises."""

    def row(what: str, base: type[PoolError], *names: str) -> Row:
        drivers = tuple(getattr(module, name) for name in names)
        return Row(what, _both(module, base, *drivers), (base, *drivers))

    return Table(
        row("no connection became free within `acquire_timeout`", poolkit.AcquireTimeout, "OperationalError"),
        row("`acquire_timeout` expired while no connection could be opened; `__cause__` has the reason",
            poolkit.ServerUnavailable, "OperationalError"),
        row("connecting cannot succeed (password, database, TLS, unknown host, a `setup` that raises); raised at once. "
            "An error of the module keeps its class, arguments and attributes", poolkit.ConnectFailed,
            "OperationalError"),
        row("the circuit breaker is open", poolkit.CircuitOpen, "OperationalError"),
        row("`max_waiting` callers are already waiting", poolkit.PoolBusy, "OperationalError"),
        row("the pool is suspended with `fail_fast=True`", poolkit.PoolSuspended, "OperationalError"),
        row("the pool is closed", poolkit.PoolClosed, "InterfaceError"),
        row("a connection was given back later than `leak_after`, with `on_leak=\"raise\"`", poolkit.LeaseOverdue,
            "InterfaceError", "ProgrammingError"),
        row("a connection or a cursor is used after `close()`, or any other wrong call (modules differ in whether that "
            "is an InterfaceError or a ProgrammingError, so it is both)", poolkit.UsageError,
            "InterfaceError", "ProgrammingError"),
        BAD_SETTING,
        MISSING,
    )  # fmt: skip


def told(module: ModuleType, table: Table, error: PoolError) -> BaseException:
    """Return the error that a caller gets for an error of the engine.

    If a connect failed with an error of the module: a copy of that, with its class, arguments and attributes
    (``sqlstate``, ``errno``, ...), which is also the ConnectFailed of the table.
    """
    own = of_connect(error)
    if isinstance(own, module.Error):
        failed: Any = both(table.of(poolkit.ConnectFailed), own)
        if isinstance(failed, poolkit.ConnectFailed):
            failed.fatal = getattr(error, "fatal", False)
            return failed
    return table.adapted(error)


_made: dict[tuple[str, str], type[PoolError]] = {}


def _both(module: ModuleType, base: type[PoolError], *others: type[BaseException]) -> type[PoolError]:
    key = (module.__name__, base.__name__)
    if key not in _made or not issubclass(_made[key], others[0]):  # another module of this name: a wrapper, or reloaded
        body: dict[str, Any] = {
            "__doc__": f"poolkit.{base.__name__} and {', '.join(o.__name__ for o in others)} of {module.__name__}.",
            "__module__": base.__module__,
            "__reduce__": lambda self: (_again, (*key, self.args), self.__dict__),
        }
        _made[key] = _class(base, others, body)
    return _made[key]


def _class(base: type[PoolError], others: tuple[type[BaseException], ...], body: dict[str, Any]) -> type[PoolError]:
    for kinds in (others, others[:1]):  # in some modules one of them is a base of the other
        for kind in base.__mro__:  # C types may have incompatible layouts: psycopg2's errors and OSError
            if issubclass(kind, PoolError):
                try:
                    return type(base.__name__, (kind, *kinds), body)
                except TypeError:
                    continue
    raise TypeError(f"no class can inherit from {base.__name__} and {others[0].__module__}.{others[0].__name__}")


def _again(module: str, name: str, args: tuple[Any, ...]) -> PoolError:
    """Unpickle."""
    if (module, name) not in _made:
        errors_of(importlib.import_module(module))
    return _made[module, name](*args)
