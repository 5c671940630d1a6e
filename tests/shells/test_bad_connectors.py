"""A connector that violates its contract costs its pool only the current connection."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest

from poolkit import (
    AsyncConnector,
    AsyncPool,
    BackoffConfig,
    ConfigError,
    ConnectFailed,
    Connector,
    Pool,
    PoolError,
    UsageError,
)
from poolkit._core import maintenance
from poolkit.testing import AsyncFakeConnector, FakeConnector
from tests.shells.kit import PATIENCE, Rig

Make = Callable[..., Rig]
QUICK = BackoffConfig(base=0.001, cap=0.002)
pytestmark = pytest.mark.anyio


class Odd(BaseException):
    """A BaseException that a driver may raise."""


KINDS: list[type[BaseException]] = [ValueError, StopIteration, asyncio.CancelledError, GeneratorExit, Odd]
HOOKS = ["connect", "capacity", "peek", "check", "needs_reset", "reset", "classify", "close", "abort"]


@pytest.fixture
def unretrieved() -> Iterator[list[str]]:
    """Return what asyncio reports about errors that were never retrieved."""
    found: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    handler = Handler()
    logging.getLogger("asyncio").addHandler(handler)
    yield found
    logging.getLogger("asyncio").removeHandler(handler)


def misbehave(connector: Any, hook: str, act: Callable[[], Any], times: int = 1) -> list[int]:
    """Replace the connector's ``hook`` for so many calls. The returned list counts the calls that are left."""
    right = getattr(connector, hook)
    left = list(range(times))
    plain = isinstance(connector, FakeConnector) or hook in ("capacity", "peek", "needs_reset", "classify", "abort")

    done_first = hook in ("close", "abort")  # otherwise the connection would stay open for ever

    def sync(*args: Any) -> Any:
        if not left:
            return right(*args)
        if done_first:
            right(*args)
        left.pop()
        return act()

    async def coroutine(*args: Any) -> Any:
        if not left:
            return await right(*args)
        if done_first:
            await right(*args)
        left.pop()
        return act()

    setattr(connector, hook, sync if plain else coroutine)
    return left


async def use(rig: Rig, hook: str) -> None:
    """Take two leases, which call every hook."""
    for _ in range(2):
        lease = await rig.lease(PATIENCE)
        lease.connection.dirty = True
        await rig.give(lease, error=ConnectionResetError() if hook in ("classify", "abort") else None)
        if hook == "close":
            await rig.call(rig.pool.discard_idle)


async def served(rig: Rig) -> None:
    """Wait until the backoff after a failed connect is over and a caller gets a connection."""
    with anyio.fail_after(PATIENCE):
        while True:
            try:
                await rig.give(await rig.lease(PATIENCE))
                return
            except ConnectFailed:
                await anyio.sleep(0.001)


def fake(flavour: str, hook: str) -> Any:
    kind: Any = FakeConnector if flavour == "threads" else AsyncFakeConnector

    class Able(kind):  # type: ignore[misc]
        """A connector with ``peek``, and with the rarer hooks on request."""

        def peek(self, connection: Any) -> bool:
            return not connection.closed

    return Able(streams=1) if hook == "capacity" else Able()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hook", HOOKS)
async def test_a_hook_that_raises_costs_the_pool_nothing_more(
    make: Make, flavour: str, hook: str, kind: type[BaseException], unretrieved: list[str]
) -> None:
    if kind is StopIteration and hook in ("connect", "check", "reset", "close") and flavour != "threads":
        pytest.skip("Python makes a RuntimeError of it at the end of a coroutine")
    if kind is GeneratorExit and flavour == "threads":
        pytest.skip("no coroutine bears it: see the next test")
    connector = fake(flavour, hook)

    def act() -> Any:
        raise kind("the driver's")

    left = misbehave(connector, hook, act)
    async with make(connector, max_size=2, backoff=QUICK, check_after_idle=0) as rig:
        for _ in range(3):
            try:
                await use(rig, hook)
            except (kind, PoolError):
                pass
            except BaseException as error:
                assert isinstance(error, asyncio.CancelledError | GeneratorExit), error  # noqa: PT017
        assert not left, "it was never called"
        await rig.until(lambda: rig.stats.size == rig.stats.idle, "nothing is in nobody's hands")
        leases = [await rig.lease(PATIENCE) for _ in range(2)]
        for lease in leases:
            await rig.give(lease)
        await rig.close(timeout=PATIENCE)
        assert rig.stats.size == 0
        rig.pool.check_books()
    gc.collect()
    assert not [text for text in unretrieved if "never retrieved" in text]


@pytest.mark.parametrize("kind", [GeneratorExit, SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_that_ends_its_thread_costs_the_pool_nothing_more(hook: str, kind: type[BaseException]) -> None:
    connector = fake("threads", hook)

    def act() -> Any:
        raise kind("the driver's")

    left = misbehave(connector, hook, act)
    pool: Pool[Any] = Pool(connector, max_size=2, backoff=QUICK, check_after_idle=0)
    for _ in range(6):
        try:
            lease = pool.lease(PATIENCE)
            lease.connection.dirty = True
            lease.close(error=ConnectionResetError() if hook in ("classify", "abort") else None)
            if hook == "close":
                pool.discard_idle()
        except (kind, PoolError):
            pass
    deadline = time.monotonic() + PATIENCE
    while left or pool.stats().size > pool.stats().idle:
        assert time.monotonic() < deadline, pool.stats()
        time.sleep(0.001)
    leases = [pool.lease(PATIENCE) for _ in range(2)]
    for lease in leases:
        lease.close()
    pool.close(PATIENCE)
    assert pool.stats().size == 0
    pool.check_books()


WRONG: list[tuple[str, Any, str]] = [
    ("connect", None, "connect() returned None"),
    ("capacity", "many", "capacity() returned 'many'"),
    ("capacity", None, "capacity() returned None"),
    ("capacity", True, "capacity() returned True"),
    ("capacity", 1.5, "capacity() returned 1.5"),
    ("capacity", -1, "capacity() returned -1"),
]


@pytest.mark.parametrize(("hook", "value", "words"), WRONG)
@pytest.mark.parametrize("in_caller", [False, True])
async def test_a_connect_that_gives_something_wrong_fails_at_once_and_says_what(
    make: Make, flavour: str, hook: str, value: Any, words: str, in_caller: bool
) -> None:
    connector = fake(flavour, hook)
    connector.connect_in_caller = in_caller
    misbehave(connector, hook, lambda: value)
    async with make(connector, max_size=2, backoff=QUICK) as rig:
        with pytest.raises((ConnectFailed, UsageError)) as caught:
            await rig.lease(PATIENCE)
        assert words in str(caught.value)
        await rig.until(lambda: rig.connector.live == 0, "what was opened is closed")
        await served(rig)


@pytest.mark.parametrize(("hook", "value"), [("check", 0), ("check", "PONG"), ("peek", 0), ("classify", "discard")])
async def test_an_answer_that_means_nothing_costs_the_connection_and_is_logged(
    make: Make, flavour: str, hook: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    connector = fake(flavour, hook)
    misbehave(connector, hook, lambda: value)
    async with make(connector, max_size=2, backoff=QUICK, check_after_idle=0) as rig:
        await use(rig, hook)
        await rig.give(await rig.lease(PATIENCE))
    assert f"{type(connector).__name__}.{hook}() returned {value!r}" in caplog.text
    assert connector.connections[0].closed


@pytest.mark.parametrize("in_caller", [False, True])
async def test_the_same_connection_twice_is_an_error_that_says_so(make: Make, flavour: str, in_caller: bool) -> None:
    """The lease of it goes on. After its close, the connector may return the object again."""
    connector = fake(flavour, "connect")
    connector.connect_in_caller = in_caller
    async with make(connector, max_size=2) as rig:
        first = await rig.lease()
        left = misbehave(rig.connector, "connect", lambda: first.connection, times=100_000)
        with pytest.raises(PoolError, match=r"connect\(\) returned <.*>, which is already connection 1 of the pool"):
            await rig.lease(0.2)
        left.clear()
        assert not first.connection.closed
        second = await rig.lease(PATIENCE)
        assert second.connection is not first.connection
        await rig.give(second)
        await rig.give(first, discard=True)
        await rig.until(lambda: first.connection.closed and rig.stats.closing == 0, "it is closed")
        misbehave(rig.connector, "connect", lambda: first.connection, times=1)
        leases = [await rig.lease(PATIENCE), await rig.lease(PATIENCE)]
        assert first.connection in [lease.connection for lease in leases]
        for lease in leases:
            await rig.give(lease, discard=True)


async def test_a_capacity_that_fails_leaves_nothing_open(make: Make, flavour: str) -> None:
    """This holds for a connector without ``abort`` too."""
    open_ones: list[object] = []

    def opened() -> object:
        open_ones.append(object())
        return open_ones[-1]

    if flavour == "threads":

        class Sync(Connector[object]):
            def connect(self, timeout: float | None) -> object:
                return opened()

            def close(self, connection: object) -> None:
                open_ones.remove(connection)

            def capacity(self, connection: object) -> int:
                raise ValueError("nobody knows")

        with Pool(Sync(), max_size=2, backoff=QUICK) as pool:
            for _ in range(2):
                with pytest.raises(PoolError, match=r"Sync.capacity\(\) raised ValueError: nobody knows"):
                    pool.lease(0.05)
    else:

        class Async(AsyncConnector[object]):
            async def connect(self, timeout: float | None) -> object:
                return opened()

            async def close(self, connection: object) -> None:
                open_ones.remove(connection)

            def capacity(self, connection: object) -> int:
                raise ValueError("nobody knows")

        async with AsyncPool(Async(), max_size=2, backoff=QUICK) as another:
            for _ in range(2):
                with pytest.raises(PoolError, match=r"Async.capacity\(\) raised ValueError: nobody knows"):
                    await another.lease(0.05)
            await anyio.sleep(0.01)
    with anyio.fail_after(PATIENCE):
        while open_ones:
            await anyio.sleep(0.001)


async def test_an_abort_that_raises_frees_its_place_where_there_is_no_close(make: Make, flavour: str) -> None:
    class Sync(Connector[object]):
        def connect(self, timeout: float | None) -> object:
            return object()

        def abort(self, connection: object) -> None:
            raise OSError("abort")

    class Async(AsyncConnector[object]):
        async def connect(self, timeout: float | None) -> object:
            return object()

        def abort(self, connection: object) -> None:
            raise OSError("abort")

    rig = make(None)
    rig.pool = Pool(Sync(), max_size=2) if flavour == "threads" else AsyncPool(Async(), max_size=2)
    for ending in (rig.pool.discard_idle, rig.pool.close):
        leases = [await rig.lease(), await rig.lease()]
        for lease in leases:
            await rig.give(lease)
        await rig.call(ending)
        await rig.until(lambda: rig.pool.stats().size == 0, "the places are free")
    assert "closed: 0 open" in repr(rig.pool)


@pytest.mark.parametrize("name", ["abort", "peek", "needs_reset", "classify", "capacity", "lazy", "forget", "leftover"])
async def test_a_coroutine_where_none_is_awaited_is_refused_when_the_pool_is_made(flavour: str, name: str) -> None:
    async def coroutine(*args: Any) -> None: ...

    connector: Any = FakeConnector() if flavour == "threads" else AsyncFakeConnector()
    setattr(connector, name, coroutine)
    with pytest.raises(ConfigError, match=rf"FakeConnector.{name}\(\) is a coroutine function"):
        (Pool if flavour == "threads" else AsyncPool)(connector)


@pytest.mark.parametrize("name", ["connect", "close", "check", "reset"])
def test_a_coroutine_in_a_connector_for_threads_is_refused_when_the_pool_is_made(name: str) -> None:
    async def coroutine(*args: Any) -> None: ...

    connector: Any = FakeConnector()
    setattr(connector, name, coroutine)
    with pytest.raises(ConfigError, match=rf"FakeConnector.{name}\(\) is a coroutine function"):
        Pool(connector)


def test_a_connect_that_returns_a_coroutine_all_the_same() -> None:
    async def coroutine() -> None: ...

    connector: Any = FakeConnector()
    connector.connect = lambda timeout: coroutine()
    with (
        Pool(connector) as pool,
        pytest.raises(ConnectFailed, match=r"FakeConnector.connect\(\) returned a coroutine"),
    ):
        pool.acquire(PATIENCE)


@pytest.mark.parametrize("name", ["connect", "check", "reset", "close"])
@pytest.mark.parametrize("flavour", ["asyncio", "trio"], indirect=True)
async def test_a_plain_function_where_a_coroutine_is_awaited_is_named(
    make: Make, flavour: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    connector = fake(flavour, name)
    right = getattr(connector, name)
    opened = await connector.connect(None)
    setattr(connector, name, lambda *args: opened if name == "connect" else True)
    async with make(connector, max_size=1, backoff=QUICK, check_after_idle=0) as rig:
        if name == "connect":
            with pytest.raises(ConnectFailed, match=r"AsyncConnector must be a coroutine"):
                await rig.lease(PATIENCE)
            await rig.until(lambda: opened.closed, "what it has opened is closed")
        else:
            await use(rig, name)
        await rig.until(lambda: f"{name}() returned" in caplog.text, "it is logged")
        setattr(connector, name, right)
        connector.abort(opened)
        await served(rig)


async def test_streams_that_make_no_sense_are_named(make: Make, flavour: str) -> None:
    connector = fake(flavour, "streams")
    connector.streams = lambda key: "many" if key == "bad" else 1 / 0 if key == "worse" else 1
    async with make(connector, max_size=2, keyed=True) as rig:
        for key, words in (("bad", r"streams\(\) returned 'many'"), ("worse", r"streams\(\) raised ZeroDivisionError")):
            with pytest.raises(UsageError, match=words):
                await rig.lease(PATIENCE, key=key)
        await rig.give(await rig.lease(PATIENCE, key="good"))


async def test_housekeeping_goes_on_after_an_error(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It neither ends nor loops without a pause: the core runs again after a while."""

    def wrong(*args: object) -> None:
        raise RuntimeError("a bug")

    async with make(max_size=2, max_lifetime=100) as rig:
        await rig.fill(2)
        monkeypatch.setattr(maintenance, "audit", wrong)
        rig.pool._core.want_sweep(0.0)
        rig.pool.run_due()
        assert "housekeeping failed" in caplog.text
        assert rig.pool._core.due > rig.pool._clock() + 0.5
        monkeypatch.undo()
        await rig.give(await rig.lease(PATIENCE))
        rig.pool._core.want_sweep(0.0)
        rig.pool.run_due()
        assert rig.pool._core.sweep_at > rig.pool._clock()
