"""*exporters*: what it costs a pool that everything watches it. CPU time of the whole process."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from bench.turns import Run, quiet_gc
from poolkit import Pool
from poolkit.testing import FakeConnection, FakeConnector

__all__ = ("run",)

_EXPORTED = "poolkit, exporters"
_SIZE = 10
_BLOCK = 1000  # pairs between two looks at the time


def run(bench: Run) -> None:
    """Pairs of acquire and release for as long as from one scrape to the next, with and without exporters."""
    seconds, repeat = bench.pick(0.05, 0.5, 1.0), bench.pick(1, 2, 15)
    bench.say(f"3 pools, {repeat} times {seconds} s")
    pools = {
        "poolkit": Pool(FakeConnector(resets=False), max_size=_SIZE, name="bench"),
        "poolkit, use_histogram": Pool(FakeConnector(resets=False), max_size=_SIZE, use_histogram=True, name="bench"),
        _EXPORTED: Pool(FakeConnector(resets=False), max_size=_SIZE, name="bench"),
    }
    for pool in pools.values():
        for connection in [pool.acquire() for _ in range(_SIZE)]:
            pool.release(connection)
        _pairs(pool, 0.0, None)
    for turn in bench.turns(list(pools), repeat):
        with turn as name:
            pool = pools[name]
            with contextlib.ExitStack() as stack:
                watch = stack.enter_context(_watched(pool, seconds)) if name == _EXPORTED else None
                bench.add(name, "cpu", "us", _pairs(pool, seconds, watch), world="threads")
                if watch is not None:
                    begun = time.thread_time()
                    watch()
                    bench.add(name, "a scrape and a collection", "ms", (time.thread_time() - begun) * 1000)
    for pool in pools.values():
        pool.close()


@contextlib.contextmanager
def _watched(pool: Pool[FakeConnection], seconds: float) -> Iterator[Callable[[], object]]:
    """Prometheus, OpenTelemetry, statsd and logs attached; what is given reads the first two as a scrape does."""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from prometheus_client import CollectorRegistry, generate_latest

    from poolkit.telemetry.logs import log_events
    from poolkit.telemetry.opentelemetry import instrument
    from poolkit.telemetry.prometheus import register
    from poolkit.telemetry.statsd import StatsdReporter

    registry, reader = CollectorRegistry(), InMemoryMetricReader()
    register(registry, pools=lambda: [pool])
    instrumentation = instrument(meter_provider=MeterProvider([reader]))
    stop = log_events()
    statsd = StatsdReporter(interval=seconds / 2, pools=lambda: [pool])
    try:
        yield lambda: (generate_latest(registry), reader.get_metrics_data())
    finally:
        statsd.close()
        stop()
        instrumentation.close()


def _pairs(pool: Pool[FakeConnection], seconds: float, scrape: Callable[[], object] | None) -> float:
    """Microseconds of CPU for one pair, with one ``scrape`` in the middle of the time."""
    reader = None if scrape is None else threading.Timer(seconds / 2, scrape)
    done, end = 0, time.perf_counter() + seconds
    with quiet_gc():
        begun = time.process_time_ns()
        if reader is not None:
            reader.start()
        while not done or time.perf_counter() < end:
            acquire, release = pool.acquire, pool.release  # as a caller would: the pool may have replaced them
            for _ in range(_BLOCK):
                release(acquire())
            done += _BLOCK
        if reader is not None:
            reader.join()
        return (time.process_time_ns() - begun) / done / 1000
