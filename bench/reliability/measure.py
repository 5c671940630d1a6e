"""Measure one fault under load."""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections import Counter
from dataclasses import asdict, dataclass, field
from types import SimpleNamespace
from typing import Any

from bench.reliability.async_clients import AsyncHTTP2, AsyncHTTPX, AsyncPsycopg, AsyncRedis, AsyncSQLAlchemy
from bench.reliability.clients import HTTP2, HTTPX, Psycopg, Redis, SQLAlchemy
from bench.reliability.cluster_clients import AsyncPrimary, Primary
from bench.reliability.faults import Fault
from bench.reliability.load import Load
from bench.reliability.names import NAME
from bench.reliability.world import World, proxy
from tests.faults.proxy import FaultProxy

__all__ = ("ADAPTERS", "CLUSTERS", "OWN", "Result", "measure", "quiet")

CLUSTERS: dict[str, Any] = {"psycopg-cluster": Primary, "psycopg-cluster-async": AsyncPrimary}
"""Clients of several servers, one of which is wanted; used only for faults of roles."""

ADAPTERS: dict[str, Any] = {
    "sqlalchemy": SQLAlchemy,
    "sqlalchemy-async": AsyncSQLAlchemy,
    "psycopg": Psycopg,
    "psycopg-async": AsyncPsycopg,
    "redis": Redis,
    "redis-async": AsyncRedis,
    "httpx": HTTPX,
    "httpx-async": AsyncHTTPX,
    "httpx-h2": HTTP2,
    "httpx-h2-async": AsyncHTTP2,
}

OWN = {
    "sqlalchemy": "QueuePool",
    "sqlalchemy-async": "AsyncAdaptedQueuePool",
    "psycopg": "psycopg_pool",
    "psycopg-async": "psycopg_pool",
    "redis": "BlockingConnectionPool",
    "redis-async": "BlockingConnectionPool",
    "httpx": "HTTPTransport",
    "httpx-async": "AsyncHTTPTransport",
    "httpx-h2": "HTTPTransport",
    "httpx-h2-async": "AsyncHTTPTransport",
    "psycopg-cluster": "psycopg_pool",
    "psycopg-cluster-async": "psycopg_pool",
}
"""By adapter, the driver's own pool."""

BEFORE, AFTER = 0.3, 0.8


@dataclass(frozen=True)
class Result:
    """The result of a load. Times in seconds; None: did not happen."""

    adapter: str
    fault: str
    pool: str
    requests: int
    failed: int
    wrong: int
    errors: dict[str, int]
    longest: float
    first_answer: float | None
    """From the end of the fault to the first answer to a request that was sent after it."""
    last_failure: float | None
    """From the end of the fault to the last failure."""
    failing_at_end: bool
    """Whether requests still failed in the last 0.2 s."""
    capacity: int
    size: int
    finished: bool
    """Whether every caller ended."""
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@contextlib.contextmanager
def quiet() -> Any:
    """Silence the pools' log, because the faults here are intended."""
    names = ("psycopg", "psycopg.pool", "poolkit", "sqlalchemy.pool", "asyncio", "redis")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def measure(
    world: World, adapter: str, fault: Fault, *, ours: bool, size: int = 4, after: float = AFTER, **settings: Any
) -> Result:
    """Load, fault, and load again."""
    kind = {**ADAPTERS, **CLUSTERS}[adapter]
    world.set_right()
    with contextlib.ExitStack() as stack:
        stack.enter_context(quiet())
        front: Any = None
        made: dict[str, Any] = {"ours": ours, "size": size, **settings}
        name = f"{adapter}-{'poolkit' if ours else 'own'}"
        if kind.kind == "http2":
            made |= {"server": world.http2, "context": world.certificates.client_context()}
            if fault.way == "tls":
                front = stack.enter_context(proxy(("127.0.0.1", int(world.http2.url.rpartition(":")[2]))))
                made["server"] = SimpleNamespace(url=f"https://127.0.0.1:{front.port}")
        elif kind.kind == "cluster":
            made |= {"ports": [world.postgres.port, world.second.port], "name": name}
            world.set_right()  # the second has just begun, as one that writes
        elif fault.way == "tls":
            front = stack.enter_context(proxy(("127.0.0.1", world.redis_tls.tls_port)))
            made |= {"host": front.host, "port": front.port, "name": name, **_redis_tls(world, adapter)}
        else:
            front = stack.enter_context(proxy(world.address(kind.kind)))
            host = NAME if fault.way == "name" and world.resolver is not None else front.host
            made |= {"host": host, "port": front.port, "name": name}
        load = Load(kind, **made)
        load.start()
        time.sleep(BEFORE)
        ended = _strike(world, front, fault)
        time.sleep(after)
        stopped = time.monotonic()
        finished = load.finish()
        if not finished and front is not None:
            front.reset()
            load.finish(3)
    return _result(adapter, fault, load, ours=ours, ended=ended, stopped=stopped, finished=finished)


def _redis_tls(world: World, adapter: str) -> dict[str, Any]:
    """The arguments of redis-py for TLS."""
    import redis
    import redis.asyncio

    authority = world.certificates.authority.cert_pem.bytes().decode()
    module: Any = redis.asyncio if adapter.endswith("async") else redis
    return {"connection_class": module.SSLConnection, "ssl_ca_data": authority}


def _strike(world: World, front: FaultProxy, fault: Fault) -> float:
    """Cause the fault; return the time at which it ended."""
    try:
        fault.begin(world, front)
        time.sleep(fault.seconds)
    finally:
        if fault.end is not None:
            fault.end(world, front)
    return time.monotonic()


def _result(
    adapter: str, fault: Fault, load: Load, *, ours: bool, ended: float, stopped: float, finished: bool
) -> Result:
    requests = list(load.requests)
    failures = [one for one in requests if one.error]
    answers = [one.ended - ended for one in requests if not one.error and one.began >= ended]
    late = [one.ended - ended for one in failures if one.ended >= ended]
    return Result(
        adapter=adapter,
        fault=fault.name,
        pool="poolkit" if ours else OWN[adapter],
        requests=len(requests),
        failed=len(failures),
        wrong=len(load.wrong),
        errors=dict(Counter(one.error or "" for one in failures).most_common()),
        longest=round(max((one.ended - one.began for one in requests), default=0.0), 3),
        first_answer=round(min(answers), 3) if answers else None,
        last_failure=round(max(late), 3) if late else None,
        failing_at_end=any(one.ended > stopped - 0.2 for one in failures),
        capacity=load.capacity,
        size=load.size,
        finished=finished,
        notes=load.wrong[:3],
    )
