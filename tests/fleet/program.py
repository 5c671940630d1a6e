"""One process of a fleet: takes leases until it is stopped, and reports their number on request."""

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
    """Connections that the sampler of the test can identify."""

    def __init__(self, dsn: str, group: str) -> None:
        self.dsn = dsn
        self.name = f"fleet-guarded-{group}"

    def connect(self, timeout: float | None) -> psycopg.Connection:
        return psycopg.connect(self.dsn, application_name=self.name, autocommit=True)

    def close(self, connection: psycopg.Connection) -> None:
        """Return when the server's process has ended, because the sampler counts processes."""
        with socket.socket(fileno=os.dup(connection.fileno())) as sock:
            sock.settimeout(5)
            connection.close()
            while sock.recv(4096):
                pass

    def abort(self, connection: psycopg.Connection) -> None:
        with socket.socket(fileno=os.dup(connection.fileno())) as sock:
            sock.shutdown(socket.SHUT_RDWR)


def main(
    pipe: Connection,
    group: str,
    store: str,
    address: str,
    dsn: str,
    limit: int,
    ttl: float,
    threads: int,
    seconds: float,
) -> None:
    stop = threading.Event()
    done: list[int] = []
    failed: list[str] = []
    budget = FleetBudget(STORES[store](address), "test", limit=limit, block=2, ttl=ttl)
    pool = Pool(Guarded(dsn, group), budget=budget, acquire_timeout=1, max_size=8, check_after_idle=None)

    def work(number: int) -> None:
        while not stop.is_set():
            try:
                with pool.lease() as connection:
                    connection.execute("SELECT pg_sleep(%s)", [seconds])
                done.append(number)
            except (PoolError, psycopg.Error) as error:
                failed.append(f"{type(error).__name__}: {error}"[:300])
                time.sleep(0.05)
            time.sleep(0.002 * number)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    pipe.send("ready")
    while pipe.recv() == "done?":  # words, not signals: one that another thread takes leaves the main thread asleep
        pipe.send(len(done))
    stop.set()
    for worker in workers:
        worker.join()
    pool.close()
    budget.close()
    pipe.send({"done": len(done), "failed": failed})
