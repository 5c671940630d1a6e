"""A service for the tests: a pool on PostgreSQL, shown at a socket. Says where, and ends with its standard input."""

from __future__ import annotations

import sys
from typing import Any

import psycopg

from poolkit import Connector, Pool
from poolkit.dashboard import start


class Postgres(Connector[psycopg.Connection[Any]]):
    """psycopg without an adapter."""

    def __init__(self, url: str) -> None:
        self.url = url

    def connect(self, timeout: float | None) -> psycopg.Connection[Any]:
        return psycopg.connect(self.url)

    def close(self, connection: psycopg.Connection[Any]) -> None:
        connection.close()


if __name__ == "__main__":
    dashboard = start(actions="--actions" in sys.argv)
    with Pool(Postgres(sys.argv[1]), max_size=3, name="orders-db", debug=True) as pool, pool.lease():
        print(dashboard.address, flush=True)
        sys.stdin.read()
