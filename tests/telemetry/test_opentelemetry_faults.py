"""Providers and exporters of OpenTelemetry that raise or hang: told of once, tried again, and in nobody's way."""

from __future__ import annotations

import logging
import os
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

from poolkit import AcquireTimeout, Pool
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
        instrumentation._metrics.catch_up(PATIENCE)
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
    assert "OpenTelemetry's metrics: failed, and is tried again: ValueError: the exporter" in caplog.text


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
        "OpenTelemetry's spans: failed, and is tried again: ValueError: no"
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
        "a test: it takes too long: 3 calls wait, and what comes beyond that is dropped"
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
    assert "no thread can be started for it" in caplog.text


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
