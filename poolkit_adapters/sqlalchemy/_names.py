"""Connecting by name: the name is looked up beside the caller, within the time that there is to connect.

The drivers ask the system's resolver in the calling thread, which nothing can interrupt, or in the few threads of the
event loop's default executor. See :mod:`poolkit.runtimes.names`. psycopg and psycopg2 are given the addresses. The
others have no argument for an address beside the name that TLS needs: they look the name up once more when it is known
that the resolver answers.
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
    """Let each connect of this dialect look its host up here. More than once is as once."""
    if getattr(dialect, "name", "sqlite") != "sqlite":  # SQLite has no host; a pool made by hand no real dialect
        event.listen(dialect, "do_connect", _look_up)


def _look_up(dialect: Any, record: Any, arguments: Any, keywords: dict[str, Any]) -> None:
    if arguments:
        return  # a connection string, in the driver's own way
    limit = _time(record)
    if getattr(dialect, "driver", "") in _LIBPQ:
        hosts = hosts_of(keywords)
        if hosts is not None:
            for place in hosts.names:
                try:
                    hosts.found(place, _addresses(*place, limit))
                except OSError as error:
                    hosts.failed(place, error)
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
        return  # the driver finds the same, and has its own words for it


def _tell(dialect: Any, hosts: Hosts) -> None:
    """Raise if there is none left that answers in time; of a name that does not exist libpq tells in its own words."""
    if isinstance(hosts.error, TimeoutError) and not hosts.parameters():
        raise _late(dialect, hosts.error) from hosts.error


def _late(dialect: Any, error: TimeoutError) -> Exception:
    """A driver's error, which SQLAlchemy reports as one."""
    kind = getattr(dialect.dbapi, "OperationalError", TimeoutError)
    late: Exception = kind(str(error))
    return late


def _addresses(host: str, port: Any, limit: float | None) -> list[str] | None:
    if running_loop() is not None and in_greenlet():
        found: list[str] | None = await_(addresses_async(host, port, limit))
        return found
    return addresses(host, port, limit)


def _time(record: Any) -> float | None:
    """Seconds to connect: the pool's ``connect_timeout``, or how long a caller may wait where that is shorter."""
    config = getattr(getattr(getattr(record, "pool", None), "poolkit", None), "config", None)
    if not isinstance(config, PoolConfig):  # a record of another pool's, or what a caller of _creator has given
        return None
    return min((seconds for seconds in (config.connect_timeout, config.acquire_timeout) if seconds), default=None)
