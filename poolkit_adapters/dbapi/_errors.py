"""Errors that are poolkit's and the module's at once, made for each module when it is first pooled."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import poolkit
from poolkit import PoolError

from .._errors import BAD_SETTING, MISSING, Row, Table

__all__ = ("errors_of",)


def errors_of(module: ModuleType) -> Table:
    """Every error that leaves a pool of this module."""

    def row(what: str, base: type[PoolError], *names: str) -> Row:
        drivers = tuple(getattr(module, name) for name in names)
        return Row(what, _both(module, base, *drivers), (base, *drivers))

    return Table(
        row("no connection within `acquire_timeout`", poolkit.AcquireTimeout, "OperationalError"),
        row("the same, while none can be opened; `__cause__` says why", poolkit.ServerUnavailable, "OperationalError"),
        row("connecting cannot work (password, database, TLS, unknown host, a `setup` that raises): at once",
            poolkit.ConnectFailed, "OperationalError"),
        row("the breaker is open", poolkit.CircuitOpen, "OperationalError"),
        row("`max_waiting` callers wait already", poolkit.PoolBusy, "OperationalError"),
        row("suspended with `fail_fast=True`", poolkit.PoolSuspended, "OperationalError"),
        row("the pool is closed", poolkit.PoolClosed, "InterfaceError"),
        row("a connection came back after `leak_after`, with `on_leak=\"raise\"`", poolkit.LeaseOverdue,
            "InterfaceError", "ProgrammingError"),
        row("a connection or a cursor is used after `close()`, or any other call that is wrong (modules disagree "
            "whether that is an InterfaceError or a ProgrammingError, so it is both)", poolkit.UsageError,
            "InterfaceError", "ProgrammingError"),
        BAD_SETTING,
        MISSING,
    )  # fmt: skip


_made: dict[tuple[str, str], type[PoolError]] = {}


def _both(module: ModuleType, base: type[PoolError], *others: type[BaseException]) -> type[PoolError]:
    key = (module.__name__, base.__name__)
    if key not in _made:
        body: dict[str, Any] = {
            "__doc__": f"poolkit.{base.__name__} and {', '.join(o.__name__ for o in others)} of {module.__name__}.",
            "__module__": base.__module__,
            "__reduce__": lambda self: (_again, (*key, self.args), self.__dict__),
        }
        _made[key] = _class(base, others, body)
    return _made[key]


def _class(base: type[PoolError], others: tuple[type[BaseException], ...], body: dict[str, Any]) -> type[PoolError]:
    for kinds in (others, others[:1]):  # some modules derive one of theirs from the other
        for kind in base.__mro__:  # C types whose layouts exclude each other: psycopg2's errors and OSError
            if issubclass(kind, PoolError):
                try:
                    return type(base.__name__, (kind, *kinds), body)
                except TypeError:
                    continue
    raise TypeError(f"no class can be {base.__name__} and {others[0].__module__}.{others[0].__name__}")


def _again(module: str, name: str, args: tuple[Any, ...]) -> PoolError:
    """Unpickle."""
    if (module, name) not in _made:
        errors_of(importlib.import_module(module))
    return _made[module, name](*args)
