"""The services of ``examples`` run on real servers: requests, exhaustion, metrics, alerts, dashboard, drain."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import psycopg
import pytest

from poolkit.testing.servers import HTTPServer, PostgresServer, RedisServer, free_port
from tests.processes.programs import ROOT, environment
from tests.processes.test_servers import serving, until_listening
from tests.support.waiting import PATIENCE

pytestmark = [pytest.mark.skipif(os.name == "nt", reason="needs POSIX processes"), pytest.mark.slow]


@pytest.fixture
def urls(redis_server: RedisServer, postgres: PostgresServer, http_server: HTTPServer) -> Iterator[dict[str, str]]:
    """The environment of the example, with a table of two orders."""
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("create table if not exists orders (number int primary key, text text)")
        connection.execute("insert into orders values (1, 'tea'), (2, 'cake') on conflict do nothing")
        yield {
            "DATABASE_URL": postgres.url,
            "REDIS_URL": redis_server.url.rpartition("/")[0] + "/9",
            "PRICES_URL": http_server.url,
        }
        connection.execute("drop table orders")


def answer(client: httpx.Client, path: str) -> Any:
    return client.get(path).raise_for_status().json()


@pytest.mark.timeout(240)
def test_the_service(urls: dict[str, str]) -> None:
    port = free_port()
    arguments = ("uvicorn", "examples.shop.service:app", "--port", str(port), "--log-level", "warning")
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE, trust_env=False)
    answers: list[int] = []

    def report(seconds: float) -> None:
        answers.append(client.get("/report", params={"seconds": seconds}).status_code)

    with client, serving(*arguments, urls=urls):
        until_listening(port)
        assert [answer(client, "/orders/1")["from"] for _ in range(2)] == ["database", "cache"]
        assert client.get("/orders/7").status_code == 404
        assert answer(client, "/ready")["ready"]
        assert 'poolkit_connections_max{pool="shop-db"} 5.0' in client.get("/metrics/").text

        holders = [threading.Thread(target=report, args=(4.0,)) for _ in range(5)]
        for one in holders:
            one.start()
        deadline = time.monotonic() + PATIENCE
        while 'poolkit_connections{pool="shop-db",state="in_use"} 5.0' not in client.get("/metrics/").text:
            assert time.monotonic() < deadline
        refused = client.get("/orders/2")
        assert (refused.status_code, refused.json()) == (503, {"error": "AcquireTimeout"})
        assert refused.headers["retry-after"] == "1"
        (shown,) = [one for one in answer(client, "/pools/api/state")["pools"] if one["name"] == "shop-db"]
        assert "service.py" in json.dumps(shown)  # the place at which the longest held connection was taken
        top = subprocess.run(
            [sys.executable, "-m", "poolkit", "top", f"http://127.0.0.1:{port}/pools", "--once"],
            cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
        assert "shop-db" in top.stdout, top.stderr
        for one in holders:
            one.join()
        assert answers == [200] * 5

        last = threading.Thread(target=report, args=(1.0,))
        last.start()
        while 'poolkit_connections{pool="shop-db",state="in_use"} 1.0' not in client.get("/metrics/").text:
            assert time.monotonic() < deadline
    last.join()
    assert answers[5:] == [200]  # the request that ran when the service was told to stop


def test_the_doctor_accepts_the_settings() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "poolkit", "doctor", "examples/shop/pools.toml", "--pool", "shop-db", "--adapter",
         "sqlalchemy", "--json"],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


FLASK = """
import json
from examples.shop.web import app, pools
client = app.test_client()
found = [client.get("/orders/2").json["from"] for _ in range(2)]
status = client.get("/orders/7").status_code
measured = b'pool="shop-db"' in client.get("/metrics").data
print(json.dumps([found, status, measured, pools.close(app, timeout=5)]))
"""


def test_its_twin_with_flask(urls: dict[str, str]) -> None:
    urls["REDIS_URL"] = urls["REDIS_URL"].rpartition("/")[0] + "/10"
    done = subprocess.run(
        [sys.executable, "-c", FLASK],
        cwd=ROOT,
        env=environment(**urls),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [["database", "cache"], 404, True, {"db": True, "cache": True, "prices": True}]


@pytest.mark.timeout(120)
def test_its_twin_with_celery(urls: dict[str, str]) -> None:
    urls["REDIS_URL"] = urls["REDIS_URL"].rpartition("/")[0] + "/11"
    arguments = ("celery", "-A", "examples.shop.tasks", "worker", "--concurrency", "1", "--without-gossip",
                 "--without-mingle", "--without-heartbeat", "--loglevel", "WARNING")  # fmt: skip
    call = "from examples.shop.tasks import count; print(count.delay().get(timeout=60, interval=0.05))"
    with serving(*arguments, urls=urls):
        done = subprocess.run(
            [sys.executable, "-c", call], cwd=ROOT, env=environment(**urls), capture_output=True, text=True, timeout=90
        )
    assert done.stdout.strip() == "2", done.stderr


@pytest.mark.skipif(importlib.util.find_spec("rq") is None, reason="rq is not installed")
def test_its_twin_with_rq(urls: dict[str, str]) -> None:
    urls["REDIS_URL"] = urls["REDIS_URL"].rpartition("/")[0] + "/12"
    queue = "import redis, rq, os; q = rq.Queue('reports', connection=redis.Redis.from_url(os.environ['REDIS_URL'])); "
    fetch = f"{queue}print(rq.job.Job.fetch('one', connection=q.connection).return_value())"
    commands = (
        ["-c", f"{queue}q.enqueue('examples.shop.jobs.count', job_id='one')"],
        ["-m", "rq.cli", "worker", "--url", urls["REDIS_URL"], "--burst", "--quiet", "reports"],
        ["-c", fetch],
    )
    for command in commands:
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=environment(**urls), capture_output=True, text=True, timeout=90
        )
        assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "2"
