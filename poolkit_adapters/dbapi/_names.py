"""Resolves host names in a separate thread, within the time limit of a connect.

The modules call the system's resolver in the connecting thread, where nothing can interrupt it, and the place in the
pool would be taken until it answers. psycopg and psycopg2 get the addresses. The other modules resolve the name again,
after this function has found that the resolver answers. See :mod:`poolkit.runtimes.names`.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from poolkit.runtimes.names import addresses, is_name

from .._libpq import attempts_of, hosts_of, longest, share
from .._time_limits import seconds_of

__all__ = ("LIBPQ", "look_up", "written")

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
        parsed = written(module, args, kwargs)
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


def written(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters in libpq's connection string, or an empty dict if there is none or libpq cannot read it."""
    text = args[0] if args else kwargs.get("conninfo" if module.__name__ == "psycopg" else "dsn")
    if module.__name__ not in LIBPQ or not isinstance(text, str):
        return {}
    try:
        return dict(_parser(module.__name__)(text))
    except (ImportError, module.Error):
        return {}  # a module that is only named so; an error that the module raises again when it connects


def _parser(name: str) -> Callable[[str], dict[str, Any]]:
    """Return libpq's own parser of connection strings, as the driver offers it."""
    driver = importlib.import_module("psycopg.conninfo" if name == "psycopg" else "psycopg2.extensions")
    parse: Callable[[str], dict[str, Any]] = driver.conninfo_to_dict if name == "psycopg" else driver.parse_dsn
    return parse
