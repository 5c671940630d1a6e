"""Two PostgreSQL servers, one of which accepts writes: poolkit's cluster, or psycopg_pool with libpq's choice."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import quote

from bench.reliability.async_clients import AsyncClient
from bench.reliability.clients import ACQUIRE, INSERT, SyncClient, database_url
from bench.reliability.world import DATABASE, PASSWORD, ROLE

__all__ = ("AsyncPrimary", "Primary")


def _several(ports: list[int]) -> str:
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    return f"postgresql://{ROLE}:{quote(PASSWORD)}@{hosts}/{DATABASE}?target_session_attrs=read-write"


def _cluster(ports: list[int], name: str, size: int) -> tuple[list[Any], dict[str, Any]]:
    from poolkit import PoolConfig
    from poolkit.cluster import Node

    nodes = [Node(f"db{number}", database_url("postgresql", "127.0.0.1", port)) for number, port in enumerate(ports)]
    return nodes, {"pool": PoolConfig(max_size=size, connect_timeout=2), "wait_for_node": ACQUIRE, "name": name}


class Primary(SyncClient):
    """psycopg, writing to the server that accepts writes."""

    kind = "cluster"

    def __init__(self, *, ours: bool, ports: list[int], name: str, size: int, **settings: Any) -> None:
        self._insert = INSERT.format("%s").encode()
        if ours:
            from poolkit_adapters.psycopg import PoolkitCluster

            nodes, made = _cluster(ports, name, size)
            self._pool: Any = PoolkitCluster(nodes, **made)
            self._choice: dict[str, Any] = {"role": "primary", "timeout": ACQUIRE}
        else:
            from psycopg_pool import ConnectionPool

            kwargs = {"connect_timeout": 2, "application_name": name}
            self._pool = ConnectionPool(
                _several(ports), min_size=size, max_size=size, timeout=ACQUIRE, open=True, kwargs=kwargs
            )
            self._choice = {}

    def ask(self, key: str) -> str:
        with self._pool.connection(**self._choice) as connection:
            row = connection.execute(self._insert, (key,)).fetchone()
        return str(row[0] if row else None)

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        with self._pool.connection(**self._choice) as connection:
            connection.execute(self._insert, ("hold",))
            yield

    def close(self) -> None:
        self._pool.close()


class AsyncPrimary(AsyncClient):
    """The same for tasks."""

    kind = "cluster"

    async def open(self, *, ours: bool, ports: list[int], name: str, size: int, **settings: Any) -> None:  # type: ignore[override]
        self._insert = INSERT.format("%s").encode()
        if ours:
            from poolkit_adapters.psycopg import AsyncPoolkitCluster

            nodes, made = _cluster(ports, name, size)
            self._pool: Any = AsyncPoolkitCluster(nodes, **made)
            self._choice: dict[str, Any] = {"role": "primary", "timeout": ACQUIRE}
        else:
            from psycopg_pool import AsyncConnectionPool

            kwargs = {"connect_timeout": 2, "application_name": name}
            self._pool = AsyncConnectionPool(
                _several(ports), min_size=size, max_size=size, timeout=ACQUIRE, open=False, kwargs=kwargs
            )
            await self._pool.open()
            self._choice = {}

    async def ask(self, key: str) -> str:
        async with self._pool.connection(**self._choice) as connection:
            row = await (await connection.execute(self._insert, (key,))).fetchone()
        return str(row[0] if row else None)

    @contextlib.asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        async with self._pool.connection(**self._choice) as connection:
            await connection.execute(self._insert, ("hold",))
            yield

    async def close(self) -> None:
        await self._pool.close()
