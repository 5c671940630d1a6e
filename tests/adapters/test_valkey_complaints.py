"""Complaints about redis-py's pools, which valkey-py's own are copies of: each happens there, and does not happen with
poolkit's.

``docs/adapters/valkey.md`` lists them. A scenario returns whether the complaint comes true.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.valkey_server import ValkeyServer
from tests.support.waiting import PATIENCE, until

valkey: Any = pytest.importorskip("valkey")  # it needs Python 3.11
tasks: Any = pytest.importorskip("valkey.asyncio")
adapter: Any = pytest.importorskip("poolkit_adapters.valkey")

MOMENT = 0.05


def client_of(ours: bool, server: ValkeyServer, size: int, **settings: Any) -> Any:
    """``settings``: poolkit's, which valkey-py does not have."""
    kind: Any = adapter.PoolkitConnectionPool if ours else valkey.ConnectionPool
    return valkey.Valkey(connection_pool=kind.from_url(server.url, max_connections=size, **(settings if ours else {})))


def fails_instead_of_waiting(ours: bool, server: ValkeyServer) -> bool:
    """redis/redis-py#2517, aio-libs-abandoned/aioredis-py#1113: one caller too many gets an error at once."""

    async def many() -> list[Any]:
        kind: Any = adapter.AsyncPoolkitConnectionPool if ours else tasks.ConnectionPool
        pool = kind.from_url(server.url, max_connections=2, **({"timeout": PATIENCE} if ours else {}))
        client = tasks.Valkey(connection_pool=pool)
        try:
            return await asyncio.gather(*(client.set("complaint", n) for n in range(20)), return_exceptions=True)
        finally:
            await pool.aclose()

    return any(isinstance(one, valkey.ConnectionError) for one in asyncio.run(many()))


def hands_on_the_selected_database(ours: bool, server: ValkeyServer) -> bool:
    """redis/redis-py#3124, #4: ``SELECT`` changes the database of the connection for its next user."""
    client = client_of(ours, server, 1)
    try:
        client.execute_command("SELECT", 1)
        return " db=1 " in client.execute_command("CLIENT", "INFO").decode()
    finally:
        client.connection_pool.close()


def keeps_idle_connections(ours: bool, server: ValkeyServer) -> bool:
    """redis/redis-py#445, #2992, #3430: connections of a peak stay open for ever."""
    client = client_of(ours, server, 4, idle_timeout=MOMENT)
    pool = client.connection_pool
    name = "complaint"
    admin = valkey.Valkey.from_url(server.url)

    def alive() -> int:
        return sum(one["name"] == name for one in admin.client_list())

    try:
        peak = [pool.get_connection("GET") for _ in range(4)]
        for connection in peak:
            connection.send_command("CLIENT", "SETNAME", name)
            connection.read_response()
        for connection in peak:
            pool.release(connection)
        if ours:
            until(lambda: not alive(), "the idle connections are closed")
        return bool(alive())
    finally:
        pool.close()
        admin.close()


COMPLAINTS: tuple[Callable[[bool, ValkeyServer], bool], ...] = (
    fails_instead_of_waiting,
    hands_on_the_selected_database,
    keeps_idle_connections,
)


@pytest.mark.parametrize("complaint", COMPLAINTS, ids=lambda one: one.__name__)
def test_it_happens_with_the_own_pool_and_not_with_poolkit(valkey_server: ValkeyServer, complaint: Any) -> None:
    assert complaint(False, valkey_server)
    assert not complaint(True, valkey_server)
