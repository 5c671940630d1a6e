"""A service on three pools: PostgreSQL through SQLAlchemy, Redis, and another HTTP service.

``uvicorn examples.shop.service:app``, with DATABASE_URL, REDIS_URL and PRICES_URL in the environment.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import redis.asyncio
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, make_asgi_app
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from starlette.routing import Mount, Route

import poolkit
from poolkit.dashboard import DashboardApp
from poolkit.frameworks.asgi import PoolLifespan
from poolkit.telemetry import prometheus
from poolkit.telemetry.alerts import Alert, Alerts
from poolkit_adapters.httpx import AsyncClient
from poolkit_adapters.redis import AsyncPoolkitConnectionPool
from poolkit_adapters.sqlalchemy import AsyncPoolkitPool

log = logging.getLogger("shop")
SETTINGS = Path(__file__).with_name("pools.toml")


# -- the pools: one line of each driver, settings from pools.toml and POOLKIT_* ----------------------------------------


def settings(name: str) -> poolkit.PoolConfig:
    return poolkit.load(name, file=SETTINGS)


def database() -> AsyncEngine:
    url = make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+asyncpg")
    return create_async_engine(url, poolclass=AsyncPoolkitPool, config=settings("shop-db"), name="shop-db")


def cache() -> redis.asyncio.Redis:
    pool = AsyncPoolkitConnectionPool.from_url(
        os.environ["REDIS_URL"], config=settings("shop-cache"), name="shop-cache", decode_responses=True
    )
    return redis.asyncio.Redis.from_pool(pool)


def prices() -> AsyncClient:
    return AsyncClient(base_url=os.environ["PRICES_URL"], config=settings("shop-prices"), name="shop-prices")


# -- alerts, metrics, and the order of start and stop ------------------------------------------------------------------


def told(alert: Alert) -> None:
    log.warning("%s: %s: %s", alert.severity, alert.pool, alert.text)


@asynccontextmanager
async def watched(app: FastAPI) -> AsyncIterator[None]:
    """Alerts run while the pools are open."""
    alerts = Alerts(callback=told)
    try:
        yield
    finally:
        alerts.close()


registry = CollectorRegistry()
prometheus.register(registry)
pools = PoolLifespan(
    {"db": database, "cache": cache, "prices": prices},
    inside=watched,
    connect="try",  # start even if a server is down: that is logged, and the readiness endpoint reports it
    drain_timeout=10,  # seconds for open leases at shutdown
)
app = FastAPI(
    lifespan=pools,
    routes=[
        Route("/ready", pools.ready),
        Mount("/metrics", make_asgi_app(registry)),
        Mount("/pools", DashboardApp()),  # behind the service's own access control
    ],
)


# -- errors: one answer for "no connection", whatever the driver -------------------------------------------------------


@app.exception_handler(poolkit.PoolError)
async def unavailable(request: Request, error: Exception) -> JSONResponse:
    """An exhausted pool, a server that is down, an open breaker: the client may try again."""
    log.warning("%s: %s", request.url.path, error)
    return JSONResponse({"error": type(error).__name__}, status_code=503, headers={"Retry-After": "1"})


# -- requests ----------------------------------------------------------------------------------------------------------


@app.get("/orders/{number}")
async def order(number: int, request: Request) -> dict[str, Any]:
    known = await request.state.cache.get(f"order:{number}")
    if known is not None:
        return {"order": number, "text": known, "from": "cache"}
    async with request.state.db.connect() as connection:
        found = await connection.scalar(text("select text from orders where number = :number"), {"number": number})
    if found is None:
        raise HTTPException(404)
    await request.state.prices.get("/")  # no connection of the database is held during this call
    await request.state.cache.set(f"order:{number}", found, ex=60)
    return {"order": number, "text": found, "from": "database"}


@app.get("/report")
async def report(request: Request, seconds: float = 1.0) -> dict[str, float]:
    """A slow statement holds its connection; five of them exhaust the pool."""
    async with request.state.db.connect() as connection:
        await connection.execute(text("select pg_sleep(:seconds)"), {"seconds": seconds})
    return {"seconds": seconds}
