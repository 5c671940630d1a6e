"""What OpenTelemetry's SDK collects, through its in-memory readers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import httpx
import psycopg
import pytest
import redis
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from poolkit import AcquireTimeout, Pool
from poolkit._fast import decline_put, decline_take
from poolkit.telemetry.opentelemetry import instrument
from poolkit.testing import FakeConnector
from poolkit.testing.servers import HTTPServer, PostgresServer, RedisServer
from poolkit_adapters.dbapi import PooledDatabase
from poolkit_adapters.httpx import PoolkitTransport
from poolkit_adapters.redis import PoolkitConnectionPool


class Collected:
    """The SDK's side: a reader, a provider, and what one collection gives."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader])

    def points(self, pool: str | None = None) -> dict[str, list[Any]]:
        """The points by metric; of one pool, if named."""
        found: dict[str, list[Any]] = {}
        data = self.reader.get_metrics_data()
        for resource in data.resource_metrics if data is not None else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        if pool in (None, point.attributes.get("db.client.connection.pool.name")):
                            found.setdefault(metric.name, []).append(point)
        return found


@pytest.fixture
def sdk() -> Iterator[Collected]:
    collected = Collected()
    yield collected
    collected.provider.shutdown()


def test_a_database_pool_by_the_semantic_conventions(sdk: Collected, postgres: PostgresServer) -> None:
    instrumentation = instrument(meter_provider=sdk.provider)
    with PooledDatabase(psycopg, postgres.url, max_size=2, min_size=1, name="orders-db") as db:
        with db.connect() as connection:
            connection.execute("select 1")
        held = [db.connect(), db.connect()]
        with pytest.raises(AcquireTimeout):
            db.connect(0.02)
        points = sdk.points("orders-db")
        for connection in held:
            connection.close()
        instrumentation.close()
    states = {p.attributes["db.client.connection.state"]: p.value for p in points["db.client.connection.count"]}
    assert states == {"idle": 0, "used": 2}
    single = {name: found[0].value for name, found in points.items() if len(found) == 1 and hasattr(found[0], "value")}
    assert single["db.client.connection.max"] == 2
    assert single["db.client.connection.idle.max"] == 2
    assert single["db.client.connection.idle.min"] == 1
    assert single["db.client.connection.pending_requests"] == 0
    assert single["db.client.connection.timeouts"] == 1
    (created,) = points["db.client.connection.create_time"]
    assert created.count == 2
    assert 0 < created.sum < 10
    assert tuple(created.explicit_bounds)[:2] == (0.0001, 0.0005)  # redis-py's
    (waited,) = points["db.client.connection.wait_time"]
    assert waited.count >= 2
    assert "db.client.connection.use_time" not in points


def test_the_lock_free_way_stays_open_unless_leases_are_measured(sdk: Collected) -> None:
    with Pool(FakeConnector(resets=False), name="db") as pool:
        instrumentation = instrument(meter_provider=sdk.provider)
        assert pool._take is not decline_take
        assert pool._put is not decline_put
        instrumentation.close()
        instrumentation = instrument(meter_provider=sdk.provider, use_time=True)
        for _ in range(3):
            with pool.lease():
                pass
        (use,) = sdk.points("db")["db.client.connection.use_time"]
        assert use.count == 3
        instrumentation.close()
        assert pool._put is not decline_put


def test_http_connections_have_their_own_names(sdk: Collected, http_server: HTTPServer) -> None:
    instrumentation = instrument(meter_provider=sdk.provider)
    with httpx.Client(transport=PoolkitTransport()) as client:
        client.get(http_server.url)
        points = sdk.points()
    closed = sdk.points()
    instrumentation.close()
    mine = [p for p in points["http.client.open_connections"] if p.attributes["server.port"] == http_server.port]
    assert {p.attributes["http.connection.state"]: p.value for p in mine} == {"idle": 1, "active": 0}
    assert {p.attributes["server.address"] for p in mine} == {"127.0.0.1"}
    assert {p.attributes["url.scheme"] for p in mine} == {"http"}
    assert [p.value for p in points["http.client.active_requests"]] == [0]
    (life,) = closed["http.client.connection.duration"]
    assert life.count == 1
    names = {point.attributes["poolkit.pool.name"] for point in points["poolkit.http.wait_time"]}
    counted = {p.attributes["db.client.connection.pool.name"] for p in points.get("db.client.connection.count", ())}
    assert not names & counted


def test_what_redis_py_reports_itself_is_not_counted_twice(
    sdk: Collected, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    instrumentation = instrument(meter_provider=sdk.provider)
    names = {"db.client.connection.count", "db.client.connection.create_time", "db.client.connection.timeouts"}
    own: list[bool] = [False]
    monkeypatch.setattr("poolkit_adapters.redis._connectors.SyncConnector.own_metrics", staticmethod(lambda: own[0]))
    pool = PoolkitConnectionPool.from_url(redis_server.url)
    with redis.Redis(connection_pool=pool) as client:
        client.ping()
        name = pool.poolkit.name
        assert names <= set(sdk.points(name))
        own[0] = True
        again = sdk.points(name)
        pool.close()
    instrumentation.close()
    assert {"db.client.connection.max", "db.client.connection.pending_requests"} <= set(again)
    assert not {"db.client.connection.count", "db.client.connection.timeouts"} & set(again)


def test_a_wait_is_a_span_in_the_context_of_its_caller(sdk: Collected) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentation = instrument(meter_provider=sdk.provider, tracer_provider=provider, spans=True)
    with Pool(FakeConnector(connect=0.02), max_size=1, name="orders-db") as pool:
        with provider.get_tracer("app").start_as_current_span("request") as parent:
            held = pool.acquire()  # waits for a connect
            with pytest.raises(AcquireTimeout):
                pool.acquire(timeout=0.01)
            pool.release(held)
            pool.release(pool.acquire())  # found it idle: no span
        instrumentation.close()
    spans = [span for span in exporter.get_finished_spans() if span.name == "pool.acquire"]
    assert len(spans) == 2
    for span in spans:
        assert span.parent is not None
        assert span.parent.span_id == parent.get_span_context().span_id
        assert span.attributes is not None
        assert span.attributes["db.client.connection.pool.name"] == "orders-db"
        assert span.start_time is not None
        assert span.end_time is not None
        assert span.end_time > span.start_time
    assert (spans[0].end_time or 0) - (spans[0].start_time or 0) >= 15_000_000
    assert spans[1].status.status_code is StatusCode.ERROR
    assert spans[1].events[0].name == "exception"


def test_failures_leaks_and_closes_are_counted(sdk: Collected) -> None:
    instrumentation = instrument(meter_provider=sdk.provider)
    connector = FakeConnector()
    with Pool(connector, max_size=1, name="db", acquire_timeout=0.05) as pool:
        connector.fail("connect", lambda: ConnectionRefusedError("no"))
        with pytest.raises(AcquireTimeout):
            pool.acquire()
        connector.fail("connect", None)
        pool.release(pool.acquire(timeout=5), discard=True)
        points = sdk.points("db")
    instrumentation.close()
    assert points["poolkit.connection.errors"][0].attributes["error.type"] == "ConnectionRefusedError"
    assert points["poolkit.connection.closed"][0].attributes["poolkit.close.reason"] == "discarded"
    assert points["poolkit.connection.limit"][0].value == 1


def test_without_the_api_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ImportError, match=r"pip install 'poolkit\[opentelemetry\]'"):
        instrument()
