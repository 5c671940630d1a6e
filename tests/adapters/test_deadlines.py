"""A deadline for several calls in every adapter, on real servers: the driver's API is unchanged."""

from __future__ import annotations

import contextlib

import pytest

import poolkit
from poolkit.testing.servers import HTTPServer, PostgresServer, RedisServer
from poolkit_adapters.sqlalchemy import PoolkitCluster
from tests.adapters.test_priorities import SYNC, Servers, opened
from tests.support.waiting import PATIENCE


@pytest.fixture
def servers(postgres: PostgresServer, redis_server: RedisServer, http_server: HTTPServer) -> Servers:
    return Servers(postgres, redis_server, http_server)


@pytest.mark.parametrize("adapter", SYNC)
def test_a_thread_waits_no_longer_than_its_block(adapter: str, servers: Servers) -> None:
    """The pool's own timeout is longer than this test may run."""
    with opened(adapter, servers, max_connecting=3) as (engine, use):
        with contextlib.ExitStack() as held:
            for _ in range(3):
                held.enter_context(use())
            with poolkit.deadline(0.05), pytest.raises(poolkit.AcquireTimeout):
                held.enter_context(use())
            assert engine.stats().timeouts == 1
        with poolkit.deadline(PATIENCE), use():
            pass
        engine.check_books()


def test_a_caller_of_a_cluster_waits_no_longer_than_its_block(postgres: PostgresServer) -> None:
    nodes = [f"{postgres.host}:{postgres.port}"]
    with PoolkitCluster(
        postgres.sqlalchemy_url(), nodes, roles=False, acquire_timeout=PATIENCE, pool_size=1, max_overflow=0
    ) as cluster:
        with cluster.connect():
            with poolkit.deadline(0.05), pytest.raises(poolkit.AcquireTimeout), cluster.connect():
                pass
        with poolkit.deadline(PATIENCE), cluster.connect():
            pass
