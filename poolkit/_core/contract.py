"""What a connector must give, and the error for one that gives something else."""

from __future__ import annotations

import inspect
from typing import Any

from ..errors import UsageError, masked
from .dialing import describe

__all__ = ("BrokenContract", "broken", "capacity_of", "connection_of", "raised", "returned", "verdict_of")


class BrokenContract(UsageError):
    """A method of the connector did what it must not do. What it raised is the cause; without one it returned something
    wrong, and will do so again: connecting again cannot help.
    """


def broken(connector: object, method: str, found: str, wanted: str) -> BrokenContract:
    """The error that names the method, what it did and what is right."""
    return BrokenContract(f"{type(connector).__name__}.{method}() {found}: {wanted}")


def returned(value: object) -> str:
    """A value in a few words."""
    try:
        text = masked(" ".join(repr(value).split()))[:80]
    except Exception:  # noqa: BLE001  an object of the driver's: nothing about it can be relied on
        text = f"an object of {type(value).__name__}"
    return f"returned {text}"


def raised(error: BaseException) -> str:
    """An error in a few words."""
    return f"raised {describe(error)}"


def connection_of(connector: object, method: str, value: Any) -> Any:
    """What ``connect`` gave, if it can be a connection. Raises BrokenContract."""
    if value is None:
        raise broken(connector, method, "returned None", "it must return the connection")
    if inspect.iscoroutine(value):
        value.close()  # it has not begun; no warning that nobody awaited it
        raise broken(connector, method, "returned a coroutine", "that of a Connector must return the connection itself")
    return value


def capacity_of(connector: object, method: str, value: Any) -> int:
    """How many leases a connection serves. Raises BrokenContract if that is no number."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise broken(connector, method, returned(value), "it must return a number of leases, an int")
    return value


def verdict_of(connector: object, method: str, value: Any) -> bool | None:
    """What ``check`` or ``peek`` said. Raises BrokenContract if that is neither a bool nor None."""
    if value is None or isinstance(value, bool):
        return value
    raise broken(connector, method, returned(value), "it must return True, or False for a dead connection")
