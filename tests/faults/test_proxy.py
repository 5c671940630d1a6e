"""Each mode of the fault proxy does what its description says."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from typing import cast

import pytest

from tests.faults.proxy import FaultProxy
from tests.support.waiting import PATIENCE

MakeProxy = Callable[[str, int], FaultProxy]


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        try:
            while data := self.request.recv(65536):
                self.request.sendall(data)
        except OSError:
            pass


class EchoServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    block_on_close = False


@pytest.fixture
def proxy(fault_proxy: MakeProxy) -> Iterator[FaultProxy]:
    with EchoServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield fault_proxy(*cast("tuple[str, int]", server.server_address))
        server.shutdown()
        thread.join()


def connect(proxy: FaultProxy) -> socket.socket:
    return socket.create_connection((proxy.host, proxy.port), timeout=5)


def say(sock: socket.socket, data: bytes) -> bytes:
    sock.sendall(data)
    return receive(sock, len(data))


def receive(sock: socket.socket, length: int) -> bytes:
    answer = b""
    while len(answer) < length and (data := sock.recv(65536)):
        answer += data
    return answer


def test_it_relays_and_counts(proxy: FaultProxy) -> None:
    with connect(proxy) as one, connect(proxy) as two:
        assert say(one, b"x" * 200_000) == b"x" * 200_000
        assert say(two, b"b") == b"b"
        assert (proxy.accepted, proxy.open, proxy.max_open) == (2, 2, 2)
        assert one.getsockname()[1] in proxy.ports
    deadline = time.monotonic() + 5
    while proxy.open and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (proxy.accepted, proxy.open, proxy.max_open) == (2, 0, 2)


def test_latency_is_added_in_each_direction(proxy: FaultProxy) -> None:
    with connect(proxy) as sock:
        assert say(sock, b"a") == b"a"
        proxy.latency = 0.1
        begun = time.monotonic()
        assert say(sock, b"b") == b"b"
        assert time.monotonic() >= begun + 0.19


def test_bandwidth_is_limited(proxy: FaultProxy) -> None:
    with connect(proxy) as sock:
        assert say(sock, b"a") == b"a"
        proxy.bandwidth = 20_000
        begun = time.monotonic()
        assert say(sock, b"b" * 4096) == b"b" * 4096
        assert time.monotonic() >= begun + 0.2


def test_cut_ends_the_stream_in_good_order(proxy: FaultProxy) -> None:
    with connect(proxy) as sock:
        assert say(sock, b"a") == b"a"
        assert proxy.cut() == 1
        assert sock.recv(10) == b""
    with connect(proxy) as sock:
        assert say(sock, b"again") == b"again"


def test_reset_breaks_the_stream(proxy: FaultProxy) -> None:
    with connect(proxy) as sock:
        assert say(sock, b"a") == b"a"
        assert proxy.reset() == 1
        with pytest.raises(ConnectionResetError):
            sock.recv(10)


def test_silent_takes_bytes_and_answers_nothing_until_it_passes_again(proxy: FaultProxy) -> None:
    with connect(proxy) as old:
        assert say(old, b"a") == b"a"
        proxy.mode = "silent"
        with connect(proxy) as new:
            for sock in (old, new):
                sock.settimeout(0.1)
                sock.sendall(b"anybody there")
                with pytest.raises(TimeoutError):
                    sock.recv(10)
            proxy.mode = "pass"
            old.settimeout(5)
            assert say(old, b"b") == b"b"


def test_mute_passes_requests_but_no_answers(proxy: FaultProxy) -> None:
    with connect(proxy) as sock:
        assert say(sock, b"a") == b"a"
        proxy.mode = "mute"
        sock.settimeout(0.1)
        sock.sendall(b"b")
        with pytest.raises(TimeoutError):
            sock.recv(10)


def test_a_partial_reply_is_followed_by_silence(proxy: FaultProxy) -> None:
    with connect(proxy) as sock:
        assert say(sock, b"a") == b"a"
        proxy.reply_limit = 3
        sock.settimeout(0.3)
        sock.sendall(b"abcdef")
        assert receive(sock, 3) == b"abc"
        with pytest.raises(TimeoutError):
            sock.recv(10)


def test_refuse_leaves_open_connections_alone(proxy: FaultProxy) -> None:
    with connect(proxy) as sock:
        assert say(sock, b"a") == b"a"
        proxy.mode = "refuse"
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
        assert say(sock, b"b") == b"b"
        proxy.mode = "pass"
        with connect(proxy) as new:
            assert say(new, b"c") == b"c"


def test_a_target_that_is_down_closes_the_connection(proxy: FaultProxy, fault_proxy: MakeProxy) -> None:
    proxy.mode = "refuse"
    behind = fault_proxy(proxy.host, proxy.port)
    with connect(behind) as sock:
        assert sock.recv(10) == b""


def test_it_serves_an_event_loop_too(proxy: FaultProxy) -> None:
    async def main() -> bytes:
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        writer.write(b"hello")
        answer = await asyncio.wait_for(reader.readexactly(5), 5)
        writer.close()
        await writer.wait_closed()
        return answer

    assert asyncio.run(main()) == b"hello"


def test_connections_that_are_accepted_while_it_stops_are_closed(proxy: FaultProxy) -> None:
    """None of them is left to the garbage collector, which would warn in another test."""
    busy, go_on = threading.Event(), threading.Event()

    def block() -> None:
        busy.set()
        go_on.wait(PATIENCE)

    blocker = threading.Thread(target=proxy._loop.call, args=(block,))
    blocker.start()
    assert busy.wait(PATIENCE)
    clients = [socket.create_connection((proxy.host, proxy.port), PATIENCE) for _ in range(20)]
    stopper = threading.Thread(target=proxy.stop)
    stopper.start()
    go_on.set()
    stopper.join()
    blocker.join()
    gc.collect()  # its warnings fail this test
    for client in clients:
        with client, contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
