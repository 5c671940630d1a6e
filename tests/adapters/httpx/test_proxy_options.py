"""Options of the connection to a proxy have an effect or are refused."""

from __future__ import annotations

import socket
from typing import Any

import httpcore
import httpx
import pytest

from poolkit import ConfigError
from poolkit.testing.servers import HTTPServer
from poolkit_adapters.httpcore import AsyncPoolkitConnectionPool, PoolkitConnectionPool
from poolkit_adapters.httpx import AsyncPoolkitTransport, PoolkitTransport
from tests.support.proxies import HTTPProxy

ELSEWHERE = "127.0.0.2"
KEEPALIVE = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]


@pytest.mark.parametrize("secure", [False, True])
def test_local_address_and_socket_options_are_those_of_the_connection_to_the_proxy(
    http_server: HTTPServer, https_server: HTTPServer, secure: bool
) -> None:
    url = (https_server if secure else http_server).url
    with HTTPProxy() as proxy:
        way: dict[str, Any] = {"proxy": httpcore.Proxy(proxy.url), "ssl_context": https_server.client_context}
        with PoolkitConnectionPool(**way, local_address=ELSEWHERE, socket_options=KEEPALIVE) as pool:
            with pool.stream("GET", url) as response:
                stream = response.extensions["network_stream"]
                assert stream.get_extra_info("client_addr")[0] == ELSEWHERE
                assert stream.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


@pytest.mark.anyio
async def test_local_address_is_that_of_the_connection_to_the_proxy_async(http_server: HTTPServer) -> None:
    with HTTPProxy() as proxy:
        async with AsyncPoolkitConnectionPool(proxy=httpcore.Proxy(proxy.url), local_address=ELSEWHERE) as pool:
            async with pool.stream("GET", http_server.url) as response:
                assert response.extensions["network_stream"].get_extra_info("client_addr")[0] == ELSEWHERE


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_retries_are_attempts_to_reach_the_proxy(scheme: str) -> None:
    failed: list[str] = []

    def trace(event: str, info: object) -> None:
        if event == "connection.connect_tcp.failed":
            failed.append(event)

    with PoolkitConnectionPool(proxy=httpcore.Proxy("http://127.0.0.1:1"), retries=1) as pool:
        with pytest.raises(httpcore.ConnectError):
            pool.request("GET", f"{scheme}://localhost/", extensions={"trace": trace})
    assert len(failed) == 2


@pytest.mark.parametrize("kind", [PoolkitTransport, AsyncPoolkitTransport])
@pytest.mark.parametrize(
    ("proxy", "options"),
    [
        ("http://127.0.0.1:1", {"uds": "/tmp/x"}),
        ("socks5://127.0.0.1:1", {"uds": "/tmp/x"}),
        ("socks5://127.0.0.1:1", {"retries": 2}),
        ("socks5://127.0.0.1:1", {"local_address": ELSEWHERE}),
        ("socks5h://127.0.0.1:1", {"socket_options": KEEPALIVE}),
    ],
)
def test_what_has_no_effect_with_a_proxy_is_refused(kind: Any, proxy: str, options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ConfigError, match=rf"{name}=.*: has no effect with a (SOCKS )?proxy"):
        kind(verify=False, proxy=proxy, **options)
    kind(verify=False, proxy=httpx.Proxy(proxy))
