"""An HTTP/2 server that sends invalid data: every request ends in time, with a response or an error of httpcore."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import anyio
import h2.config
import h2.connection
import h2.events
import httpcore
import pytest

from poolkit_adapters.httpcore import AsyncPoolkitConnectionPool, PoolkitConnectionPool

from .conftest import Script

ROUNDS = 40
TIMES = {"timeout": {"connect": 20, "read": 2, "write": 2, "pool": 20}}


def frame(pick: random.Random) -> bytes:
    """Return a random frame, valid or not."""
    payload = pick.randbytes(pick.choice((0, 1, 4, 5, 6, 8, 9, 40)))
    kind, flags, stream = pick.randrange(12), pick.choice((0, 1, 4, 5, 8, 255)), pick.choice((0, 1, 2, 3, 5, 2**31 - 1))
    length = len(payload) if pick.random() < 0.9 else pick.choice((0, 2**14 + 1, 2**24 - 1))
    return length.to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def spoilt(data: bytes, pick: random.Random) -> bytes:
    """Return the bytes of a response with a fault."""
    at = pick.randrange(len(data) + 1)
    how = pick.randrange(4)
    if how == 0:
        return data[:at] + frame(pick) + data[at:]
    if how == 1:
        return data + frame(pick)
    if how == 2:
        return data[:at]
    return data[:at] + pick.randbytes(1) + data[at + 1 :]


def server(pick: random.Random) -> Script:
    lock = threading.Lock()

    def script(connection: socket.socket, number: int) -> None:
        state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        state.initiate_connection()
        connection.sendall(state.data_to_send())
        while data := connection.recv(65536):
            try:
                for event in state.receive_data(data):
                    if isinstance(event, h2.events.RequestReceived):
                        state.send_headers(event.stream_id, [(":status", "200")])
                        state.send_data(event.stream_id, b"answer", end_stream=True)
            except Exception:  # what the client sends in return does not matter
                return
            out = state.data_to_send()
            with lock:
                broken = pick.random() < 0.5
                out = spoilt(out, pick) if out and broken else out
            connection.sendall(out)
            if broken:
                connection.settimeout(0.2)

    return script


@pytest.mark.parametrize("seed", range(3))
def test_threads(scripted: Callable[[Script], str], seed: int) -> None:
    url = scripted(server(random.Random(seed)))
    with PoolkitConnectionPool(http1=False, http2=True, max_connections=5) as pool, ThreadPoolExecutor(3) as threads:

        def ask(_: int) -> bool:
            try:
                return pool.request("GET", url, extensions=TIMES).status == 200
            except (httpcore.ProtocolError, httpcore.NetworkError, httpcore.TimeoutException):
                return False

        found = list(threads.map(ask, range(ROUNDS)))
        pool.poolkit.check_books()
        assert pool.poolkit.stats().in_use == 0
    assert any(found)


@pytest.mark.anyio
@pytest.mark.parametrize("seed", range(3))
async def test_tasks(scripted: Callable[[Script], str], seed: int) -> None:
    url = scripted(server(random.Random(seed)))
    found: list[bool] = []
    async with AsyncPoolkitConnectionPool(http1=False, http2=True, max_connections=5) as pool:

        async def ask() -> None:
            for _ in range(ROUNDS // 3):
                try:
                    found.append((await pool.request("GET", url, extensions=TIMES)).status == 200)
                except (httpcore.ProtocolError, httpcore.NetworkError, httpcore.TimeoutException):
                    found.append(False)

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(ask)
        pool.poolkit.check_books()
        assert pool.poolkit.stats().in_use == 0
    assert any(found)
