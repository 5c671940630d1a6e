"""Resolves host names in a separate thread, within the time limit of a connect.

The modules call the system's resolver in the connecting thread, where nothing can interrupt it, and the place in the
pool would be taken until it answers. psycopg and psycopg2 get the addresses. The other modules resolve the name again,
after this function has found that the resolver answers. See :mod:`poolkit.runtimes.names`.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

from poolkit.runtimes.names import addresses, is_name

from .._libpq import attempts_of, hosts_of, longest, share
from .._time_limits import seconds_of

__all__ = ("LIBPQ", "look_up")

LIBPQ = ("psycopg", "psycopg2")
"""Modules that connect through libpq."""


def look_up(
    module: ModuleType,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    seconds: float | None,
    shared: float | None,
) -> float:
    """Wait until the resolver knows the host of a connect, and for libpq put its addresses into ``kwargs``.

    If there are several, each one has an equal part of ``shared`` seconds (None: the limit that was given).

    Returns the most seconds of the connect (math.inf: no limit), as modules have a limit for each address. Raises
    TimeoutError after ``seconds`` (None: no limit). A name that does not exist is left to the module, which has an
    error of its own for that.
    """
    name = module.__name__
    if name in LIBPQ:
        parsed = _parsed(module, args)
        hosts = hosts_of({**parsed, **kwargs})
        if hosts is not None:
            hosts.resolve(addresses, seconds)
            if isinstance(hosts.error, TimeoutError) and not hosts.parameters():
                raise hosts.error
            kwargs.update(hosts.parameters())
        given = {**parsed, **kwargs}
        if shared is not None and attempts_of(given) > 1:
            own, mine = seconds_of(kwargs.get("connect_timeout")), share(given, shared)
            if own is None or mine < own:
                given["connect_timeout"] = kwargs["connect_timeout"] = mine
        return longest(given)
    host = kwargs.get("host", "")
    found: list[str] | None = None
    if name != "sqlite3" and is_name(host):
        try:
            found = addresses(host, kwargs.get("port") or 0, seconds)
        except TimeoutError:
            raise
        except (OSError, UnicodeError):
            pass
    return math.inf if seconds is None else (1 if found is None else len(found)) * seconds


def _parsed(module: Any, args: tuple[Any, ...]) -> dict[str, Any]:
    """Return the parameters of a connection string, or an empty dict if the module does not understand it."""
    if not args or not isinstance(args[0], str):
        return {}
    try:
        if module.__name__ == "psycopg":
            return dict(module.conninfo.conninfo_to_dict(args[0]))
        return dict(module.extensions.parse_dsn(args[0]))
    except module.Error:
        return {}
