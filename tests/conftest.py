"""Fixtures every test may use. The servers are started when first asked for, once for each xdist worker."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from poolkit.testing.servers import (
    Certificates,
    HTTPServer,
    PostgresServer,
    RedisCluster,
    RedisSentinel,
    RedisServer,
)
from tests.faults.proxy import FaultProxy
from tests.support import both_libraries
from tests.support.collector import without_collector
from tests.support.left_open import LeftOpen
from tests.support.platforms import skip_what_is_lacking
from tests.support.valkey_server import ValkeyServer

logging.getLogger("poolkit.churn").setLevel(logging.CRITICAL)  # a suite of tests makes many pools in few places

_left_open = LeftOpen()

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # started in the background by a shell without job control: the programs that tests start would ignore Ctrl-C, too
    signal.signal(signal.SIGINT, signal.default_int_handler)

if sys.version_info < (3, 11):

    def pytest_configure(config: pytest.Config) -> None:
        """Python 3.10's asyncio does not count a TLS transport as closed that its peer has cut: our HTTP/2 server's."""
        text = "ignore:Exception ignored in. <function _SSLProtocolTransport.__del__"
        config.addinivalue_line("filterwarnings", f"{text}:pytest.PytestUnraisableExceptionWarning")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run without the GIL is none if an extension module has switched it on again."""
    if os.environ.get("PYTHON_GIL") == "0" and getattr(sys, "_is_gil_enabled", lambda: False)():
        session.exitstatus = pytest.ExitCode.INTERNAL_ERROR
        print("\nPYTHON_GIL=0, but the GIL is on")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Collect the tests of a library once more, for the one that has the same adapter."""
    return both_libraries.collect(file_path, parent)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this system cannot run."""
    skip_what_is_lacking(items)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around the plugin for logging, whose records refer to pools
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """After the last test of a module, whose fixtures have ended: no pool is open."""
    yield
    if nextitem is None or nextitem.path != item.path:
        getattr(item, "funcargs", {}).clear()  # pytest would do so next: values of fixtures refer to pools
        _left_open.check()


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Tests marked ``anyio`` run on both; a driver that knows asyncio alone overrides this fixture."""
    return str(request.param)


@pytest.fixture
def no_collector() -> Iterator[None]:
    """The garbage collector does not run during the test."""
    with without_collector():
        yield


@pytest.fixture(scope="session")
def certificates() -> Certificates:
    return Certificates()


@pytest.fixture(scope="session")
def _postgres(certificates: Certificates) -> Iterator[PostgresServer]:
    with PostgresServer(dbname="poolkit", max_connections=100, tls=certificates) as server:
        yield server


@pytest.fixture
def postgres(_postgres: PostgresServer) -> PostgresServer:
    """A running PostgreSQL; a test may stop or kill it, the next one finds it running."""
    return _postgres.start()


@pytest.fixture(scope="session")
def _redis_server(certificates: Certificates) -> Iterator[RedisServer]:
    with RedisServer(tls=certificates) as server:
        yield server


@pytest.fixture
def redis_server(_redis_server: RedisServer) -> RedisServer:
    """A running Redis; a test may stop or kill it, the next one finds it running."""
    return _redis_server.start()


@pytest.fixture(scope="session")
def _valkey_server(certificates: Certificates) -> Iterator[ValkeyServer]:
    with ValkeyServer(tls=certificates) as server:
        yield server


@pytest.fixture
def valkey_server(_valkey_server: ValkeyServer) -> ValkeyServer:
    """A running Valkey (or Redis, see :class:`ValkeyServer`); a test may stop or kill it."""
    return _valkey_server.start()


@pytest.fixture(scope="session")
def _redis_sentinel(_redis_server: RedisServer) -> Iterator[RedisSentinel]:
    with RedisSentinel(_redis_server.start()) as sentinel:
        yield sentinel


@pytest.fixture
def redis_sentinel(_redis_sentinel: RedisSentinel, redis_server: RedisServer) -> RedisSentinel:
    """A sentinel watching ``redis_server`` under the name ``main``."""
    return _redis_sentinel.start()


@pytest.fixture(scope="session")
def redis_cluster() -> Iterator[RedisCluster]:
    """Three masters; a test that kills one restarts it."""
    with RedisCluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def _http_server() -> Iterator[HTTPServer]:
    with HTTPServer() as server:
        yield server


@pytest.fixture
def http_server(_http_server: HTTPServer) -> HTTPServer:
    """HTTP/1.1 without TLS (hypercorn); connections of earlier tests may still be open."""
    return _http_server.start()


@pytest.fixture(scope="session")
def _https_server(certificates: Certificates) -> Iterator[HTTPServer]:
    with HTTPServer(tls=certificates, http2=True, max_streams=10) as server:
        yield server


@pytest.fixture
def https_server(_https_server: HTTPServer) -> HTTPServer:
    """TLS with HTTP/2, ten streams on a connection (hypercorn)."""
    return _https_server.start()


@pytest.fixture
def fault_proxy() -> Iterator[Callable[[str, int], FaultProxy]]:
    """Make proxies that break on command: ``fault_proxy(server.host, server.port)``."""
    proxies: list[FaultProxy] = []

    def make(host: str, port: int) -> FaultProxy:
        proxies.append(FaultProxy(host, port).start())
        return proxies[-1]

    yield make
    for proxy in proxies:
        proxy.stop()
