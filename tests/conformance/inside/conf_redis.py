"""pytest plugin: other pools in the place of redis-py's or valkey-py's, sync and asyncio.

The class under test stands in for ``BlockingConnectionPool``. For ``ConnectionPool`` a subclass of it is made
here that differs in what the two stock classes differ in: the order of its arguments, the default limit, and
not waiting (``timeout=0``).
"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import sys
from typing import Any

if os.environ.get("CONF_PARSER") == "python":
    # The suite's mock sockets are made for the parser in Python; hiredis gets a session of its own.
    sys.modules["hiredis"] = sys.modules["libvalkey"] = None  # type: ignore[assignment]

import conf_swap

LIBRARY = os.environ.get("CONF_LIBRARY", "redis")


def _load_everything() -> None:
    """Import the parts of the library that keep the pool's class but are not imported by its root."""
    for info in pkgutil.walk_packages(importlib.import_module(LIBRARY).__path__, f"{LIBRARY}."):
        try:
            __import__(info.name)
        except ImportError:  # an optional dependency is not installed: nobody can use that part
            continue


def not_waiting(candidate: type, stock: type) -> type:
    """Return a subclass of ``candidate`` with the constructor of ``ConnectionPool``."""
    parameters = inspect.signature(stock).parameters
    limit = parameters["max_connections"].default
    if limit is None:  # redis-py's constructor turns None into its default limit
        probe = stock()
        limit = probe.max_connections
    positional = [p.name for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        kwargs.update(zip(positional, args, strict=False))
        if kwargs.get("max_connections") is None:
            kwargs["max_connections"] = limit
        kwargs.setdefault("timeout", 0)
        candidate.__init__(self, **kwargs)  # type: ignore[misc]

    __init__.__signature__ = inspect.signature(stock.__init__)  # type: ignore[attr-defined, misc]
    space = {"__init__": __init__, "__module__": stock.__module__, "__qualname__": stock.__qualname__}
    return type(candidate)(stock.__name__, (candidate,), space)


def main() -> None:
    """Swap both pairs of classes."""
    classes = conf_swap.wanted()
    _load_everything()
    for role, module, method in (
        ("sync", importlib.import_module(f"{LIBRARY}.connection"), "get_connection"),
        ("async", importlib.import_module(f"{LIBRARY}.asyncio.connection"), "get_connection"),
    ):
        blocking, plain = module.BlockingConnectionPool, module.ConnectionPool
        candidate = classes.get(role)
        if candidate is None or candidate is blocking:
            conf_swap.counted(plain, f"{role}: {plain.__module__}.ConnectionPool", method, unless=blocking)
            conf_swap.counted(blocking, f"{role}: {plain.__module__}.BlockingConnectionPool", method)
            continue
        twin = not_waiting(candidate, plain)
        conf_swap.swap(role, blocking, candidate, method, LIBRARY)
        # Sentinel's pool inherits from ConnectionPool: swap() gives it the new base. The stock blocking pool
        # does too, and stays as it is for a candidate that builds on it.
        _swap_plain(role, plain, twin, candidate, blocking, method)


def _swap_plain(role: str, plain: type, twin: type, candidate: type, blocking: type, method: str) -> None:
    subs = [s for s in plain.__subclasses__() if s.__module__.startswith(f"{LIBRARY}.") and s is not blocking]
    places = conf_swap.put_everywhere(plain, twin, LIBRARY)
    how = [conf_swap.rebase(sub, plain, twin, LIBRARY) for sub in subs if not issubclass(candidate, sub)]
    conf_swap.notes.append(
        ", ".join([f"{plain.__module__}.ConnectionPool -> its twin with timeout=0 in {places} places", *how])
    )
    conf_swap.counted(
        plain, f"{conf_swap.STOCK}{plain.__module__}.ConnectionPool", method, unless=(candidate, blocking)
    )


main()
