"""multiprocessing in all its ways: each process has connections of its own, the parent's stay as they are."""

from __future__ import annotations

import json
import multiprocessing
from typing import Any

import pytest

from poolkit.testing.servers import HTTPServer, PostgresServer, RedisServer
from tests.processes.programs import run
from tests.processes.subjects import NAMES, SYNC

DRIVERS = {"engine": "poolkit", "dbapi": "psycopg"}


@pytest.fixture
def urls(redis_server: RedisServer, postgres: PostgresServer, http_server: HTTPServer) -> dict[str, str]:
    return {"redis": redis_server.url, "postgres": postgres.url, "http": http_server.url}


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
@pytest.mark.parametrize("kind", NAMES)
def test_each_process_has_its_own_connections(kind: str, method: str, urls: dict[str, str]) -> None:
    pytest.importorskip(DRIVERS.get(kind, kind))
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    said, complaints = run("-m", "tests.processes.family", method, kind, urls[SYNC[kind][1]])
    assert complaints == ""
    answer: dict[str, Any] = json.loads(said)
    assert len({*answer["before"], *answer["after"]}) == 1
    for pair in answer["inside"]:
        assert len(set(pair)) == 1
        assert not set(pair) & set(answer["before"])
