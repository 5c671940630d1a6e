"""How long PostgreSQL lists a session after its client has closed it, and what reserve a hard limit needs.

``python bench/closed_sessions.py [BUSY]`` starts a PostgreSQL of its own and takes about half a minute. ``BUSY``: so
many processes compute meanwhile, for a machine that is short of processors.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from statistics import median

import psycopg

from poolkit.testing.servers import PostgresServer

LIMIT, ALONE, ROUNDS = 10, 300, 200


def lingering(url: str) -> list[float]:
    """Seconds from the end of ``close()`` until the server does not list the session any more, one at a time."""
    found = []
    with psycopg.connect(url, autocommit=True) as watcher:
        for _ in range(ALONE):
            connection = psycopg.connect(url)
            pid = connection.info.backend_pid
            connection.close()
            closed = time.monotonic()
            while watcher.execute("select 1 from pg_stat_activity where pid = %s", [pid]).fetchone():
                pass
            found.append(time.monotonic() - closed)
    return sorted(found)


def replaced(url: str, admin: str, slack: int) -> str:
    """``LIMIT`` sessions, one closed and another opened at once, ``ROUNDS`` times, under ``LIMIT + slack``."""
    refused = 0
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"alter role app connection limit {LIMIT + slack}")
    held = [psycopg.connect(url) for _ in range(LIMIT)]
    for _ in range(ROUNDS):
        held.pop(0).close()
        while len(held) < LIMIT:
            try:
                held.append(psycopg.connect(url))
            except psycopg.OperationalError as error:
                if "too many connections" not in str(error):
                    raise
                refused += 1
    for old in held:
        old.close()
    time.sleep(0.5)
    return f"{slack} more allowed at the server: {refused} of {ROUNDS + refused} connects refused"


def compute() -> None:
    while True:
        pass


def main() -> None:
    busy = [multiprocessing.Process(target=compute, daemon=True) for _ in range(int((sys.argv[1:] or ["0"])[0]))]
    for process in busy:
        process.start()
    try:
        with PostgresServer(dbname="test", max_connections=60) as server:
            with psycopg.connect(server.url, autocommit=True) as connection:
                connection.execute("create role app login password 'app'")
            times = [seconds * 1000 for seconds in lingering(server.url)]
            print(f"listed after close(): median {median(times):.1f} ms, 99 % {times[int(len(times) * 0.99)]:.1f} ms, "
                  f"longest {times[-1]:.1f} ms ({len(times)} sessions)")  # fmt: skip
            address = psycopg.conninfo.make_conninfo(server.url, user="app", password="app")
            for slack in (0, 1, 2):
                print(replaced(address, server.url, slack), flush=True)
    finally:
        for process in busy:
            process.terminate()


if __name__ == "__main__":
    main()
