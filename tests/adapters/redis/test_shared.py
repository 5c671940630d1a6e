"""The objects that connections of a pool share, the errors of a connect, and no leftovers of connects."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
import redis.asyncio

from poolkit import ConnectFailed
from poolkit.testing.servers import Certificates, free_port
from poolkit_adapters.redis import AsyncPoolkitConnectionPool, PoolkitConnectionPool, _shared
from poolkit_adapters.redis._driver import driver_info
from tests.support.waiting import until

from .rogue import RogueRedis
from .test_clean import loops, run

KINDS = ["threads", "asyncio"]


@pytest.fixture
def secure(certificates: Certificates) -> Iterator[RogueRedis]:
    with RogueRedis(certificates.server_context()) as server:
        yield server


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[ssl.SSLContext]:
    """Return the list of TLS contexts that are created from now on."""
    contexts: list[ssl.SSLContext] = []
    make = ssl.create_default_context

    def noted(*args: Any, **kwargs: Any) -> ssl.SSLContext:
        contexts.append(make(*args, **kwargs))
        return contexts[-1]

    monkeypatch.setattr(ssl, "create_default_context", noted)
    return contexts


class Client:
    """A pool of either kind, for a test without an event loop."""

    def __init__(self, kind: str, server: RogueRedis, **kwargs: Any) -> None:
        self._loop = asyncio.new_event_loop() if kind == "asyncio" else None
        pool = PoolkitConnectionPool if self._loop is None else AsyncPoolkitConnectionPool
        module: Any = redis if self._loop is None else redis.asyncio
        if server._tls is not None:
            kwargs["connection_class"] = module.SSLConnection
        self.pool: Any = pool(host=server.host, port=server.port, max_connections=1, **kwargs)
        self._client = module.Redis(connection_pool=self.pool)

    def _do(self, call: Any) -> Any:
        if self._loop is None:
            return call()

        async def main() -> Any:
            return await call()

        return self._loop.run_until_complete(main())

    def ping_anew(self) -> None:
        """Send PING on a new connection."""
        self.pool.poolkit.clear()
        assert self._do(self._client.ping) is True

    def close(self) -> None:
        self._do(self.pool.disconnect)
        if self._loop is not None:
            self._loop.close()


@pytest.mark.parametrize("kind", KINDS)
def test_the_connections_of_a_pool_share_one_tls_context(
    secure: RogueRedis, certificates: Certificates, made: list[ssl.SSLContext], kind: str, tmp_path: Path
) -> None:
    client = Client(kind, secure, ssl_ca_certs=str(certificates.write(tmp_path)[0]))
    for _ in range(5):
        client.ping_anew()
    assert len(made) == 1
    client.pool.reset()
    for _ in range(5):
        client.ping_anew()
    assert len(made) == 2, "reset() creates a new one"
    client.close()


@pytest.mark.parametrize("kind", KINDS)
def test_changed_certificates_count(
    secure: RogueRedis, certificates: Certificates, made: list[ssl.SSLContext], kind: str, tmp_path: Path
) -> None:
    mine, others = tmp_path / "mine", tmp_path / "others"
    mine.mkdir()
    others.mkdir()
    authority = certificates.write(mine)[0]
    stranger = Certificates().write(others)[0]
    client = Client(kind, secure, ssl_ca_certs=str(authority))
    client.ping_anew()
    client.pool.connection_kwargs["ssl_ca_certs"] = str(stranger)
    with pytest.raises(redis.ConnectionError):
        client.ping_anew()
    client.pool.connection_kwargs["ssl_ca_certs"] = str(authority)
    client.ping_anew()
    os.replace(stranger, authority)  # like a renewal: another file with the same name
    with pytest.raises(redis.ConnectionError):
        client.ping_anew()
    client.close()


def test_a_pool_with_another_way_to_begin_tls_keeps_it(secure: RogueRedis, made: list[ssl.SSLContext]) -> None:
    calls: list[Any] = []

    class Own(redis.SSLConnection):
        def _wrap_socket_with_ssl(self, sock: Any) -> Any:
            calls.append(sock)
            return super()._wrap_socket_with_ssl(sock)  # type: ignore[no-untyped-call]

    pool = PoolkitConnectionPool(
        connection_class=Own, host=secure.host, port=secure.port, ssl_cert_reqs="none", max_connections=1
    )
    for _ in range(3):
        pool.poolkit.clear()
        assert redis.Redis(connection_pool=pool).ping() is True
    assert len(calls) == 3
    pool.disconnect()


@pytest.mark.skipif(driver_info is None, reason="this redis-py reads the metadata once, on import")
@pytest.mark.parametrize("kind", KINDS)
def test_a_pool_reads_the_metadata_of_redis_py_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import redis.utils

    reads: list[str] = []

    def read() -> str:
        reads.append("8.0")
        return reads[-1]

    monkeypatch.setattr(redis.utils, "get_lib_version", read)
    with RogueRedis() as rogue:
        client = Client(kind, rogue)
        for _ in range(5):
            client.ping_anew()
        assert len(reads) == 1
        assert rogue.heard.count("CLIENT") >= 2 * 5, "each connection tells the server"
        client.close()


@pytest.mark.filterwarnings("ignore:.*lib_name.*:DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("option", ["driver_info", "lib_name"])
def test_the_users_own_driver_info_counts(kind: str, option: str) -> None:
    if option == "driver_info" and driver_info is None:
        pytest.skip("this redis-py has none")
    with RogueRedis() as rogue:
        own = {"driver_info": None} if option == "driver_info" else {"lib_name": None, "lib_version": None}
        client = Client(kind, rogue, protocol=2, **own)
        client.ping_anew()
        assert "CLIENT" not in rogue.heard
        client.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["constructor", "connect func"])
def test_an_error_of_the_operating_system_is_one_of_redis_py(kind: str, place: str) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with RogueRedis() as rogue:
        client = Client(kind, rogue, **({} if place == "constructor" else {"redis_connect_func": full}))
        if place == "constructor":
            client.pool.connection_class = full
        with pytest.raises(redis.ConnectionError, match="Too many open files") as caught:
            client.ping_anew()
        assert isinstance(caught.value, ConnectFailed)
        assert isinstance(caught.value.__cause__, OSError)
        until(lambda: rogue.sessions == 0)
        client.close()


def counts() -> dict[str, int]:
    gc.collect()
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "TLS contexts": sum(issubclass(type(one), ssl.SSLContext) for one in gc.get_objects()),
    }


def grown(before: dict[str, int], after: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Return what has increased. A count may decrease if an earlier test has left something."""
    return {name: (before[name], count) for name, count in after.items() if count > before[name]}


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts in /proc")
def test_nothing_grows_with_failed_connects_and_resets(secure: RogueRedis) -> None:
    pool = PoolkitConnectionPool(
        host=secure.host,
        port=secure.port,
        connection_class=redis.SSLConnection,
        ssl_cert_reqs="none",
        max_connections=2,
    )
    client = redis.Redis(connection_pool=pool)
    nobody = free_port()

    def cycle() -> None:
        assert client.ping() is True
        held = pool.get_connection()
        pool.connection_kwargs["port"] = nobody
        with pytest.raises(redis.ConnectionError):
            pool.get_connection()
        pool.connection_kwargs["port"] = secure.port
        pool.reset()
        pool.release(held)

    for _ in range(10):
        cycle()
    until(lambda: secure.sockets == 0)
    before = counts()
    for _ in range(30):
        cycle()
    until(lambda: secure.sockets == 0)
    until(lambda: grown(before, counts()) == {})  # the server's side of the last ones may still be closing
    pool.disconnect()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts in /proc")
@pytest.mark.parametrize("loop", loops())
def test_nothing_grows_with_failed_connects_and_resets_in_tasks(secure: RogueRedis, loop: str) -> None:
    async def main() -> None:
        pool = AsyncPoolkitConnectionPool(
            host=secure.host, port=secure.port, connection_class=redis.asyncio.SSLConnection,
            ssl_cert_reqs="none", max_connections=2,
        )  # fmt: skip
        client = redis.asyncio.Redis(connection_pool=pool)
        nobody = free_port()

        async def cycle() -> None:
            assert await client.ping() is True
            held = await pool.get_connection()
            pool.connection_kwargs["port"] = nobody
            with pytest.raises(redis.ConnectionError):
                await pool.get_connection()
            pool.connection_kwargs["port"] = secure.port
            pool.reset()
            await pool.release(held)

        def all_counts() -> dict[str, int]:
            return {**counts(), "tasks": len(asyncio.all_tasks())}

        async def quiet(condition: Callable[[], bool]) -> None:
            for _ in range(1000):
                if condition():
                    return
                await asyncio.sleep(0.01)
            raise AssertionError(f"never quiet: {secure.sockets} sockets, {asyncio.all_tasks()}, {all_counts()}")

        for _ in range(10):
            await cycle()
        await quiet(lambda: secure.sockets == 0 and len(asyncio.all_tasks()) == 1)
        before = all_counts()
        for _ in range(30):
            await cycle()
        await quiet(lambda: grown(before, all_counts()) == {})
        await pool.disconnect()

    run(loop, main)


@pytest.mark.parametrize(
    ("timeout", "check_timeout", "limit"),
    [(20.0, 2.0, 2.0), (11.0, 2.0, 1.0), (5.0, 2.0, 0.0), (5.0, None, 0.0), (None, 2.0, 2.0), (0.0, 2.0, 2.0)],
)
def test_a_check_takes_no_longer_than_its_caller_has_left(
    timeout: float | None, check_timeout: float | None, limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller came 10 seconds ago. With ``timeout=0`` it waits for this answer only."""
    monkeypatch.setattr("poolkit_adapters.redis._shared.time", SimpleNamespace(monotonic=lambda: 110.0))
    assert _shared.check_limit(timeout, 100.0, check_timeout) == limit
