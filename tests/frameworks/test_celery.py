"""Pools in Celery's worker processes: ready when a process begins, closed in order when it ends."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import psycopg
import pytest
from celery import signals

from poolkit import AsyncPool, ConfigError, Pool, UsageError
from poolkit.fleet import FileStore, FleetBudget
from poolkit.frameworks.celery import install
from poolkit.testing import AsyncFakeConnector, FakeConnector
from poolkit.testing.servers import PostgresServer, RedisServer
from tests.processes.programs import ROOT, environment
from tests.processes.test_servers import serving
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX processes")

SENDS = """
import json
from tests.frameworks.celery_app import work
results = [work.delay(number) for number in range(9)]
print(json.dumps([result.get(timeout=40, interval=0.05) for result in results]))
"""


def abandoned(postgres: PostgresServer) -> int:
    """The number of abandoned sessions, once all sessions of the application have ended."""
    deadline = time.monotonic() + PATIENCE
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        while connection.execute("select 1 from pg_stat_activity where application_name = 'celery'").fetchone():
            assert time.monotonic() < deadline, "sessions are left"
            time.sleep(0.02)
        row = connection.execute("select sum(sessions_abandoned) from pg_stat_database").fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_prefork_workers_start_with_open_connections_and_close_them_properly(
    redis_server: RedisServer, postgres: PostgresServer
) -> None:
    """A real worker with a real Redis; its children are replaced after three tasks, then it is stopped."""
    urls = {
        "BROKER_URL": redis_server.url.rpartition("/")[0] + "/7",
        "PG_URL": postgres.sqlalchemy_url() + "?application_name=celery",
    }
    arguments = (
        "celery", "-A", "tests.frameworks.celery_app", "worker", "--pool", "prefork", "--concurrency", "2",
        "--max-tasks-per-child", "3", "--without-gossip", "--without-mingle", "--without-heartbeat",
        "--loglevel", "WARNING",
    )  # fmt: skip
    before = abandoned(postgres)
    with serving(*arguments, urls=urls):
        client = subprocess.run(
            [sys.executable, "-c", SENDS], cwd=ROOT, env=environment(**urls), timeout=60, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert client.returncode == 0, client.stderr
    done = json.loads(client.stdout)
    assert [answer["number"] for answer in done] == list(range(9))
    tasks: dict[int, list[Any]] = defaultdict(list)
    for answer in done:
        tasks[answer["process"]].append(answer)
    assert len(tasks) >= 3  # no process has done more than three
    for mine in tasks.values():
        assert {(answer["idle"], answer["connects"]) for answer in mine} == {(1, 1)}  # also before the first task
        assert len({answer["session"] for answer in mine}) == 1
    assert abandoned(postgres) == before


def test_signals_open_and_drain_the_pools_of_the_process(caplog: pytest.LogCaptureFixture) -> None:
    """A failed connect is logged, leases that do not end in time are aborted, undo disconnects the signals."""
    good, bad = FakeConnector(), FakeConnector()
    bad.fail("connect", lambda: ConnectionRefusedError("refused"))
    pools: list[Any] = [
        Pool(good, min_size=2, name="good"), Pool(bad, min_size=1, name="bad"), AsyncPool(AsyncFakeConnector()),
    ]  # fmt: skip
    undo = install(pools=lambda: pools, warm_up=True, drain_timeout=0.05)
    try:
        with caplog.at_level(logging.WARNING, "poolkit"):
            signals.worker_process_init.send(sender="worker")
            assert pools[0].stats().idle == 2
            assert "bad: cannot connect yet in this worker process" in caplog.text
            pools[0].acquire()
            signals.worker_process_shutdown.send(sender="worker")
            assert "good: leases did not end within 0.05 s and were aborted" in caplog.text
        assert [pool.closed for pool in pools] == [True, True, False]
        assert good.live == 0
    finally:
        undo()
    with Pool(FakeConnector(), min_size=1) as later:
        pools.append(later)
        signals.worker_process_init.send(sender="worker")
        signals.worker_shutdown.send(sender="worker")
        assert later.stats().size == 0
        assert not later.closed


def test_the_permits_of_a_fleet_budget_are_returned(tmp_path: Path) -> None:
    """A child that ends returns its permits at once, unless another pool of the budget is open."""
    budget = FleetBudget(FileStore(tmp_path), "orders", limit=4, block=4)
    connector = FakeConnector()
    pools = [Pool(connector, budget=budget), Pool(connector, budget=budget)]
    pools[0].warm_up(1)
    undo = install(pools=lambda: pools[:1])
    try:
        signals.worker_process_shutdown.send(sender="worker")
        Pool(connector, budget=budget).close()  # it is open still
        pools[:1] = []
        signals.worker_process_shutdown.send(sender="worker")
    finally:
        undo()
    with pytest.raises(UsageError, match="the fleet budget is closed"):
        Pool(connector, budget=budget)
    with FleetBudget(FileStore(tmp_path), "orders", limit=4, block=4) as other:
        with Pool(connector, max_size=4, budget=other) as pool:
            pool.warm_up(4)
            assert other.fleet().members == 1


def test_a_drain_timeout_of_none_is_refused() -> None:
    """A worker must end in a finite time."""
    with pytest.raises(ConfigError, match="drain_timeout=None: must be a time in seconds"):
        install(drain_timeout=None)  # type: ignore[arg-type]
