"""Refuses clients and connections of the other library: those of redis-py and valkey-py cannot be mixed."""

from __future__ import annotations

import sys
from typing import Any

from poolkit import ConfigError

from ._driver import DRIVER, OTHER, PACKAGE
from ._errors import UsageError

__all__ = ("check_connection_class", "refuse_other_client", "wrong_client")


def check_connection_class(kind: Any) -> None:
    """Raise ConfigError for a class of connections of the other library, whose arguments and methods differ."""
    for base in getattr(kind, "__mro__", ()):
        if base.__module__.partition(".")[0] == OTHER:
            raise ConfigError(
                f"connection_class={base.__module__}.{base.__qualname__}: this pool opens connections of {DRIVER}: use "
                f"a class of {PACKAGE!r}, or the pool of poolkit_adapters.{OTHER}",
                "connection_class",
            )


def refuse_other_client() -> None:
    """Raise UsageError if a client of the other library calls the function that calls this one."""
    caller = sys._getframe(2).f_globals.get("__name__")
    if isinstance(caller, str) and caller.partition(".")[0] == OTHER:
        raise wrong_client()


def wrong_client() -> UsageError:
    """Return the error for a pool that was given to a client of the other library."""
    return UsageError(
        f"a pool of poolkit_adapters.{PACKAGE} serves clients of {PACKAGE}, but was given to one of {OTHER}: import it "
        f"from poolkit_adapters.{OTHER}"
    )
