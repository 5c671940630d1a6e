"""One process of a fleet: works until it is told to stop, then reports what it has done."""

from __future__ import annotations

import os
import socket
import threading
import time
from multiprocessing.connection import Connection

import psycopg

from poolkit import Connector, Pool, PoolError
from poolkit.fleet import FileStore, FleetBudget, PostgresStore, RedisStore

STORES = {"file": FileStore, "redis": RedisStore, "postgres": PostgresStore}


class Guarded(Connector[psycopg.Connection]):
    """Connections that the sampler of the test can tell from others."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn

    def connect(self, timeout: float | None) -> psycopg.Connection:
        return psycopg.connect(self.dsn, application_name="fleet-guarded", autocommit=True)

    def close(self, connection: psycopg.Connection) -> None:
        """Ends when the server's process has gone, not when it was told: the sampler counts processes."""
        with socket.socket(fileno=os.dup(connection.fileno())) as sock:
            sock.settimeout(5)
            connection.close()
            while sock.recv(4096):
                pass

    def abort(self, connection: psycopg.Connection) -> None:
        with socket.socket(fileno=os.dup(connection.fileno())) as sock:
            sock.shutdown(socket.SHUT_RDWR)


def main(
    pipe: Connection, store: str, address: str, dsn: str, limit: int, ttl: float, threads: int, seconds: float
) -> None:
    stop = threading.Event()
    done: list[float] = []
    failed: list[str] = []
    budget = FleetBudget(STORES[store](address), "test", limit=limit, block=2, ttl=ttl)
    pool = Pool(Guarded(dsn), budget=budget, acquire_timeout=1, max_size=8, check_after_idle=None)

    def work(number: int) -> None:
        while not stop.is_set():
            try:
                with pool.lease() as connection:
                    connection.execute("SELECT pg_sleep(%s)", [seconds])
                done.append(time.time())
            except (PoolError, psycopg.Error) as error:
                failed.append(f"{type(error).__name__}: {error}"[:300])
                time.sleep(0.05)
            time.sleep(0.002 * number)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    pipe.send("ready")
    pipe.recv()  # a word, not a signal: a signal that another thread takes leaves the main thread asleep
    stop.set()
    for worker in workers:
        worker.join()
    pool.close()
    budget.close()
    pipe.send({"done": done, "failed": failed})
