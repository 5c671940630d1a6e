"""A program with the one changed line uses the same client port for the next request."""

from __future__ import annotations

import httpcore
import httpx
import pytest

from poolkit.testing.servers import HTTPServer
from poolkit_adapters.httpcore import AsyncPoolkitConnectionPool, PoolkitConnectionPool
from poolkit_adapters.httpx import AsyncPoolkitTransport, PoolkitTransport


def test_httpx_client_over_http_1(http_server: HTTPServer) -> None:
    with httpx.Client(transport=PoolkitTransport()) as client:
        ports = {client.get(http_server.url).json()["client_port"] for _ in range(5)}
        assert client.post(f"{http_server.url}/upload", content=b"x" * 100_000).json()["length"] == 100_000
        assert len(client.get(f"{http_server.url}/bytes?n=300000").content) == 300_000
    assert len(ports) == 1


def test_httpx_client_over_http_2(https_server: HTTPServer) -> None:
    transport = PoolkitTransport(verify=https_server.client_context, http2=True)
    with httpx.Client(transport=transport) as client:
        answers = [client.get(https_server.url).json() for _ in range(5)]
    assert {answer["http_version"] for answer in answers} == {"2"}
    assert len({answer["client_port"] for answer in answers}) == 1


@pytest.mark.anyio
async def test_async_httpx_client_over_http_1(http_server: HTTPServer) -> None:
    async with httpx.AsyncClient(transport=AsyncPoolkitTransport()) as client:
        ports = {(await client.get(http_server.url)).json()["client_port"] for _ in range(5)}
        async with client.stream("GET", f"{http_server.url}/stream?chunks=5") as response:
            assert len([line async for line in response.aiter_lines()]) == 5
        ports.add((await client.get(http_server.url)).json()["client_port"])
    assert len(ports) == 1


@pytest.mark.anyio
async def test_async_httpx_client_over_http_2(https_server: HTTPServer) -> None:
    transport = AsyncPoolkitTransport(verify=https_server.client_context, http2=True)
    async with httpx.AsyncClient(transport=transport) as client:
        answers = [(await client.get(https_server.url)).json() for _ in range(5)]
    assert {answer["http_version"] for answer in answers} == {"2"}
    assert len({answer["client_port"] for answer in answers}) == 1


def test_httpcore_pool(http_server: HTTPServer) -> None:
    with PoolkitConnectionPool() as pool:
        assert isinstance(pool, httpcore.ConnectionPool)
        ports = {pool.request("GET", http_server.url).headers[1] for _ in range(5)}
        assert [connection.info().split(", ")[1:3] for connection in pool.connections] == [["HTTP/1.1", "IDLE"]]
    assert len(ports) == 1
    assert pool.connections == []


@pytest.mark.anyio
async def test_async_httpcore_pool(http_server: HTTPServer) -> None:
    async with AsyncPoolkitConnectionPool() as pool:
        assert isinstance(pool, httpcore.AsyncConnectionPool)
        ports = {(await pool.request("GET", http_server.url)).headers[1] for _ in range(5)}
        assert [connection.info().split(", ")[1:3] for connection in pool.connections] == [["HTTP/1.1", "IDLE"]]
    assert len(ports) == 1
    assert pool.connections == []
