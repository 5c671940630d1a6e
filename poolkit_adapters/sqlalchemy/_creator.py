"""The function with which ``create_engine`` lets a pool open connections, and the driver's arguments that it keeps."""

from __future__ import annotations

from collections.abc import Mapping
from functools import wraps
from inspect import getclosurevars, unwrap
from types import CellType, FunctionType
from typing import Any

__all__ = ("is_of_engine", "keywords_of", "with_own_arguments")

_SHARED: dict[str, type] = {"cargs": list, "cparams": dict}
"""The arguments of a connect, by the names of the variables of the function, if all connects share them."""


def is_of_engine(creator: Any) -> bool:
    """Return whether the function is that of ``create_engine``, not the application's ``creator=``."""
    return getattr(creator, "__module__", "") == "sqlalchemy.engine.create"


def keywords_of(creator: Any) -> Mapping[str, Any]:
    """Return the driver's keywords in the URL and ``connect_args``, if the function :func:`is_of_engine`."""
    keywords: Mapping[str, Any] = getclosurevars(unwrap(creator)).nonlocals.get("cparams", {})
    return keywords


def with_own_arguments(creator: Any) -> Any:
    """Return the function in a form that gives each connect its own arguments.

    Until SQLAlchemy 2.0.47 all connects of an engine share them. What "do_connect" listeners add to one (the addresses
    of a name, a time limit) would look like the application's arguments in the next.
    """
    if not is_of_engine(creator):
        return creator
    cells = dict(zip(creator.__code__.co_freevars, creator.__closure__ or (), strict=True))
    shared = {name for name, cell in cells.items() if type(cell.cell_contents) is _SHARED.get(name)}
    if not shared:
        return creator

    @wraps(creator)
    def connect(connection_record: Any = None) -> Any:
        own = tuple(CellType(cell.cell_contents.copy()) if name in shared else cell for name, cell in cells.items())
        return FunctionType(creator.__code__, creator.__globals__, closure=own)(connection_record)

    return connect
