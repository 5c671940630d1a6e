"""Resolves host names in a separate thread, within the time limit of a connect.

The modules call the system's resolver in the connecting thread, where nothing can interrupt it, and the place in the
pool would be taken until it answers. psycopg and psycopg2 get the addresses. The other modules resolve the name again,
after this function has found that the resolver answers. See :mod:`poolkit.runtimes.names`.
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from poolkit import PoolConfig
from poolkit.runtimes.names import addresses, is_name

from .._libpq import attempts_of, for_all_attempts, hosts_of, longest, share
from .._options import replaces_limit_of_driver, with_limit_of_driver
from .._time_limits import seconds_of

__all__ = ("LIBPQ", "look_up", "own_limit", "written")

LIBPQ = ("psycopg", "psycopg2")
"""Modules that connect through libpq."""


def look_up(
    module: ModuleType,
    string: Mapping[str, Any],
    kwargs: dict[str, Any],
    seconds: float | None,
    shared: float | None,
) -> float:
    """Wait until the resolver knows the host of a connect, and for libpq put its addresses into ``kwargs``.

    ``string``: the parameters in libpq's connection string (:func:`written`). If there are several addresses, each one
    has an equal part of ``shared`` seconds (None: the limit that was given).

    Returns the most seconds of the connect (math.inf: no limit), as modules have a limit for each address. Raises
    TimeoutError after ``seconds`` (None: no limit). A name that does not exist is left to the module, which has an
    error of its own for that.
    """
    name = module.__name__
    if name in LIBPQ:
        hosts = hosts_of({**string, **kwargs})
        if hosts is not None:
            hosts.resolve(addresses, seconds)
            if isinstance(hosts.error, TimeoutError) and not hosts.parameters():
                raise hosts.error
            kwargs.update(hosts.parameters())
        given = {**string, **kwargs}
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
    except Exception:  # noqa: BLE001  # only named so, or a string that the module refuses again when it connects
        return {}


def own_limit(
    module: Any, string: Mapping[str, Any], kwargs: Mapping[str, Any], argument: str | None, config: PoolConfig
) -> tuple[dict[str, Any], PoolConfig]:
    """Return the connect timeout that the module was given, as a keyword, and the settings that show it.

    ``string``: the parameters in libpq's connection string (:func:`written`). ``argument``: the name of the limit for
    the module (None: there is none). For libpq it may also stand in the connection string or in the environment. There
    a ``connect_timeout`` that was given for this pool counts instead, and a service file before the environment. The
    keywords are empty if there is no such limit, or one that only the module can judge.
    """
    if argument is None:
        return {}, config
    value: Any = kwargs.get(argument)
    place = f"{argument} of {module.__name__}.connect()"
    if value is None and module.__name__ in LIBPQ and not replaces_limit_of_driver(config):
        value, place = string.get("connect_timeout"), "connect_timeout in the connection string"
        if value is None and "service" not in {**string, **kwargs} and "PGSERVICE" not in os.environ:
            value, place = os.environ.get("PGCONNECT_TIMEOUT"), "PGCONNECT_TIMEOUT"
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        return {}, config
    limit: float | None = seconds if seconds > 0 else None
    if module.__name__ in LIBPQ:
        limit = for_all_attempts({**string, **kwargs}, seconds)
    return {argument: value}, with_limit_of_driver(config, limit, place)


def _parser(name: str) -> Callable[[str], dict[str, Any]]:
    """Return libpq's own parser of connection strings, as the driver offers it."""
    driver = importlib.import_module("psycopg.conninfo" if name == "psycopg" else "psycopg2.extensions")
    parse: Callable[[str], dict[str, Any]] = driver.conninfo_to_dict if name == "psycopg" else driver.parse_dsn
    return parse
