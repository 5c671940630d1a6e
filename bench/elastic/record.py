"""Record a trace: a small service with a real PostgreSQL, when a caller asked for a connection, how long it held it.

``python -m bench.elastic.record`` writes ``recorded.csv``: milliseconds since the beginning, microseconds of the lease.
The pool is large enough that no caller waits, so that only the load is recorded and not the pool's behaviour.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from pathlib import Path

from bench.elastic.traces import RECORDED
from poolkit import Pool
from poolkit.testing.servers import PostgresServer
from poolkit_adapters.psycopg import PoolkitConnectionPool

SECONDS = 240
USERS = ((0, 5), (60, 40), (80, 12), (150, 30), (155, 12), (180, 5))
"""From that second on so many users at once: a mailing at 60 s, a job with many workers at 150 s."""
THINK, RENDER = 0.6, 0.06  # seconds on average: between two requests, and in a request beside its statements

_TABLES = """
CREATE TABLE item (id int PRIMARY KEY, stock int NOT NULL, name text NOT NULL);
INSERT INTO item SELECT n, 1000, 'item ' || n FROM generate_series(1, 5000) AS n;
CREATE TABLE purchase (item int NOT NULL, at timestamptz NOT NULL DEFAULT now());
"""


def _wanted(now: float) -> int:
    return [users for begin, users in USERS if begin <= now][-1]


class _Service:
    def __init__(self, pool: PoolkitConnectionPool) -> None:
        self.pool = pool
        self.began = time.monotonic()
        self.rows: list[tuple[float, float]] = []

    def user(self, number: int) -> None:
        """One user, as long as there are so many."""
        chance = random.Random(number)
        while (now := time.monotonic() - self.began) < SECONDS:
            if number >= _wanted(now):
                time.sleep(0.05)
                continue
            time.sleep(chance.expovariate(1 / THINK))
            self._request(chance)

    def _request(self, chance: random.Random) -> None:
        asked = time.monotonic()
        with self.pool.connection() as connection:
            had = time.monotonic()
            item = chance.randint(1, 5000)
            if chance.random() < 0.1:
                connection.execute(
                    "SELECT name, sum(stock) FROM item GROUP BY name ORDER BY 2 DESC LIMIT 20"
                ).fetchall()
            connection.execute("SELECT name, stock FROM item WHERE id = %s", (item,)).fetchone()
            time.sleep(chance.expovariate(1 / RENDER))  # the page is made meanwhile
            connection.execute("UPDATE item SET stock = stock - 1 WHERE id = %s", (item,))
            connection.execute("INSERT INTO purchase (item) VALUES (%s)", (item,))
        self.rows.append((asked - self.began, time.monotonic() - had))


def record(path: Path) -> int:
    """Run the service and write what it did; the number of requests."""
    with PostgresServer(max_connections=60) as server:
        with server.connect() as connection:
            connection.execute(_TABLES)
        with PoolkitConnectionPool(server.url, min_size=50, max_size=50) as pool:
            pool.wait()
            engine: Pool[object] = pool._engine  # type: ignore[assignment]
            service = _Service(pool)
            most = max(users for _, users in USERS)
            threads = [threading.Thread(target=service.user, args=(number,)) for number in range(most)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not engine.stats().timeouts
    service.rows.sort()
    lines = [f"{at * 1e3:.0f},{hold * 1e6:.0f}" for at, hold in service.rows]
    head = f"# bench/elastic/record.py: {len(lines)} leases in {SECONDS} s before PostgreSQL, milliseconds,microseconds"
    path.write_text("\n".join([head, *lines, ""]))
    return len(lines)


if __name__ == "__main__":
    print(record(RECORDED), "leases recorded")
    sys.exit(0)
