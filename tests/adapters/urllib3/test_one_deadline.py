"""``acquire_timeout`` limits the wait for a connection and its connect together."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import urllib3

import poolkit
from poolkit.testing.servers import HTTPServer
from poolkit_adapters.requests import PoolkitAdapter
from poolkit_adapters.urllib3 import (
    AcquireTimeout,
    PoolkitHTTPConnectionPool,
    PoolkitPoolManager,
    PoolkitProxyManager,
    Timeout,
)
from tests.support.waiting import PATIENCE, until

SHORT = 0.2
LONG = 10 * PATIENCE
"""More than a test may take: a request that waits so long has missed the limit under test."""


@pytest.fixture
def silent() -> Iterator[tuple[int, list[int]]]:
    """A server that accepts connections and says nothing: its port, and the ports of its clients."""
    clients: list[socket.socket] = []
    ports: list[int] = []

    def accept() -> None:
        while True:
            try:
                client, address = server.accept()
            except OSError:
                return
            clients.append(client)
            ports.append(address[1])

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=accept)
        thread.start()
        yield server.getsockname()[1], ports
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    for client in clients:
        client.close()


@pytest.mark.parametrize("proxied", [False, True], ids=["direct", "through a proxy"])
@pytest.mark.parametrize("retries", [None, 3, False])
def test_a_connect_that_hangs_ends_at_the_deadline(silent: tuple[int, list[int]], retries: Any, proxied: bool) -> None:
    """Also if more attempts were allowed: they would begin after the deadline."""
    port, clients = silent
    given: dict[str, Any] = {"acquire_timeout": SHORT, "timeout": LONG, "retries": retries, "cert_reqs": "CERT_NONE"}
    manager: Any = PoolkitPoolManager(**given)
    if proxied:
        manager = PoolkitProxyManager(f"http://127.0.0.1:{port}", **given)
    with manager, pytest.raises(AcquireTimeout, match=r"no connection in .* s; the connect took too long") as caught:
        manager.request("GET", f"https://127.0.0.1:{port}/")
    assert isinstance(caught.value, urllib3.exceptions.EmptyPoolError)
    assert isinstance(caught.value, poolkit.AcquireTimeout)
    assert isinstance(caught.value.__cause__, (TimeoutError, urllib3.exceptions.TimeoutError))
    until(lambda: len(clients) == 1, "the only connect has arrived")
    for engine in manager.engines:
        assert engine.stats().size == 0


@pytest.mark.parametrize("proxied", [False, True], ids=["direct", "through a proxy"])
def test_a_connect_of_requests_that_hangs_ends_at_the_deadline(silent: tuple[int, list[int]], proxied: bool) -> None:
    port, _ = silent
    with requests.Session() as session:
        session.trust_env = session.verify = False
        session.mount("https://", PoolkitAdapter(acquire_timeout=SHORT, max_retries=3))
        proxies = {"https": f"http://127.0.0.1:{port}"} if proxied else {}
        with pytest.raises(requests.exceptions.ConnectTimeout, match="the connect took too long") as caught:
            session.get(f"https://127.0.0.1:{port}/", timeout=LONG, proxies=proxies)
    assert isinstance(caught.value, poolkit.AcquireTimeout)
    assert caught.value.request is not None


class Recorded(urllib3.connection.HTTPConnection):
    """Keeps the limit of its connect and that of its request."""

    limits: list[Any]

    def connect(self) -> None:
        self.limits = [self.timeout]
        super().connect()

    def request(self, *args: Any, **given: Any) -> None:
        super().request(*args, **given)
        self.limits.append(self.sock.gettimeout())


def limits_of(server: HTTPServer, timeout: Any, **settings: Any) -> list[Any]:
    """The limit of a connect and of sending its request."""
    kind: Any = type("Pool", (PoolkitHTTPConnectionPool,), {"ConnectionCls": Recorded})
    with kind(server.host, server.port, timeout=timeout, **settings) as pool:
        response = pool.request("GET", "/", preload_content=False)
        found: list[Any] = response.connection.limits
        response.drain_conn()
        response.release_conn()
    return found


def test_the_connect_has_the_time_that_the_wait_has_left(http_server: HTTPServer) -> None:
    """What is sent on the connection has the limit of the request again."""
    connect, sending = limits_of(http_server, LONG, acquire_timeout=PATIENCE)
    assert 0 < connect <= PATIENCE
    assert sending == LONG
    connect, sending = limits_of(http_server, urllib3.Timeout(connect=SHORT, read=LONG), acquire_timeout=PATIENCE)
    assert connect == sending == SHORT  # the shorter one applies
    with poolkit.deadline(PATIENCE):
        connect, sending = limits_of(http_server, LONG, acquire_timeout=LONG)
    assert 0 < connect <= PATIENCE
    assert sending == LONG


def test_only_a_limit_that_was_set_applies_to_the_connect(http_server: HTTPServer) -> None:
    """The default of 30 s does not shorten the connect timeout of a request, nor does a limit for the wait alone."""
    assert limits_of(http_server, LONG) == [LONG, LONG]
    assert limits_of(http_server, None) == [None, None]
    assert limits_of(http_server, Timeout(LONG, pool=PATIENCE), acquire_timeout=PATIENCE) == [LONG, LONG]
    assert limits_of(http_server, LONG, acquire_timeout=None) == [LONG, LONG]


def test_a_limit_set_later_applies_too(silent: tuple[int, list[int]]) -> None:
    port, _ = silent
    with PoolkitPoolManager(timeout=LONG, retries=False, cert_reqs="CERT_NONE") as manager:
        url = f"https://127.0.0.1:{port}/"
        manager.connection_from_url(url).poolkit.reconfigure(acquire_timeout=SHORT)
        with pytest.raises(AcquireTimeout):
            manager.request("GET", url)
