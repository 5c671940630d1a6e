"""The permits of a fleet in a table of PostgreSQL, under a transaction-level advisory lock."""

from __future__ import annotations

import contextlib
import os
import random
import selectors
import socket
import time
from collections.abc import Iterator
from typing import Any

from .._log import logger
from .._numbers import seconds
from .._watchdog import Watchdog
from ..errors import ConfigError, MissingExtra, raw_text, said, shown
from ._ledger import PLAUSIBLE, Ask, Grant, Row, decide
from ._store import StoreDown, StoreError, wait_for_name

__all__ = ("PostgresStore",)

_MOST = 1 << 62  # tokens are bigint, and the next one must fit too
_STARTING = ("57P03", "57P01", "57P02")  # cannot_connect_now (starting, stopping, recovering), shutdowns


class PostgresStore:
    """Permits in a table of PostgreSQL, which is created if it does not exist.

    ``conninfo``: as for ``psycopg.connect``; ``table``: the name of the table; ``timeout``: seconds for one exchange,
    and as many for a connect before it. Several hosts in ``conninfo`` share that time in equal parts. Needs ``pip
    install 'poolkit[psycopg]'``. Each process keeps one connection for it, which counts against the server's
    ``max_connections`` too.

    After a start of the server, and after the table was new or empty (first use, ``TRUNCATE``, ``DROP``), nothing new
    is granted for one ``ttl``. Processes that hold permits report them in this time. With asynchronous replication a
    failover may lose the last grants. Use a synchronous standby, or keep the fleet's limit one block per process below
    the server's.

    Raises :class:`~poolkit.ConfigError` for an invalid table name, :class:`~poolkit.MissingExtra` without psycopg.
    """

    expires = True

    def __init__(self, conninfo: str, *, table: str = "poolkit_fleet", timeout: float = 1.0) -> None:
        try:
            import psycopg
        except ImportError:
            raise MissingExtra("PostgresStore needs psycopg: pip install 'poolkit[psycopg]'") from None
        if not table.replace("_", "").isalnum():
            raise ConfigError(f"table={table!r}: must be a plain name of letters, digits and underscores", "table")
        seconds("timeout", timeout, above=True)
        self._psycopg = psycopg
        self._conninfo = conninfo
        self._table = table
        self._timeout = timeout
        self._connection: Any = None
        self._watchdog = Watchdog(_shut)
        self._inherited: Any = None  # kept alive: psycopg would send a Terminate message on the parent's socket

    def exchange(self, ask: Ask) -> Grant:
        """See :meth:`poolkit.fleet.Store.exchange`."""

        def work(cursor: Any) -> tuple[Grant, int]:
            self._lock(cursor, ask.fleet)
            cursor.execute(
                f"SELECT member, permits, want, extract(epoch FROM until)::float8, token FROM {self._table} "
                "WHERE fleet = %s",
                [ask.fleet],
            )
            found = cursor.fetchall()
            cursor.execute(
                "SELECT extract(epoch FROM clock_timestamp())::float8, "
                "extract(epoch FROM pg_postmaster_start_time())::float8"
            )
            now, started = cursor.fetchone()
            rows = {
                name: Row(permits, want, until, token)
                for name, permits, want, until, token in found
                if min(permits, want, token) >= 0 and token < _MOST and until <= now + PLAUSIBLE * ask.ttl
            }
            before = {name for name, *_ in found} - {""}
            grace = rows.pop("", None)  # the earliest time of a new grant, and the last token
            damaged = len(before) - len(rows)
            if grace is None or damaged:  # new, emptied or damaged: a process may hold permits that are not recorded
                grace = Row(0, 0, now + ask.ttl, max(int(now * 1000), grace.token if grace else 0))
            token = grace.token + (ask.member not in rows)
            grant = decide(rows, ask, now, token=token, grace=now < max(grace.until, started + ask.ttl))
            rows[""] = Row(0, 0, grace.until, token)
            for name in before - set(rows):
                cursor.execute(f"DELETE FROM {self._table} WHERE fleet = %s AND member = %s", [ask.fleet, name])
            for name in (ask.member, ""):
                row = rows.get(name)
                if row is not None:
                    cursor.execute(
                        f"INSERT INTO {self._table} (fleet, member, permits, want, until, token) "
                        "VALUES (%s, %s, %s, %s, to_timestamp(%s), %s) ON CONFLICT (fleet, member) DO UPDATE SET "
                        "permits = excluded.permits, want = excluded.want, until = excluded.until, "
                        "token = excluded.token",
                        [ask.fleet, name, row.permits, row.want, row.until, row.token],
                    )
            return grant, damaged

        granted: Grant
        granted, invalid = self._transaction(work)
        if invalid:  # deleted now, so no other process will log it
            logger.warning(
                "%s: %d invalid rows of the fleet in the table %s were deleted; nothing new is granted "
                "for %g s", shown(ask.fleet), invalid, self._table, ask.ttl,
            )  # fmt: skip
        return granted

    def leave(self, fleet: str, member: str) -> None:
        """See :meth:`poolkit.fleet.Store.leave`."""

        def work(cursor: Any) -> None:
            self._lock(cursor, fleet)
            cursor.execute(f"DELETE FROM {self._table} WHERE fleet = %s AND member = %s", [fleet, member])

        self._transaction(work)

    def forget(self) -> None:
        """See :meth:`poolkit.fleet.Store.forget`."""
        self._inherited, self._connection = self._connection, None

    def close(self) -> None:
        """See :meth:`poolkit.fleet.Store.close`."""
        self._watchdog.stop()
        self._hang_up()

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _lock(self, cursor: Any, fleet: str) -> None:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"{self._table}/{fleet}"])

    def _transaction(self, work: Any) -> Any:
        """Run ``work(cursor)`` in one transaction.

        A broken connection is replaced and a dropped table is created again, once, while there is time left for the
        exchange.
        """
        deadline = time.monotonic() + self._timeout
        for fresh in (False, True):
            if self._connection is None or self._connection.closed:
                self._connect()
                fresh = True
            try:
                with self._limited(), self._connection.transaction(), self._connection.cursor() as cursor:
                    return work(cursor)
            except self._psycopg.Error as error:
                self._hang_up()
                again = (self._psycopg.OperationalError, self._psycopg.errors.UndefinedTable)
                if fresh or not isinstance(error, again) or time.monotonic() >= deadline:
                    raise self._translated(error) from error
        raise AssertionError("bug: the second attempt neither succeeded nor failed")

    @contextlib.contextmanager
    def _limited(self) -> Iterator[None]:
        """Shut down the socket if this block takes longer than ``timeout`` seconds.

        Over a network that drops every packet, the server's ``statement_timeout`` has no effect, and psycopg waits for
        a reply without a limit.
        """
        watch = self._watchdog.arm(self._timeout, self._connection)
        try:
            yield
        finally:
            self._watchdog.disarm(watch)

    def _connect(self) -> None:
        """Connect to the first host that accepts. One that does not answer leaves time for those after it."""
        deadline = time.monotonic() + self._timeout
        try:
            places = self._places()
            failures: list[StoreError] = []
            for number, place in enumerate(places):
                try:
                    seconds = max(0.0, deadline - time.monotonic()) / (len(places) - number)
                    self._connection = self._opened(place, time.monotonic() + seconds)
                    break
                except StoreError as error:
                    failures.append(error)
                except self._psycopg.Error as error:
                    failures.append(self._translated(error))
            else:  # StoreDown only if every host refuses
                raise next((error for error in failures if not isinstance(error, StoreDown)), failures[-1])
            with self._limited():
                self._connection.execute(
                    f"CREATE TABLE IF NOT EXISTS {self._table} (fleet text, member text, permits int NOT NULL, "
                    "want int NOT NULL, until timestamptz NOT NULL, token bigint NOT NULL, "
                    "PRIMARY KEY (fleet, member))"
                )
        except self._psycopg.errors.UniqueViolation:  # another process created it at the same time
            pass
        except self._psycopg.Error as error:
            self._hang_up()
            raise self._translated(error) from error

    def _places(self) -> list[dict[str, Any]]:
        """Return the connection parameters of each host, in the order in which libpq would try them."""
        common = self._psycopg.conninfo.conninfo_to_dict(self._conninfo)
        columns = {
            name: str(common.get(name) or os.environ.get(variable, "")).split(",")
            for name, variable in (("host", "PGHOST"), ("hostaddr", "PGHOSTADDR"), ("port", "PGPORT"))
        }
        count = max(len(values) for values in columns.values())
        if any(len(values) not in (1, count) for values in columns.values()):
            return [common]  # libpq reports the mistake
        places = []
        for number in range(count):
            own = {name: values[number if len(values) > 1 else 0] for name, values in columns.items()}
            places.append({**common, **{name: value for name, value in own.items() if value}})
        if common.get("load_balance_hosts") == "random":
            random.shuffle(places)
        return places

    def _opened(self, place: dict[str, Any], until: float) -> Any:
        """Connect to one host. psycopg's own connect takes no less than two seconds for a host that does not answer."""
        if not place.get("hostaddr"):
            wait_for_name(place.get("host"), place.get("port") or 5432, max(0.0, until - time.monotonic()))
        milliseconds = max(1, int(self._timeout * 1000))
        conninfo = self._psycopg.conninfo.make_conninfo(
            **{**place, "tcp_user_timeout": milliseconds, "application_name": "poolkit-fleet",
               "options": f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds}"},
        )  # fmt: skip
        pq = self._psycopg.pq
        pgconn = pq.PGconn.connect_start(conninfo.encode())
        try:
            with selectors.DefaultSelector() as selector:
                while True:
                    status = pgconn.connect_poll()
                    if status == pq.PollingStatus.OK:
                        break
                    if status == pq.PollingStatus.FAILED:
                        raise self._psycopg.OperationalError(pq.error_message(pgconn))
                    writes = status == pq.PollingStatus.WRITING
                    key = selector.register(pgconn.socket, selectors.EVENT_WRITE if writes else selectors.EVENT_READ)
                    if not selector.select(max(0.0, until - time.monotonic())):
                        raise StoreError(f"PostgreSQL: no connection to {shown(place.get('host', ''))} in time")
                    selector.unregister(key.fileobj)
            pgconn.nonblocking = 1
            connection = self._psycopg.Connection(pgconn)
            connection.autocommit = True
        except BaseException:
            pgconn.finish()
            raise
        return connection

    def _translated(self, error: Any) -> StoreError:
        text, text_shown = raw_text(error), said(error)
        if getattr(error, "sqlstate", None) in _STARTING or "Connection refused" in text or "starting up" in text:
            return StoreDown(f"PostgreSQL refuses connections: {text_shown}")
        return StoreError(f"PostgreSQL: {text_shown}")


def _shut(connection: Any) -> None:
    """Shut down the connection's socket from another thread, so that a wait on it ends."""
    with contextlib.suppress(Exception), socket.socket(fileno=os.dup(connection.fileno())) as sock:
        sock.shutdown(socket.SHUT_RDWR)
