"""What a scrape gives, read by Prometheus' own parser."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from poolkit import AutoscaleConfig, ConfigError, Pool, UsageError
from poolkit.telemetry.families import FAMILIES
from poolkit.telemetry.prometheus import PoolCollector, register
from poolkit.testing import FakeConnector
from poolkit.testing.servers import PostgresServer
from poolkit_adapters.dbapi import PooledDatabase
from tests.support.waiting import PATIENCE

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def scrape(registry: CollectorRegistry) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse_text(generate_latest(registry).decode())
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[(name, frozenset(labels.items()))]


def test_a_scrape_tells_the_state_of_a_pool_on_a_real_server(
    registry: CollectorRegistry, postgres: PostgresServer
) -> None:
    with PooledDatabase(psycopg, postgres.url, max_size=4, name="orders-db", use_histogram=True) as db:
        register(registry, pools=lambda: [db.poolkit])
        with db.connect() as connection:
            connection.execute("select 1")
        held = db.connect()
        found = scrape(registry)
        held.close()
    states = {state: value(found, "poolkit_connections", pool="orders-db", state=state)
              for state in ("idle", "in_use", "connecting", "checking", "resetting", "closing")}  # fmt: skip
    assert states["in_use"] == 1
    assert sum(states.values()) == 1
    assert value(found, "poolkit_connections_max", pool="orders-db") == 4
    assert value(found, "poolkit_acquires_total", pool="orders-db") == 2
    assert value(found, "poolkit_connects_total", pool="orders-db") == 1
    assert value(found, "poolkit_connections_closed_total", pool="orders-db", reason="error") == 0  # known ones are 0
    assert value(found, "poolkit_acquire_seconds_count", pool="orders-db") == 2
    assert value(found, "poolkit_use_seconds_count", pool="orders-db") == 1
    assert value(found, "poolkit_connect_seconds_bucket", pool="orders-db", le="10.0") == 1
    assert value(found, "poolkit_connect_seconds_bucket", pool="orders-db", le="+Inf") == 1
    assert 0 < value(found, "poolkit_connect_seconds_sum", pool="orders-db") < 10
    assert value(found, "poolkit_longest_lease_seconds", pool="orders-db") > 0


def test_openmetrics_accepts_it_too(registry: CollectorRegistry) -> None:
    with Pool(FakeConnector(), name='odd "name"\\') as pool, pool.lease():
        register(registry, pools=lambda: [pool])
        names = {family.name for family in parse_openmetrics(generate_openmetrics(registry).decode())}
    assert names == {family.name for family in FAMILIES}


def test_two_pools_of_one_name_are_added_up(registry: CollectorRegistry) -> None:
    with Pool(FakeConnector(), name="db", max_size=2) as one, Pool(FakeConnector(), name="db", max_size=3) as other:
        register(registry, pools=lambda: [one, other])
        with one.lease(), other.lease():
            found = scrape(registry)
    assert value(found, "poolkit_connections_max", pool="db") == 5
    assert value(found, "poolkit_connections", pool="db", state="in_use") == 2
    assert value(found, "poolkit_acquire_seconds_count", pool="db") == 2


def test_an_elastic_pool_tells_how_many_it_may_have_now(registry: CollectorRegistry) -> None:
    with Pool(FakeConnector(), name="db", min_size=2, max_size=8, autoscale=AutoscaleConfig()) as pool:
        register(registry, pools=lambda: [pool])
        found = scrape(registry)
        assert value(found, "poolkit_connections_limit", pool="db") == pool.stats().limit < 8
        assert value(found, "poolkit_connections_max", pool="db") == 8


def test_a_pool_without_a_limit_has_no_maximum(registry: CollectorRegistry) -> None:
    with Pool(FakeConnector(), name="db", max_size=None) as pool:
        register(registry, pools=lambda: [pool])
        names = {name for name, _ in scrape(registry)}
        assert not names & {"poolkit_connections_max", "poolkit_connections_limit"}


WORKER = """
import sys, time
from poolkit import Pool
from poolkit.telemetry.prometheus import PoolCollector
from poolkit.testing import FakeConnector
pool = Pool(FakeConnector(), name="db", max_size=2)
collector = PoolCollector(interval=0.05)
for _ in range(int(sys.argv[1])):
    with pool.lease():
        pass
held = pool.lease()
print("ready", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def workers(shared: Path) -> Iterator[list[subprocess.Popen[str]]]:
    started = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(turns)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                         text=True)
        for turns in (10, 20)
    ]  # fmt: skip
    try:
        for worker in started:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        yield started
    finally:
        for worker in started:
            worker.kill()
            worker.communicate()


def test_any_process_of_a_service_gives_the_sum_over_all(
    registry: CollectorRegistry, workers: list[subprocess.Popen[str]]
) -> None:
    """As under gunicorn: the scrape reaches one worker, the others have left their numbers."""
    with Pool(FakeConnector(), name="db", max_size=2) as pool:
        collector = register(registry, pools=lambda: [pool])
        with pool.lease():
            deadline = time.monotonic() + PATIENCE
            while value(found := scrape(registry), "poolkit_acquires_total", pool="db") < 33:
                assert time.monotonic() < deadline, found
                time.sleep(0.02)
            assert value(found, "poolkit_acquires_total", pool="db") == 10 + 1 + 20 + 1 + 1
            assert value(found, "poolkit_connections", pool="db", state="in_use") == 3
            assert value(found, "poolkit_connections_max", pool="db") == 6
            assert value(found, "poolkit_acquire_seconds_count", pool="db") == 33
            workers[0].kill()
            workers[0].wait()
            found = scrape(registry)
            assert value(found, "poolkit_connections", pool="db", state="in_use") == 2
            assert value(found, "poolkit_acquires_total", pool="db") == 33  # counters never go back
        collector.close()


def test_a_process_that_ends_in_order_leaves_its_last_numbers(
    workers: list[subprocess.Popen[str]], shared: Path
) -> None:
    worker = workers[0]
    worker.communicate("go\n")
    left = json.loads((shared / f"poolkit_{worker.pid}.json").read_text(encoding="utf-8"))
    assert left["poolkit_acquires"] == [[[["pool", "db"]], 11]]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_writes_for_itself(shared: Path) -> None:
    program = (
        "import os, sys, time\n"
        "from poolkit.telemetry.prometheus import PoolCollector\n"
        "collector = PoolCollector(interval=0.02)\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    for _ in range(500):\n"
        "        time.sleep(0.02)\n"
        "        if os.path.exists(f'{sys.argv[1]}/poolkit_{os.getpid()}.json'):\n"
        "            os._exit(0)\n"
        "    os._exit(3)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program, str(shared)], timeout=30, check=False
    )
    assert done.returncode == 0


def test_a_directory_that_cannot_be_written_to_is_a_clear_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ConfigError, match=r"directory=.*cannot be written to"):
        PoolCollector(directory=file / "below")


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.setitem(sys.modules, "prometheus_client.core", None)
    with pytest.raises(ImportError, match=r"pip install 'poolkit\[prometheus\]'"):
        PoolCollector()


def test_a_second_collector_of_one_registry_is_refused_and_nothing_is_told_twice(registry: CollectorRegistry) -> None:
    """A server that scrapes two families of one name refuses them all."""
    with Pool(FakeConnector(), name="db", max_size=3) as pool:
        first = register(registry, pools=lambda: [pool])
        with pytest.raises(UsageError, match="would report them twice"):
            register(registry, pools=lambda: [pool])
        with pytest.raises(ValueError, match="poolkit_connections"):
            registry.register(PoolCollector())  # by hand: prometheus_client's own error
        samples = [s for f in parse_text(generate_latest(registry).decode()) for s in f.samples]
        assert [one.value for one in samples if one.name == "poolkit_connections_max"] == [3]
        first.close()
        first.close()
        assert scrape(registry) == {}
        register(registry, pools=lambda: [pool])
        assert value(scrape(registry), "poolkit_connections_max", pool="db") == 3


def test_to_register_looks_at_no_pool_and_what_is_described_is_what_is_collected(registry: CollectorRegistry) -> None:
    asked = []
    with Pool(FakeConnector(), name="db") as pool:
        collector = register(registry, pools=lambda: asked.append(pool) or [pool])  # type: ignore[func-returns-value]
        assert not asked
        described = [(family.name, family.type) for family in collector.describe()]
        assert described == [(family.name, family.type) for family in collector.collect()]
        assert all(not family.samples for family in collector.describe())


def test_scrapes_cost_less_than_a_twentieth_of_the_work(registry: CollectorRegistry) -> None:
    """CPU time of a scrape, at one a second, against the second it is taken from."""
    with Pool(FakeConnector(resets=False), name="db", max_size=10) as pool:
        register(registry, pools=lambda: [pool])
        for _ in range(100):
            with pool.lease():
                pass
        costs: list[float] = []
        for _ in range(20):
            began = time.thread_time()
            generate_latest(registry)
            costs.append(time.thread_time() - began)
        take: Any = pool._take
        assert sorted(costs)[10] < 0.05
        assert pool._take is take  # and the lock-free way is open as before
        assert "acquire" in pool.__dict__
