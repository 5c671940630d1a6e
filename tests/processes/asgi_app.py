"""An ASGI application with asynchronous pools at module level."""

from __future__ import annotations

import json
import os
from typing import Any

import httpx
import redis.asyncio

from poolkit_adapters.httpx import AsyncPoolkitTransport
from poolkit_adapters.psycopg import AsyncPoolkitConnectionPool
from poolkit_adapters.redis import AsyncPoolkitConnectionPool as AsyncRedisPool

cache = redis.asyncio.Redis(connection_pool=AsyncRedisPool.from_url(os.environ["REDIS_URL"], max_connections=3))
service = httpx.AsyncClient(transport=AsyncPoolkitTransport(), base_url=os.environ["HTTP_URL"], trust_env=False)
database: Any = AsyncPoolkitConnectionPool(os.environ["PG_URL"], min_size=1, max_size=3, open=False)


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await receive()
        await database.open(wait=True)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await database.close()
        await service.aclose()
        await cache.aclose()
        await send({"type": "lifespan.shutdown.complete"})
        return
    async with database.connection() as connection:
        [pid] = await (await connection.execute("select pg_backend_pid()")).fetchone()
    client = await cache.client_id()
    port = (await service.get("/echo", params={"key": "x"})).json()["client_port"]
    body = json.dumps({"mine": [os.getpid(), str(pid), str(client), str(port)]}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
