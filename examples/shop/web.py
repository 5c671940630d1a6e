"""The same service with threads: Flask, SQLAlchemy, redis-py and httpx.

``flask --app examples.shop.web run``, or any WSGI server, with DATABASE_URL, REDIS_URL and PRICES_URL.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import redis
from flask import Flask, abort
from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine import make_url

import poolkit
from poolkit.frameworks.flask import FlaskPools
from poolkit.telemetry import prometheus
from poolkit_adapters.httpx import Client
from poolkit_adapters.redis import PoolkitConnectionPool
from poolkit_adapters.sqlalchemy import PoolkitPool

log = logging.getLogger("shop")
SETTINGS = Path(__file__).with_name("pools.toml")


def settings(name: str) -> poolkit.PoolConfig:
    return poolkit.load(name, file=SETTINGS)


def database(app: object = None) -> Engine:
    url = make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+psycopg")
    return create_engine(url, poolclass=PoolkitPool, config=settings("shop-db"), name="shop-db")


def cache(app: object = None) -> redis.Redis:
    pool = PoolkitConnectionPool.from_url(
        os.environ["REDIS_URL"], config=settings("shop-cache"), name="shop-cache", decode_responses=True
    )
    return redis.Redis.from_pool(pool)


def prices(app: object = None) -> Client:
    return Client(base_url=os.environ["PRICES_URL"], config=settings("shop-prices"), name="shop-prices")


# each application has pools of its own, created at their first use: after the fork of a server that preloads
pools = FlaskPools({"db": database, "cache": cache, "prices": prices})
app = Flask("shop")
pools.init_app(app)
registry = CollectorRegistry()
prometheus.register(registry)


@app.errorhandler(poolkit.PoolError)
def unavailable(error: poolkit.PoolError) -> tuple[dict[str, str], int, dict[str, str]]:
    log.warning("%s", error)
    return {"error": type(error).__name__}, 503, {"Retry-After": "1"}


@app.get("/orders/<int:number>")
def order(number: int) -> dict[str, Any]:
    known = pools["cache"].get(f"order:{number}")
    if known is not None:
        return {"order": number, "text": known, "from": "cache"}
    with pools["db"].connect() as connection:
        found = connection.scalar(text("select text from orders where number = :number"), {"number": number})
    if found is None:
        abort(404)
    pools["prices"].get("/")  # no connection of the database is held during this call
    pools["cache"].set(f"order:{number}", found, ex=60)
    return {"order": number, "text": found, "from": "database"}


@app.get("/metrics")
def metrics() -> tuple[bytes, int, dict[str, str]]:
    return generate_latest(registry), 200, {"Content-Type": "text/plain; version=0.0.4"}
