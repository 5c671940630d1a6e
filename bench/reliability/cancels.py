"""``python -m bench.reliability.cancels``: sessions at the server while anyio cancels running statements.

anyio cancels again at every step of the clean-up. Where the clean-up is skipped for that, the client forgets a
connection whose statement the server still runs, and opens another: more sessions than the pool may have.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from dataclasses import dataclass
from typing import Any

import anyio

from bench.reliability.async_clients import AsyncClient, AsyncPsycopg, AsyncSQLAlchemy
from bench.reliability.measure import quiet
from bench.reliability.world import World, world

__all__ = ("Sessions", "cancel_statements")

STATEMENT = "select pg_sleep(0.3)"


@dataclass
class Sessions:
    """The maximum number of sessions in any sample, and the state afterwards."""

    size: int
    samples: int = 0
    most: int = 0
    most_active: int = 0
    above: int = 0
    """The number of samples with more active sessions than the limit of the pool."""
    cancelled: int = 0
    answered: bool = False
    """Whether the next ten replies were right."""


def cancel_statements(
    servers: World, kind: type[AsyncClient], *, ours: bool, size: int = 3, seconds: float = 1.5
) -> Sessions:
    """Four tasks for each connection start statements of 0.3 s and are cancelled within 0.08 s, for ``seconds``."""
    found, stop = Sessions(size), threading.Event()
    name = f"cancel-{kind.__name__}-{'poolkit' if ours else 'own'}"
    watcher = threading.Thread(target=_watch, args=(servers, name, found, stop), daemon=True)
    watcher.start()
    try:
        asyncio.run(_load(servers, kind, name, found, ours=ours, seconds=seconds))
    finally:
        stop.set()
        watcher.join(10)
    return found


def _watch(servers: World, name: str, found: Sessions, stop: threading.Event) -> None:
    with servers.postgres.connect() as admin:
        while not stop.is_set():
            row = admin.execute(
                "select count(*), count(*) filter (where state = 'active') from pg_stat_activity"
                " where application_name = %s",
                (name,),
            ).fetchone()
            assert row is not None
            found.samples += 1
            found.most, found.most_active = max(found.most, row[0]), max(found.most_active, row[1])
            found.above += row[1] > found.size
            time.sleep(0.002)


async def _load(
    servers: World, kind: type[AsyncClient], name: str, found: Sessions, *, ours: bool, seconds: float
) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    client: Any = kind()
    await client.open(ours=ours, host=servers.postgres.host, port=servers.postgres.port, name=name, size=found.size)
    dice, over = random.Random(4), time.monotonic() + seconds

    async def caller() -> None:
        while time.monotonic() < over:
            with anyio.move_on_after(dice.uniform(0.0, 0.08)) as scope, contextlib.suppress(Exception):
                await _statement(client)
            found.cancelled += scope.cancelled_caught

    async with anyio.create_task_group() as group:
        for _ in range(4 * found.size):
            group.start_soon(caller)
    found.answered = [await client.ask(str(n)) for n in range(10)] == [str(n) for n in range(10)]
    if client.engine is not None:
        client.engine.check_books()
    await client.close()


async def _statement(client: Any) -> None:
    if isinstance(client, AsyncPsycopg):
        async with client._pool.connection() as connection:
            await connection.execute(STATEMENT)
    else:
        async with client._engine.connect() as connection:
            await connection.exec_driver_sql(STATEMENT)


if __name__ == "__main__":
    with world() as _servers, quiet():
        for _kind in (AsyncSQLAlchemy, AsyncPsycopg):
            for _ours in (True, False):
                print(_kind.__name__, "poolkit" if _ours else "own pool", end=" ", flush=True)
                try:
                    print(cancel_statements(_servers, _kind, ours=_ours, seconds=3))
                except Exception as _error:
                    print(repr(_error))
