"""A caller that is cancelled or interrupted while it connects by itself leaves no session at the server.

See test_detached_connects.py for connects in threads and tasks of the pool, which go on.
The garbage collector is off, and every exception is kept with its traceback, hence with what stood in the frames.
"""

from __future__ import annotations

import _socket
import asyncio
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis
import redis.asyncio

from poolkit.testing.servers import Certificates
from poolkit_adapters.redis import AsyncPoolkitConnectionPool, PoolkitConnectionPool
from tests.faults.proxy import FaultProxy
from tests.support.waiting import until

from .rogue import RogueRedis
from .test_clean import loops, run

LIMIT = 2
PHASES = ["tls", "HELLO", "AUTH", "CLIENT", "connect func"]


pytestmark = pytest.mark.usefixtures("no_collector")


@pytest.fixture
def rogue() -> Iterator[RogueRedis]:
    with RogueRedis() as server:
        yield server


def arguments(rogue: RogueRedis, phase: str, certificates: Certificates, module: Any) -> dict[str, Any]:
    """Return the arguments of a pool whose connects reach this phase and no further."""
    # without a timeout: redis-py puts one around each write with wait_for(), which loses cancellations before 3.12
    kwargs: dict[str, Any] = {
        "host": rogue.host, "port": rogue.port, "max_connections": LIMIT, "socket_timeout": None,
        "connect_in_caller": True,
    }  # fmt: skip
    if phase == "tls":
        rogue.silent = True
        authority = certificates.authority.cert_pem.bytes().decode()
        kwargs.update(connection_class=module.SSLConnection, ssl_ca_data=authority)
    elif phase == "AUTH":
        kwargs.update(protocol=2, password="secret")
    elif phase == "HELLO":
        kwargs.update(protocol=3)
    else:
        kwargs.update(protocol=2)
    rogue.mute = {phase}
    return kwargs


@pytest.mark.parametrize("loop", loops())
@pytest.mark.parametrize("phase", PHASES)
def test_cancelled_connects_leave_no_session(
    rogue: RogueRedis, certificates: Certificates, phase: str, loop: str
) -> None:
    async def never(connection: Any) -> None:
        rogue.heard.append(phase)
        await asyncio.Event().wait()

    async def main() -> None:
        kwargs = arguments(rogue, phase, certificates, redis.asyncio)
        if phase == "connect func":
            kwargs["redis_connect_func"] = never
        pool = AsyncPoolkitConnectionPool(**kwargs)
        kept: list[BaseException] = []
        for _ in range(10):
            tasks = [asyncio.ensure_future(pool.get_connection()) for _ in range(2 * LIMIT)]
            rogue.heard.clear()
            for _ in range(5000):
                if rogue.sessions == LIMIT and (phase == "tls" or rogue.heard.count(phase) >= LIMIT):
                    break
                await asyncio.sleep(0.001)
            for task in tasks:
                task.cancel()
            for error in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(error, asyncio.CancelledError)
                kept.append(error)
        for _ in range(5000):
            if not rogue.sessions:
                break
            await asyncio.sleep(0.001)
        assert rogue.sessions == 0
        assert rogue.most <= LIMIT
        pool.poolkit.check_books()
        await pool.disconnect()

    run(loop, main)


@pytest.mark.parametrize("loop", loops())
def test_a_cancellation_at_the_end_of_a_write_is_not_lost(rogue: RogueRedis, loop: str) -> None:
    """Before Python 3.12 ``asyncio.wait_for()`` loses it, and redis-py uses that where there is a socket_timeout."""
    rogue.mute = {"HELLO"}

    async def main() -> None:
        cancelled = False

        class Cancelled(redis.asyncio.Connection):
            async def _send_packed_command(self, command: Any) -> None:  # what redis-py calls in wait_for()
                nonlocal cancelled
                await super()._send_packed_command(command)  # type: ignore[misc]
                cancelled = task.cancel()

        pool = AsyncPoolkitConnectionPool(
            host=rogue.host, port=rogue.port, protocol=3, socket_timeout=None, connect_timeout=1.0,
            connection_class=Cancelled, connect_in_caller=True,
        )  # fmt: skip
        task = asyncio.ensure_future(pool.get_connection())
        while "HELLO" not in rogue.heard and not task.done():
            await asyncio.sleep(0.001)
        if not cancelled:
            task.cancel()
        (error,) = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(error, asyncio.CancelledError)
        await pool.disconnect()

    run(loop, main)


@pytest.mark.parametrize("loop", loops())
def test_a_peer_that_does_not_close_tls_keeps_no_session(certificates: Certificates, loop: str) -> None:
    """asyncio waits 30 seconds for that, and Python 3.10 forever."""
    with RogueRedis(certificates.server_context()) as rogue:
        proxy = FaultProxy(rogue.host, rogue.port).start()

        async def main() -> None:
            kwargs = arguments(rogue, "CLIENT", certificates, redis.asyncio)
            authority = certificates.authority.cert_pem.bytes().decode()
            kwargs.update(port=proxy.port, connection_class=redis.asyncio.SSLConnection, ssl_ca_data=authority)
            pool = AsyncPoolkitConnectionPool(**kwargs)
            task = asyncio.ensure_future(pool.get_connection())  # cancelled while it connects
            for _ in range(5000):
                if "CLIENT" in rogue.heard:
                    break
                await asyncio.sleep(0.001)
            proxy.mode = "silent"
            task.cancel()
            kept = await asyncio.gather(task, return_exceptions=True)
            for _ in range(2000):
                if not proxy.open:
                    break
                await asyncio.sleep(0.001)
            assert proxy.open == 0
            assert isinstance(kept[0], asyncio.CancelledError)

            rogue.mute, proxy.mode = set(), "pass"
            held = await pool.get_connection()  # closed in an orderly way, without an answer of the peer
            proxy.mode = "silent"
            pool.poolkit.reconfigure(check_timeout=0.05)
            pool.poolkit.clear()
            await pool.release(held)
            for _ in range(5000):
                if not proxy.open:
                    break
                await asyncio.sleep(0.001)
            assert proxy.open == 0
            await pool.disconnect()

        try:
            run(loop, main)
        finally:
            proxy.stop()


class Interrupted(BaseException):
    """An interrupt like KeyboardInterrupt that nothing else raises."""


class TimeIsUp(Exception):
    """Like the time limit of a task queue: raised by a signal handler, and not an OSError."""


@pytest.fixture(params=[Interrupted, TimeIsUp])
def interrupt(request: pytest.FixtureRequest) -> Iterator[type[BaseException]]:
    """Raise this in the main thread by SIGALRM."""

    def strike(*_: object) -> None:
        raise request.param

    before = signal.signal(signal.SIGALRM, strike)
    try:
        yield request.param
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(sys.platform == "win32", reason="needs pthread_kill")
@pytest.mark.parametrize("phase", PHASES)
def test_interrupted_connects_leave_no_session(
    rogue: RogueRedis, certificates: Certificates, phase: str, interrupt: type[BaseException]
) -> None:
    kwargs = arguments(rogue, phase, certificates, redis)
    if phase == "connect func":

        def never(connection: Any) -> None:
            rogue.heard.append(phase)
            threading.Event().wait(60)

        kwargs["redis_connect_func"] = never
    pool = PoolkitConnectionPool(**kwargs)
    kept: list[BaseException] = []
    main = threading.get_ident()

    def strike() -> None:
        until(lambda: rogue.sessions == 1 and (phase == "tls" or phase in rogue.heard))
        signal.pthread_kill(main, signal.SIGALRM)

    for _ in range(5):
        rogue.heard.clear()
        striker = threading.Thread(target=strike)
        striker.start()
        try:
            pool.get_connection()
        except interrupt as error:
            kept.append(error)
        striker.join()
        until(lambda: rogue.sessions == 0)
    assert len(kept) == 5
    assert pool.poolkit.stats().size == 0
    pool.poolkit.check_books()


@pytest.mark.parametrize("error", [KeyboardInterrupt, TimeIsUp])
@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_interrupted_in_the_middle_of_a_socket_connect(
    rogue: RogueRedis, monkeypatch: pytest.MonkeyPatch, kind: str, error: type[BaseException], tmp_path: Any
) -> None:
    class Struck(socket.socket):
        def connect(self, address: Any) -> None:
            super().connect(address)
            raise error

    with RogueRedis(path=tmp_path / "redis.sock") as other:
        server = rogue if kind == "tcp" else other
        unix = {"connection_class": redis.UnixDomainSocketConnection, "path": str(other.path)}
        tcp = {"host": rogue.host, "port": rogue.port}
        pool = PoolkitConnectionPool(connect_in_caller=True, **(tcp if kind == "tcp" else unix))
        monkeypatch.setattr(socket, "socket", Struck)
        kept: list[BaseException] = []
        for _ in range(3):
            try:
                pool.get_connection()
            except error as caught:
                kept.append(caught)
        monkeypatch.undo()
        assert len(kept) == 3
        until(lambda: server.sessions == 0)
        assert redis.Redis(connection_pool=pool).ping() is True
        pool.disconnect()


def test_interrupted_in_the_constructor_of_a_socket(rogue: RogueRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[socket.socket] = []

    class Half(socket.socket):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            _socket.socket.__init__(self, *args, **kwargs)  # its own attributes are not set yet
            made.append(self)
            raise KeyboardInterrupt

    pool = PoolkitConnectionPool(host=rogue.host, port=rogue.port, connect_in_caller=True)
    monkeypatch.setattr(socket, "socket", Half)
    with pytest.raises(KeyboardInterrupt):
        pool.get_connection()
    monkeypatch.undo()
    assert [sock.fileno() for sock in made] == [-1]


def test_an_interrupted_connect_closes_no_socket_of_the_users_own(rogue: RogueRedis) -> None:
    """A credential provider, or a redis_connect_func, has connections of its own."""
    left, right = socket.socketpair()

    def ask_elsewhere(sock: socket.socket) -> None:
        raise KeyboardInterrupt

    pool = PoolkitConnectionPool(
        host=rogue.host,
        port=rogue.port,
        redis_connect_func=lambda connection: ask_elsewhere(left),
        connect_in_caller=True,
    )
    with pytest.raises(KeyboardInterrupt):
        pool.get_connection()
    assert left.fileno() != -1
    until(lambda: rogue.sessions == 0)
    left.close()
    right.close()
