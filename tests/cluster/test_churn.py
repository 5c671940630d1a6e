"""The log entry about pools that are made again and again is about those of the program, not about a cluster's."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from poolkit import AsyncPool, Pool, PoolConfig
from poolkit.cluster import AsyncCluster, Cluster
from poolkit.testing import AsyncFakeConnector, FakeConnector
from poolkit_adapters.httpx import AsyncPoolkitClusterTransport, PoolkitClusterTransport
from poolkit_adapters.psycopg import AsyncPoolkitCluster
from poolkit_adapters.redis import PoolkitServerGroup
from poolkit_adapters.sqlalchemy import PoolkitCluster as SQLAlchemyCluster

NODES = [f"127.0.0.1:{port}" for port in range(1, 41)]  # nobody listens there


def of_pools(nodes: list[str]) -> Any:
    return Cluster(lambda node: Pool(FakeConnector(), name=node.name), nodes)


def of_connectors(nodes: list[str]) -> Any:
    return Cluster(lambda node: FakeConnector(), nodes)


def of_async_pools(nodes: list[str]) -> Any:
    return AsyncCluster(lambda node: AsyncPool(AsyncFakeConnector(), name=node.name), nodes)


def of_async_connectors(nodes: list[str]) -> Any:
    return AsyncCluster(lambda node: AsyncFakeConnector(), nodes)


def of_httpx(nodes: list[str]) -> Any:
    return PoolkitClusterTransport(nodes).cluster


def of_async_httpx(nodes: list[str]) -> Any:
    return AsyncPoolkitClusterTransport(nodes).cluster


def of_psycopg(nodes: list[str]) -> Any:
    return AsyncPoolkitCluster(nodes, pool=PoolConfig(min_size=0))


def of_redis(nodes: list[str]) -> Any:
    return PoolkitServerGroup(nodes)


def of_sqlalchemy(nodes: list[str]) -> Any:
    return SQLAlchemyCluster("postgresql+psycopg://", nodes, pool=PoolConfig(min_size=0))


@pytest.mark.parametrize(
    "make",
    [
        of_pools, of_connectors, of_async_pools, of_async_connectors, of_httpx, of_async_httpx, of_psycopg, of_redis,
        of_sqlalchemy,
    ],
)  # fmt: skip
def test_a_cluster_of_many_nodes_is_not_reported_as_misuse(
    make: Callable[[list[str]], Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "poolkit.churn"):
        cluster = make(NODES[:1])
        cluster.update(NODES)
        if isinstance(cluster, Cluster):
            cluster.close()
    assert [record.getMessage() for record in caplog.records if record.name == "poolkit.churn"] == []


def test_pools_created_again_and_again_are_reported_after_a_cluster_too(caplog: pytest.LogCaptureFixture) -> None:
    of_pools(NODES).close()
    with caplog.at_level(logging.WARNING, "poolkit.churn"):
        for _ in range(20):
            Pool(FakeConnector()).close()
    assert [record.name for record in caplog.records].count("poolkit.churn") == 1
