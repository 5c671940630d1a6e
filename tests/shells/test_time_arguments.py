"""Times that are arguments: one rule for all. A wrong one is refused at once, before a thread could end or spin."""

from __future__ import annotations

import asyncio
import gc
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import poolkit
from poolkit import AsyncPool, ConfigError, Pool, PoolConfig, UsageError, load
from poolkit._numbers import LONGEST
from poolkit.cli import main
from poolkit.cluster import (
    AsyncCluster,
    AsyncShardedCluster,
    Cluster,
    Discovery,
    DNSDiscovery,
    EtcdDiscovery,
    FileDiscovery,
    Found,
    Node,
    ShardedCluster,
    SRVDiscovery,
)
from poolkit.fleet import FileStore, FleetBudget, PostgresStore, RedisStore
from poolkit.telemetry import prometheus
from poolkit.telemetry.alerts import Alerts, Thresholds
from poolkit.telemetry.statsd import StatsdReporter
from poolkit.testing import AsyncFakeConnector, FakeConnector

HUGE = 10**400  # more than any float
NO_TIMES: list[Any] = ["5", True, [], math.nan, -1, HUGE, 10**5000]
ENDLESS: list[Any] = [math.inf, 10**10, LONGEST + 1]


def short(value: Any) -> str:
    return "enormous" if value == 10**5000 else str(value)[:6]


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A refused object starts no thread. Pools of earlier tests may start theirs meanwhile, or when they are freed."""
    mine, start, started = threading.get_ident(), threading.Thread.start, []

    def note(thread: threading.Thread) -> None:
        if threading.get_ident() == mine:
            started.append(thread.name)
        start(thread)

    gc.collect()
    gc.disable()
    monkeypatch.setattr(threading.Thread, "start", note)
    yield
    gc.enable()
    assert started == []


def fleet(directory: Path, **options: Any) -> FleetBudget:
    return FleetBudget(FileStore(directory), "fleet", limit=3, **options)


MADE: dict[str, Callable[[Path, Any], object]] = {
    "Alerts interval": lambda path, value: Alerts(interval=value),
    "StatsdReporter interval": lambda path, value: StatsdReporter(interval=value),
    "PoolCollector interval": lambda path, value: prometheus.PoolCollector(directory=path, interval=value),
    "FileDiscovery interval": lambda path, value: FileDiscovery(path / "nodes.toml", interval=value),
    "DNSDiscovery interval": lambda path, value: DNSDiscovery("localhost", 1, interval=value),
    "DNSDiscovery timeout": lambda path, value: DNSDiscovery("localhost", 1, timeout=value),
    "SRVDiscovery min_interval": lambda path, value: SRVDiscovery("_a._tcp.example", min_interval=value),
    "SRVDiscovery max_interval": lambda path, value: SRVDiscovery("_a._tcp.example", max_interval=value),
    "SRVDiscovery timeout": lambda path, value: SRVDiscovery("_a._tcp.example", timeout=value),
    "EtcdDiscovery timeout": lambda path, value: EtcdDiscovery("/nodes/", timeout=value),
    "EtcdDiscovery watch_for": lambda path, value: EtcdDiscovery("/nodes/", watch_for=value),
    "FileStore timeout": lambda path, value: FileStore(path, timeout=value),
    "PostgresStore timeout": lambda path, value: PostgresStore("", timeout=value),
    "RedisStore timeout": lambda path, value: RedisStore("redis://localhost", timeout=value),
    "FleetBudget ttl": lambda path, value: fleet(path, ttl=value),
}
"""What repeats by itself, in a thread: 0 would make it spin, and the waits of threads have a limit."""


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("what", MADE)
@pytest.mark.parametrize(
    "value", [*NO_TIMES, *ENDLESS, 0], ids=lambda value: str(value)[:6] if value != 10**5000 else ""
)
def test_a_time_that_repeats_is_above_0_and_has_an_end(tmp_path: Path, what: str, value: Any) -> None:
    name = what.split()[1]
    with pytest.raises(ConfigError, match=rf"{name}=.*: must be a time in seconds, .*, at most 30 days") as caught:
        MADE[what](tmp_path, value)
    assert caught.value.setting == name


def test_a_discovery_of_your_own() -> None:
    class Own(Discovery):
        again: Any = 1.0

        def find(self, last: Found | None) -> Found:
            return Found((Node("a:1"),), again=self.again)

    own = Own()
    for value in (*NO_TIMES, *ENDLESS, 0):
        own.interval = value
        with pytest.raises(ConfigError, match=r"Own\.interval=.*: must be a time in seconds, above 0, at most 30 days"):
            Cluster(lambda node: FakeConnector(), own)
    own.interval = 1
    for value in (*NO_TIMES, *ENDLESS):
        own.again = value
        with pytest.raises(ConfigError, match=r"again=.*: must be a time in seconds, 0 or more, at most 30 days"):
            own.find(None)


def _pool() -> Pool[Any]:
    return Pool(FakeConnector(), name="a")


async def _scatter(value: Any) -> None:
    async def call(connection: Any, keys: Any) -> None:
        raise AssertionError("called")

    async with AsyncPool(AsyncFakeConnector()) as pool:
        await AsyncShardedCluster({"a": pool}).scatter(call, timeout=value)


async def _close(kind: str, value: Any) -> None:
    if kind == "shards":
        await AsyncShardedCluster({"a": AsyncPool(AsyncFakeConnector())}).close(value)
    else:
        cluster = AsyncCluster(lambda node: AsyncFakeConnector(), ["a"])
        await (cluster.close(value) if kind == "close" else cluster.drain(value))


CALLS: dict[str, Callable[[Any], object]] = {
    "acquire": lambda value: _pool().acquire(value),
    "lease": lambda value: _pool().lease(value),
    "warm_up": lambda value: _pool().warm_up(1, timeout=value),
    "drain": lambda value: _pool().drain(value),
    "close": lambda value: _pool().close(value),
    "lease of a cluster": lambda value: Cluster(lambda node: FakeConnector(), ["a"]).lease(value),
    "close of a cluster": lambda value: Cluster(lambda node: FakeConnector(), ["a"]).close(value),
    "drain of a cluster": lambda value: Cluster(lambda node: FakeConnector(), ["a"]).drain(value),
    "close of shards": lambda value: ShardedCluster({"a": _pool()}).close(value),
    "asynchronous close of a cluster": lambda value: asyncio.run(_close("close", value)),
    "asynchronous drain of a cluster": lambda value: asyncio.run(_close("drain", value)),
    "asynchronous close of shards": lambda value: asyncio.run(_close("shards", value)),
    "scatter": lambda value: ShardedCluster({"a": _pool()}).scatter(lambda *_: pytest.fail("called"), timeout=value),
    "asynchronous scatter": lambda value: asyncio.run(_scatter(value)),
}


@pytest.mark.parametrize("what", CALLS)
@pytest.mark.parametrize("value", NO_TIMES, ids=short)
def test_the_timeout_of_a_call_is_a_time(what: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=r"timeout=.*: must be a time in seconds, 0 or more \(or None: no limit\)"):
        CALLS[what](value)


def test_no_limit_can_be_written_as_infinity() -> None:
    with _pool() as pool:
        pool.lease(math.inf).close()
        assert ShardedCluster({"a": pool}).scatter(lambda *_: 1, timeout=math.inf).answers == {"a": 1}


@pytest.mark.parametrize("value", [HUGE, 10**5000], ids=short)
def test_a_deadline_is_a_time(value: int) -> None:
    with pytest.raises(UsageError, match=r"deadline\(\(an integer beyond all floats\)\): must be a time in seconds"):
        poolkit.deadline(value)


@pytest.mark.parametrize("name", ["acquire_timeout", "idle_timeout", "check_after_idle", "budget_weight"])
def test_a_setting_beyond_all_floats_is_no_number(tmp_path: Path, name: str) -> None:
    text = rf"{name}=\(an integer beyond all floats\): must be a "
    with pytest.raises(ConfigError, match=text):
        PoolConfig(**{name: HUGE})
    with _pool() as pool, pytest.raises(ConfigError, match=text):
        pool.reconfigure(**{name: HUGE})
    path = tmp_path / "pools.toml"
    path.write_text(f"[db]\n{name} = {HUGE}\n")
    with pytest.raises(ConfigError, match=rf"{text}.*pools\.toml \[db\]"):
        load("db", file=path, environ={})


@pytest.mark.parametrize("value", [HUGE, 10**5000], ids=short)
def test_numbers_of_clusters_and_alerts_beyond_all_floats(value: int) -> None:
    for call in (
        lambda: Cluster(lambda node: FakeConnector(), ["a"], eject_for=value),
        lambda: Node("a:1", weight=value),
        lambda: Thresholds(longest_held=value),
    ):
        with pytest.raises(ConfigError, match=r"=\(an integer beyond all floats\): must be a"):
            call()
    assert Thresholds(longest_held=math.inf).longest_held == math.inf


@pytest.mark.parametrize("value", [None, *NO_TIMES, *ENDLESS], ids=short)
def test_a_fleet_that_is_closed_with_a_wrong_time_stays_open(tmp_path: Path, value: Any) -> None:
    with fleet(tmp_path) as budget, Pool(FakeConnector(), budget=budget) as pool:
        with pytest.raises(ConfigError, match=r"timeout=.*: must be a time in seconds, 0 or more, at most 30 days"):
            budget.close(value)
        pool.lease().close()


def test_a_time_between_two_frames_of_poolkit_top(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--interval", "1e12s"]) == 2
    assert "'1e12s': must be a time above 0 with its unit" in capsys.readouterr().err
