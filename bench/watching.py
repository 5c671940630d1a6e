"""What watching many pools costs: CPU time of the watched process, and bytes. ``python bench/watching.py``

Pools with leases that threads hold are watched in each way: by readers of the dashboard, by a scrape of Prometheus, by
a collection of OpenTelemetry and by a report to statsd. A reader does what the page does: it asks for the state, and
for all about one pool that is open. The CPU time of the reader's own thread does not count.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import logging
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

from poolkit import Pool
from poolkit.dashboard import start
from poolkit.telemetry.statsd import StatsdReporter
from poolkit.testing import FakeConnection, FakeConnector


@contextlib.contextmanager
def load(pools: int, leases: int, spare: int) -> Iterator[None]:
    """So many pools, each with its part of the leases and ``spare`` connections that it may still open."""
    each = leases // pools
    with contextlib.ExitStack() as stack:
        made: list[Pool[FakeConnection]] = [
            stack.enter_context(Pool(FakeConnector(), max_size=each + spare, name=f"pool-{number}", debug=True))
            for number in range(pools)
        ]
        over, ready = threading.Event(), threading.Barrier(21)

        def hold(mine: list[Pool[FakeConnection]]) -> None:
            with contextlib.ExitStack() as held:
                for pool in mine:
                    for _ in range(each):
                        held.enter_context(pool.lease())
                ready.wait()
                over.wait()

        threads = [
            threading.Thread(target=hold, args=(made[number::20],), name=f"worker-{number}") for number in range(20)
        ]
        for thread in threads:
            thread.start()
        try:
            ready.wait()
            yield
        finally:
            over.set()
            for thread in threads:
                thread.join()


class Reader:
    """A page that is open in a browser."""

    def __init__(self, address: str) -> None:
        self._at = address.rpartition("/")[2]
        self.bytes = 0

    def look(self) -> None:
        state = json.loads(self._ask("/api/state"))
        opened = state["pools"][0]
        if "settings" not in opened:
            self._ask(f"/api/pools/{opened['id']}")

    def _ask(self, path: str) -> bytes:
        connection = http.client.HTTPConnection(self._at)
        with contextlib.closing(connection):
            connection.request("GET", path)
            body = connection.getresponse().read()
        self.bytes += len(body)
        return body


def others(work: Callable[[], object], seconds: float) -> float:
    """CPU seconds that all other threads of this process use in this time, in which ``work`` is done once a second."""
    process, mine, end = time.process_time(), time.thread_time(), time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        work()
        time.sleep(max(0.0, 1.0 - (time.perf_counter() - began)))
    return (time.process_time() - process) - (time.thread_time() - mine)


def once(work: Callable[[], object], times: int = 9) -> float:
    """Median CPU seconds of one call."""
    work()
    found = []
    for _ in range(times):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return statistics.median(found)


def _look(readers: list[Reader]) -> None:
    for reader in readers:
        reader.look()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pools", type=int, default=200)
    parser.add_argument("--leases", type=int, default=2000)
    parser.add_argument("--spare", type=int, default=10, help="0: every pool is exhausted")
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    logging.getLogger("poolkit").setLevel(logging.ERROR)  # so many pools at one place are meant here
    with load(arguments.pools, arguments.leases, arguments.spare):
        with start(port=0) as dashboard:
            seconds = arguments.seconds
            nobody = others(lambda: None, seconds) / seconds
            readers = {}
            for count in (1, 4):
                many = [Reader(dashboard.address) for _ in range(count)]
                spent = others(partial(_look, many), seconds) / seconds
                readers[count] = spent, sum(one.bytes for one in many) / seconds / count
        print(f"{arguments.pools} pools, {arguments.leases} leases; CPU time of the watched process")
        print(f"dashboard open, nobody looks             {nobody * 1e3:7.1f} ms a second")
        for count, (spent, size) in readers.items():
            title = f"{count} reader{'s' if count > 1 else ' '}, one look a second each"
            print(f"{title:40} {spent * 1e3:7.1f} ms a second, of which readers {(spent - nobody) * 1e3:.1f}; "
                  f"{size / 1e3:.0f} kB each")  # fmt: skip
        print(f"a scrape by Prometheus                   {once(scrape()) * 1e3:7.1f} ms")
        print(f"a collection by OpenTelemetry            {once(collection()) * 1e3:7.1f} ms")
        reporter = StatsdReporter(interval=3600)
        print(f"a report to statsd                       {once(reporter.send) * 1e3:7.1f} ms")
        reporter.close()


def scrape() -> Callable[[], object]:
    from prometheus_client import CollectorRegistry, generate_latest

    from poolkit.telemetry.prometheus import register

    registry = CollectorRegistry()
    register(registry)
    return lambda: generate_latest(registry)


def collection() -> Callable[[], object]:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    from poolkit.telemetry.opentelemetry import instrument

    reader = InMemoryMetricReader()
    instrument(meter_provider=MeterProvider([reader]))
    return reader.get_metrics_data


if __name__ == "__main__":
    main()
