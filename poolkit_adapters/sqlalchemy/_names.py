"""Resolves host names in a separate thread, within the time limit of the connect.

The drivers call the system's resolver in the calling thread, where nothing can interrupt it, or in one of the few
threads of the event loop's default executor. See :mod:`poolkit.runtimes.names`. psycopg and psycopg2 get the addresses.
The other drivers have no argument for an address besides the name, which TLS needs. They resolve the name again, after
this module has checked that the resolver answers.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import event

from poolkit import PoolConfig
from poolkit.runtimes.names import addresses, addresses_async, is_name

from .._libpq import Hosts, hosts_of
from ._greenlets import await_, in_greenlet, running_loop

__all__ = ("look_up_first",)

_LIBPQ = ("psycopg", "psycopg_async", "psycopg2", "psycopg2cffi")


def look_up_first(dialect: Any) -> None:
    """Make each connect of this dialect resolve its host here. Further calls have no effect."""
    if getattr(dialect, "name", "sqlite") != "sqlite":  # SQLite has no host; a pool created by hand has no dialect
        event.listen(dialect, "do_connect", _look_up)


def _look_up(dialect: Any, record: Any, arguments: Any, keywords: dict[str, Any]) -> None:
    if arguments:
        return  # a connection string, in the driver's own way
    limit = _time(record)
    if getattr(dialect, "driver", "") in _LIBPQ:
        hosts = hosts_of(keywords)
        if hosts is not None:
            hosts.resolve(_addresses, limit)
            _tell(dialect, hosts)
            keywords.update(hosts.parameters())
        return
    host = keywords.get("host", "")
    if not is_name(host):
        return
    try:
        _addresses(host, keywords.get("port") or 0, limit)
    except TimeoutError as error:
        raise _late(dialect, error) from error
    except (OSError, UnicodeError):
        return  # the driver fails in the same way and raises its own error


def _tell(dialect: Any, hosts: Hosts) -> None:
    """Raise an error if no name was resolved in time. For a name that does not exist, libpq raises its own error."""
    if isinstance(hosts.error, TimeoutError) and not hosts.parameters():
        raise _late(dialect, hosts.error) from hosts.error


def _late(dialect: Any, error: TimeoutError) -> Exception:
    """Return an error of the driver's class, which SQLAlchemy then wraps."""
    kind = getattr(dialect.dbapi, "OperationalError", TimeoutError)
    late: Exception = kind(str(error))
    return late


def _addresses(host: str, port: Any, limit: float | None) -> list[str] | None:
    if running_loop() is not None and in_greenlet():
        found: list[str] | None = await_(addresses_async(host, port, limit))
        return found
    return addresses(host, port, limit)


def _time(record: Any) -> float | None:
    """Return the seconds for the connect: the shorter one of ``connect_timeout`` and ``acquire_timeout``."""
    config = getattr(getattr(getattr(record, "pool", None), "poolkit", None), "config", None)
    if not isinstance(config, PoolConfig):  # a record of another pool's, or what a caller of _creator has given
        return None
    return min((seconds for seconds in (config.connect_timeout, config.acquire_timeout) if seconds), default=None)
