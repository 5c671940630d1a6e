"""If the peer no longer knows the connection of a request, the idle ones are checked before use."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Literal

import anyio
import httpx
import pytest

from poolkit.testing.servers import HTTPServer
from poolkit_adapters.httpx import AsyncPoolkitTransport, PoolkitTransport
from tests.faults.proxy import FaultProxy

IDLE = 6
Fault = Literal["freeze", "forget"]


@pytest.fixture
def proxy(http_server: HTTPServer, fault_proxy: Callable[[str, int], FaultProxy]) -> FaultProxy:
    return fault_proxy(http_server.host, http_server.port)


@pytest.mark.parametrize("fault", ["freeze", "forget"])
def test_idle_connections_that_died_with_another_fail_no_request(proxy: FaultProxy, fault: Fault) -> None:
    url = f"http://{proxy.host}:{proxy.port}"
    with httpx.Client(transport=PoolkitTransport(), timeout=httpx.Timeout(30, read=1)) as client:
        with ExitStack() as stack:
            for _ in range(IDLE):
                stack.enter_context(client.stream("GET", url)).read()
        getattr(proxy, fault)()
        failed = 0
        for _ in range(IDLE):
            try:
                assert client.post(f"{url}/upload", content=b"once").json()["length"] == 4
            except httpx.TransportError:
                failed += 1
    assert failed == 1


@pytest.mark.anyio
@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")  # httpx's body, where sending it fails (trio)
@pytest.mark.parametrize("fault", ["freeze", "forget"])
async def test_idle_connections_that_died_with_another_fail_no_request_async(proxy: FaultProxy, fault: Fault) -> None:
    url = f"http://{proxy.host}:{proxy.port}"
    transport = AsyncPoolkitTransport()
    async with httpx.AsyncClient(transport=transport, timeout=httpx.Timeout(30, read=1)) as client:
        requests = [client.build_request("GET", url) for _ in range(IDLE)]
        responses = [await client.send(request, stream=True) for request in requests]
        for response in responses:
            await response.aread()
        getattr(proxy, fault)()
        failed = 0
        for _ in range(IDLE):
            try:
                assert (await client.post(f"{url}/upload", content=b"once")).json()["length"] == 4
            except httpx.TransportError:
                failed += 1
    assert failed == 1


@pytest.mark.anyio
async def test_a_slow_answer_closes_no_connection_that_has_answered_since(http_server: HTTPServer) -> None:
    transport = AsyncPoolkitTransport()
    async with httpx.AsyncClient(transport=transport, timeout=30) as client:
        requests = [client.build_request("GET", http_server.url) for _ in range(3)]
        for response in [await client.send(request, stream=True) for request in requests]:
            await response.aread()

        async def slow() -> None:
            with pytest.raises(httpx.ReadTimeout):
                await client.get(f"{http_server.url}/sleep?ms=60000", timeout=httpx.Timeout(30, read=1))

        async with anyio.create_task_group() as group:
            group.start_soon(slow)
            while not transport.poolkit.stats().in_use:
                await anyio.sleep(0.001)
            port = (await client.get(http_server.url)).json()["client_port"]
        assert transport.poolkit.stats().idle == 1  # neither the one without an answer nor the one that was idle
        assert (await client.get(http_server.url)).json()["client_port"] == port


def test_a_body_that_breaks_off_is_a_reason_too(proxy: FaultProxy) -> None:
    url = f"http://{proxy.host}:{proxy.port}"
    transport = PoolkitTransport()
    with httpx.Client(transport=transport, timeout=httpx.Timeout(30, read=1)) as client:
        with ExitStack() as stack:
            for _ in range(IDLE):
                stack.enter_context(client.stream("GET", url)).read()
        with client.stream("GET", f"{url}/bytes?n=5000000") as response:
            parts = response.iter_raw(1000)
            next(parts)
            proxy.freeze()
            with pytest.raises(httpx.ReadTimeout):
                for _ in parts:
                    pass
        assert transport.poolkit.stats().idle == 0
