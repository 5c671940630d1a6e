"""Providers and exporters of OpenTelemetry that raise or hang: told of once, tried again, and in nobody's way."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry import context, trace
from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from poolkit import AcquireTimeout, Pool, UsageError
from poolkit.telemetry import _aside
from poolkit.telemetry._aside import Aside
from poolkit.telemetry.opentelemetry import instrument
from poolkit.testing import FakeConnector
from tests.support.waiting import PATIENCE, until


class Exporter(SpanExporter):
    """Does what the test says before it keeps a span."""

    def __init__(self, before: Callable[[], object]) -> None:
        self.before, self.kept = before, InMemorySpanExporter()

    def export(self, spans: Any) -> SpanExportResult:
        self.before()
        return self.kept.export(spans)


def provider_of(before: Callable[[], object]) -> tuple[TracerProvider, Exporter]:
    exporter, provider = Exporter(before), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider, exporter


def acquires(exporter: Exporter) -> list[ReadableSpan]:
    return [span for span in exporter.kept.get_finished_spans() if span.name == "pool.acquire"]


def wait_in_vain(pool: Pool[Any]) -> None:
    with pytest.raises(AcquireTimeout):
        pool.acquire(0.001)


def test_a_recorder_that_raises_is_told_of_once_and_gets_the_next_numbers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Every kind of instrument, whether an event or a wait is told to it."""
    reader = InMemoryMetricReader()
    instrumentation = instrument(meter_provider=MeterProvider([reader]))
    failing = True
    for kind, name in ((Histogram, "record"), (Counter, "add")):
        for one in {type(instrumentation._create), type(instrumentation._closed)}:
            if issubclass(one, kind):
                really = getattr(one, name)

                def flaky(*args: Any, really: Any = really, **options: Any) -> Any:
                    if failing:
                        raise ValueError("the exporter has a bad day")
                    return really(*args, **options)

                monkeypatch.setattr(one, name, flaky)

    def cycle(pool: Pool[Any]) -> None:
        pool.release(pool.acquire(PATIENCE), discard=True)

    with caplog.at_level(logging.WARNING, "poolkit"), Pool(FakeConnector(), name="db", max_size=1) as pool:
        for _ in range(3):
            cycle(pool)
        instrumentation.metrics.catch_up(PATIENCE)
        failing = False
        cycle(pool)
        until(lambda: pool.stats().closes.get("discarded", 0) == 4)
        found = {
            metric.name: sum(getattr(point, "count", None) or point.value for point in metric.data.data_points)  # type: ignore[union-attr]
            for resource in reader.get_metrics_data().resource_metrics  # type: ignore[union-attr]
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name in ("poolkit.connection.closed", "db.client.connection.create_time",
                               "db.client.connection.wait_time")
        }  # fmt: skip
    instrumentation.close()
    assert found == {"poolkit.connection.closed": 1, "db.client.connection.create_time": 1,
                     "db.client.connection.wait_time": 1}  # fmt: skip
    assert len(caplog.records) == 1
    assert "OpenTelemetry's metrics: failed; later calls are still made: ValueError: the exporter" in caplog.text


def test_a_span_processor_that_raises_is_told_of_once_and_gets_the_next_spans(
    caplog: pytest.LogCaptureFixture,
) -> None:
    left = [3]

    def fail() -> None:
        if left[0]:
            left[0] -= 1
            raise ValueError("no")

    provider, exporter = provider_of(lambda: None)
    really = provider._active_span_processor.on_end
    provider._active_span_processor.on_end = lambda span: (fail(), really(span))  # type: ignore[method-assign]
    instrumentation = instrument(tracer_provider=provider, spans=True)
    with caplog.at_level(logging.WARNING, "poolkit"), Pool(FakeConnector(), max_size=1) as pool, pool.lease():
        count = len(acquires(exporter))
        for _ in range(5):
            wait_in_vain(pool)
        instrumentation.close()
    assert count == 0
    assert len(acquires(exporter)) >= 2
    assert [record.getMessage() for record in caplog.records if "OpenTelemetry" in record.getMessage()] == [
        "OpenTelemetry's spans: failed; later calls are still made: ValueError: no"
    ]


def test_an_exporter_that_hangs_holds_up_no_caller_and_no_metric() -> None:
    """The callers' threads would stand in it for as long as it hangs; their spans come when it goes on."""
    entered, go_on = threading.Event(), threading.Event()

    def hang() -> None:
        entered.set()
        assert go_on.wait(PATIENCE)

    provider, exporter = provider_of(hang)
    reader = InMemoryMetricReader()
    instrumentation = instrument(meter_provider=MeterProvider([reader]), tracer_provider=provider, spans=True)
    with Pool(FakeConnector(), max_size=1) as pool:
        with trace.get_tracer("t", tracer_provider=provider).start_as_current_span("caller", end_on_exit=False) as span:
            with pool.lease():
                for _ in range(3):
                    wait_in_vain(pool)
                assert entered.wait(PATIENCE)
                assert not acquires(exporter)  # everything above has ended while it hangs
                assert reader.get_metrics_data() is not None
        go_on.set()
        instrumentation.close()
    assert len(acquires(exporter)) >= 3
    assert {one.parent.span_id for one in acquires(exporter) if one.parent} == {span.get_span_context().span_id}


def test_calls_are_made_in_order_and_too_many_are_dropped_and_told_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_aside, "MOST", 3)
    made: list[int] = []
    aside = Aside("a test")
    with aside._turn:
        for number in range(10):
            aside.do(lambda number=number: made.append(number))  # type: ignore[misc]
    aside.close(PATIENCE)
    assert made == [0, 1, 2]
    assert [record.getMessage() for record in caplog.records] == [
        "a test: it is too slow: 3 calls are queued, and further ones are dropped"
    ]


def test_where_no_thread_can_be_started_the_collection_makes_the_calls(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        aside = Aside("a test")
    made: list[object] = []
    aside.do(lambda: made.append(context.get_current()))
    assert not made
    aside.catch_up(PATIENCE)
    assert len(made) == 1
    aside.close()
    assert "no thread can be started for its calls" in caplog.text


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_a_thread_of_its_own() -> None:
    aside = Aside("a test")
    with aside._turn:  # another thread of the parent may have it
        child = os.fork()
        if child == 0:
            made = threading.Event()
            aside.do(made.set)
            os._exit(0 if made.wait(PATIENCE) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    aside.close()


# -- a second call ----------------------------------------------------------------------------------------------------


def gauge(reader: InMemoryMetricReader, name: str = "db.client.connection.max") -> list[Any]:
    """The values of a metric, of the pool "only-here"."""
    data = reader.get_metrics_data()
    return [
        point.value if hasattr(point, "value") else point.count
        for resource in (data.resource_metrics if data is not None else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == name
        for point in metric.data.data_points
        if point.attributes.get("db.client.connection.pool.name") == "only-here"  # other tests may have left pools
    ]


def test_a_second_call_for_one_provider_is_refused_and_counts_nothing_twice() -> None:
    reader = InMemoryMetricReader()
    provider, other = MeterProvider([reader]), MeterProvider()
    tracers, _ = provider_of(lambda: None)
    with Pool(FakeConnector(), name="only-here") as pool:
        first = instrument(meter_provider=provider, tracer_provider=tracers, spans=True)
        with pytest.raises(
            UsageError, match="already reports to this meter provider, and everything would be counted twice"
        ):
            instrument(meter_provider=provider)
        with pytest.raises(UsageError, match="already reports to this tracer provider"):
            instrument(meter_provider=other, tracer_provider=tracers, spans=True)
        second = instrument(meter_provider=other)  # one of its own each
        pool.release(pool.acquire(), discard=True)
        until(lambda: pool.stats().closes.get("discarded", 0) == 1)
        assert gauge(reader, "poolkit.connection.closed") == [1]
        first.close()
        second.close()


def test_after_the_end_of_the_first_a_second_call_reports_everything_again() -> None:
    """The SDK keeps the instruments of the first, and does not ask those of the second."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    with Pool(FakeConnector(), name="only-here", max_size=7):
        first = instrument(meter_provider=provider)
        assert gauge(reader) == [7]
        first.close()
        first.close()
        assert gauge(reader) == []
        second = instrument(meter_provider=provider)
        first.close()  # once more: nothing of the second
        assert gauge(reader) == [7]
        second.close()


GLOBAL = """
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from poolkit import Pool, UsageError
from poolkit.telemetry.opentelemetry import instrument
from poolkit.testing import FakeConnector

def names():
    data = reader.get_metrics_data()
    return [metric.name for resource in data.resource_metrics for scope in resource.scope_metrics
            for metric in scope.metrics] if data else []

pool = Pool(FakeConnector(), name="db")
first = instrument()  # before there is a provider
reader = InMemoryMetricReader()
provider = MeterProvider([reader])
metrics.set_meter_provider(provider)
assert "db.client.connection.max" in names()
for options in ({}, {"meter_provider": provider}):
    try:
        instrument(**options)
    except UsageError:
        continue
    raise AssertionError(options)
first.close()
assert not names(), names()
second = instrument(meter_provider=provider)
assert "db.client.connection.max" in names()
second.close()
pool.close()
"""


def test_a_provider_that_is_set_after_the_first_call_is_the_same_place() -> None:
    subprocess.run([sys.executable, "-c", GLOBAL], check=True, timeout=PATIENCE)


def test_in_a_collection_each_pool_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = InMemoryMetricReader()
    with Pool(FakeConnector(), name="only-here") as pool:
        looks: list[Any] = []
        really = Pool.stats
        monkeypatch.setattr(Pool, "stats", lambda self: (looks.append(self), really(self))[1])
        instrumentation = instrument(meter_provider=MeterProvider([reader]))
        for count in (1, 2, 3):
            assert gauge(reader, "db.client.connection.count") != []
            assert looks.count(pool) == count
        instrumentation.close()
