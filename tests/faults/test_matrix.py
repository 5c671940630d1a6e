"""Every combination of {ok, error, slow, never returns} over connect, check, reset, close and a listener.

4**5 combinations, on threads and on a loop: the limit holds, no caller hangs, each gets a connection or the right
error, ``close`` ends, and when the fault is over the whole capacity is there.
"""

from __future__ import annotations

import itertools
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import anyio
import pytest

from poolkit import AcquireTimeout, AsyncPool, BackoffConfig, ConnectFailed, Pool, PoolClosed
from poolkit.testing import AsyncFakeConnector, FakeConnection, FakeConnector

SIZE = 2
SLOW = 0.001
PATIENCE = 0.02  # how long a caller waits while something never returns
GRACE = 60.0  # seconds that anything may take on a busy machine; a hang takes for ever
LIMITS: dict[str, Any] = {
    "max_size": SIZE,
    "acquire_timeout": PATIENCE,
    "connect_timeout": 0.01,
    "check_timeout": 0.005,
    "check_after_idle": 0,
    "barging_window": 0,
    "backoff": BackoffConfig(base=0.0005, cap=0.001),
}
STAGES = ("connect", "check", "reset", "close")
FAULTS = ("ok", "error", "slow", "never")
RIGHT = (AcquireTimeout, ConnectFailed)

Combination = tuple[str, str, str, str, str]


def combinations(connect: str, check: str) -> Iterator[Combination]:
    for reset, close, listener in itertools.product(FAULTS, repeat=3):
        yield connect, check, reset, close, listener


def harm(connector: Any, faults: Combination) -> None:
    for stage, fault in zip(STAGES, faults, strict=False):
        if fault == "error":
            connector.fail(stage, lambda: OSError("planted"))
        elif fault == "slow":
            connector.delays[stage] = SLOW
        elif fault == "never":
            connector.hold(stage)


def heal(connector: Any) -> None:
    connector.delays.clear()
    connector.free_all()


class Listener:
    """A listener that fails, is slow, or (in a thread) does not return until it is released."""

    def __init__(self, fault: str) -> None:
        self.fault = fault
        self.gate = threading.Event()

    def __call__(self, event: object) -> None:
        if self.fault == "error":
            raise ValueError("planted")
        if self.fault == "slow":
            time.sleep(SLOW / 20)
        elif self.fault == "never":
            self.gate.wait(GRACE)


# -- threads -----------------------------------------------------------------------------------------------------------


def in_thread(call: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread


def threaded(faults: Combination) -> None:
    connector = FakeConnector()
    listener = Listener(faults[4])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pool: Pool[FakeConnection] = Pool(connector, **LIMITS)
    first = [pool.acquire(timeout=GRACE) for _ in range(SIZE)]
    for connection in first:
        pool.release(connection)
    first.clear()
    if listener.fault != "ok":
        pool.add_listener(listener)
    harm(connector, faults)
    wrong: list[object] = []
    # what hangs in the caller's own thread delays it; connects and closes run elsewhere
    hangs = "never" in (faults[1], faults[2], faults[4])

    def caller(discard: bool) -> None:
        try:
            connection = pool.acquire()
        except RIGHT:
            pass
        except BaseException as error:
            wrong.append(error)
        else:
            connection.dirty = True
            pool.release(connection, discard=discard)

    callers = [in_thread(partial(caller, discard)) for discard in (False, True, False)]
    if not hangs:
        for thread in callers:
            thread.join(GRACE)
            assert not thread.is_alive(), "a caller hangs"
    else:
        time.sleep(0.002)
    assert connector.max_live <= SIZE
    listener.gate.set()
    listener.fault = "ok"
    heal(connector)
    for thread in callers:
        thread.join(GRACE)
        assert not thread.is_alive(), "a caller hangs after the fault is over"
    assert not wrong, wrong
    got = [pool.acquire(timeout=GRACE) for _ in range(SIZE)]
    assert len({id(connection) for connection in got}) == SIZE
    for connection in got:
        pool.release(connection)
    harm(connector, ("ok", "ok", "ok", faults[3], "ok"))
    pool.close(timeout=0.002)
    with pytest.raises(PoolClosed):
        pool.acquire()
    heal(connector)
    deadline = time.monotonic() + GRACE
    while pool.stats().size and time.monotonic() < deadline:
        time.sleep(0.0005)
    pool.check_books()
    assert pool.stats().size == 0
    assert connector.live == 0
    assert connector.max_live <= SIZE


# -- tasks -------------------------------------------------------------------------------------------------------------


async def looped(faults: Combination) -> None:
    connector = AsyncFakeConnector()
    # a listener that never returns would block the loop itself, which no pool can prevent
    listener = Listener("slow" if faults[4] == "never" else faults[4])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pool: AsyncPool[FakeConnection] = AsyncPool(connector, **LIMITS)
    first = [await pool.acquire(timeout=GRACE) for _ in range(SIZE)]
    for connection in first:
        await pool.release(connection)
    if listener.fault != "ok":
        pool.add_listener(listener)
    harm(connector, faults)

    async def caller(discard: bool) -> None:
        try:
            connection = await pool.acquire()
        except RIGHT:
            return
        connection.dirty = True
        await pool.release(connection, discard=discard)

    async with anyio.create_task_group() as group:
        for discard in (False, True, False):
            group.start_soon(caller, discard)
    assert connector.max_live <= SIZE
    listener.fault = "ok"
    heal(connector)
    got = [await pool.acquire(timeout=GRACE) for _ in range(SIZE)]
    assert len({id(connection) for connection in got}) == SIZE
    for connection in got:
        await pool.release(connection)
    harm(connector, ("ok", "ok", "ok", faults[3], "ok"))
    await pool.close(timeout=0.002)
    with pytest.raises(PoolClosed):
        await pool.acquire()
    heal(connector)
    with anyio.move_on_after(GRACE):
        while pool.stats().size:
            await anyio.sleep(0.0005)
    pool.check_books()
    assert pool.stats().size == 0
    assert connector.live == 0
    assert connector.max_live <= SIZE


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    """Silence the log: failing listeners are logged some hundred times."""
    caplog.set_level("CRITICAL", logger="poolkit")


@pytest.mark.parametrize("check", FAULTS)
@pytest.mark.parametrize("connect", FAULTS)
def test_threads(connect: str, check: str) -> None:
    done = 0
    for faults in combinations(connect, check):
        try:
            threaded(faults)
        except BaseException as error:
            raise AssertionError(f"{dict(zip((*STAGES, 'listener'), faults, strict=True))}: {error!r}") from error
        done += 1
    assert done == len(FAULTS) ** 3


@pytest.mark.parametrize("check", FAULTS)
@pytest.mark.parametrize("connect", FAULTS)
def test_tasks(connect: str, check: str) -> None:
    async def main() -> None:
        for faults in combinations(connect, check):
            try:
                await looped(faults)
            except BaseException as error:
                raise AssertionError(f"{dict(zip((*STAGES, 'listener'), faults, strict=True))}: {error!r}") from error

    anyio.run(main)
