"""What exporters cost: acquire/release pairs with and without them, turn by turn. ``python bench/telemetry.py``

Each turn runs pairs for a second of wall time on one thread and divides the CPU time of the *whole process* by their
number; with exporters, a scrape and a collection are made in that second by another thread.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry, generate_latest

from poolkit import Pool
from poolkit.telemetry.logs import log_events
from poolkit.telemetry.opentelemetry import instrument
from poolkit.telemetry.prometheus import register
from poolkit.telemetry.statsd import StatsdReporter
from poolkit.testing import FakeConnection, FakeConnector


def pairs(pool: Pool[FakeConnection], seconds: float, scrape: Callable[[], object] | None) -> float:
    """CPU seconds of the process for one pair."""
    worker = None
    if scrape is not None:
        worker = threading.Thread(target=lambda: (time.sleep(seconds / 2), scrape()))
    end = time.perf_counter() + seconds
    done = 0
    began = time.process_time()
    if worker is not None:
        worker.start()
    while time.perf_counter() < end:
        acquire, release = pool.acquire, pool.release
        for _ in range(1000):
            release(acquire())
        done += 1000
    if worker is not None:
        worker.join()
    return (time.process_time() - began) / done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=1.0)
    arguments = parser.parse_args()
    pool: Pool[FakeConnection] = Pool(FakeConnector(resets=False), max_size=10, name="bench")
    for connection in [pool.acquire() for _ in range(10)]:
        pool.release(connection)
    registry, reader = CollectorRegistry(), InMemoryMetricReader()
    register(registry, pools=lambda: [pool])
    ratios, bare, costs = [], [], []
    for _ in range(arguments.turns):
        without = pairs(pool, arguments.seconds, None)
        instrumentation = instrument(meter_provider=MeterProvider([reader := InMemoryMetricReader()]))
        stop = log_events()
        statsd = StatsdReporter(interval=arguments.seconds / 2, pools=lambda: [pool])

        def scrape(reader: InMemoryMetricReader = reader) -> None:
            generate_latest(registry)
            reader.get_metrics_data()

        with_all = pairs(pool, arguments.seconds, scrape)
        statsd.close()
        stop()
        instrumentation.close()
        began = time.thread_time()
        generate_latest(registry)
        costs.append(time.thread_time() - began)
        bare.append(without)
        ratios.append(with_all / without)
    pool.close()
    measured = Pool(FakeConnector(resets=False), max_size=10, use_histogram=True)
    plain = Pool(FakeConnector(resets=False), max_size=10)
    more = [pairs(measured, 0.3, None) / pairs(plain, 0.3, None) for _ in range(arguments.turns)]
    print(f"a pair without exporters       {statistics.median(bare) * 1e9:7.0f} ns CPU")
    print(
        f"with Prometheus, OpenTelemetry, statsd and logs attached, a scrape each second: "
        f"x {statistics.median(ratios):.3f} (of {len(ratios)} turns, {min(ratios):.3f} to {max(ratios):.3f})"
    )
    print(f"one Prometheus scrape          {statistics.median(costs) * 1e3:7.2f} ms CPU")
    print(f"use_histogram=True             x {statistics.median(more):.2f}")


if __name__ == "__main__":
    main()
